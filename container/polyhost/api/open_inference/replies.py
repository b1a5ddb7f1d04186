"""What is answered around tensors: errors, documents, and what of a request goes on to a model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from polyhost.api.http import Reply, again_line
from polyhost.api.open_inference.answers import Encoded, sentence_of
from polyhost.engine.errors import EngineError
from polyhost.service_errors import ArtifactMissing, EndpointError, EndpointMissing, Throttled

logger = logging.getLogger("polyhost.api")

JSON = ((b"content-type", b"application/json"),)
_BINARY = ((b"content-type", b"application/octet-stream"),)
# Of a request's header what is about its body, which the model is not sent.
_OF_THE_BODY = frozenset(
    ("accept", "accept-encoding", "content-encoding", "content-length", "content-type", "expect", "transfer-encoding",
     "inference-header-content-length")
)  # fmt: skip
# A model's status is its own; these say of the server what another one says better of a request.
_STATUSES = {415: 400}
_UNKNOWN = 404


class Failure(Exception):
    """What becomes an error of the protocol. `own_headers`: lines that its reply has besides."""

    def __init__(self, status: int, message: str, own_headers: bytes = b"") -> None:
        super().__init__(message)
        self.status, self.message, self.own_headers = status, message, own_headers


def failure_of(error: Exception, request_id: str, own_headers: bytes = b"") -> Failure:
    """What is no error of ours has the log. `own_headers`: of the reply, if it has none yet."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, Throttled):
        return Failure(error.status, error.message, own_headers + again_line(error.retry_after_secs))
    if isinstance(error, (EndpointMissing, ArtifactMissing)):
        return Failure(_UNKNOWN, error.message, own_headers)
    if isinstance(error, (EngineError, EndpointError)):
        return Failure(error.status, error.message, own_headers)
    logger.error("request %s failed", request_id, exc_info=error)
    return Failure(500, f"Internal error: the server's log has request {request_id}.", own_headers)


def answer_within(reply: Reply) -> tuple[bytes, str]:
    """A model's answer and its media type, of a reply of SageMaker's or MMS's. Raises Failure."""
    if reply.status >= 300:
        raise Failure(_status_of(reply), sentence_of(reply.body), reply.own_headers)
    return reply.body, next((value.decode("latin-1") for name, value in reply.headers if name == b"content-type"), "")


def _status_of(reply: Reply) -> int:
    """A model's own where it refuses the request. What else goes wrong in a model is an error of the server."""
    status = reply.status
    if status == 424:
        original = json.loads(reply.body)["OriginalStatusCode"]
        status = original if 400 <= original < 500 or original in (503, 507) else 500
    return _STATUSES.get(status, status)


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in _OF_THE_BODY}


def document_reply(document: Any, status: int = 200, own_headers: bytes = b"") -> Reply:
    return Reply(json.dumps(document).encode(), status, JSON, own_headers)


def error_reply(failure: Failure) -> Reply:
    return document_reply({"error": failure.message}, failure.status, failure.own_headers)


def tensors_reply(encoded: Encoded, own_headers: bytes) -> Reply:
    if encoded.header_length is None:
        return Reply(encoded.body, 200, JSON, own_headers)
    length = b"inference-header-content-length: %d\r\n" % encoded.header_length
    return Reply(encoded.body, 200, _BINARY, own_headers + length)
