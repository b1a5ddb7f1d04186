"""
MXNet's `.params` files, read and written with numpy alone.

The format is NDArray::Save's: a list of arrays and their names, little-endian. Three generations of an
array's header are in use; dense arrays on any device are read.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers.foreign import NDARRAY_LIST_MAGIC

_V1_MAGIC = 0xF993FAC8
_V2_MAGIC = 0xF993FAC9
_V3_MAGIC = 0xF993FACA
_DENSE = 0
_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8", 7: "?"}
_CPU = (1, 0)


class BrokenParams(ValueError):
    """The bytes are not an NDArray list."""


def read_params(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays by name, e.g. `arg:fc0_weight`. Raises BrokenParams."""
    reader = _Reader(data)
    if reader.take("<Q") != NDARRAY_LIST_MAGIC:
        raise BrokenParams("it does not begin as an NDArray list")
    reader.take("<Q")  # reserved
    arrays = [_read_array(reader) for _ in range(reader.take_count())]
    names = [reader.take_bytes(reader.take("<Q")).decode("utf-8", "replace") for _ in range(reader.take_count())]
    if len(names) != len(arrays):
        raise BrokenParams(f"{len(arrays)} arrays have {len(names)} names")
    return dict(zip(names, arrays, strict=True))


def write_params(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """A file that `mxnet.nd.load` reads, or `mxnet.npx.load` if it has scalars or empty arrays."""
    numbers = {np.dtype(name): number for number, name in _DTYPES.items()}
    magic = _V2_MAGIC if all(array.size and array.ndim for array in arrays.values()) else _V3_MAGIC
    with path.open("wb") as file:
        file.write(struct.pack("<QQQ", NDARRAY_LIST_MAGIC, 0, len(arrays)))
        for array in arrays.values():
            file.write(struct.pack("<IiI", magic, _DENSE, array.ndim))
            file.write(struct.pack(f"<{array.ndim}q", *array.shape))
            file.write(struct.pack("<iii", *_CPU, numbers[array.dtype]))
            file.write(array.tobytes())
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            file.write(struct.pack("<Q", len(name.encode())) + name.encode())


def _read_array(reader: _Reader) -> np.ndarray[Any, Any]:
    magic = reader.take("<I")
    if magic in (_V2_MAGIC, _V3_MAGIC):
        if reader.take("<i") != _DENSE:
            raise BrokenParams("it holds a sparse array, which is not supported")
        dimensions = reader.take("<i")
        if magic == _V3_MAGIC and dimensions == -1:
            return _nothing()
        shape = reader.take_shape("<q", dimensions)
    elif magic == _V1_MAGIC:
        shape = reader.take_shape("<q", reader.take("<I"))
    else:  # before V1 the number of dimensions came first, then dimensions of four bytes
        shape = reader.take_shape("<I", magic)
    # Only V3 knows scalars and empty arrays; before, an array without elements was none.
    if magic != _V3_MAGIC and not (shape and all(shape)):
        return _nothing()
    reader.take("<i")  # the device's type and number
    reader.take("<i")
    number = reader.take("<i")
    if number not in _DTYPES:
        raise BrokenParams(f"it has an array of unknown type {number}")
    dtype = np.dtype(_DTYPES[number])
    raw = reader.take_bytes(math.prod(shape) * dtype.itemsize)
    try:
        return np.frombuffer(raw, dtype=dtype).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise BrokenParams(f"it has an array of shape {shape}") from error


def _nothing() -> np.ndarray[Any, Any]:
    return np.zeros(0, dtype="<f4")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def take(self, form: str) -> int:
        return int(struct.unpack(form, self.take_bytes(struct.calcsize(form)))[0])

    def take_bytes(self, count: int) -> bytes:
        end = self._offset + count
        if count < 0 or end > len(self._data):
            raise BrokenParams(f"it ends at byte {len(self._data)}, {count} more were due at {self._offset}")
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def take_count(self) -> int:
        """How many items follow; each takes at least eight bytes, so a larger number is a broken file."""
        count = self.take("<Q")
        if count > len(self._data) // 8:
            raise BrokenParams(f"it promises {count} items in {len(self._data)} bytes")
        return count

    def take_shape(self, form: str, dimensions: int) -> tuple[int, ...]:
        if not 0 <= dimensions <= 32:
            raise BrokenParams(f"it has an array of {dimensions} dimensions")
        shape = tuple(self.take(form) for _ in range(dimensions))
        if any(size < 0 for size in shape):
            raise BrokenParams(f"it has an array of shape {shape}")
        return shape
