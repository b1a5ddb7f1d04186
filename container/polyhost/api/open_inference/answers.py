"""
A handler's answer as tensors, and as a reply of the protocol.

Lists of numbers, truths or texts become tensors of FP64, INT64, BOOL or BYTES. Objects become a tensor for each name.
What is no tensor becomes one of BYTES with the answer's text.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polyhost_handlers.signature import UNNAMED_OUTPUT as UNNAMED

from polyhost.api.open_inference.requests import Asked, Wanted
from polyhost.api.open_inference.tensors import BYTES, packed, raw_of_texts, shown
from polyhost.engine.errors import BadRequest

# Under which names handlers and scripts put all that they answer.
_WRAPPERS = ("predictions", "instances")
_INT64, _UINT64 = range(-(2**63), 2**63), range(2**64)


class Output(NamedTuple):
    """`data`: flat, row by row; elements of BYTES are bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any]


class Encoded(NamedTuple):
    """`header_length`: of the JSON, where bytes follow it."""

    body: bytes
    header_length: int | None


def outputs_of(body: bytes, content_type: str) -> list[Output]:
    """`content_type`: of the answer."""
    name = content_type.partition(";")[0].strip().lower()
    try:
        if name == "application/json":
            return _of_document(json.loads(body))
        if name == "text/csv":
            return [_of_values(UNNAMED, _of_csv(body.decode()))]
    except (ValueError, OverflowError, RecursionError, csv.Error):
        pass  # it is no tensor
    return [Output(UNNAMED, BYTES, (1,), (body,))]


def chosen(outputs: Sequence[Output], wanted: Sequence[Wanted]) -> list[Output]:
    """Those that the client asks for. An only one without a name gets the one that is asked for. Raises BadRequest."""
    if not wanted:
        return list(outputs)
    if len(wanted) == len(outputs) == 1 and outputs[0].name == UNNAMED:
        return [outputs[0]._replace(name=wanted[0].name)]
    named = {output.name: output for output in outputs}
    for one in wanted:
        if one.name not in named:
            raise BadRequest(f"The model has no output {shown(one.name)}: it has {shown(', '.join(named))}.")
    return [named[one.name] for one in wanted]


def encoded(name: str, asked: Asked, outputs: Sequence[Output]) -> Encoded:
    """`name`: the model's, as the client called it. Raises BadRequest."""
    binary = {one.name: one.is_binary for one in asked.wanted}
    described, parts = [], []
    for output in outputs:
        is_binary = binary.get(output.name)
        if asked.is_binary if is_binary is None else is_binary:
            part = raw_of(output)
            parts.append(part)
            described.append({**_described(output), "parameters": {"binary_data_size": len(part)}})
        else:
            described.append({**_described(output), "data": _plain(output)})
    document = {"model_name": name, "model_version": "1", "outputs": described}
    if asked.id:
        document["id"] = asked.id
    header = json.dumps(document).encode()
    return Encoded(b"".join((header, *parts)), len(header) if parts else None)


def raw_of(output: Output) -> bytes:
    """The binary form."""
    return raw_of_texts(output.data) if output.datatype == BYTES else packed(output.name, output.datatype, output.data)


def _described(output: Output) -> dict[str, Any]:
    return {"name": output.name, "datatype": output.datatype, "shape": output.shape}


def _plain(output: Output) -> list[Any]:
    """JSON has neither NaN nor infinities: such a number is null, as a missing one is in what clients send."""
    if output.datatype == "FP64":
        return [value if math.isfinite(value) else None for value in output.data]
    if output.datatype != BYTES:
        return list(output.data)
    try:
        return [text.decode() for text in output.data]
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"The output {shown(output.name)} is no text: ask for it as binary data (binary_data: true)."
        ) from error


# What JSON means


def _of_document(document: Any) -> list[Output]:
    while isinstance(document, dict) and len(document) == 1 and next(iter(document)) in _WRAPPERS:
        (document,) = document.values()
    columns = _columns_of(document)
    if columns is not None:
        document = columns
    if isinstance(document, dict) and document:
        return [_of_values(name, _without_maps(values)) for name, values in document.items()]
    return [_of_values(UNNAMED, document)]


def _columns_of(document: Any) -> dict[str, list[Any]] | None:
    """`[{"score": 1.5}, {"score": 2.5}]` has one column; None where it is no list of records."""
    if not isinstance(document, list) or not document or not all(isinstance(row, dict) for row in document):
        return None
    names = document[0].keys()
    if not names or any(row.keys() != names for row in document):
        return None
    return {name: [row[name] for row in document] for name in names}


def _without_maps(values: Any) -> Any:
    """The probabilities of classes, which networks of scikit-learn's answer as maps, in their order."""
    columns = _columns_of(values)
    return values if columns is None else [list(row) for row in zip(*columns.values(), strict=True)]


def _of_values(name: str, values: Any) -> Output:
    if not isinstance(values, (list, dict)):
        values = [values]
    shape = _shape_of(values)
    flat = values
    for _ in shape[1:]:
        flat = [item for row in flat for item in row]
    datatype = _datatype_of(flat) if shape and len(flat) == math.prod(shape) else None
    if datatype is None:
        return Output(name, BYTES, (1,), (json.dumps(values).encode(),))
    return Output(name, datatype, shape, _typed(datatype, flat))


def _shape_of(values: Any) -> tuple[int, ...]:
    """() for what is no rectangle of lists."""
    shape: tuple[int, ...] = ()
    level = [values]
    while level and all(isinstance(item, list) for item in level):
        size = len(level[0])
        if any(len(item) != size for item in level):
            return ()
        shape += (size,)
        level = [item for row in level for item in row]
    return () if any(isinstance(item, (list, dict)) for item in level) else shape


def _datatype_of(values: Sequence[Any]) -> str | None:
    kinds = set(map(type, values))
    if kinds == {bool}:
        return "BOOL"
    if kinds == {str}:
        return BYTES
    if kinds == {int}:
        fits = [name for name, room in (("INT64", _INT64), ("UINT64", _UINT64)) if all(one in room for one in values)]
        return fits[0] if fits else None
    return "FP64" if kinds <= {int, float, type(None)} else None


def _typed(datatype: str, values: Sequence[Any]) -> Sequence[Any]:
    if datatype == BYTES:
        return [text.encode("utf-8", "surrogatepass") for text in values]
    return [math.nan if value is None else float(value) for value in values] if datatype == "FP64" else values


def _of_csv(text: str) -> list[Any]:
    """Rows of numbers, or their only column. Raises ValueError."""
    rows = [list(map(float, row)) for row in csv.reader(io.StringIO(text.strip("\r\n")))]
    if len({len(row) for row in rows}) > 1:
        raise ValueError("these are no rows")
    return [value for row in rows for value in row] if rows and len(rows[0]) == 1 else rows


def sentence_of(body: bytes) -> str:
    """What an error of MMS's or SageMaker's JSON says; of a model's the model's own words."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, Mapping):
        if isinstance(document.get("OriginalMessage"), str):
            return sentence_of(document["OriginalMessage"].encode("utf-8", "surrogatepass"))
        for name in ("message", "Message"):
            if isinstance(document.get(name), str):
                return str(document[name])
    return body.decode("utf-8", "replace")
