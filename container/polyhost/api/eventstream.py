"""
AWS's event stream: messages of headers and a payload, each with its lengths and checksums.

The form is `application/vnd.amazon.eventstream`: length, length of the headers, and the CRC of both; headers; payload;
the CRC of all before. A header is its name's length, its name, 7 for text, its value's length, its value. Pure.
"""

from __future__ import annotations

import functools
import json
import struct
import zlib

MEDIA_TYPE = b"application/vnd.amazon.eventstream"

_PRELUDE = struct.Struct(">II")
_CRC = struct.Struct(">I")
_TEXT = 7
# An event has 16 MiB at most; a part is smaller, as SageMaker's are, so that clients see it sooner.
_MOST_PAYLOAD_BYTES = 1024**2


def payload_parts(body: bytes) -> bytes:
    """As one event, or several where it is long."""
    pieces = (body[start : start + _MOST_PAYLOAD_BYTES] for start in range(0, len(body), _MOST_PAYLOAD_BYTES))
    return b"".join(_message(_headers("event", "PayloadPart", "application/octet-stream"), piece) for piece in pieces)


def failure(kind: str, **members: str) -> bytes:
    """The event that ends a stream badly; boto3 raises EventStreamError at it."""
    return _message(_headers("exception", kind, "application/json"), json.dumps(members).encode())


@functools.lru_cache
def _headers(message_type: str, kind: str, content_type: str) -> bytes:
    fields = {":message-type": message_type, f":{message_type}-type": kind, ":content-type": content_type}
    return b"".join(
        struct.pack(f">B{len(name)}sBH{len(value)}s", len(name), name.encode(), _TEXT, len(value), value.encode())
        for name, value in fields.items()
    )


def _message(headers: bytes, payload: bytes) -> bytes:
    length = _PRELUDE.size + _CRC.size + len(headers) + len(payload) + _CRC.size
    prelude = _PRELUDE.pack(length, len(headers))
    whole = b"".join((prelude, _CRC.pack(zlib.crc32(prelude)), headers, payload))
    return whole + _CRC.pack(zlib.crc32(whole))
