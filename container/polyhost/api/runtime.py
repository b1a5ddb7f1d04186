"""
InvokeEndpoint over HTTP, as boto3's `sagemaker-runtime` speaks it; and the same for curl at `/invocations`.

Who asks, may they, what do they ask: then it is the endpoint's. Every answer is counted here.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from polyhost.api.http import Headers, Reply, Request
from polyhost.endpoint.artifacts import check_key
from polyhost.endpoint.cache import ShelfClosed, Timing
from polyhost.endpoint.errors import BodyTooLarge, EndpointError, ModelError, ValidationError
from polyhost.endpoint.measures import Call, Measures
from polyhost.endpoint.traffic import Lane, Traffic
from polyhost.engine.protocol import Answer, Item

# SageMaker's own limits.
_MAX_BODY_BYTES = 6_291_456
# To check a signature the body is hashed: of more than this, in a thread.
_HASHED_AT_ONCE_BYTES = 256 * 1024
_TARGET_MODEL = "x-amzn-sagemaker-target-model"
_TARGET_VARIANT = "x-amzn-sagemaker-target-variant"
_CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
# What a container is sent of a request, with the longest it may be; credentials and signatures are not its business.
_PASSED_ON = {
    "content-type": 1024,
    "accept": 1024,
    _CUSTOM_ATTRIBUTES: 1024,
    _TARGET_MODEL: 1024,
    _TARGET_VARIANT: 63,
    "x-amzn-sagemaker-inference-id": 64,
    "x-amzn-sagemaker-session-id": 256,
}
_UNSUPPORTED = {
    "x-amzn-sagemaker-target-container-hostname": "TargetContainerHostname",
    "x-amzn-sagemaker-inference-component": "InferenceComponentName",
    "x-amzn-sagemaker-enable-explanations": "EnableExplanations",
}
# The service's other operations, by the end of their paths.
_NOT_HERE = {
    "async-invocations": "InvokeEndpointAsync is not an operation of Polyhost, which answers at once",
    "invocations-response-stream": "InvokeEndpointWithResponseStream is not an operation of Polyhost, which answers "
    "in one piece",
}


class Asked(NamedTuple):
    """What a client asks of an endpoint. `begin`: by time.perf_counter()."""

    request_id: str
    endpoint: str
    target: str
    variant: str
    item: Item
    begin: float


class RuntimeApi:
    def __init__(
        self,
        traffic: Traffic,
        measures: Measures,
        authorize: Callable[[Request, str, Mapping[str, str]], None] | None,
        *,
        own_endpoint: str | None,
        account_id: str,
        region: str,
    ) -> None:
        """
        `authorize` is asked with an endpoint's ARN and what a policy's conditions see; raises EndpointError. None:
        everybody may.

        `own_endpoint`: the one that `/invocations` means.
        """
        self._traffic = traffic
        self._measures = measures
        self._authorize = authorize
        self._own_endpoint = own_endpoint
        self._arn = f"arn:aws:sagemaker:{region}:{account_id}:endpoint/"
        self._logs = f"arn:aws:logs:{region}:{account_id}:log-group:/aws/sagemaker/Endpoints/"

    def endpoint_of(self, request: Request) -> str | None:
        """The endpoint whose invocation this is, None if it is something else."""
        path = request.path
        if path.startswith("/endpoints/") and path.endswith("/invocations"):
            return unquote(path[len("/endpoints/") : -len("/invocations")])
        if path == "/invocations" and self._own_endpoint is not None and "model_name=" not in request.query:
            return self._own_endpoint
        return None

    async def answer(self, request: Request, endpoint: str, request_id: str) -> Reply:
        asked: Asked | None = None
        try:
            asked = _asked(request, endpoint, request_id)
            if self._authorize is not None and len(request.body) > _HASHED_AT_ONCE_BYTES:
                await asyncio.to_thread(self._require_access, request, asked)
            elif self._authorize is not None:
                self._require_access(request, asked)
            lane = self._traffic.lane(endpoint, asked.variant, asked.target)
        except EndpointError as error:
            return self._reply(asked or _unread(request, endpoint, request_id), None, error, None, 0.0)
        return await self._answer(asked, lane)

    def answer_soon(
        self, request: Request, endpoint: str, request_id: str, done: Callable[[Reply], None]
    ) -> Coroutine[Any, Any, Reply] | None:
        """A variant is drawn once for a request: the same one answers, soon or later."""
        if self._authorize is not None and len(request.body) > _HASHED_AT_ONCE_BYTES:
            return self.answer(request, endpoint, request_id)
        asked: Asked | None = None
        try:
            asked = _asked(request, endpoint, request_id)
            if self._authorize is not None:
                self._require_access(request, asked)
            lane = self._traffic.lane(endpoint, asked.variant, asked.target)
        except EndpointError as error:
            done(self._reply(asked or _unread(request, endpoint, request_id), None, error, None, 0.0))
            return None
        was_hit = True if asked.target else None
        sent = time.perf_counter()
        has_begun = self._traffic.invoke_soon(
            lane,
            asked.target,
            asked.item,
            lambda answer: done(self._reply(asked, lane, answer, was_hit, time.perf_counter() - sent)),
        )
        return None if has_begun else self._answer(asked, lane)

    async def _answer(self, asked: Asked, lane: Lane) -> Reply:
        """What the lane answers; a model that is not there is loaded first."""
        was_hit = self._traffic.is_resident(lane, asked.target) if asked.target else None
        timing = Timing()
        answer: Answer | EndpointError
        try:
            try:
                answer = await self._traffic.invoke(lane, asked.target, asked.item, timing)
            except ShelfClosed:  # the endpoint was updated, or deleted: the next lane is the answer's
                lane = self._traffic.lane(asked.endpoint, asked.variant, asked.target)
                answer = await self._traffic.invoke(lane, asked.target, asked.item, timing)
        except EndpointError as error:
            answer = error
            if isinstance(error, ValidationError):
                was_hit = None  # there is no such model to be hit or missed
        if was_hit is False:
            self._measures.loading_wait(asked.endpoint, lane.variant.name, timing.wait_secs)
        return self._reply(asked, lane, answer, was_hit, timing.model_secs)

    def too_large(self, request: Request, endpoint: str, request_id: str, limit_bytes: int) -> Reply:
        """The reply to a body that was not read, because it has more than `limit_bytes`."""
        error = BodyTooLarge(min(limit_bytes, _MAX_BODY_BYTES))
        return self._reply(_unread(request, endpoint, request_id), None, error, None, 0.0)

    def _require_access(self, request: Request, asked: Asked) -> None:
        """Raises NotAuthenticated, AccessDenied, ValidationError."""
        assert self._authorize is not None
        context = {}
        if asked.target:
            check_key(asked.target)  # `a/../b` is below `a/` for a policy only
            context["sagemaker:TargetModel"] = asked.target
        if asked.variant:
            context["sagemaker:TargetVariant"] = asked.variant
        self._authorize(request, self._arn + asked.endpoint.lower(), context)

    def _reply(
        self, asked: Asked, lane: Lane | None, answer: Answer | EndpointError, was_hit: bool | None, model_secs: float
    ) -> Reply:
        variant = lane.variant.name if lane else ""
        if isinstance(answer, EndpointError):
            reply = error_reply(answer, asked.request_id, variant, self._logs + asked.endpoint)
        else:
            reply = _answer_reply(answer, asked.request_id, variant)
        self._measures.invocation(
            Call(
                request_id=asked.request_id,
                endpoint=asked.endpoint,
                variant=variant,
                target=asked.target,
                status=reply.status,
                bytes_in=len(asked.item.body),
                bytes_out=len(reply.body),
                total_secs=time.perf_counter() - asked.begin,
                model_secs=model_secs,
                was_hit=was_hit,
                model_status=answer.original_status if isinstance(answer, ModelError) else 0,
            )
        )
        return reply


def _unread(request: Request, endpoint: str, request_id: str) -> Asked:
    """Of a request whose headers have not been looked at."""
    return Asked(request_id, endpoint, "", "", Item(request_id, {}, "", request.body), time.perf_counter())


def _asked(request: Request, endpoint: str, request_id: str) -> Asked:
    """Raises ValidationError."""
    begin = time.perf_counter()
    passed_on = _passed_on(request)
    target = passed_on.get(_TARGET_MODEL, "")
    if target.startswith("/"):  # it is a key below the container's prefix, and SageMaker takes it like that too
        target = passed_on[_TARGET_MODEL] = target[1:]
    if target and not target.isascii():
        target = _as_utf8(target)
    item = Item(request_id, passed_on, "", request.body)
    return Asked(request_id, endpoint, target, passed_on.get(_TARGET_VARIANT, ""), item, begin)


def _passed_on(request: Request) -> dict[str, str]:
    """What the container is sent of the headers. Raises ValidationError for what botocore would not have sent."""
    if len(request.body) > _MAX_BODY_BYTES:
        raise BodyTooLarge(_MAX_BODY_BYTES)
    passed_on = {}
    for name, value in request.headers.items():
        longest = _PASSED_ON.get(name)
        if longest is None:
            if name in _UNSUPPORTED:
                raise ValidationError(f"{_UNSUPPORTED[name]} is not supported by this server: leave it out.")
        elif len(value) > longest:
            raise ValidationError(f"{name} has {len(value)} characters, {longest} are allowed.")
        else:
            passed_on[name] = value
    return passed_on


def _as_utf8(value: str) -> str:
    """A header's bytes, taken as Latin-1 on the way in. Raises ValidationError."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        raise ValidationError("The target model is not UTF-8.") from None


