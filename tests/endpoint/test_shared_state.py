"""Three servers that serve one state: in a bucket (moto's S3), and in a file. Real servers, real clients."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from support.endpoint import ONCE, EndpointServer, served
from support.forms import by_form
from support.principals import ANNA, BOSTON_ONLY, document, policy
from support.tree import wait_until

from endpoint.conftest import environ_for

HOUSE = "1998,2150,3,2.5,0.4,2"
WRITES_EACH = by_form(short=20, long=100)
CALLS_EACH = by_form(short=30, long=150)
SESSIONS_EACH = by_form(short=15, long=75)


def aws(url: str) -> dict[str, str]:
    return {name: value for name, value in environ_for(url).items() if name.startswith("AWS_")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Path:
    """Models, who may call, and the key of sessions."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "models" / "boston").mkdir(parents=True)
    shutil.copy(samples_folder / "houston.tar.gz", folder / "models" / "houston.tar.gz")
    shutil.copy(samples_folder / "boston.tar.gz", folder / "models" / "boston" / "one.tar.gz")
    principals = document()
    principals["roles"][0]["policies"] = [policy(Action="sagemaker:InvokeEndpoint")]
    (folder / "principals.json").write_text(json.dumps(principals))
    (folder / "principals.json").chmod(0o600)
    (folder / "token.key").write_bytes(secrets.token_bytes(32))
    (folder / "token.key").chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path, s3_url: str, s3: Any) -> Iterator[list[EndpointServer]]:
    s3.create_bucket(Bucket="fleet")
    arguments = (
        "--state", "s3://fleet/state", "--auth", "sigv4", "--auth-file", str(folder / "principals.json"),
        "--token-key-file", str(folder / "token.key"), "--access-log", "off",
    )  # fmt: skip
    servers: list[EndpointServer] = []
    try:
        for _ in range(3):
            servers.append(EndpointServer("native", None, *arguments, environ=aws(s3_url)))
            servers[-1].models = folder / "models"
        yield servers
        for server in servers:
            server.process.send(signal.SIGTERM)
            assert server.ends_within(1.5) == 0  # the store is looked at every two seconds, server.process.log
    finally:
        for server in servers:
            server.kill()


def client_of(server: EndpointServer, service: str, session: dict[str, str] | None = None) -> Any:
    keys = {"aws_access_key_id": ANNA["key"], "aws_secret_access_key": ANNA["secret"]}
    return boto3.client(service, endpoint_url=server.url, region_name="us-east-1", config=ONCE, **(session or keys))


def create_model(sagemaker: Any, name: str, url: str) -> None:
    container = {"Image": "any/image:1", "ModelDataUrl": url, "Mode": "MultiModel"}
    sagemaker.create_model(
        ModelName=name, ExecutionRoleArn="arn:aws:iam::123456789012:role/any", PrimaryContainer=container
    )


