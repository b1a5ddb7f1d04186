"""Doing what was decided, one step after the other, and saying so."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polyhost.errors import DeployFailed, InvalidSetting

from polyhost_aws.deploy import Call, Found, Step, Wait, first_invocation
from polyhost_aws.found import BUSY, describe_endpoint
from polyhost_aws.progress import Progress
from polyhost_aws.session import Aws, CallFailed, ended
from polyhost_aws.wanted import First

# SageMaker gives up by itself long before.
_MOST_WAIT_SECS = 2 * 3600
_MOST_PAUSE_SECS = 10

# What is said when it is done, and the parameter that it is said of.
_DONE = {
    "CreateModel": ("model {} made", "ModelName"),
    "CreateEndpointConfig": ("endpoint configuration {} made", "EndpointConfigName"),
    "CreateEndpoint": ("endpoint {} asked for", "EndpointName"),
    "UpdateEndpoint": ("update of endpoint {} asked for", "EndpointName"),
    "UpdateEndpointWeightsAndCapacities": ("weights and instances of endpoint {} asked for", "EndpointName"),
    "DeleteEndpoint": ("endpoint {} removed", "EndpointName"),
    "DeleteEndpointConfig": ("endpoint configuration {} removed", "EndpointConfigName"),
    "DeleteModel": ("model {} removed", "ModelName"),
    "RegisterScalableTarget": ("automatic scaling of {} set", "ResourceId"),
    "DeregisterScalableTarget": ("automatic scaling of {} removed", "ResourceId"),
    "PutScalingPolicy": ("scaling policy {} set", "PolicyName"),
    "DeleteScalingPolicy": ("scaling policy {} removed", "PolicyName"),
}


def check(steps: Sequence[Step]) -> None:
    """All requests of SageMaker against AWS's own description of them, before any is sent. Raises InvalidSetting."""
    from polyhost.endpoint.hosting.requests import OPERATIONS, faults

    for step in steps:
        if isinstance(step, Call) and step.operation in OPERATIONS:
            found = faults(step.operation, step.parameters)
            if found:
                raise InvalidSetting(f"{step.operation} would be refused: {found}")


def perform(aws: Aws, steps: Sequence[Step], progress: Progress) -> None:
    """Raises DeployFailed; what was done before stays."""
    for step in steps:
        if isinstance(step, Wait):
            wait_for(aws, step, progress)
        else:
            aws.call(step.service, step.operation, step.parameters)
            progress.say(said_of(step))


def said_of(call: Call) -> str:
    words, parameter = _DONE[call.operation]
    return words.format(call.parameters[parameter])


def wait_for(aws: Aws, wait: Wait, progress: Progress) -> None:
    with progress.waiting(f"endpoint {wait.endpoint}") as show:
        for _ in _pauses():
            described = describe_endpoint(aws, wait.endpoint)
            show(described["EndpointStatus"] if described else "gone")
            if _is_reached(wait, described):
                return
    raise DeployFailed(f"The endpoint {wait.endpoint} is not ready after {_MOST_WAIT_SECS // 3600} hours.")


def _is_reached(wait: Wait, described: Mapping[str, Any] | None) -> bool:
    """Raises DeployFailed when it will never be."""
    if described is None or not wait.config:
        if described is None and wait.config:
            raise DeployFailed(f"The endpoint {wait.endpoint} has been deleted meanwhile.")
        return described is None
    status, reason = described["EndpointStatus"], ended(described.get("FailureReason", "no reason was given"))
    if status in BUSY:
        return False
    if status != "InService":
        raise DeployFailed(
            f"The endpoint {wait.endpoint} is {status}: {reason} Its log is in CloudWatch, /aws/sagemaker/Endpoints/"
            f"{wait.endpoint}. Run the command again once the cause is mended, or polyhost destroy {wait.endpoint}."
        )
    if described["EndpointConfigName"] != wait.config:
        raise DeployFailed(f"The update failed, and the endpoint {wait.endpoint} serves what it did before: {reason}")
    return True


def settle(aws: Aws, found: Found, name: str, progress: Progress, *, may_wait: bool) -> bool:
    """Wait until nothing is under way that others have begun; whether there was."""
    if found.endpoint is None or found.endpoint.status not in (*BUSY, "Deleting"):
        return False
    if not may_wait:
        raise DeployFailed(f"The endpoint {name} is {found.endpoint.status}: run the command again when it is done.")
    with progress.waiting(f"endpoint {name}, for what is under way") as show:
        for _ in _pauses():
            described = describe_endpoint(aws, name)
            show(described["EndpointStatus"] if described else "gone")
            if described is None or described["EndpointStatus"] not in (*BUSY, "Deleting"):
                return True
    raise DeployFailed(f"The endpoint {name} is under way for {_MOST_WAIT_SECS // 3600} hours.")


def _pauses() -> Iterator[None]:
    deadline = time.monotonic() + _MOST_WAIT_SECS
    for number in itertools.count():
        if time.monotonic() > deadline:
            return
        yield
        time.sleep(min(_MOST_PAUSE_SECS, 0.1 * 2**number))


def invoke(aws: Aws, name: str, first: First, progress: Progress) -> bytes:
    """The answer. Raises DeployFailed."""
    call = first_invocation(name, first)
    with progress.waiting(f"first invocation of {first.target}") as show:
        show("loading")
        try:
            answer = aws.call(call.service, call.operation, call.parameters)
        except CallFailed as error:
            raise CallFailed(
                f"The endpoint {name} is in service, but the first invocation failed. {error}", error.code
            ) from error
        body: bytes = answer["Body"].read()
        show("answered")
    return body