def _answer_reply(answer: Answer, request_id: str, variant: str) -> Reply:
    headers = answer.headers
    content_type = headers.get("content-type") or headers.get("Content-Type") or "application/octet-stream"
    custom = ""
    if len(headers) > 1:
        custom = next((value for name, value in headers.items() if name.lower() == _CUSTOM_ATTRIBUTES), "")
    own = b"x-amzn-requestid: %b\r\n" % request_id.encode()
    return Reply(answer.body, 200, _headers(content_type, variant, custom), own)


@functools.lru_cache(maxsize=1024)
def _headers(content_type: str, variant: str, custom_attributes: str) -> Headers:
    fields = [("content-type", content_type), ("x-amzn-invoked-production-variant", variant)]
    if custom_attributes:
        fields.append((_CUSTOM_ATTRIBUTES, custom_attributes))
    return tuple((name.encode(), value.encode("latin-1", "replace")) for name, value in fields if value)


def unsupported(request: Request) -> str:
    """Why a request below `/endpoints/` that is no invocation is not answered."""
    end = request.path.rpartition("/")[2]
    reason = _NOT_HERE.get(end, f"/endpoints/NAME/{end[:100]} is not an operation of Polyhost")
    return f"{reason}: use InvokeEndpoint."


def error_reply(error: EndpointError, request_id: str, variant: str = "", log_stream: str = "") -> Reply:
    """As boto3's rest-json protocol reads errors."""
    document: dict[str, str | int] = {"Message": error.message}
    if isinstance(error, ModelError):
        document = {
            "ErrorCode": "CLIENT_ERROR_FROM_MODEL" if error.original_status < 500 else "INTERNAL_FAILURE_FROM_MODEL",
            "LogStreamArn": log_stream,
            "Message": error.message,
            "OriginalMessage": error.original_message,
            "OriginalStatusCode": error.original_status,
        }
    fields = [(b"content-type", b"application/json"), (b"x-amzn-errortype", error.type.encode())]
    if variant:
        fields.append((b"x-amzn-invoked-production-variant", variant.encode()))
    own = b"x-amzn-requestid: %b\r\n" % request_id.encode()
    return Reply(json.dumps(document).encode(), error.status, tuple(fields), own)
