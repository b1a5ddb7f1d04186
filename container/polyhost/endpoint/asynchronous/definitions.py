"""What an asynchronous call is, what is written where it fails, and what follows from a failure. Pure."""

from __future__ import annotations

import enum
import json

import msgspec

from polyhost.artifacts import ArtifactForbidden
from polyhost.service_errors import EndpointError, ModelError, ModelNotReady, ServiceUnavailable, ValidationError

# Of what is sent to a model. SageMaker allows more, and has a machine for each endpoint.
MOST_INPUT_BYTES = 100 * 1024**2
_FIRST_PAUSE_SECS, _LONGEST_PAUSE_SECS = 0.5, 30.0


class AsyncCall(msgspec.Struct, frozen=True, kw_only=True):
    """
    As it is kept. `source`: where its input is; "" where that came with the call. `output` and `failure`: what is
    written. All are urls as stores know them.

    `headers`: what the model is sent of the client's. `accepted`: in seconds since 1970. `root`: the beginning of
    `output`, which is the endpoint's; the rest is the caller's choice.
    """

    id: str
    inference_id: str
    endpoint: str
    variant: str
    target: str
    headers: dict[str, str]
    source: str
    output: str
    failure: str
    kms_key: str
    accepted: float
    ttl_secs: float
    timeout_secs: float
    root: str = ""

    @property
    def deadline(self) -> float:
        """Until when it may wait, in seconds since 1970."""
        return self.accepted + self.ttl_secs


class Expired(ValidationError):
    type = "RequestExpired"
    advice = "An asynchronous call has waited longer than its RequestTTLSeconds. Send fewer, or allow more at once."

    def __init__(self, call: AsyncCall) -> None:
        super().__init__(
            f"The call has waited longer than its RequestTTLSeconds, {call.ttl_secs:g}, and was not made: send fewer, "
            "allow more at once by MaxConcurrentInvocationsPerInstance, or let them wait longer."
        )


class Next(enum.Enum):
    """What follows where a call could not be made, or its result not be written."""

    AGAIN = "try again after a pause"
    OVER = "it stays so"


def after_attempt(error: EndpointError, call: AsyncCall, now: float) -> Next:
    """Of reading the input and asking the model: what has been answered by the model is not asked again."""
    may_pass = isinstance(error, (ModelNotReady, ServiceUnavailable))
    return Next.AGAIN if may_pass and now < call.deadline else Next.OVER


def after_write(error: EndpointError, call: AsyncCall, now: float) -> Next:
    """A right to write that is missing may be given; a bucket that is not there stays away."""
    may_pass = isinstance(error, (ServiceUnavailable, ArtifactForbidden))
    return Next.AGAIN if may_pass and now < call.deadline else Next.OVER


def pause_secs(attempt: int) -> float:
    """After the attempt of this number, from 0."""
    return min(_LONGEST_PAUSE_SECS, _FIRST_PAUSE_SECS * 2.0 ** min(attempt, 16))


def failure_document(call: AsyncCall, error: EndpointError) -> bytes:
    document: dict[str, str | int] = {
        "InferenceId": call.inference_id,
        "ErrorCode": error.type,
        "Message": error.message,
    }
    if isinstance(error, ModelError):
        document["OriginalStatusCode"] = error.original_status
        document["OriginalMessage"] = error.original_message
    return json.dumps(document).encode()
