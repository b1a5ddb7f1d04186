from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="session")
def aws_url() -> Iterator[str]:
    """Moto's server: the S3, IAM and CloudWatch of the notebooks."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def bucket(aws_url: str) -> str:
    client = boto3.client(
        "s3", endpoint_url=aws_url, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
    )
    client.create_bucket(Bucket="notebooks")
    client.close()
    return "notebooks"
