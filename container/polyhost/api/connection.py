"""
A client's connection: HTTP/1.1 on asyncio's Protocol.

One request at a time is answered, in the order in which they came; what comes behind it waits unread. Clients are
not trusted: each phase of a request has a limit of size and of time, and no connection keeps more than those.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Protocol, cast

from polyhost.api.buffers import Buffers
from polyhost.api.deadlines import End, Phase, end_of, expires_at, too_slow
from polyhost.api.http import App, Reply, Request
from polyhost.api.incoming import Incoming
from polyhost.api.outgoing import Outgoing
from polyhost.api.parsing import BodyTooLong, ChunkedBody, Head, Refused, SizedBody, read_head
from polyhost.engine.errors import EngineError
from polyhost.http_limits import HttpLimits

# How many requests of one segment are begun in a turn, where each is answered at once. Other connections then wait for
# 0.1 ms of work, and not for all requests of that segment.
_REQUESTS_A_TURN = 4
_ERROR_HEADERS = ((b"content-type", b"application/json"),)
_BEFORE_A_REQUEST = (Phase.IDLE, Phase.HEAD)
_AFTER_THE_LAST_REPLY = (Phase.CLOSING, Phase.LINGERING)


class Shared(Protocol):
    """What all connections of a server share. Times are the loop's; `now` is some tenths of a second old at most."""

    app: App
    limits: HttpLimits
    buffers: Buffers
    now: float
    # When the server was told to stop.
    stopping_since: float | None
    # Whether connections end with their next answers.
    is_leaving: bool

    def opened(self, connection: Connection) -> bool:
        """Whether there is room for it."""

    def lingers(self, connection: Connection) -> None:
        """It has been answered for the last time, and is not waited for."""

    def closed(self, connection: Connection) -> None: ...

    def wait_for_turn(self, connection: Connection) -> None:
        """It has more to read: `take_turn` is called when all other connections have been read from."""


