"""
InvokeEndpointWithResponseStream's answer: an event for each part as it comes, and one for what goes wrong meanwhile.

What goes wrong before the first part is answered as by InvokeEndpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from polyhost.api.eventstream import MEDIA_TYPE, failure, payload_parts
from polyhost.api.http import Body, Reply

# SageMaker's limit for all of an answer.
TIMEOUT_SECS = 480.0
_CONTENT_TYPE, _MODELS_TYPE = b"content-type", b"x-amzn-sagemaker-content-type"
_VARIANT = b"x-amzn-invoked-production-variant"
_MODEL_ERROR = 424


class Streamed:
    """`done` is told of the reply once. `own_headers`: lines of the reply that is begun before its end is known."""

    def __init__(self, done: Callable[[Reply], None], own_headers: bytes) -> None:
        self._done = done
        self._own_headers = own_headers
        self._began = time.monotonic()
        self._body: Body | None = None

    def part(self, variant: str, content_type: str, part: bytes) -> None:
        """It came from the model."""
        if self._body is None:
            fields = ((_CONTENT_TYPE, content_type.encode("latin-1", "replace")), (_VARIANT, variant.encode()))
            self._begin(Reply(b"", 200, fields, self._own_headers))
        assert self._body is not None
        self._body.write(payload_parts(part))

    def concluded(self, reply: Reply) -> None:
        """As InvokeEndpoint would answer; where parts have come, without a body."""
        if self._body is None:
            if reply.status != 200:
                self._done(reply)
                return
            self._begin(reply)
        assert self._body is not None
        last = self._failure_of(reply) if reply.status != 200 else payload_parts(reply.body)
        self._body.write(last)
        self._body.end()

    def _begin(self, reply: Reply) -> None:
        self._body = Body()
        fields = (
            (_CONTENT_TYPE, MEDIA_TYPE),
            *((_MODELS_TYPE if name == _CONTENT_TYPE else name, value) for name, value in reply.headers),
        )
        self._done(reply._replace(body=b"", headers=fields, parts=self._body))

    def _failure_of(self, reply: Reply) -> bytes:
        message = str(json.loads(reply.body)["Message"])
        if reply.status != _MODEL_ERROR:
            return failure("InternalStreamFailure", Message=message)
        is_late = time.monotonic() - self._began >= TIMEOUT_SECS
        code = "ModelInvocationTimeExceeded" if is_late else "StreamBroken"
        return failure("ModelStreamError", Message=message, ErrorCode=code)
