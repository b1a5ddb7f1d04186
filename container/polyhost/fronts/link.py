"""A front, as the keeper has it: requests of clients come over one socket, and their replies go back."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import cast

import msgspec

from polyhost.api.http import App, Body, Reply, Request
from polyhost.engine.native.segments import Channel
from polyhost.framing import Deframer, frame
from polyhost.fronts.lessor import Lessor
from polyhost.fronts.messages import MOST_BYTES, Ask, Left, Piece, Ready, Replied, Returned, Revoked, ToKeeper

_Leave = Callable[[], object] | None


class Link(asyncio.Protocol):
    def __init__(
        self, app: App, lessor: Lessor | None, channel: Channel, *,
        on_ready: Callable[[], None], on_lost: Callable[[], None], abort: Callable[[], None],
    ) -> None:  # fmt: skip
        """`channel`: over which segments of compiled models are passed. `abort`: ends the front's process."""
        self.abort = abort
        self._app = app
        self._lessor = lessor
        self.channel = channel
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._deframer = Deframer(ToKeeper, lambda: MOST_BYTES)
        # What to call when the client goes, for each request that is not answered yet.
        self._open: dict[int, _Leave] = {}

    def send(self, message: msgspec.Struct) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame(message))

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for message in self._deframer.feed(data):
            match message:
                case Ask():
                    self._begin(message)
                case Left(number):
                    self._leave(number)
                case Returned(slot, serial):
                    if self._lessor is not None:
                        self._lessor.leases.returned(slot, serial, self)
                case Ready():
                    self._on_ready()

    def connection_lost(self, _: Exception | None) -> None:
        """Its clients have gone with it."""
        for number in [*self._open]:
            self._leave(number)
        self.channel.close()
        self._on_lost()

    # A tenant of compiled models

    def revoked(self, slot: int) -> None:
        self.send(Revoked(slot))

    # Requests

    def _begin(self, ask: Ask) -> None:
        number = ask.number
        self._open[number] = None
        request = Request(ask.method, ask.path, ask.query, ask.headers, ask.body, ask.peer)
        done = functools.partial(self._answered, number, request if ask.wants_lease else None)
        if ask.is_too_large:
            self._app.too_large(request, done)
            return
        leave = self._app.answer(request, done)
        if number in self._open:  # it is not answered yet
            self._open[number] = leave

    def _answered(self, number: int, leasing: Request | None, reply: Reply) -> None:
        """`leasing`: the request, if the front would answer the next one like it."""
        if number not in self._open:
            return
        if reply.parts is not None:
            self._pass_on(number, reply, reply.parts)
            return
        del self._open[number]
        grant = None
        # One whose process has ended would never give it back.
        may_lease = reply.status == 200 and not self._transport.is_closing()
        if leasing is not None and self._lessor is not None and may_lease:
            grant = self._lessor.grant(leasing, self)
        self.send(Replied(number, reply.body, reply.status, reply.headers, reply.own_headers, reply.closes, grant))

    def _pass_on(self, number: int, reply: Reply, parts: Body) -> None:
        """The request stays open until its last part: its client may leave before."""
        self.send(Replied(number, b"", reply.status, reply.headers, reply.own_headers, reply.closes, None, True))

        def write(part: bytes) -> None:
            if number in self._open:
                self.send(Piece(number, part))

        def end(is_whole: bool) -> None:
            if number in self._open:
                del self._open[number]
                self.send(Piece(number, b"", is_whole))

        parts.attach(write, end)

    def _leave(self, number: int) -> None:
        leave = self._open.pop(number, None)
        if leave is not None:
            leave()
