"""
Tensors as the Open Inference Protocol has them. Without numpy, because the server's own process has none.

Values are kept as the bytes of the binary form, so that a tensor means the same however it was sent. All of it is
hostile input: nothing is allocated by what a shape promises.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from polyhost.engine.errors import BadRequest

BYTES = "BYTES"
_MOST_DIMENSIONS = 32
_MOST_SHOWN = 60
_TOO_LARGE = 2**63
_SIZE = struct.Struct("<I")


class Datatype(NamedTuple):
    """`code`: struct's. `dtype`: numpy's, as a .npy file names it. `kinds`: what its values are in JSON."""

    code: str
    size: int
    dtype: str
    kinds: frozenset[type]


_TRUTH: frozenset[type] = frozenset((bool,))
_WHOLE: frozenset[type] = frozenset((int,))
# In JSON `null` is a missing value, since it has no NaN.
_FLOAT: frozenset[type] = frozenset((int, float, type(None)))
DATATYPES = {
    "BOOL": Datatype("?", 1, "|b1", _TRUTH),
    "UINT8": Datatype("B", 1, "|u1", _WHOLE),
    "UINT16": Datatype("H", 2, "<u2", _WHOLE),
    "UINT32": Datatype("I", 4, "<u4", _WHOLE),
    "UINT64": Datatype("Q", 8, "<u8", _WHOLE),
    "INT8": Datatype("b", 1, "|i1", _WHOLE),
    "INT16": Datatype("h", 2, "<i2", _WHOLE),
    "INT32": Datatype("i", 4, "<i4", _WHOLE),
    "INT64": Datatype("q", 8, "<i8", _WHOLE),
    "FP16": Datatype("e", 2, "<f2", _FLOAT),
    "FP32": Datatype("f", 4, "<f4", _FLOAT),
    "FP64": Datatype("d", 8, "<f8", _FLOAT),
}
_DATATYPES = ", ".join((*DATATYPES, "BF16", BYTES))


class Tensor(msgspec.Struct, frozen=True):
    """`raw`: the numbers, little-endian, row by row. `texts`: the elements of one of BYTES, which has no `raw`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes = b""
    texts: tuple[bytes, ...] = ()

    def values(self, first: int = 0, count: int | None = None) -> tuple[Any, ...]:
        """Of a numeric one: `count` of them, or all."""
        datatype = DATATYPES[self.datatype]
        count = len(self.raw) // datatype.size if count is None else count
        return struct.unpack_from(f"<{count}{datatype.code}", self.raw, first * datatype.size)


