"""Messages to bytes and back: a length of four bytes, then the message. No socket in here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec

_LENGTH = struct.Struct("<I")
# A body is limited long before this; more is a worker that writes to the wrong descriptor.
MAX_FRAME_BYTES = 1024**3

_encode = msgspec.msgpack.Encoder().encode


class BrokenFrame(ValueError):
    """The peer sent what is no message."""


def frame(message: msgspec.Struct) -> bytes:
    payload = _encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Deframer:
    """Bytes in, as they come; messages of `kind` out."""

    def __init__(self, kind: Any) -> None:
        self._buffer = bytearray()
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that `data` completes. Raises BrokenFrame."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > MAX_FRAME_BYTES:
                raise BrokenFrame(f"a frame of {length} bytes")
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            try:
                message = self._decode(memoryview(buffer)[start + _LENGTH.size : end])
            except msgspec.MsgspecError as error:
                raise BrokenFrame(str(error)) from error
            start = end
            yield message
        del buffer[:start]
