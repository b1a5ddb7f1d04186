"""
InvokeEndpoint over HTTP, as boto3's `sagemaker-runtime` speaks it, with streamed answers, too; and the same for curl at
`/invocations`.

Who asks, may they, what do they ask: then it is the endpoint's. Every answer is published here, once.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from polyhost_handlers.signature import OUTPUTS_BY_NAME

from polyhost.api.http import Headers, Reply, Request, with_retry_after
from polyhost.api.open_inference.bodies import ROWS_ALONE
from polyhost.api.routes import Begin, Guard, Route
from polyhost.api.signals import Signals
from polyhost.api.streaming import TIMEOUT_SECS, Streamed
from polyhost.artifacts import check_key
from polyhost.endpoint.access import HASHED_AT_ONCE_BYTES
from polyhost.endpoint.arns import ENDPOINT, Arns
from polyhost.endpoint.calls import CallContext
from polyhost.endpoint.events import CallAnswered, Publisher
from polyhost.endpoint.followers import Followed, follow
from polyhost.endpoint.shelf import Loaded, Model, ShelfClosed
from polyhost.endpoint.traces import Traces
from polyhost.endpoint.traffic import Lane, Traffic
from polyhost.engine.protocol import Answer, Item, Stream
from polyhost.service_errors import (
    BodyTooLarge,
    EndpointError,
    EndpointMissing,
    ModelError,
    ModelNotReady,
    Throttled,
    ValidationError,
)

logger = logging.getLogger("polyhost.api")

INVOKE, INVOKE_STREAMED = "sagemaker:InvokeEndpoint", "sagemaker:InvokeEndpointWithResponseStream"
# SageMaker's own limits.
MAX_BODY_BYTES = 6_291_456
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
    ROWS_ALONE: 10,
    OUTPUTS_BY_NAME: 10,
}
# W3C's, of a trace that the client has begun. What is too long is left out, as it says.
_OF_TRACES = {"traceparent": 128, "tracestate": 512}
_UNSUPPORTED = {
    "x-amzn-sagemaker-target-container-hostname": "TargetContainerHostname",
    "x-amzn-sagemaker-inference-component": "InferenceComponentName",
    "x-amzn-sagemaker-enable-explanations": "EnableExplanations",
}
# All that must be looked at.
_LONGEST = {**_PASSED_ON, **_OF_TRACES, **dict.fromkeys(_UNSUPPORTED, 0)}
# What of that decides how a row of a target is answered, besides the row itself.
DECIDING = frozenset(_LONGEST) - {"content-type", "accept", _TARGET_MODEL} - _OF_TRACES.keys()
ID_FIELD = b"x-amzn-requestid"
# Where InvokeEndpointWithResponseStream has what InvokeEndpoint has in Accept.
_STREAMED_ACCEPT = "x-amzn-sagemaker-accept"


class Invocation(msgspec.Struct, frozen=True):
    """What a client asks of an endpoint. `began`: by time.perf_counter()."""

    request_id: str
    endpoint: str
    target: str
    variant: str
    item: Item
    began: float


class Resident(NamedTuple):
    """A model in memory that an endpoint's requests go to, and all that makes it so is said in the request."""

    endpoint: str
    variant: str
    model: Model
    loaded: Loaded
    # Header lines of its answers.
    signals: bytes


