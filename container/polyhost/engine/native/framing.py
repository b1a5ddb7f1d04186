"""What passes between the front and a worker: messages, each behind its length of four bytes, and progress."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

_LENGTH = struct.Struct("<I")
# A body is limited long before this; more is a worker that writes to the wrong descriptor.
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


class Deframer:
    """Bytes in, as they come; messages of `kind` out."""

    def __init__(self, kind: Any) -> None:
        self._left = bytearray()
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that `data` completes. Raises BrokenFrame."""
        if self._left:
            self._left += data
            if len(self._left) < _LENGTH.size + _length_at(self._left, 0):
                return
            data, self._left = bytes(self._left), bytearray()
        view = memoryview(data)
        start = 0
        while len(data) - start >= _LENGTH.size:
            end = start + _LENGTH.size + _length_at(data, start)
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


def _length_at(data: bytes | bytearray, start: int) -> int:
    if len(data) - start < _LENGTH.size:
        return 0
    (length,) = _LENGTH.unpack_from(data, start)
    if length > MAX_FRAME_BYTES:
        raise BrokenFrame(f"a frame of {length} bytes")
    return int(length)


def received(connection: socket.socket, kind: Any) -> Iterator[tuple[Any, bool]]:
    """
    The messages of `kind` that come over a blocking socket, until it closes, each with whether the next is there too.

    One buffer serves them all; a message that is larger is read into a piece of its own, once.
    """
    decode = msgspec.msgpack.Decoder(kind).decode
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    start = end = 0
    while True:
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            body = start + _LENGTH.size
            if end - body >= length:
                start = body + length
                yield decode(buffer[body:start]), _is_whole(buffer, start, end)
            elif _LENGTH.size + length > _BUFFER_BYTES:
                large = memoryview(bytearray(length))
                large[: end - body] = buffer[body:end]
                _fill(connection, large[end - body :])
                start = end = 0
                yield decode(large), False
            else:
                break
        buffer[: end - start] = buffer[start:end]
        start, end = 0, end - start
        count = connection.recv_into(buffer[end:])
        if not count:
            return
        end += count


def _is_whole(buffer: memoryview, start: int, end: int) -> bool:
    if end - start < _LENGTH.size:
        return False
    (length,) = _LENGTH.unpack_from(buffer, start)
    return bool(end - start - _LENGTH.size >= length)


class Progress:
    """
    Which order a worker is at, in a page of memory that it shares with the front.

    When the worker dies, or does not answer, that is the one to ask about.
    """

    _NUMBER = struct.Struct("<Q")

    def __init__(self, descriptor: int) -> None:
        """`descriptor`, of `new_page`, is closed."""
        self._page = mmap.mmap(descriptor, self._NUMBER.size)
        os.close(descriptor)

    @staticmethod
    def new_page() -> int:
        """It cannot be made smaller: a model that did so would end the front, which reads it."""
        descriptor = os.memfd_create("polyhost-progress", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, Progress._NUMBER.size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        return descriptor

    def begin(self, order: int) -> None:
        self._NUMBER.pack_into(self._page, 0, order)

    @property
    def begun(self) -> int:
        """Its number; 0 between two."""
        return int(self._NUMBER.unpack_from(self._page, 0)[0])


def _fill(connection: socket.socket, piece: memoryview) -> None:
    while piece:
        count = connection.recv_into(piece)
        if not count:
            raise ConnectionResetError("the front closed its socket in the middle of a message")
        piece = piece[count:]
