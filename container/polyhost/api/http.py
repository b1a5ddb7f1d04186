"""A request and its reply, and the two ways in which they come over HTTP: a short one, and ASGI's for the rest."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, NamedTuple, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

logger = logging.getLogger("polyhost.api")

Headers = tuple[tuple[bytes, bytes], ...]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_NOT_IN_A_NAME = re.compile(rb'[\x00-\x20\x7f-\xff()<>@,;:\\"/\[\]?={}]')
_NOT_IN_A_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# What goes the short way: its body is kept in one piece.
_SHORT_BYTES = 1024**2
_NOT_SHORT = frozenset((b"expect", b"upgrade", b"transfer-encoding"))


_GOODBYE_SECS = 0.5
# How long a client that is still sending is read from after its reply: in all, and with nothing coming.
_LINGER_SECS = 30.0
_LINGER_SILENT_SECS = 5.0

_CONNECTION = {
    None: b"content-length: %d\r\n\r\n",
    False: b"content-length: %d\r\nconnection: keep-alive\r\n\r\n",
    True: b"content-length: %d\r\nconnection: close\r\n\r\n",
}


class Request(NamedTuple):
    """`path` as it came, escapes and all; `query` without its question mark; header names in lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    """
    `headers` are repeated from reply to reply, `own_headers` (lines) are this one's alone.

    `closes`: whether the connection ends with it; None says nothing about that.
    """

    body: bytes
    status: int
    headers: Headers
    own_headers: bytes = b""
    closes: bool | None = False


class App(Protocol):
    max_request_bytes: int

    async def answer(self, request: Request) -> Reply:
        """Raises nothing."""

    def answer_soon(self, request: Request, done: Callable[[Reply], None]) -> Coroutine[Any, Any, Reply] | None:
        """
        Begin to answer a POST without a task: `done` is called with the reply, now or later.

        Where something must be waited for, it is not called: the caller runs what is returned, which goes on from
        what was already decided. Raises nothing.
        """

    def too_large(self, request: Request) -> Reply:
        """The reply to a body of more than `max_request_bytes`, which `request` comes without."""


class TooLarge(Exception):
    """The body is over the limit."""


@functools.lru_cache(maxsize=1024)
def rendered(headers: Headers) -> bytes:
    """Header lines; a field that could end its line, or is no field at all, is left out."""
    return b"".join(
        b"%b: %b\r\n" % (name, value)
        for name, value in headers
        if name and not _NOT_IN_A_NAME.search(name) and not _NOT_IN_A_VALUE.search(value)
    )


def head_of(reply: Reply) -> bytes:
    """All before the body."""
    return b"".join(
        (
            STATUS_LINE.get(reply.status) or b"HTTP/1.1 %d \r\n" % reply.status,
            rendered(reply.headers),
            reply.own_headers,
            _CONNECTION[reply.closes] % len(reply.body),
        ),
    )


class _Exchange:
    """A request on the short way, in the place of uvicorn's own cycle."""

    __slots__ = ("body", "disconnected", "keep_alive", "message_event", "more_body", "response_complete")
    message_event: _NoEvent

    def __init__(self, *, keep_alive: bool) -> None:
        self.body = b""
        self.disconnected = False
        self.keep_alive = keep_alive
        self.more_body = True
        self.response_complete = False
        self.message_event = _NO_EVENT


class _NoEvent:
    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()


