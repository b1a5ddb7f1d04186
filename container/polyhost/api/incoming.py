"""What has come from a client and belongs to no request yet, and whether more of it is read."""

from __future__ import annotations

import asyncio

from polyhost.api.parsing import END_OF_HEAD, ChunkedBody, SizedBody, check_unfinished
from polyhost.http_limits import HttpLimits

# What may wait behind a request that is being answered before reading is paused.
_AHEAD_BYTES = 64 * 1024
# A body in chunks is read in pieces of this size, until its connection has had its turn: whoever sends chunks of a byte
# costs a fifth of a microsecond for each, and nobody else shall wait for all of them.
_PIECE_BYTES = 2048
_STEPS_A_TURN = 512
_LINE_ENDS = (10, 13)


class Incoming:
    """Begins at `start` of `data`; empty when `data` is."""

    __slots__ = ("_checked", "_transport", "data", "is_paused", "peer", "start")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # From where; "" where that is not told.
        peer = transport.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else ""
        self.data: bytes | bytearray = b""
        self.start = 0
        # No head ends before this place.
        self._checked = 0
        self.is_paused = False

    def add(self, data: bytes) -> None:
        """Behind what is there. Where nothing is, `data` is set instead: that is quicker."""
        if isinstance(self.data, bytes):
            self.data = bytearray(self.data)
        del self.data[: self.start]
        self._checked = max(0, self._checked - self.start)
        self.start = 0
        self.data += data

    def consume(self, end: int) -> None:
        """What comes before `end` belongs to a request now."""
        self._checked = 0
        if end == len(self.data):
            self.data, self.start = b"", 0
        else:
            self.start = end

    def take(self, begin: int, end: int) -> bytes:
        """As `consume`; this is on every request's way."""
        data = self.data
        self._checked = 0
        if end == len(data):
            self.data, self.start = b"", 0
        else:
            self.start = end
        taken = data[begin:end]
        return taken if isinstance(taken, bytes) else bytes(taken)

    def drop(self) -> None:
        self.data, self.start = b"", 0

    # Heads

    def end_of_head(self) -> int:
        """Where the head of a request ends; 0 when not all of it is there. Skips empty lines before it."""
        if self.data[self.start] in _LINE_ENDS:
            self._skip_empty_lines()
        checked = self._checked
        end = self.data.find(END_OF_HEAD, self.start if not checked else max(self.start, checked - 3)) + 4
        return 0 if end < 4 else end

    def _skip_empty_lines(self) -> None:
        """Some clients end a request with one too many."""
        self.data = self.data[self.start :].lstrip(b"\r\n")
        self.start = self._checked = 0

    def keep_unfinished_head(self, limits: HttpLimits) -> bool:
        """Whether a head has begun. Raises Refused for one that cannot become a good one."""
        if self.start:
            self.data, self.start = bytearray(self.data[self.start :]), 0
        if not self.data:
            return False
        check_unfinished(self.data, self._checked, limits)
        self._checked = len(self.data)
        return True

    # Bodies

    def feed(self, body: SizedBody | ChunkedBody) -> bool:
        """As much as one turn allows; whether the body has come to its end. Raises Refused, BodyTooLong."""
        if isinstance(body, ChunkedBody):
            return self._feed_chunked(body)
        data = self.data if isinstance(self.data, bytes) and not self.start else bytes(self.data[self.start :])
        end = body.feed(data)
        self.data, self.start = b"" if end is None else data[end:], 0
        return end is not None

    def _feed_chunked(self, body: ChunkedBody) -> bool:
        ends_at = body.steps + _STEPS_A_TURN
        while self.data and body.steps < ends_at:
            piece = bytes(self.data[self.start : self.start + _PIECE_BYTES])
            end = body.feed(piece)
            self.consume(self.start + (len(piece) if end is None else end))
            if end is not None:
                return True
        return False

    # Pauses

    def pause_if_ahead(self) -> None:
        """A client that sends faster than it is answered waits in its own socket."""
        if len(self.data) > _AHEAD_BYTES and not self.is_paused:
            self.is_paused = True
            self._transport.pause_reading()

    def resume_if_behind(self) -> None:
        if len(self.data) <= _AHEAD_BYTES:
            self.resume()

    def resume(self) -> None:
        if self.is_paused and not self._transport.is_closing():
            self.is_paused = False
            self._transport.resume_reading()
