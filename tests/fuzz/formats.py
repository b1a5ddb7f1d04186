"""
The binary formats that hostile bytes reach: for each what reads it, what it may raise, and files to begin with.

Used by the tests, and by atheris in an environment that has nothing of the tests' own.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from polyhost_handlers.errors import HandlerError
from polyhost_handlers.faiss_index import BrokenIndex, read_index
from polyhost_handlers.ndarray_file import BrokenParams, read_params
from polyhost_handlers.onnx_files import names_files_elsewhere
from polyhost_handlers.recordio import decode_recordio
from polyhost_handlers.xgboost_binary import check_binary
from polyhost_handlers.xgboost_document import check_document
from polyhost_handlers.xgboost_ubjson import BrokenModel
from support.records import encode_features

FOLDER = Path(__file__).parent
DATA = FOLDER.parent / "data"


@dataclass(frozen=True)
class Format:
    """`read` returns, or raises one of `refusals`."""

    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    seeds: tuple[Path | bytes, ...]

    def try_one(self, data: bytes) -> None:
        with contextlib.suppress(*self.refusals):
            self.read(data)

    def contents(self) -> Iterator[bytes]:
        for seed in self.seeds:
            yield seed.read_bytes() if isinstance(seed, Path) else seed


def _search(data: bytes) -> object:
    return read_index(data).search(np.zeros((1, 4)), 3)


def _onnx(data: bytes) -> object:
    """The network lies in a file, which is read by pieces."""
    descriptor, name = tempfile.mkstemp(prefix="fuzz-")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        return names_files_elsewhere(Path(name))
    finally:
        os.unlink(name)


def _external_data(location: bytes) -> bytes:
    """A network with one tensor whose data lie in another file: ModelProto.graph.initializer.external_data."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    entry = field(1, b"location") + field(2, location)
    return field(7, field(5, field(8, b"w") + field(13, entry)))


def _files(pattern: str) -> tuple[Path, ...]:
    return tuple(sorted(DATA.glob(pattern)))


FORMATS = {
    "xgboost-binary": Format(check_binary, (BrokenModel,), _files("xgboost/old-binary-*.model")),
    "xgboost-ubjson": Format(check_document, (BrokenModel,), _files("xgboost/ubj-*.ubj")),
    "xgboost-json": Format(check_document, (BrokenModel,), _files("xgboost/json-*.json")),
    "faiss-index": Format(_search, (BrokenIndex, HandlerError), _files("knn/1.8.0-*.index")),
    "recordio": Format(
        lambda data: decode_recordio(data, 4),
        (HandlerError,),
        (encode_features([[1, 2, 3, 4]] * 2), b"\x0a\x23\xd7\xce"),
    ),
    "ndarray-file": Format(read_params, (BrokenParams,), (b"\x12\x01" + bytes(22),)),
    # What these mean, the handler's load says.
    "onnx-files": Format(
        _onnx, (ValueError, IndexError, OSError), (_external_data(b"weights.bin"), _external_data(b"../weights.bin"))
    ),
}


def failed(name: str) -> list[Path]:
    """Inputs that once did what none may: kept, and tried by the tests from then on."""
    return sorted((FOLDER / "failed" / name).glob("*"))
