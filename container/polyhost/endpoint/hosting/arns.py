"""The names of the control plane's resources, as policies, tags and error texts have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODEL, CONFIG, ENDPOINT = "model", "endpoint-config", "endpoint"
NAME_FIELDS = {MODEL: "ModelName", CONFIG: "EndpointConfigName", ENDPOINT: "EndpointName"}

_PARTITIONS = {"cn": "aws-cn", "us-gov": "aws-us-gov"}


@dataclass(frozen=True)
class Arns:
    account_id: str
    region: str

    def of(self, kind: str, name: str) -> str:
        """In lower case, as AWS's are."""
        return f"{self._prefix}{kind}/{name.lower()}"

    def read(self, arn: str) -> tuple[str, str] | None:
        """The kind and the name of a resource of ours."""
        match = re.fullmatch(rf"{re.escape(self._prefix)}({MODEL}|{CONFIG}|{ENDPOINT})/([a-zA-Z0-9-]+)", arn)
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

    @property
    def _prefix(self) -> str:
        partition = _PARTITIONS.get("-".join(self.region.split("-")[:-2]), "aws")
        return f"arn:{partition}:sagemaker:{self.region}:{self.account_id}:"


def kind_of(operation: str) -> str:
    if "EndpointConfig" in operation:
        return CONFIG
    return ENDPOINT if "Endpoint" in operation else MODEL
