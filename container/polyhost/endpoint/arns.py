"""
Amazon Resource Names: how resources are called in policies, tags, answers and error texts.

An ARN is `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`. The partition follows from the region: `aws-cn` for China,
`aws-us-gov` for GovCloud, `aws` for the rest.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL, CONFIG, ENDPOINT, TRANSFORM = "model", "endpoint-config", "endpoint", "transform-job"
NAME_FIELDS = {
    MODEL: "ModelName", CONFIG: "EndpointConfigName", ENDPOINT: "EndpointName", TRANSFORM: "TransformJobName",
}  # fmt: skip

_PARTITIONS = {"cn": "aws-cn", "us-gov": "aws-us-gov"}


@functools.cache
def partition_of(region: str) -> str:
    """`eu-west-1` is of `aws`, `cn-north-1` of `aws-cn`, `us-gov-east-1` of `aws-us-gov`."""
    return _PARTITIONS.get("-".join(region.split("-")[:-2]), "aws")


@dataclass(frozen=True)
class Arns:
    """The ARNs of one account in one region."""

    account_id: str
    region: str

    def arn(self, service: str, resource: str) -> str:
        """For example `arn("sagemaker", "endpoint/polyhost")`."""
        return f"arn:{partition_of(self.region)}:{service}:{self.region}:{self.account_id}:{resource}"

    def of(self, kind: str, name: str) -> str:
        """A resource of the control plane, in lower case as AWS writes it."""
        return self.arn("sagemaker", f"{kind}/{name.lower()}")

    def log_group(self, endpoint: str) -> str:
        """The log group that SageMaker names when a model of this endpoint fails."""
        return self.arn("logs", f"log-group:/aws/sagemaker/Endpoints/{endpoint}")

    def loaded_model(self, name: str) -> str:
        """A model that was loaded by MMS's own routes: a resource that only Polyhost has."""
        return self.arn("polyhost", f"loaded-model/{name}")

    def read(self, arn: str) -> tuple[str, str] | None:
        """The kind and the name of a resource of ours."""
        prefix = re.escape(self.arn("sagemaker", ""))
        match = re.fullmatch(rf"{prefix}({MODEL}|{CONFIG}|{ENDPOINT}|{TRANSFORM})/([a-zA-Z0-9-]+)", arn)
        return (match[1], match[2]) if match else None

    def touched_by(self, operation: str, parameters: Mapping[str, Any]) -> list[str]:
        """
        What an operation is done to, in the one form that policies need; whatever is asked, valid or not.

        An endpoint is made of a configuration: who makes it must be allowed both, as at AWS.
        """
        touched = [self._done_to(operation, parameters)]
        if operation in ("CreateEndpoint", "UpdateEndpoint"):
            touched.append(self.of(CONFIG, str(parameters.get(NAME_FIELDS[CONFIG], ""))))
        return touched

    def _done_to(self, operation: str, parameters: Mapping[str, Any]) -> str:
        if operation in ("AddTags", "ListTags", "DeleteTags"):
            arn = str(parameters.get("ResourceArn", ""))
            resource = self.read(arn)
            return self.of(*resource) if resource else arn
        if operation.startswith("List"):
            return "*"
        kind = kind_of(operation)
        return self.of(kind, str(parameters.get(NAME_FIELDS[kind], "")))


def kind_of(operation: str) -> str:
    if "TransformJob" in operation:
        return TRANSFORM
    if "EndpointConfig" in operation:
        return CONFIG
    return ENDPOINT if "Endpoint" in operation else MODEL