class ShortWay(HttpToolsProtocol):
    """
    uvicorn's HTTP/1.1, with a short way for the requests that matter.

    A POST of a known, modest length, which is what a prediction is, goes from the parser to the application and
    back without a task of its own, and in one write. Everything else, and whatever follows on the same connection
    before its reply, goes uvicorn's own way.
    """

    cycle: Any

    def __init__(self, app: App, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._app = app
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._linger_until = 0.0
        self._last_data_at = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._close_when_idle()

    def _close_when_idle(self) -> None:
        """One timer for a connection's life: uvicorn's, made and cancelled with each request, costs too much."""
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self._idle_since and now - self._idle_since >= self.timeout_keep_alive:
            self.transport.close()
            return
        since = self._idle_since or now
        self._idle_timer = self.loop.call_later(since + self.timeout_keep_alive - now, self._close_when_idle)

    def shutdown(self) -> None:
        super().shutdown()
        self._end_soon()

    def _end_soon(self) -> None:
        """Over TLS a close waits for the peer's goodbye: an idle client would hold up the server's end."""
        if self.scheme == "https" and self.transport.is_closing():
            self.loop.call_later(_GOODBYE_SECS, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._idle_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._linger_timer is None:
            super().data_received(data)
        else:
            self._last_data_at = self.loop.time()

    def close_after_reply(self) -> None:
        """
        Close, but not at once where the client is still sending a body that nobody wants.

        A connection that is closed with bytes unread is reset, and the client may lose the reply. So what comes is
        read and dropped until the client has closed, for a limited time.
        """
        if not self.cycle.more_body:
            self.transport.close()
            return
        now = self.loop.time()
        self._linger_until = now + _LINGER_SECS
        self._last_data_at = now
        self._look_whether_the_client_has_gone()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _look_whether_the_client_has_gone(self) -> None:
        now = self.loop.time()
        ends_at = min(self._linger_until, self._last_data_at + _LINGER_SILENT_SECS)
        if now >= ends_at:
            self.transport.close()
            self._end_soon()
        else:
            self._linger_timer = self.loop.call_later(ends_at - now, self._look_whether_the_client_has_gone)

    def on_message_begin(self) -> None:
        # uvicorn's own prepares a scope for ASGI: later, if this is not short.
        self._idle_since = 0.0
        self.url = b""
        self.headers = []

    def on_response_complete(self) -> None:
        if self.pipeline or self.flow.read_paused:
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1
            self._idle_since = self.loop.time()

    def on_headers_complete(self) -> None:
        if not self._is_short():
            url, headers = self.url, self.headers
            super().on_message_begin()
            self.url = url
            self.headers.extend(headers)
            super().on_headers_complete()
            self.cycle.transport = _Closing(self.transport, self.close_after_reply)
            return
        self.cycle = _Exchange(keep_alive=self.parser.should_keep_alive())

    def _is_short(self) -> bool:
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return False
        if self.cycle is not None and not self.cycle.response_complete:
            return False
        length = -1
        for name, value in self.headers:
            if name == b"content-length":
                length = int(value)
            elif name in _NOT_SHORT:
                return False
        return 0 <= length <= min(_SHORT_BYTES, self._app.max_request_bytes)

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if type(cycle) is _Exchange and cycle.more_body:
            cycle.body = cycle.body + body if cycle.body else body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if type(cycle) is not _Exchange or not cycle.more_body:
            super().on_message_complete()
            return
        cycle.more_body = False
        target, _, query = self.url.decode("latin-1").partition("?")
        if not target.startswith("/"):  # a proxy's form of it
            url = httptools.parse_url(self.url)
            target, query = url.path.decode("latin-1"), (url.query or b"").decode("latin-1")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers}
        request = Request("POST", target, query, headers, cycle.body)
        rest = self._app.answer_soon(request, functools.partial(self._finish, cycle))
        if rest is not None:
            task = self.loop.create_task(self._answer(cycle, rest))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _answer(self, cycle: _Exchange, rest: Coroutine[Any, Any, Reply]) -> None:
        self._finish(cycle, await rest)

    def _finish(self, cycle: _Exchange, reply: Reply) -> None:
        if cycle.disconnected:
            return
        closes = reply.closes or not cycle.keep_alive
        self.transport.write(head_of(reply._replace(closes=True) if closes else reply) + reply.body)
        cycle.response_complete = True
        if closes:
            self.transport.close()
            self._end_soon()
        self.on_response_complete()


class _Closing:
    """What uvicorn's own cycle sees of a transport: its `close` is ours."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.close = close
        self.write = transport.write
        self.is_closing = transport.is_closing


def _ends_with_reply(scope: Scope) -> bool:
    """Whether uvicorn closes the connection after this request."""
    asked = (value.lower() for name, value in scope["headers"] if name == b"connection")
    return scope["http_version"] == "1.0" or any(b"close" in value for value in asked)


class Asgi:
    """The application for everything that does not go the short way."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(
            scope["method"],
            scope["raw_path"].decode("latin-1"),
            scope["query_string"].decode("latin-1"),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            b"",
        )
        try:
            body = await self._body(scope, receive)
        except TooLarge:
            # What is left of the body is not read, so that nothing else can come on this connection.
            reply = self.app.too_large(request)._replace(closes=True)
        except asyncio.IncompleteReadError:
            return
        else:
            reply = await self.app.answer(request._replace(body=body))
        if reply.closes is False and _ends_with_reply(scope):
            reply = reply._replace(closes=None)  # uvicorn says that it closes, and only that is to be said
        head = head_of(reply).split(b"\r\n")[1:-2]
        headers = [tuple(line.split(b": ", 1)) for line in head]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body if scope["method"] != "HEAD" else b""})

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self.app.max_request_bytes:
                raise TooLarge
        chunks = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise asyncio.IncompleteReadError(b"", None)
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self.app.max_request_bytes:
                raise TooLarge
            more = message.get("more_body", False)
        return b"".join(chunks) if len(chunks) > 1 else chunks[0]
