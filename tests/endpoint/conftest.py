from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from conftest import ROOT
from support.moto import moto_server

ACCESS_KEY = "AKIAPOLYHOSTTEST"
SECRET_KEY = "0SecretOfTheTests/That+NobodyMaySee"
_buckets = itertools.count()


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """Pages of twenty, where S3 has a thousand."""
    with moto_server(MOTO_S3_DEFAULT_MAX_KEYS="20") as url:
        yield url


@pytest.fixture(scope="session")
def s3(s3_url: str) -> Iterator[Any]:
    """A client of it."""
    client = boto3.client(
        "s3", endpoint_url=s3_url, region_name="us-east-1", aws_access_key_id="tests", aws_secret_access_key="tests",
    )  # fmt: skip
    yield client
    client.close()


@pytest.fixture
def bucket(s3: Any) -> str:
    """A new one's name."""
    name = f"bucket-{next(_buckets)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def aws_environ(s3_url: str) -> dict[str, str]:
    """What a server is started with whose AWS is `s3_url`."""
    return environ_for(s3_url)


def environ_for(url: str, attempts: int = 5) -> dict[str, str]:
    """
    `attempts`: of each request. Moto answers 500 where an object is read while it is overwritten, as S3 never does.
    """
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(str(ROOT / folder) for folder in ("container", "aws", "handlers")),
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_MAX_ATTEMPTS": str(attempts),
    }
