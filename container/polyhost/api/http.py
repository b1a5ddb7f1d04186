"""A request, its reply, and the application between the two. How they come over a connection is connection.py's."""

from __future__ import annotations

import functools
import http
import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

from polyhost.service_errors import EndpointError, Throttled

Headers = tuple[tuple[bytes, bytes], ...]

_NOT_IN_A_NAME = re.compile(rb'[\x00-\x20\x7f-\xff()<>@,;:\\"/\[\]?={}]')
_NOT_IN_A_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus}
_IN_PARTS = {
    False: b"transfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n",
    True: b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n",
}
_CONNECTION = {
    False: b"content-length: %d\r\nconnection: keep-alive\r\n\r\n",
    True: b"content-length: %d\r\nconnection: close\r\n\r\n",
}
# A client expects no body behind these, and would take one for the next reply.
_WITHOUT_BODY = frozenset((204, 304))


class Request(NamedTuple):
    """
    `path` as it came, escapes and all; `query` without its question mark; header names in lower case.

    `peer`: the address from which it came, a client's or a proxy's; "" where there is none.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    peer: str = ""


class Body:
    """
    A reply's body that comes in parts, after the reply. Whoever writes the reply attaches itself to it at once.

    Parts that nobody takes, because the client has gone, are dropped.
    """

    __slots__ = ("_end", "_write")

    def __init__(self) -> None:
        self._write: Callable[[bytes], object] = lambda _: None
        self._end: Callable[[bool], object] = lambda _: None

    def attach(self, write: Callable[[bytes], object], end: Callable[[bool], object]) -> None:
        """`end` is called with whether all of it has come."""
        self._write, self._end = write, end

    def write(self, part: bytes) -> None:
        if part:
            self._write(part)

    def end(self, *, is_whole: bool = True) -> None:
        self._end(is_whole)


class Reply(NamedTuple):
    """
    `headers` are repeated from reply to reply, `own_headers` (lines) are this one's alone.

    `closes`: whether the connection ends with it. `parts`: where the body follows in parts, and `body` is empty.
    """

    body: bytes
    status: int
    headers: Headers
    own_headers: bytes = b""
    closes: bool = False
    parts: Body | None = None


def again_line(secs: int) -> bytes:
    """When a client may send its request again: a header line of a reply's own."""
    return b"retry-after: %d\r\n" % secs


def with_retry_after(reply: Reply, error: EndpointError) -> Reply:
    """The same reply where it refuses nobody for calling too often."""
    if not isinstance(error, Throttled):
        return reply
    return reply._replace(own_headers=reply.own_headers + again_line(error.retry_after_secs))


class App(Protocol):
    max_request_bytes: int

    def answer(self, request: Request, done: Callable[[Reply], None]) -> Callable[[], object] | None:
        """
        Begin to answer: `done` is called once, now or later. Raises nothing.

        Returns what to call when the client has gone before that; None where it makes no difference.
        """

    def stop_soon(self) -> None:
        """The server stops: what no client waits for any more ends."""

    async def stop(self) -> None:
        """End whatever is still being answered."""

    def too_large(self, request: Request, done: Callable[[Reply], None]) -> None:
        """Answer, as `answer` does, a request whose body has more than `max_request_bytes`. It comes without it."""


@functools.lru_cache(maxsize=1024)
def rendered(headers: Headers) -> bytes:
    """Header lines; a field that could end its line, or is no field at all, is left out."""
    return b"".join(
        b"%b: %b\r\n" % (name, value)
        for name, value in headers
        if name and not _NOT_IN_A_NAME.search(name) and not _NOT_IN_A_VALUE.search(value)
    )


def head_of(reply: Reply, *, closes: bool) -> bytes:
    """All before the body."""
    return b"".join(
        (
            _STATUS_LINES.get(reply.status) or b"HTTP/1.1 %d \r\n" % reply.status,
            rendered(reply.headers),
            reply.own_headers,
            _CONNECTION[closes] % len(reply.body) if reply.parts is None else _IN_PARTS[closes],
        ),
    )


def sendable(reply: Reply) -> Reply:
    """
    The reply as a client can read it. A handler may choose any status.

    Clients would wait for another reply after a status below 200, and cannot read one of more than three digits.
    """
    if reply.status in _WITHOUT_BODY:
        return reply._replace(body=b"")
    if not 200 <= reply.status <= 999:
        return reply._replace(status=500)
    return reply