class Connection(asyncio.Protocol):
    __slots__ = (
        "_body", "_head", "_incoming", "_is_reading", "_last_data_at", "_leave", "_number", "_outgoing", "_phase",
        "_shared", "_since", "_transport", "_waits_for_turn",
    )  # fmt: skip

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._transport: asyncio.Transport
        self._incoming: Incoming
        self._outgoing: Outgoing
        self._phase = Phase.IDLE
        self._since = self._last_data_at = shared.now
        # The request that is being read or answered.
        self._head = _NO_HEAD
        self._body: SizedBody | ChunkedBody
        # Counts requests: an answer to another one than this comes too late.
        self._number = 0
        # Called when the client goes while a request is being answered.
        self._leave: Callable[[], object] | None = None
        self._is_reading = False
        self._waits_for_turn = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        own = self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self._incoming, self._outgoing = Incoming(own), Outgoing(own)
        if not self._shared.opened(self):
            self._outgoing.write(_too_many(self._shared.limits.max_connections), "", closes=True)
            self._close()

    def connection_lost(self, _: Exception | None) -> None:
        self._number += 1
        self._phase = Phase.CLOSING
        self._shared.closed(self)
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def data_received(self, data: bytes) -> None:
        if self._phase in _AFTER_THE_LAST_REPLY:
            self._last_data_at = self._shared.now
            return
        incoming = self._incoming
        if incoming.data:
            incoming.add(data)
        else:
            incoming.data = data
        if self._phase is Phase.BODY:
            if not self._waits_for_turn:
                self._read_body()
        elif self._phase is not Phase.ANSWERING:
            self._read()
        if incoming.data and (self._phase is Phase.ANSWERING or self._outgoing.is_choked or self._waits_for_turn):
            incoming.pause_if_ahead()  # a head is read to its own limit

    def pause_writing(self) -> None:
        self._outgoing.is_choked = True

    def resume_writing(self) -> None:
        self._outgoing.is_choked = False
        self._read_on()

    # The server's

    def end_soon(self) -> None:
        """The server stops: what has come whole is answered."""
        if self._phase in _BEFORE_A_REQUEST:
            self._close()
        else:
            self.end_if_expired(self._shared.now)

    def end_if_expired(self, now: float) -> None:
        outgoing, shared = self._outgoing, self._shared
        unsent_bytes, has_read = outgoing.look()
        if has_read and self._phase in (Phase.IDLE, Phase.CLOSING):
            self._since = now
        at = expires_at(
            self._phase, self._since, self._last_data_at, shared.limits, stopping_since=shared.stopping_since,
            is_over=outgoing.is_tls and not unsent_bytes,
        )  # fmt: skip
        if at is None or now < at:
            return
        is_stuck = bool(unsent_bytes) or self._transport.is_closing()
        match end_of(self._phase, is_stuck=is_stuck, is_stopping=shared.stopping_since is not None):
            case End.REFUSE:
                self._say_last(self._number, _refusal(too_slow(self._phase, shared.limits)))
            case End.ABORT:
                self._transport.abort()
            case End.CLOSE:
                self._close()

    def abort(self) -> None:
        self._transport.abort()

    def take_turn(self) -> None:
        """All others have been read from since it asked for one."""
        self._waits_for_turn = False
        if self._phase is Phase.BODY:
            self._read_body()
        elif self._phase is not Phase.ANSWERING:
            self._read_on()

    # Reading

    def _read_on(self) -> None:
        """Some of what was in the way has gone."""
        if self._outgoing.is_choked or self._is_reading:
            return
        if self._incoming.data:
            self._read()
        self._incoming.resume_if_behind()

    def _read(self) -> None:
        """Begin the requests that have come, as long as each is answered at once, and as many as one turn allows."""
        if self._waits_for_turn:
            return
        incoming, outgoing = self._incoming, self._outgoing
        self._is_reading = True
        begun = 0
        try:
            while incoming.data and not outgoing.is_choked and self._phase in _BEFORE_A_REQUEST:
                if begun == _REQUESTS_A_TURN:
                    self._wait_for_turn()
                    break
                if not self._begin():
                    break
                begun += 1
        except Refused as refused:
            self._say_last(self._number, _refusal(refused))
        finally:
            self._is_reading = False

    def _wait_for_turn(self) -> None:
        self._waits_for_turn = True
        self._shared.wait_for_turn(self)

    def _begin(self) -> bool:
        """Whether the whole head of a request was there. Raises Refused."""
        incoming = self._incoming
        end = incoming.end_of_head()
        if not end:
            if incoming.keep_unfinished_head(self._shared.limits) and self._phase is Phase.IDLE:
                self._phase = Phase.HEAD
                self._since = self._shared.now
            return False
        data = incoming.data
        head = self._head = read_head(bytes(data[incoming.start : end]), self._shared.limits)
        length = head.length
        if length is not None and length > self._shared.app.max_request_bytes:
            self._refuse_body()
        elif length is not None and len(data) - end >= length:
            self._answer(incoming.take(end, end + length))
        else:
            incoming.consume(end)
            self._wait_for_body()
        return True

    def _wait_for_body(self) -> None:
        head, max_bytes = self._head, self._shared.app.max_request_bytes
        self._body = ChunkedBody(max_bytes) if head.length is None else SizedBody(head.length, self._shared.buffers)
        self._phase = Phase.BODY
        self._since = self._last_data_at = self._shared.now
        if self._incoming.data:
            self._read_body()
        elif head.expects:
            self._outgoing.write_continue()

    def _read_body(self) -> None:
        """As much of it as one turn allows; what is left is read in later ones."""
        self._last_data_at = self._shared.now
        try:
            is_complete = self._incoming.feed(self._body)
        except Refused as refused:
            self._say_last(self._number, _refusal(refused))
            return
        except BodyTooLong:
            self._refuse_body()
            return
        if is_complete:
            self._answer(self._body.whole())
        elif self._incoming.data:
            self._wait_for_turn()
        elif self._incoming.is_paused:
            self._incoming.resume()

    # Answering

    def _answer(self, body: bytes) -> None:
        self._phase = Phase.ANSWERING
        head, number = self._head, self._number
        request = Request(head.method, head.path, head.query, head.fields, body, self._incoming.peer)
        leave = self._shared.app.answer(request, functools.partial(self._finish, number))
        if number == self._number:  # it is not answered yet
            self._leave = leave

    def _finish(self, number: int, reply: Reply) -> None:
        if number != self._number:
            return
        closes = reply.closes or self._head.closes or self._shared.is_leaving
        self._outgoing.write(reply, self._head.method, closes=closes)
        if reply.parts is None:
            self._finished(number, closes)
        else:
            self._outgoing.write_parts(reply.parts, functools.partial(self._finished, number, closes))

    def _finished(self, number: int, closes: bool, is_whole: bool = True) -> None:
        if number != self._number:  # the client has gone before the last part
            return
        self._number += 1
        self._leave = None
        incoming = self._incoming
        if is_whole and not closes:
            self._phase = Phase.IDLE
            self._since = self._shared.now
            if incoming.data or incoming.is_paused:
                self._read_on()
        elif incoming.data or incoming.is_paused:
            self._linger()
        else:
            self._close()

    # Refusing

    def _refuse_body(self) -> None:
        self._phase, head = Phase.ANSWERING, self._head
        request = Request(head.method, head.path, head.query, head.fields, b"", self._incoming.peer)
        self._shared.app.too_large(request, functools.partial(self._say_last, self._number))

    def _say_last(self, number: int, reply: Reply) -> None:
        """Where a request ends badly nobody can say where another one begins."""
        if number == self._number:
            self._number += 1
            self._outgoing.write(reply, self._head.method, closes=True)
            self._linger()

    def _close(self) -> None:
        self._phase = Phase.CLOSING
        self._since = self._shared.now
        self._transport.close()

    def _linger(self) -> None:
        """Close, but not at once: the client may still be sending what nobody wants."""
        self._phase = Phase.LINGERING
        self._since = self._last_data_at = self._shared.now
        self._incoming.drop()
        self._incoming.resume()
        self._outgoing.end()
        self._shared.lingers(self)


_NO_HEAD = Head()


def _refusal(error: EngineError) -> Reply:
    return Reply(error.body, error.status, _ERROR_HEADERS)


def _too_many(limit: int) -> Reply:
    words = f"The server has {limit} connections, as many as it may: try again later, or raise --max-connections."
    return _refusal(Refused(503, words))