def create_endpoint(server: EndpointServer, name: str) -> None:
    sagemaker = client_of(server, "sagemaker")
    create_model(sagemaker, name, f"file://{server.models}/")
    variant = {"VariantName": "v", "ModelName": name, "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)


def invoke(runtime: Any, endpoint: str) -> bytes:
    answer = runtime.invoke_endpoint(
        EndpointName=endpoint, TargetModel="houston.tar.gz", ContentType="text/csv", Body=HOUSE
    )
    return bytes(answer["Body"].read())


def test_an_endpoint_made_at_one_is_served_by_all_at_once(fleet: list[EndpointServer]) -> None:
    """From the first call on, whoever is called; changed and deleted for all, too."""
    create_endpoint(fleet[0], "houses")
    answers = {invoke(client, "houses") for client in calls(fleet[1:], CALLS_EACH)}
    assert len(answers) == 1
    for server in fleet:
        described = client_of(server, "sagemaker").describe_endpoint(EndpointName="houses")
        assert described["EndpointStatus"] == "InService"

    client_of(fleet[2], "sagemaker").delete_endpoint(EndpointName="houses")
    for server in fleet:
        runtime = client_of(server, "sagemaker-runtime")
        wait_until(lambda runtime=runtime: fails(runtime, "houses"), 60, "it is gone everywhere")
    create_endpoint(fleet[1], "flats")
    assert invoke(client_of(fleet[0], "sagemaker-runtime"), "flats") in answers


def calls(servers: list[EndpointServer], each: int) -> Iterator[Any]:
    """Clients, so that each server is called so many times, in turns."""
    clients = [client_of(server, "sagemaker-runtime") for server in servers]
    for _ in range(each):
        yield from clients


def fails(runtime: Any, endpoint: str) -> bool:
    try:
        invoke(runtime, endpoint)
    except ClientError as error:
        return "not found" in str(error)
    return False


def create_at_last(sagemaker: Any, name: str, tries: int = 10) -> None:
    for _ in range(tries - 1):
        try:
            create_model(sagemaker, name, "s3://any/prefix/")
        except ClientError as error:
            if "(status 500). Ask again later.): nothing was changed." not in str(error):
                raise
        else:
            return
    create_model(sagemaker, name, "s3://any/prefix/")


def test_of_writes_at_once_none_is_lost(fleet: list[EndpointServer]) -> None:
    """moto answers 500 where an object is read while it is overwritten: then nothing was changed, and we ask again."""

    def write(number: int) -> None:
        sagemaker = client_of(fleet[number], "sagemaker")
        for model in range(WRITES_EACH):
            create_at_last(sagemaker, f"model-{number}-{model}")

    with ThreadPoolExecutor(3) as writers:
        list(writers.map(write, range(3)))
    names = {f"model-{number}-{model}" for number in range(3) for model in range(WRITES_EACH)}
    for server in fleet:
        pages = client_of(server, "sagemaker").get_paginator("list_models").paginate(NameContains="model-")
        assert {model["ModelName"] for page in pages for model in page["Models"]} == names


def test_a_session_begun_at_one_is_taken_by_all(fleet: list[EndpointServer]) -> None:
    create_endpoint(fleet[0], "sessions")
    sts = client_of(fleet[0], "sts")
    given = sts.assume_role(RoleArn=BOSTON_ONLY, RoleSessionName="tests")["Credentials"]
    session = {
        "aws_access_key_id": given["AccessKeyId"],
        "aws_secret_access_key": given["SecretAccessKey"],
        "aws_session_token": given["SessionToken"],
    }
    for server in fleet[1:]:
        runtime = client_of(server, "sagemaker-runtime", session)
        assert len({invoke(runtime, "sessions") for _ in range(SESSIONS_EACH)}) == 1


def test_a_server_that_starts_serves_what_there_is(fleet: list[EndpointServer], folder: Path, s3_url: str) -> None:
    """And one whose store goes away goes on serving it; of what is asked meanwhile, endpoints unknown to it fail."""
    create_endpoint(fleet[0], "there")
    arguments = ("--state", "s3://fleet/state/", "--model-root", str(folder))
    late = EndpointServer("native", None, *arguments, environ=aws(s3_url))
    try:
        call = {"EndpointName": "there", "TargetModel": "houston.tar.gz", "ContentType": "text/csv", "Body": HOUSE}
        assert late.client("sagemaker-runtime").invoke_endpoint(**call)["Body"].read()
        with pytest.raises(ClientError, match="not found"):
            late.client("sagemaker-runtime").invoke_endpoint(**{**call, "EndpointName": "nothing"})
    finally:
        assert late.stop() == 0, late.process.log


def test_a_file_of_endpoints_is_followed(tmp_path: Path, folder: Path) -> None:
    """Served from the start; what changes in it is served at once, and calls are refused with the sentence."""
    file = tmp_path / "endpoints.yaml"

    def write(*names: str) -> None:
        container = {"Image": "i", "ModelDataUrl": f"file://{folder}/models/", "Mode": "MultiModel"}
        variant = {"ModelName": "houses", "VariantName": "v"}
        new = tmp_path / "new.yaml"
        new.write_text(
            json.dumps(
                {
                    "Models": [{"ModelName": "houses", "PrimaryContainer": container}],
                    "EndpointConfigs": [{"EndpointConfigName": "c", "ProductionVariants": [variant]}],
                    "Endpoints": [{"EndpointName": name, "EndpointConfigName": "c"} for name in names],
                }
            )
        )
        new.rename(file)

    write("one")
    with served(None, "--endpoints", str(file)) as server:
        runtime = server.client("sagemaker-runtime")
        assert invoke(runtime, "one")
        write("one", "two")
        assert invoke(runtime, "two")
        write("two")
        wait_until(lambda: fails(runtime, "one"), 60, "the file is read")
        with pytest.raises(ClientError, match="are those of the file"):
            server.client("sagemaker").delete_endpoint(EndpointName="two")
        assert server.client("sagemaker").describe_endpoint(EndpointName="two")["EndpointStatus"] == "InService"
