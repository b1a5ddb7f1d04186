"""
What a handler is sent of a request's tensors: a body that clients of SageMaker could have sent.

1. A body of another media type is sent as it is.
2. A table of numbers becomes CSV, which all handlers take, and customers' scripts.
3. One tensor of numbers with more dimensions becomes a .npy file.
4. Texts, and several tensors, become the protocol's own JSON: our handlers know columns, and inputs, by name.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

from polyhost_handlers.signature import OUTPUTS_BY_NAME

from polyhost.api.open_inference.requests import Asked
from polyhost.api.open_inference.tensors import BYTES, DATATYPES, Tensor, shown
from polyhost.engine.errors import BadRequest

# Tells what the rows of a table do not: that none of them has the columns' names.
ROWS_ALONE = "x-polyhost-csv-header"
_NAMED = {OUTPUTS_BY_NAME: "named"}
_NPY_ALIGNMENT = 64
# Values that are written at once.
_PIECE = 4096


class Body(NamedTuple):
    content_type: str
    content: bytes
    headers: dict[str, str]


def body_of(asked: Asked) -> Body:
    """Raises BadRequest."""
    first = asked.inputs[0]
    if asked.media_type:
        return Body(_checked(asked.media_type), first.texts[0], {})
    is_alone = len(asked.inputs) == 1 and first.datatype not in (BYTES, "BOOL")
    if is_alone and len(first.shape) == 2:
        return Body("text/csv", _csv(first), {ROWS_ALONE: "absent", **_NAMED})
    if is_alone and len(first.shape) > 2:
        return Body("application/x-npy", _npy(first), _NAMED)
    document = {"inputs": [_described(tensor) for tensor in asked.inputs]}
    return Body("application/json", json.dumps(document).encode(), _NAMED)


def _checked(media_type: str) -> str:
    if not (media_type.isascii() and media_type.isprintable()):
        raise BadRequest(f"The content_type {shown(ascii(media_type))} is no media type.")
    return media_type


def _csv(tensor: Tensor) -> bytes:
    """Python writes of a float what reads back as the very same one."""
    count, width = tensor.shape
    if width > _PIECE:
        return "\n".join(_line(tensor, row * width, width) for row in range(count)).encode()
    at_once = _PIECE // width
    pieces = ((first * width, min(at_once, count - first) * width) for first in range(0, count, at_once))
    return "\n".join(_lines(list(map(repr, tensor.values(*piece))), width) for piece in pieces).encode()


def _lines(fields: list[str], width: int) -> str:
    """Of many short rows, which cost more one by one."""
    return "\n".join(",".join(fields[first : first + width]) for first in range(0, len(fields), width))


def _line(tensor: Tensor, first: int, width: int) -> str:
    """In pieces: a row of millions would keep all other threads waiting, and take sixty times its memory."""
    end = first + width
    return ",".join(",".join(map(repr, tensor.values(at, min(_PIECE, end - at)))) for at in range(first, end, _PIECE))


def _npy(tensor: Tensor) -> bytes:
    """Version 1.0 of the format: all before the numbers is a multiple of 64 bytes long."""
    its = ", ".join(map(str, tensor.shape))
    header = f"{{'descr': '{DATATYPES[tensor.datatype].dtype}', 'fortran_order': False, 'shape': ({its}), }}"
    length = -(-(len(header) + 11) // _NPY_ALIGNMENT) * _NPY_ALIGNMENT - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + header.ljust(length - 1).encode() + b"\n" + tensor.raw


def _described(tensor: Tensor) -> dict[str, Any]:
    data = _texts(tensor) if tensor.datatype == BYTES else list(map(_finite, tensor.values()))
    return {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype, "data": data}


def _finite(value: Any) -> Any:
    """In JSON a missing number is null."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _texts(tensor: Tensor) -> list[str]:
    try:
        return [text.decode() for text in tensor.texts]
    except UnicodeDecodeError as error:
        raise BadRequest(f"Tensor {shown(tensor.name)} of BYTES has an element that is not UTF-8.") from error
