"""A connection without a socket: what a client sends goes in, what it would get comes out."""

from __future__ import annotations

import asyncio
import http.client
import io
from collections.abc import Callable, Sequence
from typing import Any

from polyhost.api.buffers import Buffers
from polyhost.api.connection import Connection
from polyhost.api.http import Reply, Request
from polyhost.http_limits import HttpLimits


class Transport(asyncio.Transport):
    """Keeps what is written. `unsent_bytes`: what the client has not read."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_reading_now = True
        self.is_eof = False
        self.is_closed = False
        self.is_aborted = False
        self.unsent_bytes = 0

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.is_eof, "it wrote behind its end"
        assert not self.is_closed, "it wrote to a closed connection"
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_eof = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True

    def pause_reading(self) -> None:
        assert self.is_reading_now
        self.is_reading_now = False

    def resume_reading(self) -> None:
        assert not self.is_reading_now
        self.is_reading_now = True


class App:
    """Answers at once with what it was asked, or, with `answers_later`, when `answer_next` is called."""

    max_request_bytes = 100_000

    def __init__(self, *, answers_later: bool = False) -> None:
        self.asked: list[Request] = []
        # Those whose client has gone before they were answered.
        self.left: list[Request] = []
        self.waiting: list[Callable[[Reply], None]] = []
        self._answers_later = answers_later

    def answer(self, request: Request, done: Callable[[Reply], None]) -> Callable[[], None]:
        self.asked.append(request)
        if self._answers_later:
            self.waiting.append(done)
        else:
            done(reply_to(request))
        return lambda: self.left.append(request)

    def answer_next(self) -> None:
        self.waiting.pop(0)(reply_to(self.asked[-1]))

    def stop_soon(self) -> None: ...

    async def stop(self) -> None: ...

    def too_large(self, request: Request, done: Callable[[Reply], None]) -> None:
        done(Reply(f"too large for {request.path}".encode(), 413, ()))


def reply_to(request: Request) -> Reply:
    return Reply(f"{request.method} {request.path} ".encode() + request.body, 200, ())


class Shared:
    """In place of a Listener."""

    def __init__(self, app: App, limits: HttpLimits, *, is_full: bool = False) -> None:
        self.app = app
        self.limits = limits
        self.buffers = Buffers()
        self.now = 1000.0
        self.stopping_since: float | None = None
        self.lingering = 0
        self.waiting: list[Connection] = []
        self._is_full = is_full

    @property
    def is_leaving(self) -> bool:
        return self.stopping_since is not None

    def opened(self, _: Connection) -> bool:
        return not self._is_full

    def lingers(self, _: Connection) -> None:
        self.lingering += 1

    def closed(self, _: Connection) -> None:
        pass

    def wait_for_turn(self, connection: Connection) -> None:
        self.waiting.append(connection)


class Wire:
    def __init__(self, app: App | None = None, limits: HttpLimits | None = None, *, is_full: bool = False) -> None:
        self.app = app or App()
        self.shared = Shared(self.app, limits or HttpLimits(), is_full=is_full)
        self.transport = Transport()
        self.connection = Connection(self.shared)
        self.connection.connection_made(self.transport)

    def send(self, *segments: bytes) -> Wire:
        for segment in segments:
            if segment:
                self.connection.data_received(segment)
            self.take_turns()
        return self

    def take_turns(self) -> int:
        """How many it needs for what has come."""
        turns = 0
        while self.shared.waiting:
            self.shared.waiting.pop().take_turn()
            turns += 1
        return turns

    def later(self, secs: float) -> None:
        self.shared.now += secs
        self.connection.end_if_expired(self.shared.now)

    def replies(self, methods: Sequence[str] = ()) -> list[tuple[int, bytes]]:
        """What was answered, as Python's own client reads it. `methods`: of the requests, if not POST."""
        return replies_in(bytes(self.transport.written), methods)


class _Unclosed(io.BufferedReader):
    """One file for all replies, which http.client closes after each."""

    def close(self) -> None:
        pass


def replies_in(data: bytes, methods: Sequence[str] = ()) -> list[tuple[int, bytes]]:
    file = _Unclosed(io.BytesIO(data))  # type: ignore[arg-type]
    replies = []
    while file.peek():
        response = http.client.HTTPResponse(_Of(file), method=(methods or ["POST"] * 1000)[len(replies)])  # type: ignore[arg-type]
        response.begin()
        replies.append((response.status, response.read()))
    return replies


class _Of:
    def __init__(self, file: _Unclosed) -> None:
        self._file = file

    def makefile(self, *_: Any) -> _Unclosed:
        return self._file
