"""What passes between the front and a worker: messages, each behind its length of four bytes, and progress."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

_LENGTH = struct.Struct("<I")
# Between processes whose code is ours alone. What customers' code can write to has a limit of its own.
MAX_FRAME_BYTES = 1024**3
_BUFFER_BYTES = 64 * 1024

_encode_into = msgspec.msgpack.Encoder().encode_into


class BrokenFrame(ValueError):
    """The peer sent what is no message."""


def frame(message: msgspec.Struct) -> bytearray:
    buffer = bytearray(_LENGTH.size)
    _encode_into(message, buffer, _LENGTH.size)
    _LENGTH.pack_into(buffer, 0, len(buffer) - _LENGTH.size)
    return buffer


class FrameTooLong(BrokenFrame):
    """The peer begins a message that is longer than it may be."""

    def __init__(self, length_bytes: int) -> None:
        super().__init__(f"a frame of {length_bytes} bytes")
        self.length_bytes = length_bytes


class Deframer:
    """Bytes in, as they come; messages of `kind` out. No more is kept than the message that has begun."""

    def __init__(self, kind: Any, most_bytes: Callable[[], int] = lambda: MAX_FRAME_BYTES) -> None:
        """`most_bytes`: how long the next message may be, asked when its length has come."""
        self._left = bytearray()
        self._most_bytes = most_bytes
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def feed(self, data: bytes | bytearray) -> Iterator[Any]:
        """The messages that `data` completes. Raises BrokenFrame, FrameTooLong."""
        if self._left:
            self._left += data
            if len(self._left) < _LENGTH.size + self._length_at(self._left, 0):
                return
            data, self._left = self._left, bytearray()
        view = memoryview(data)
        start = 0
        while len(data) - start >= _LENGTH.size:
            end = start + _LENGTH.size + self._length_at(data, start)
            if end > len(data):
                break
            try:
                message = self._decode(view[start + _LENGTH.size : end])
            except msgspec.MsgspecError as error:
                raise BrokenFrame(str(error)) from error
            start = end
            yield message
        if start < len(data):
            self._left += view[start:]

    def _length_at(self, data: bytes | bytearray, start: int) -> int:
        """Raises FrameTooLong."""
        if len(data) - start < _LENGTH.size:
            return 0
        length = int(_LENGTH.unpack_from(data, start)[0])
        if length > self._most_bytes():
            raise FrameTooLong(length)
        return length


class Inbox:
    """
    The messages of `kind` that come over a blocking socket, until it closes.

    One buffer serves them all; a message that is larger is read into a piece of its own, once.
    """

    def __init__(self, connection: socket.socket, kind: Any) -> None:
        self._connection = connection
        self._decode = msgspec.msgpack.Decoder(kind).decode
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        # What of the buffer was not taken yet.
        self._start = self._end = 0

    def __iter__(self) -> Iterator[Any]:
        """Raises ConnectionResetError, OSError, msgspec.MsgspecError."""
        while True:
            begin = self._start + _LENGTH.size
            if begin <= self._end:
                (length,) = _LENGTH.unpack_from(self._buffer, self._start)
                if begin + length <= self._end:
                    self._start = begin + length
                    yield self._decode(self._buffer[begin : self._start])
                    continue
                if _LENGTH.size + length > _BUFFER_BYTES:
                    self._start = begin
                    large = bytearray(length)
                    self.read_into(large)
                    yield self._decode(large)
                    continue
            if not self._receive():
                return

    @property
    def has_next(self) -> bool:
        """Whether the next message has come whole."""
        begin = self._start + _LENGTH.size
        if begin > self._end:
            return False
        (length,) = _LENGTH.unpack_from(self._buffer, self._start)
        return bool(begin + length <= self._end)

    def read_into(self, room: bytearray) -> None:
        """What follows the last message, as much of it as there is room."""
        missing = memoryview(room)
        count = min(len(missing), self._end - self._start)
        missing[:count] = self._buffer[self._start : self._start + count]
        self._start += count
        missing = missing[count:]
        while missing:
            if not (count := self._connection.recv_into(missing)):
                raise ConnectionResetError("the front closed its socket in the middle of a message")
            missing = missing[count:]

    def _receive(self) -> bool:
        """Wait for more. False where the peer has closed."""
        left = self._end - self._start
        self._buffer[:left] = self._buffer[self._start : self._end]
        more = self._connection.recv_into(self._buffer[left:])
        self._start, self._end = 0, left + more
        return more > 0


class Progress:
    """
    Which order a worker is at, and which it has begun last, in a page of memory that it shares with the front.

    When the worker does not answer, the first is the one to ask about. When it has died, the second: it may have
    ended when it had carried the order out, and not sent the answer. A third is the front's: the order whose answer
    nobody waits for any more.
    """

    _NUMBER = struct.Struct("<Q")
    _NUMBERS = struct.Struct("<QQ")
    _ABANDONED_AT = _NUMBERS.size
    _PAGE_BYTES = _NUMBERS.size + _NUMBER.size

    def __init__(self, descriptor: int) -> None:
        """`descriptor`, of `new_page`, is closed."""
        self._page = mmap.mmap(descriptor, self._PAGE_BYTES)
        os.close(descriptor)

    @staticmethod
    def new_page() -> int:
        """It cannot be made smaller: a model that did so would end the front, which reads it."""
        descriptor = os.memfd_create("polyhost-progress", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, Progress._PAGE_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return descriptor

    def close(self) -> None:
        """Nothing is read or written any more."""
        self._page.close()

    def begin(self, order: int) -> None:
        self._NUMBERS.pack_into(self._page, 0, order, order)

    def end(self) -> None:
        self._NUMBER.pack_into(self._page, 0, 0)

    def abandon(self, order: int) -> None:
        """By the front."""
        self._NUMBER.pack_into(self._page, self._ABANDONED_AT, order)

    @property
    def abandoned(self) -> int:
        return int(self._NUMBER.unpack_from(self._page, self._ABANDONED_AT)[0])

    @property
    def at(self) -> int:
        """The number of the order; 0 between two."""
        return int(self._NUMBER.unpack_from(self._page, 0)[0])

    @property
    def begun_last(self) -> int:
        return int(self._NUMBER.unpack_from(self._page, self._NUMBER.size)[0])
