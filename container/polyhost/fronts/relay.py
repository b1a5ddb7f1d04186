"""The keeper, as a front has it: whatever a front does not answer itself is asked there."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from typing import cast

import msgspec

from polyhost.api.http import Body, Reply, Request
from polyhost.framing import Deframer, frame
from polyhost.fronts.messages import MOST_BYTES, Ask, Grant, Leave, Left, Look, Piece, Replied, Revoked, Stop, ToFront

Done = Callable[[Reply], None]
# What a front knows requests by: a path, and the target model in the header.
Key = tuple[str, str]


class Relay(asyncio.Protocol):
    """
    Of each connection one request at most is on its way, with a body of the size that a request may have. So what waits
    here is limited as it is where the server is one process.
    """

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self.on_look: Callable[[], None] = lambda: None
        self.on_leave: Callable[[], None] = lambda: None
        self.on_stop: Callable[[], None] = lambda: None
        # Called with each lease that comes, and the requests that it is for; None where nobody asks for them any more.
        self.on_grant: Callable[[Grant, Key | None], None] = lambda *_: None
        self.on_revoked: Callable[[int], None] = lambda _: None
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._deframer = Deframer(ToFront, lambda: MOST_BYTES)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[Done, Key | None]] = {}
        # Of replies that come in parts, and are not whole yet.
        self._bodies: dict[int, Body] = {}

    def ask(
        self, request: Request, done: Done, key: Key | None = None, *, is_too_large: bool = False
    ) -> Callable[[], None]:
        """`key`: of requests that the front would answer itself if it were given a lease."""
        number = next(self._numbers)
        self._waiting[number] = done, key
        self.send(Ask(number, *request, is_too_large, key is not None))
        return functools.partial(self._leave, number)

    def _leave(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None or self._bodies.pop(number, None) is not None:
            self.send(Left(number))

    def send(self, message: msgspec.Struct) -> None:
        self._transport.write(frame(message))

    # A protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for message in self._deframer.feed(data):
            match message:
                case Replied():
                    self._replied(message)
                case Piece():
                    self._take(message)
                case Revoked(slot):
                    self.on_revoked(slot)
                case Look():
                    self.on_look()
                case Leave():
                    self.on_leave()
                case Stop():
                    self.on_stop()

    def _replied(self, reply: Replied) -> None:
        done, key = self._waiting.pop(reply.number, (None, None))
        if reply.grant is not None:
            self.on_grant(reply.grant, key)
        if done is None:  # the request's client has gone
            return
        parts = None
        if reply.comes_in_parts:
            parts = self._bodies[reply.number] = Body()
        done(Reply(reply.body, reply.status, reply.headers, reply.own_headers, reply.closes, parts))

    def _take(self, piece: Piece) -> None:
        if piece.number not in self._bodies:  # as above
            return
        if piece.body:
            self._bodies[piece.number].write(piece.body)
        else:
            self._bodies.pop(piece.number).end(is_whole=piece.is_whole)

    def connection_lost(self, _: Exception | None) -> None:
        self._on_lost()
