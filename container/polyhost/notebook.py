"""
One line for notebooks that were written for AWS:

    from polyhost import notebook; notebook.use("http://127.0.0.1:8080", s3="http://127.0.0.1:9000")

boto3 reads the addresses of services from variables, AWS_ENDPOINT_URL_SAGEMAKER and its like. The SageMaker SDK passes
STS's address itself, so that no variable changes it, and its `default_bucket()` and `get_execution_role()` call AWS.
`use` sets the variables, and lets them win over an address of AWS's that a program passes.

This module needs botocore and nothing else of Polyhost, because the SDK often has an environment of its own.
"""

from __future__ import annotations

import functools
import os
from typing import Any
from urllib.parse import urlsplit

import botocore.session

_VARIABLE = "AWS_ENDPOINT_URL_"
# How boto3 names a service, and what the name of its variable ends with.
_SERVICES = {
    "sagemaker": "SAGEMAKER",
    "sagemaker-runtime": "SAGEMAKER_RUNTIME",
    "runtime.sagemaker": "SAGEMAKER_RUNTIME",  # boto3's older name for it, which version 1 of the SDK uses
    "sts": "STS",
    "iam": "IAM",
    "logs": "CLOUDWATCH_LOGS",
    "s3": "S3",
}
_AWS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu")
_create_client = botocore.session.Session.create_client


def use(url: str = "", *, s3: str = "", iam: str = "") -> None:
    """
    From now on the clients that boto3 and the SageMaker SDK make in this process call the Polyhost at `url`.

    `s3` and `iam` are the addresses of servers with these services. Without `url`, AWS_ENDPOINT_URL_SAGEMAKER counts,
    then port 8080 of this machine; without `s3`, AWS_ENDPOINT_URL_S3, then AWS; without `iam`, AWS_ENDPOINT_URL_IAM,
    then Polyhost, which has no IAM and says so. Where no region or keys are set, it sets a region and keys of nobody.
    """
    before = os.environ.get(f"{_VARIABLE}SAGEMAKER", "")
    url = url or before or "http://127.0.0.1:8080"
    ours = ("SAGEMAKER", "SAGEMAKER_RUNTIME", "STS", "CLOUDWATCH_LOGS")
    os.environ.update(dict.fromkeys((f"{_VARIABLE}{name}" for name in ours), url))
    # IAM's variable may be from an earlier call of this function, with another url.
    if iam or os.environ.get(f"{_VARIABLE}IAM", "") in ("", before):
        os.environ[f"{_VARIABLE}IAM"] = iam or url
    if s3 := s3 or os.environ.get(f"{_VARIABLE}S3", ""):
        os.environ[f"{_VARIABLE}S3"] = s3
        # Nothing is left for which AWS's keys are needed, so that no one asks whether this is a machine of AWS's.
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    botocore.session.Session.create_client = _create_client_here
    session = botocore.session.Session()
    if session.get_config_variable("region") is None:
        os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    if session.get_credentials() is None:
        os.environ.update(AWS_ACCESS_KEY_ID="anybody", AWS_SECRET_ACCESS_KEY="anything")  # noqa: S106 - of nobody


@functools.wraps(_create_client)
def _create_client_here(self: Any, service_name: str, *arguments: Any, **named: Any) -> Any:
    variable = _VARIABLE + _SERVICES.get(service_name, "")
    # Where no address is passed, botocore of before 2023 does not read the variable by itself.
    if variable in os.environ and _is_of_aws(named.get("endpoint_url")):
        named["endpoint_url"] = os.environ[variable]
    return _create_client(self, service_name, *arguments, **named)


def _is_of_aws(address: str | None) -> bool:
    return not address or (urlsplit(address).hostname or "").endswith(_AWS)
