"""
Files that joblib, or their owner, compressed: zlib, gzip, bz2, xz, lzma and LZ4, told by their first bytes.

A suffix says little: joblib writes `model.joblib` compressed too. LZ4 needs the package lz4, which is not installed
by default: joblib needs it too.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import Any

# Far more than models have: the trees of XGBoost's text formats shrink to a tenth.
_MAX_RATIO = 100
_ALWAYS_ALLOWED_BYTES = 16 * 1024**2
# A header of a few bytes may ask for a dictionary of gigabytes; the strongest preset needs 65 MiB.
_MAX_LZMA_BYTES = 128 * 1024**2


_LZ4_FRAME = b"\x04\x22\x4d\x18"


def beginning_of(data: bytes, count: int) -> bytes:
    """At most `count` bytes of what was compressed; `data` may be cut off, and is taken as it is if not compressed."""
    try:
        decompressor = _decompressor(data)
        return data[:count] if decompressor is None else bytes(decompressor.decompress(data, count))
    except (OSError, ValueError, EOFError, RuntimeError, zlib.error, lzma.LZMAError):
        return b""


def uncompressed(data: bytes) -> bytes:
    """
    What was compressed, or `data` itself.

    Raises ValueError, or the library's own error, where it is cut off or broken, or grows out of proportion.
    """
    decompressor = _decompressor(data)
    if decompressor is None:
        return data
    limit = len(data) * _MAX_RATIO + _ALWAYS_ALLOWED_BYTES
    content = bytes(decompressor.decompress(data, limit + 1))
    if len(content) > limit:
        raise ValueError(f"it unpacks to more than {_MAX_RATIO} times its size")
    if not decompressor.eof:
        raise ValueError("its compressed data is cut off")
    return content


def _decompressor(head: bytes) -> Any:
    if head.startswith(b"\x1f\x8b") or _is_zlib(head):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    if head.startswith(b"BZh"):
        return bz2.BZ2Decompressor()
    if head.startswith((b"\xfd7zXZ", b"\x5d\0\0")):
        return lzma.LZMADecompressor(memlimit=_MAX_LZMA_BYTES)
    if head.startswith(_LZ4_FRAME):
        return _lz4_decompressor()
    return None


def _lz4_decompressor() -> Any:
    """Raises ValueError where the package is not installed."""
    try:
        from lz4.frame import LZ4FrameDecompressor
    except ImportError as error:
        raise ValueError(
            "it is compressed by LZ4, which needs the Python package lz4. "
            "Run pip install lz4 in the environment of the server, or dump the model with another compression"
        ) from error
    return LZ4FrameDecompressor()


def _is_zlib(head: bytes) -> bool:
    """The first byte names the method, and both together are a multiple of 31."""
    return len(head) > 1 and head[0] == 0x78 and (head[0] << 8 | head[1]) % 31 == 0
