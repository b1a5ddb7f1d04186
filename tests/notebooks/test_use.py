"""`polyhost.notebook.use`: whose addresses the clients of this process call afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.session
import pytest
from polyhost.notebook import use

HERE, BUCKETS, IAM = "http://127.0.0.1:8080", "http://127.0.0.1:9000", "http://127.0.0.1:9001"


@pytest.fixture(autouse=True)
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of somebody who has no AWS settings at all; what `use` changes is undone."""
    before = dict(os.environ)
    monkeypatch.setattr(botocore.session.Session, "create_client", botocore.session.Session.create_client)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(HOME=str(tmp_path), AWS_EC2_METADATA_DISABLED="true")
    yield
    os.environ.clear()
    os.environ.update(before)


def address(service: str, given: str | None = None) -> str:
    with contextlib.closing(boto3.Session().client(service, endpoint_url=given)) as client:
        return str(client.meta.endpoint_url)


@pytest.mark.parametrize(
    "passed",
    ["https://sts.us-east-1.amazonaws.com", "https://sts.amazonaws.com", "https://sts.cn-north-1.amazonaws.com.cn"],
)
def test_an_address_of_aws_gives_way(passed: str) -> None:
    """What the SDK's default_bucket and get_execution_role pass."""
    use(HERE)

    assert address("sts", passed) == HERE


def test_a_users_own_address_stays() -> None:
    use(HERE)

    assert address("sts", "http://127.0.0.1:1") == "http://127.0.0.1:1"
    assert address("sts", "https://sts.us-east-1.amazonaws.com.example.net") != HERE


def test_without_an_argument_it_is_this_machine_and_all_else_is_aws() -> None:
    use()

    for service in ("sagemaker", "sagemaker-runtime", "runtime.sagemaker", "sts", "iam", "logs"):
        assert address(service) == HERE
    assert address("s3") == "https://s3.amazonaws.com"
    assert address("cloudwatch", "https://monitoring.us-east-1.amazonaws.com").endswith("amazonaws.com")


def test_arguments_win_over_variables_and_these_over_the_defaults() -> None:
    os.environ.update(
        AWS_ENDPOINT_URL_SAGEMAKER="http://127.0.0.1:2",
        AWS_ENDPOINT_URL_S3="http://127.0.0.1:3",
        AWS_ENDPOINT_URL_IAM="http://127.0.0.1:4",
    )

    use()
    assert [address(service) for service in ("sagemaker-runtime", "s3", "iam")] == [
        "http://127.0.0.1:2", "http://127.0.0.1:3", "http://127.0.0.1:4",
    ]  # fmt: skip
    use(HERE, s3=BUCKETS, iam=IAM)
    assert [address(service) for service in ("sagemaker", "sts", "s3", "iam")] == [HERE, HERE, BUCKETS, IAM]


def test_the_last_call_counts() -> None:
    use("http://127.0.0.1:1")
    use(HERE)

    assert [address(service) for service in ("sagemaker", "sts", "iam")] == [HERE, HERE, HERE]


def test_region_and_keys_are_set_only_where_there_are_none(tmp_path: Path) -> None:
    use(HERE)
    assert boto3.Session().region_name == "us-east-1"
    assert boto3.Session().get_credentials().access_key == "anybody"

    for name in ("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del os.environ[name]
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = eu-west-1\n")
    (tmp_path / ".aws" / "credentials").write_text("[default]\naws_access_key_id = mine\naws_secret_access_key = own\n")
    use(HERE)
    assert boto3.Session().region_name == "eu-west-1"
    assert boto3.Session().get_credentials().access_key == "mine"


def test_a_session_of_before_calls_here_too() -> None:
    session = boto3.Session(region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")

    use(HERE)

    with contextlib.closing(session.client("sts", endpoint_url="https://sts.amazonaws.com")) as client:
        assert client.meta.endpoint_url == HERE