def shown(value: object) -> str:
    """A client's own words or values, as far as an error repeats them."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        text = "one of thousands of digits"
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"


def tensor_of_json(name: str, datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """`data`: nested as the shape says, or flat. Raises BadRequest."""
    count = _count(name, datatype, shape)
    values = _flat(name, data, shape, count)
    if datatype == BYTES:
        return Tensor(name, BYTES, tuple(shape), texts=_encoded(name, values))
    if datatype == "BF16":
        raise BadRequest(f"Tensor {shown(name)} of BF16 cannot come as JSON: send it as binary data.")
    kinds = DATATYPES[datatype].kinds
    for value in values:
        if type(value) not in kinds:
            raise BadRequest(f"Tensor {shown(name)} of {datatype} has {shown(value)} among its data.")
    return Tensor(name, datatype, tuple(shape), packed(name, datatype, values))


def tensor_of_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """Of the binary form. Raises BadRequest."""
    count = _count(name, datatype, shape)
    if datatype == BYTES:
        return Tensor(name, BYTES, tuple(shape), texts=_elements(name, raw, count))
    size = 2 if datatype == "BF16" else DATATYPES[datatype].size
    if len(raw) != count * size:
        raise BadRequest(
            f"Tensor {shown(name)} has {len(raw)} bytes, {datatype} of shape {shown(list(shape))} takes {count * size}."
        )
    if datatype == "BF16":
        return Tensor(name, "FP32", tuple(shape), _widened(raw))
    if datatype == "BOOL" and raw.strip(b"\0\1"):
        raise BadRequest(f"Tensor {shown(name)} of BOOL has a byte that is neither 0 nor 1.")
    return Tensor(name, datatype, tuple(shape), raw)


def tensor_of_texts(name: str, shape: Sequence[int], texts: tuple[bytes, ...]) -> Tensor:
    """Raises BadRequest."""
    count = _count(name, BYTES, shape)
    if len(texts) != count:
        raise BadRequest(
            f"Tensor {shown(name)} has {len(texts)} elements, its shape {shown(list(shape))} {_short(count)}."
        )
    return Tensor(name, BYTES, tuple(shape), texts=texts)


def packed(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    """Numbers in the binary form; None is NaN. Raises BadRequest for one that the datatype cannot hold."""
    known = DATATYPES[datatype]
    if None in values:
        values = [math.nan if value is None else value for value in values]
    try:
        return struct.pack(f"<{len(values)}{known.code}", *values)
    except (struct.error, OverflowError) as error:
        raise BadRequest(f"Tensor {shown(name)} has a number that {datatype} cannot hold ({error}).") from error


def raw_of_texts(texts: Sequence[bytes]) -> bytes:
    return b"".join(_SIZE.pack(len(text)) + text for text in texts)


def _count(name: str, datatype: str, shape: Sequence[int]) -> int:
    """How many elements there must be. Raises BadRequest."""
    if datatype not in DATATYPES and datatype not in ("BF16", BYTES):
        raise BadRequest(f"Tensor {shown(name)} has the datatype {shown(datatype)}: send one of {_DATATYPES}.")
    if len(shape) > _MOST_DIMENSIONS:
        raise BadRequest(f"Tensor {shown(name)} has {len(shape)} dimensions, {_MOST_DIMENSIONS} are allowed.")
    if not all(0 <= size < _TOO_LARGE for size in shape):
        raise BadRequest(
            f"Tensor {shown(name)} has a negative or huge size in its shape: say how many elements it has."
        )
    count = math.prod(shape)
    if not count:
        raise BadRequest(f"Tensor {shown(name)} has no elements: leave it out, or send at least one row.")
    return count


def _flat(name: str, data: Any, shape: Sequence[int], count: int) -> list[Any]:
    """The elements of `data`, which is nested as the shape says, or flat. Raises BadRequest."""
    if not isinstance(data, list):
        raise BadRequest(f"Tensor {shown(name)} has data that is no list.")
    values = data if not any(isinstance(item, list) for item in data) else _unnested(data, shape)
    if values is None or len(values) != count:
        had = "has data that is nested otherwise" if values is None else f"has {len(values)} elements"
        raise BadRequest(f"Tensor {shown(name)} {had}, its shape {shown(list(shape))} has {_short(count)}.")
    return values


def _unnested(data: list[Any], shape: Sequence[int]) -> list[Any] | None:
    """None for what is not of this shape."""
    level: list[Any] = [data]
    for size in shape:
        if any(not isinstance(item, list) or len(item) != size for item in level):
            return None
        level = [value for item in level for value in item]
    return level


def _short(count: int) -> str:
    return str(count) if count < 10**18 else "far more"


def _encoded(name: str, values: Sequence[Any]) -> tuple[bytes, ...]:
    if not all(isinstance(value, str) for value in values):
        raise BadRequest(f"Tensor {shown(name)} of BYTES has something else than texts among its data.")
    return tuple(value.encode() for value in values)


def _elements(name: str, raw: bytes, count: int) -> tuple[bytes, ...]:
    """Of BYTES: each has its length before it. Raises BadRequest."""
    elements, at = [], 0
    while at < len(raw):
        if at + _SIZE.size > len(raw):
            break
        begin = at + _SIZE.size
        at = begin + _SIZE.unpack_from(raw, at)[0]
        elements.append(raw[begin:at])
    if at != len(raw) or len(elements) != count:
        raise BadRequest(
            f"Tensor {shown(name)} has other data than {_short(count)} elements of BYTES, each behind its length."
        )
    return tuple(elements)


def _widened(raw: bytes) -> bytes:
    """BF16 is the first half of FP32."""
    wide = bytearray(2 * len(raw))
    wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
    return bytes(wide)
