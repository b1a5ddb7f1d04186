from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from conftest import ROOT

ACCESS_KEY = "AKIAPOLYHOSTTEST"
SECRET_KEY = "0SecretOfTheTests/That+NobodyMaySee"
_buckets = itertools.count()

# Ends with its standard input, so with the tests. Pages of a hundred, where S3 has a thousand.
_MOTO = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """Moto's own server, a process, all of AWS in one."""
    environ = {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": "100"}
    command = [sys.executable, "-c", _MOTO]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


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


def environ_for(url: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(str(ROOT / folder) for folder in ("container", "handlers")),
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_MAX_ATTEMPTS": "1",
    }
