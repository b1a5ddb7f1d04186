"""
A pickled estimator, and the release of scikit-learn that wrote it.

scikit-learn promises nothing for pickles of another release: some do not load, some load and fail at each call, some
work. Each estimator's state has the release in it, so that what goes wrong can name both.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from polyhost_handlers.errors import LoadFailed, load_errors_named

# The name in an estimator's state, a few bytes of the pickle's own, and the release.
_VERSION = re.compile(rb"_sklearn_version.{1,16}?(\d+\.\d+(?:\.\d+)?(?:\.?(?:post|dev|rc|a|b)\d+)?)", re.DOTALL)
# scikit-learn's own warning, of any release.
_TOLD = re.compile(r"unpickle estimator \S+ from version (\S+) when using version")
_MAX_SEARCHED_BYTES = 256 * 1024**2
_CHUNK_BYTES = 1024**2
_COMPRESSIONS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"]\0\0": lzma.open,
}


@dataclass(frozen=True)
class Unpickled:
    estimator: Any
    # The release that wrote it, where it is not the one that runs here.
    version: str | None = None


def installed_version() -> str:
    return metadata.version("scikit-learn")


def versions_differ(version: str) -> str:
    """The sentences that name both releases and what to do."""
    return (
        f"The model was written by scikit-learn {version}, this server has {installed_version()}: train or save it "
        f"again with {installed_version()}, or serve it where scikit-learn {version} is installed."
    )


def unpickle(path: Path) -> Unpickled:
    """
    The estimator in `path`, by joblib or pickle, compressed or not.

    Raises LoadFailed; where the pickle is of another release of scikit-learn, with both releases in its sentence.
    """
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            estimator = _load(path)
    except LoadFailed as error:
        version = version_in(path)
        if version is None or version == installed_version():
            raise
        raise LoadFailed(f"{error.message.rstrip('.:')}. {versions_differ(version)}") from error
    versions = [_TOLD.search(str(warning.message)) for warning in told]
    return Unpickled(estimator, next((found[1] for found in versions if found), None))


def _load(path: Path) -> Any:
    import joblib

    with load_errors_named(f"{path.name} cannot be unpickled", path.stat().st_size):
        try:
            return joblib.load(path)
        except ModuleNotFoundError as error:
            raise LoadFailed(f"Unable to load model: {path.name} needs the Python module {error.name}, "
                             "which is not installed here.") from error  # fmt: skip


def version_in(path: Path) -> str | None:
    """The release of scikit-learn in the pickle's text, None if it has none. For what cannot be unpickled."""
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
