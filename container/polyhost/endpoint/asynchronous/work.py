"""One asynchronous call: its input is read, the model asked, and what came of it written whole."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable

from polyhost.artifacts import Payload, PayloadStore
from polyhost.endpoint.asynchronous.definitions import (
    MOST_INPUT_BYTES,
    AsyncCall,
    Expired,
    Next,
    after_attempt,
    after_write,
    failure_document,
    pause_secs,
)
from polyhost.endpoint.calls import CallContext
from polyhost.endpoint.events import CallAnswered, Publisher
from polyhost.endpoint.followers import Followed, follow
from polyhost.endpoint.traffic import Lane, Traffic
from polyhost.engine.protocol import Answer, Item, answer_of
from polyhost.service_errors import EndpointError, ModelError

logger = logging.getLogger("polyhost.endpoint")

_JSON = "application/json"


class Work:
    """`body_of`: the input that came with a call. `sleep` and `now` are a test's own."""

    def __init__(
        self,
        traffic: Traffic,
        payloads: PayloadStore,
        events: Publisher,
        body_of: Callable[[AsyncCall], Awaitable[bytes]],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._traffic = traffic
        self._payloads = payloads
        self._events = events
        self._body_of = body_of
        self._sleep = sleep
        self._now = now

    async def run(self, call: AsyncCall) -> None:
        """Returns when its answer, or why there is none, is written, or cannot be written."""
        try:
            answer = await self._answered(call)
            content_type = _header(answer, "content-type")
            is_plain = content_type.isascii() and content_type.isprintable()
            await self._write(call, _output_of(call), answer.body, content_type if is_plain else "")
        except EndpointError as error:
            await self._fail(call, error)

    async def _fail(self, call: AsyncCall, error: EndpointError) -> None:
        logger.warning("asynchronous call %s of %s: %s", call.id, call.endpoint, error.message)
        try:
            await self._write(call, _split(call.failure), failure_document(call, error), _JSON)
        except EndpointError as failure:
            lost = (call.id, call.endpoint, failure.message)
            logger.error("asynchronous call %s of %s: what came of it is written nowhere: %s", *lost)  # noqa: TRY400

    async def _write(self, call: AsyncCall, place: tuple[str, str], body: bytes, content_type: str) -> None:
        """Raises EndpointError where the source and key cannot be written, then or until the call's deadline."""
        for attempt in itertools.count():
            try:
                await self._payloads.write_payload(*place, body, content_type, call.kms_key)
            except EndpointError as error:
                if after_write(error, call, self._now()) is Next.OVER:
                    raise
                logger.warning("asynchronous call %s is not written yet: %s", call.id, error.message)
            else:
                return
            await self._sleep(pause_secs(attempt))

    async def _answered(self, call: AsyncCall) -> Answer:
        """Raises EndpointError."""
        for attempt in itertools.count():
            if self._now() >= call.deadline:
                raise Expired(call)
            try:
                return await self._attempt(call)
            except EndpointError as error:
                if after_attempt(error, call, self._now()) is Next.OVER:
                    raise
            await self._sleep(pause_secs(attempt))
        raise AssertionError("unreachable")

    async def _attempt(self, call: AsyncCall) -> Answer:
        """Raises EndpointError."""
        began = time.perf_counter()
        context = CallContext(max_answer_bytes=None)
        lane, item, size = None, None, 0
        outcome: Answer | EndpointError
        try:
            item = await self._item(call)
            size = len(item.body)
            lane = self._traffic.lane(call.endpoint, call.variant, call.target)
            outcome = await self._ask(lane, call, item, context)
        except EndpointError as error:
            outcome = error
        except Exception:
            logger.exception("asynchronous call %s", call.id)
            outcome = EndpointError("Internal error: the server's log says why.")
        self._publish(call, lane, size, outcome, context, time.perf_counter() - began)
        if lane is not None and item is not None and isinstance(outcome, (Answer, ModelError)):
            follow(lane.followers, Followed(call.endpoint, lane.variant.name, call.target, item, outcome))
        if isinstance(outcome, EndpointError):
            raise outcome
        return outcome

    async def _item(self, call: AsyncCall) -> Item:
        """What the model is sent; its content type is the client's, or else the input's own. Raises EndpointError."""
        if call.source:
            payload = await self._payloads.read_payload(*_split(call.source), MOST_INPUT_BYTES)
        else:
            payload = Payload(0, await self._body_of(call), "")
        headers = call.headers
        if payload.content_type and "content-type" not in headers:
            headers = {**headers, "content-type": payload.content_type}
        return Item(call.id, headers, "", payload.body, call.timeout_secs)

    async def _ask(self, lane: Lane, call: AsyncCall, item: Item, context: CallContext) -> Answer:
        return await answer_of(
            lambda done: self._traffic.invoke(lane, call.target, item, context, done), leave=context.leave
        )

    def _publish(
        self, call: AsyncCall, lane: Lane | None, size: int, outcome: Answer | EndpointError, context: CallContext,
        total_secs: float,
    ) -> None:  # fmt: skip
        self._events.publish(
            CallAnswered(
                call.id,
                call.endpoint,
                lane.variant.name if lane else "",
                call.target,
                outcome.status,
                size,
                len(outcome.body) if isinstance(outcome, Answer) else 0,
                total_secs,
                context.model_secs,
                context.was_hit,
                context.wait_secs,
                outcome.original_status if isinstance(outcome, ModelError) else 0,
            )
        )


def _output_of(call: AsyncCall) -> tuple[str, str]:
    """A link below the endpoint's folder must not lead out of that, so all that the caller chose is the key."""
    return (call.root, call.output.removeprefix(call.root)) if call.root.startswith("/") else _split(call.output)


def _split(url: str) -> tuple[str, str]:
    """The source, a bucket or a folder with its final slash, and the key in it."""
    if url.startswith("s3://"):
        bucket, _, key = url[len("s3://") :].partition("/")
        return f"s3://{bucket}/", key
    folder, slash, name = url.rpartition("/")
    return folder + slash, name


def _header(answer: Answer, name: str) -> str:
    return next((value for key, value in answer.headers.items() if key.lower() == name), "")
