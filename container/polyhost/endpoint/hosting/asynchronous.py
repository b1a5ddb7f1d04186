"""What a configuration says of asynchronous calls becomes what the server works with. Pure, but it follows links."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyhost.endpoint.definitions import Asynchronous
from polyhost.endpoint.hosting.containers import Unusable, located

SHARED = (
    "Servers that share their endpoints take no asynchronous calls: make such an endpoint at a server that has its own "
    "--state-dir and is told of endpoints by calls."
)
_WHERE = "AsyncInferenceConfig.OutputConfig"


def require_usable(config: Mapping[str, Any], allowed_folders: Sequence[Path], *, is_shared: bool) -> None:
    """`is_shared`: whether others than this server change its endpoints. Raises Unusable."""
    if "AsyncInferenceConfig" in config:
        if is_shared:
            raise Unusable(SHARED.rstrip("."))
        asynchronous_of(config["AsyncInferenceConfig"], allowed_folders)


def asynchronous_documents(config: Mapping[str, Any], allowed_folders: Sequence[Path]) -> dict[str, Any]:
    """What an endpoint keeps of it: as it was asked for, and as the server works with it. Raises Unusable."""
    asked = config.get("AsyncInferenceConfig")
    if asked is None:
        return {}
    places = asynchronous_of(asked, allowed_folders)
    return {"AsyncInferenceConfig": asked, "Asynchronous": dataclasses.asdict(places)}


def asynchronous_of(asked: Mapping[str, Any], allowed_folders: Sequence[Path]) -> Asynchronous:
    """Failures go where answers go, unless there is a place for them. Raises Unusable."""
    output = asked["OutputConfig"]
    if any(output.get("NotificationConfig", {}).values()):
        raise Unusable(
            f"{_WHERE}.NotificationConfig is not supported, because there is no SNS here: look at the OutputLocation "
            "and the FailureLocation that each call is answered with"
        )
    path = _located(output, "S3OutputPath", allowed_folders)
    return Asynchronous(
        output=path,
        failure=_located(output, "S3FailurePath", allowed_folders) if output.get("S3FailurePath") else path,
        kms_key=output.get("KmsKeyId", ""),
        most_at_once=asked.get("ClientConfig", {}).get("MaxConcurrentInvocationsPerInstance"),
    )


def _located(output: Mapping[str, Any], field: str, allowed_folders: Sequence[Path]) -> str:
    if not output.get(field):
        raise Unusable(f"{_WHERE}.{field} is missing: say where answers are written, s3://BUCKET/PREFIX")
    url = located(output[field], f"{_WHERE}.{field}", is_multi_model=True, allowed_folders=allowed_folders)
    if not (url.isascii() and url.isprintable()):
        raise Unusable(f"{_WHERE}.{field} must be of plain ASCII characters: it is answered in a header")
    return url