class RuntimeApi:
    def __init__(
        self,
        traffic: Traffic,
        events: Publisher,
        authorize: Callable[[Request, str, str, Mapping[str, str]], None] | None,
        *,
        own_endpoint: str | None,
        arns: Arns,
        signals: Signals,
        look: Callable[[], Coroutine[Any, Any, None]] | None = None,
        traces: Traces | None = None,
        max_request_bytes: int = MAX_BODY_BYTES,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        """
        `authorize` is asked with an action, an endpoint's ARN and what a policy's conditions see; raises EndpointError.
        None: everybody may. `events`: where each answer is published.

        `own_endpoint`: the one that `/invocations` means. `look` finds the endpoints that were made elsewhere since.
        `max_body_bytes`: of what a model is sent; it is more where that is made of what a client sent.
        """
        self.traffic = traffic
        self._publish = events.publish
        self._authorize = authorize
        self._own_endpoint = own_endpoint
        self._arns = arns
        self._signals = signals
        self.look = look
        self._traces = traces
        self._max_request_bytes = max_request_bytes
        self._max_body_bytes = max_body_bytes

    def routes(self) -> tuple[Route, ...]:
        """`/invocations` is the own endpoint's; where it names a model it is MMS's."""
        routes = [
            self._route("/endpoints/{endpoint_name...}/invocations", self.answer),
            self._route(
                "/endpoints/{endpoint_name...}/invocations-response-stream",
                self._answer_streamed,
                action=INVOKE_STREAMED,
            ),
        ]
        if self._own_endpoint is not None:
            routes.append(self._route("/invocations", self._answer_own, _names_no_model))
        return tuple(routes)

    def _route(
        self, path: str, begin: Begin, when: Callable[[Request], bool] | None = None, action: str = INVOKE
    ) -> Route:
        return Route(
            methods=("POST",), path=path, guard=Guard.HANDLER, action=action, begin=begin, when=when,
            too_large=self._too_large, refused=self._refused,
        )  # fmt: skip

    def _answer_own(
        self, request: Request, _: str, request_id: str, done: Callable[[Reply], None]
    ) -> Callable[[], None]:
        assert self._own_endpoint is not None
        return self.answer(request, self._own_endpoint, request_id, done)

    def _answer_streamed(
        self, request: Request, endpoint: str, request_id: str, done: Callable[[Reply], None]
    ) -> Callable[[], None]:
        streamed = Streamed(done, _id_line(request_id) + self._signals.lines(200, was_hit=None))
        return self.answer(request, endpoint, request_id, streamed.concluded, streamed)

    def answer(
        self, request: Request, endpoint: str, request_id: str, done: Callable[[Reply], None],
        streamed: Streamed | None = None,
    ) -> Callable[[], None]:  # fmt: skip
        """
        Begin to answer: `done` is called once, now or later. `endpoint`: its name, as it stands in a path. `streamed`:
        takes an answer's parts.

        Returns what to call when the client has gone: what was not begun by then is not begun, and `done` not called.
        """
        if "%" in endpoint:
            endpoint = unquote(endpoint)
        context = CallContext()
        try:
            is_streamed = streamed is not None
            invocation = _invocation_of(request, endpoint, request_id, self._max_body_bytes, is_streamed=is_streamed)
        except ValidationError as error:
            done(self.conclude(_unread(request, endpoint, request_id), None, error, context))
            return context.leave
        if self._traces is not None:
            invocation = _traced(self._traces, invocation, context)
        answering = _Answering(self, invocation, context, done)
        if streamed is not None:
            answering.stream_to(streamed)
        if self._authorize is None:
            answering.begin()
            return context.leave
        action = INVOKE if streamed is None else INVOKE_STREAMED
        require_access = functools.partial(self._require_access, request, invocation, action)
        if len(request.body) <= HASHED_AT_ONCE_BYTES:
            answering.begin(require_access)
        else:
            check = asyncio.get_running_loop().run_in_executor(None, require_access)
            context.waits_for = check
            check.add_done_callback(answering.begin_if_allowed)
        return context.leave

    def resident(self, request: Request, name: str) -> Resident | None:
        """
        Where the request would go now; None where that is not the same for each request like it: there are several
        variants, or containers, or something follows answers, or the model is not in memory, or is not kept there.
        """
        endpoint = unquote(name) or self._own_endpoint or ""
        try:
            invocation = _invocation_of(request, endpoint, "")
            lanes = self.traffic.route(endpoint).lanes
        except ValidationError:
            return None
        if len(lanes) != 1 or lanes[0].is_pipeline or not lanes[0].is_multi_model or lanes[0].followers:
            return None
        shelf = lanes[0].shelves[0]
        model = shelf.models.get(invocation.target)
        if model is None or model.loaded is None or not shelf.container.is_cached:
            return None
        signals = self._signals.lines(200, was_hit=True)
        return Resident(endpoint, lanes[0].variant.name, model, model.loaded, signals)

    def _too_large(self, request: Request, name: str, request_id: str) -> Reply:
        return self._refused(request, name, request_id, BodyTooLarge(min(self._max_request_bytes, MAX_BODY_BYTES)))

    def _refused(self, request: Request, name: str, request_id: str, error: EndpointError) -> Reply:
        endpoint = unquote(name) or self._own_endpoint or ""
        return self.conclude(_unread(request, endpoint, request_id), None, error, CallContext())

    def refused(self, endpoint: str, target: str, request_id: str, status: int, bytes_in: int) -> None:
        """A request in another protocol was not passed on: it counts all the same."""
        self._publish(CallAnswered(request_id, endpoint, "", target, status, bytes_in, 0, 0.0, 0.0, None, 0.0, 0))

    def _require_access(self, request: Request, invocation: Invocation, action: str) -> None:
        """Raises NotAuthenticated, Throttled, AccessDenied, ValidationError."""
        assert self._authorize is not None
        context = {}
        if invocation.target:
            check_key(invocation.target)  # `a/../b` is below `a/` for a policy only
            context["sagemaker:TargetModel"] = invocation.target
        if invocation.variant:
            context["sagemaker:TargetVariant"] = invocation.variant
        self._authorize(request, action, self._arns.of(ENDPOINT, invocation.endpoint), context)

    def conclude(
        self, invocation: Invocation, lane: Lane | None, outcome: Answer | Exception, context: CallContext
    ) -> Reply:
        """The reply. Publishes that the call was answered: to be called once for each."""
        variant = lane.variant.name if lane else ""
        if isinstance(outcome, Answer):
            reply = _answer_reply(outcome, invocation.request_id, variant)
        else:
            error = outcome if isinstance(outcome, EndpointError) else unexpected(outcome, invocation.request_id)
            reply = error_reply(error, invocation.request_id, variant, self._arns.log_group(invocation.endpoint))
        # A model that does not exist is neither hit nor missed.
        was_hit = None if isinstance(outcome, ValidationError) else context.was_hit
        again_secs = outcome.again_secs if isinstance(outcome, ModelNotReady) else None
        status = 0 if isinstance(outcome, Throttled) else reply.status
        signals = self._signals.lines(status, was_hit, again_secs)
        if signals:
            reply = reply._replace(own_headers=reply.own_headers + signals)
        self._publish(
            CallAnswered(  # by place, which takes half the time
                invocation.request_id,
                invocation.endpoint,
                variant,
                invocation.target,
                reply.status,
                len(invocation.item.body),
                len(reply.body) + (context.stream.taken_bytes if context.stream else 0),
                time.perf_counter() - invocation.began,
                context.model_secs,
                was_hit,
                context.wait_secs,
                outcome.original_status if isinstance(outcome, ModelError) else 0,
            )
        )
        if context.trace is not None:
            context.trace.answered(reply.status, invocation.endpoint, variant, invocation.target, invocation.request_id)
        return reply


class _Answering(msgspec.Struct, eq=False):
    """A request that was understood, on its way: it is allowed, routed and answered."""

    api: RuntimeApi
    invocation: Invocation
    context: CallContext
    done: Callable[[Reply], None]
    lane: Lane | None = None
    has_moved: bool = False
    has_looked: bool = False

    def stream_to(self, streamed: Streamed) -> None:
        """SageMaker's limit of an answer's length is for those in one piece."""
        self.context.max_answer_bytes = None
        self.context.stream = Stream(
            lambda content_type, part: streamed.part(self.lane.variant.name if self.lane else "", content_type, part)
        )

    def begin_if_allowed(self, check: asyncio.Future[None]) -> None:
        if not check.cancelled():
            self.begin(check.result)

    def begin(self, require_access: Callable[[], object] | None = None) -> None:
        """`require_access` raises where the request is not allowed."""
        invocation, traffic = self.invocation, self.api.traffic
        try:
            if require_access is not None:
                require_access()
            self.lane = traffic.lane(invocation.endpoint, invocation.variant, invocation.target)
            traffic.invoke(self.lane, invocation.target, invocation.item, self.context, self._answered)
        except Exception as error:  # noqa: BLE001 - it becomes the answer, or the log's
            self._answered(error)

    def _answered(self, outcome: Answer | Exception) -> None:
        if isinstance(outcome, ShelfClosed) and not self.has_moved:
            self.has_moved = True  # the endpoint was updated, or deleted: the next lane is the answer's
            self.begin()
            return
        if isinstance(outcome, EndpointMissing) and self.api.look is not None and not self.has_looked:
            self.has_looked = True
            self.context.waits_for = asyncio.get_running_loop().create_task(self._look_and_begin(self.api.look))
            return
        try:
            reply = self.api.conclude(self.invocation, self.lane, outcome, self.context)
        except Exception as error:  # noqa: BLE001 - as above
            request_id = self.invocation.request_id
            reply = error_reply(unexpected(error, request_id), request_id)
        self.done(reply)
        is_whole = self.context.stream is None or not self.context.stream.has_begun
        if self.lane is not None and self.lane.followers and isinstance(outcome, (Answer, ModelError)) and is_whole:
            invocation = self.invocation
            names = invocation.endpoint, self.lane.variant.name, invocation.target
            follow(self.lane.followers, Followed(*names, invocation.item, outcome))

    async def _look_and_begin(self, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """The endpoint may have been made a moment ago, at another server."""
        try:
            await look()
        except Exception as error:  # noqa: BLE001 - as above
            self._answered(error)
        else:
            self.begin()


def _traced(traces: Traces, invocation: Invocation, context: CallContext) -> Invocation:
    """Models are sent the trace's headers, with this call's span."""
    item = invocation.item
    context.trace, headers = traces.begin(item.headers, invocation.began)
    return msgspec.structs.replace(invocation, item=Item(item.request_id, headers, item.query, item.body))


def _names_no_model(request: Request) -> bool:
    return "model_name=" not in request.query


def _unread(request: Request, endpoint: str, request_id: str) -> Invocation:
    """The invocation of a request whose headers were not read."""
    return Invocation(request_id, endpoint, "", "", Item(request_id, {}, "", request.body), time.perf_counter())


def _invocation_of(
    request: Request, endpoint: str, request_id: str, max_body_bytes: int = MAX_BODY_BYTES, *, is_streamed: bool = False
) -> Invocation:
    """Raises ValidationError."""
    began = time.perf_counter()
    if len(request.body) > max_body_bytes:
        raise BodyTooLarge(max_body_bytes)
    passed_on = _passed_on(request)
    target = passed_on.get(_TARGET_MODEL, "")
    if target.startswith("/"):  # it is a key below the container's prefix, and SageMaker takes it like that too
        target = passed_on[_TARGET_MODEL] = target[1:]
    if target and not target.isascii():
        target = as_utf8(target)
    item = Item(request_id, passed_on, "", request.body)
    if is_streamed:
        if _STREAMED_ACCEPT in request.headers:
            passed_on["accept"] = request.headers[_STREAMED_ACCEPT]
        item = Item(request_id, passed_on, "", request.body, TIMEOUT_SECS, True)
    return Invocation(request_id, endpoint, target, passed_on.get(_TARGET_VARIANT, ""), item, began)


def _passed_on(request: Request) -> dict[str, str]:
    """What the container is sent of the headers. Raises ValidationError for what botocore would not have sent."""
    passed_on = {}
    for name, value in request.headers.items():
        longest = _LONGEST.get(name)
        if longest is None:
            continue
        if name in _UNSUPPORTED:
            raise ValidationError(f"{_UNSUPPORTED[name]} is not supported by this server: leave it out.")
        if len(value) > longest:
            if name in _OF_TRACES:
                continue
            raise ValidationError(f"{name} has {len(value)} characters, {longest} are allowed.")
        passed_on[name] = value
    return passed_on


def as_utf8(value: str) -> str:
    """A header's bytes, taken as Latin-1 on the way in. Raises ValidationError."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        raise ValidationError("The target model is not UTF-8.") from None


def _answer_reply(answer: Answer, request_id: str, variant: str) -> Reply:
    own = _id_line(request_id)
    return Reply(answer.body, 200, answer_headers(answer.headers, variant), own)


def _id_line(request_id: str) -> bytes:
    return b"%b: %b\r\n" % (ID_FIELD, request_id.encode())


def answer_headers(headers: Mapping[str, str], variant: str) -> Headers:
    """What is put around a model's answer: the same for all its answers with these headers."""
    content_type = headers.get("content-type") or headers.get("Content-Type") or "application/octet-stream"
    custom = ""
    if len(headers) > 1:
        custom = next((value for name, value in headers.items() if name.lower() == _CUSTOM_ATTRIBUTES), "")
    return _headers(content_type, variant, custom)


@functools.lru_cache(maxsize=1024)
def _headers(content_type: str, variant: str, custom_attributes: str) -> Headers:
    fields = [("content-type", content_type), ("x-amzn-invoked-production-variant", variant)]
    if custom_attributes:
        fields.append((_CUSTOM_ATTRIBUTES, custom_attributes))
    return tuple((name.encode(), value.encode("latin-1", "replace")) for name, value in fields if value)


def unsupported(request: Request) -> str:
    """Why a request below `/endpoints/` that is no invocation is not answered."""
    end = request.path.rpartition("/")[2]
    return f"/endpoints/NAME/{end[:100]} is not an operation of Polyhost: use InvokeEndpoint."


def unexpected(error: Exception, request_id: str) -> EndpointError:
    """A fault of the server's: the log has it, the client is told where to look."""
    logger.error("request %s failed", request_id, exc_info=error)
    return EndpointError(f"Internal error: the server's log has request {request_id}.")


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
    reply = Reply(json.dumps(document).encode(), error.status, tuple(fields), _id_line(request_id))
    return with_retry_after(reply, error)
