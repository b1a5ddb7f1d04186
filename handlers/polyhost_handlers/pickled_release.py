"""The release of scikit-learn that wrote a pickle, found in its text, compressed or not. Runs nothing of it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyhost_handlers.compression import beginning_of

# The name in an estimator's state, a few bytes of the pickle's own, and the release.
_VERSION = re.compile(rb"_sklearn_version.{1,16}?(\d+\.\d+(?:\.\d+)?(?:\.?(?:post|dev|rc|a|b)\d+)?)", re.DOTALL)
_MAX_SEARCHED_BYTES = 256 * 1024**2
_CHUNK_BYTES = 1024**2
# Each estimator says its release at the end of its own state: the first one of a model is near the beginning.
_BEGINNING_BYTES = 4 * 1024**2
_COMPRESSIONS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"]\0\0": lzma.open,
}


def release_in(path: Path) -> str | None:
    """The release of scikit-learn in the pickle's text, None if it has none. For workers: it may take memory."""
    searched, tail = 0, b""
    try:
        with _opened(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                found = _VERSION.search(tail + chunk)
                if found:
                    return found[1].decode()
                tail = chunk[-64:]
                searched += len(chunk)
                if searched > _MAX_SEARCHED_BYTES:
                    return None
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):
        pass  # it is damaged
    return None


def _opened(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(6)
    for magic, opener in _COMPRESSIONS.items():
        if head.startswith(magic):
            return opener(path)
    return _ZlibFile(path) if head[:1] == b"\x78" else path.open("rb")


class _ZlibFile(io.RawIOBase):
    """joblib's own compression: zlib's stream, which no module of Python opens as a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._stream = zlib.decompressobj()

    def close(self) -> None:
        self._file.close()
        super().close()

    def read(self, size: int = -1) -> bytes:
        """Some bytes, at most `size`; none at the end."""
        while not self._stream.eof:
            pending = self._stream.unconsumed_tail or self._file.read(size)
            if not pending:
                return b""
            if data := self._stream.decompress(pending, max(size, 0)):
                return data
        return b""


def release_in_beginning(path: Path) -> str | None:
    """As `release_in`, by the first megabytes alone and in little memory, so that the server may ask too."""
    with path.open("rb") as file:
        found = _VERSION.search(beginning_of(file.read(_BEGINNING_BYTES), _BEGINNING_BYTES))
    return found[1].decode() if found else None
