"""
Request bodies to arrays, predictions to answers: the formats of SageMaker's built-in algorithms.

Bodies are hostile input. Nothing is unpickled, and no format can ask for more memory than in proportion to
its own size.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyhost_handlers.errors import NoContent, Unparseable, UnsupportedMediaType

CSV = "text/csv"
JSON = "application/json"
JSONLINES = "application/jsonlines"
LIBSVM = "text/libsvm"
NPY = "application/x-npy"
RECORDIO = "application/x-recordio-protobuf"

_ALIASES = {
    "csv": CSV,
    "application/csv": CSV,
    "json": JSON,
    "jsonlines": JSONLINES,
    "application/x-jsonlines": JSONLINES,
    "application/json-lines": JSONLINES,
    "application/jsonl": JSONLINES,
    "libsvm": LIBSVM,
    "text/x-libsvm": LIBSVM,
    "application/npy": NPY,
    "npy": NPY,
    "recordio-protobuf": RECORDIO,
}

Matrix = Any  # np.ndarray of shape (rows, features), or scipy's csr_matrix of the same shape


def media_type(header: str) -> str:
    """`text/x-libsvm; charset=utf8` is `text/libsvm`: parameters cut off, aliases resolved."""
    name = header.partition(";")[0].strip().lower()
    return _ALIASES.get(name, name)


def decoder_for(content_type: str, supported: Sequence[str], default: str = CSV) -> str:
    """
    Which of `supported` a Content-Type means; `default` when the client does not say.

    Raises UnsupportedMediaType.
    """
    name = media_type(content_type) or default
    # What curl and HTTP libraries add by themselves says nothing about the body.
    if name in ("application/x-www-form-urlencoded", "application/octet-stream", "text/plain"):
        name = default
    if name not in supported:
        raise UnsupportedMediaType(f"Content-Type {name} is not supported here: send {_choice(supported)}.")
    return name


def choose_accept(accept: str, supported: Sequence[str], default: str) -> str:
    """
    Which of `supported` to answer with; `default` when the client takes anything.

    Raises UnsupportedMediaType, with 415 as AWS's containers answer (HTTP would say 406).
    """
    default = media_type(default)
    for candidate in accept.split(","):
        name = media_type(candidate)
        if name in ("", "*/*", f"{default.partition('/')[0]}/*"):
            name = default  # which the container's environment may have set to anything
        if name in supported:
            return name
    raise UnsupportedMediaType(f"Accept {accept or default} is not supported here: ask for {_choice(supported)}.")


def _choice(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def require_body(body: bytes) -> None:
    if not body.strip():
        raise NoContent("The request has no body.")


# Decoding


def decode_matrix(body: bytes, content_type: str) -> np.ndarray[Any, Any]:
    """
    Numbers only, shape (rows, features), float64; an empty field, `null` and `nan` are NaN.

    Raises Unparseable, naming the line and the field.
    """
    decoders: dict[str, Callable[[bytes], np.ndarray[Any, Any]]] = {
        CSV: decode_csv,
        JSON: decode_json,
        JSONLINES: decode_jsonlines,
        NPY: decode_npy,
    }
    return decoders[content_type](body)


def decode_csv(body: bytes, features: int | None = None) -> np.ndarray[Any, Any]:
    """
    Rows of numbers, delimited by one mark or by white space; a body may be indented, its lines may end with blanks.

    Where the model's number of `features` is known, a tab at the end of each line, or at its beginning, is no field.
    """
    lines = _text(body).strip("\r\n").splitlines()
    if not lines:
        raise NoContent("The request has no rows.")
    delimiter = _delimiter(next(filter(str.strip, lines), lines[0]))
    margin = " " if delimiter == "\t" else None  # of which a line may consist that is no row
    while len(lines) > 1 and not lines[-1].strip(margin):
        lines.pop()
    skipped = next((number for number, line in enumerate(lines) if line.strip(margin)), 0)
    rows = [row.split(delimiter) for row in lines[skipped:]]
    if delimiter == "\t" and features is not None and all(len(row) == features + 1 for row in rows):
        rows = _without_margin(rows)
    return _rectangle([_numbers(row, line) for line, row in enumerate(rows, skipped + 1)], "Line")


def _without_margin(rows: list[list[str]]) -> list[list[str]]:
    """Rows of one field too many, without the first or the last if that is empty in all of them."""
    first, last = (not any(row[end].strip() for row in rows) for end in (0, -1))
    return [row[1:] if first else row[:-1] for row in rows] if first != last else rows


def decode_csv_table(body: bytes) -> np.ndarray[Any, Any]:
    """Like `decode_csv`, but fields that are not numbers stay text: then the dtype is object."""
    try:
        lines = list(csv.reader(io.StringIO(_text(body).strip("\r\n")), strict=True))
    except csv.Error as error:
        raise Unparseable(f"The body is not CSV: {error}.") from error
    # A line of nothing is one missing value.
    return _table([[_number_or_text(value) for value in line or [""]] for line in lines], "Line")


def decode_json(body: bytes) -> np.ndarray[Any, Any]:
    return _matrix(json_rows(parse_json(body)), "Row")


def decode_json_table(body: bytes) -> np.ndarray[Any, Any]:
    """Like `decode_json`, but text is allowed: then the dtype is object."""
    return _table(json_rows(parse_json(body)), "Row")


def decode_jsonlines(body: bytes) -> np.ndarray[Any, Any]:
    return _matrix(_jsonlines_rows_in(body), "Line")


def decode_jsonlines_table(body: bytes) -> np.ndarray[Any, Any]:
    return _table(_jsonlines_rows_in(body), "Line")


def decode_npy(body: bytes) -> np.ndarray[Any, Any]:
    array = decode_array_npy(body)
    if array.ndim not in (1, 2) or array.dtype.kind not in "biuf":
        raise Unparseable(f"The array has dtype {array.dtype} and shape {array.shape}: send rows of numbers.")
    if len(array) == 0:
        raise NoContent("The request has no rows.")
    # In this machine's byte order, which not every library converts to by itself.
    return np.atleast_2d(array).astype(float)


def decode_array_npy(body: bytes, kinds: str = "biufSU") -> np.ndarray[Any, Any]:
    """An array of numbers or texts, or of numpy's `kinds`, of any shape; one of objects, a pickle, is refused."""
    _check_npy_header(body, kinds)
    try:
        array: np.ndarray[Any, Any] = np.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, TypeError, OverflowError, EOFError, OSError) as error:
        raise Unparseable(f"The body is not a .npy file of numbers: {error}.") from error
    return array


def _check_npy_header(body: bytes, kinds: str) -> None:
    """Before numpy allocates what a header promises, hold it against what was sent."""
    stream = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        needed = math.prod(shape) * dtype.itemsize
    except Exception as error:
        # numpy evaluates the header as a Python literal: a crafted one raises anything, MemoryError too.
        raise Unparseable("The body is not a .npy file: its header cannot be read.") from error
    if dtype.kind not in kinds or dtype.itemsize == 0:
        raise Unparseable(f"The array has dtype {dtype}: send numbers.")
    if needed > len(body):
        raise Unparseable(f"The body is not a .npy file: its header promises {needed} bytes, {len(body)} came.")


def json_rows(document: Any) -> list[Any]:
    """
    The rows in any of the JSON forms clients send.

    `[[1, 2], …]`, `[1, 2]`, `{"instances": […]}`, `{"inputs": …}`, `{"features": […]}`,
    `{"data": {"features": {"values": […]}}}`, sparse `{"keys", "shape", "values"}`.
    """
    try:
        return _rows(document)
    except RecursionError as error:
        raise Unparseable("The JSON is nested too deeply.") from error


def _rows(document: Any) -> list[Any]:
    if isinstance(document, Mapping):
        for name in ("instances", "inputs", "data", "features", "values"):
            if name in document:
                return _values_row(document) if name == "values" else _rows(document[name])
        raise Unparseable('The JSON object has no "instances": send {"instances": [[…], …]} or [[…], …].')
    if not isinstance(document, list):
        raise Unparseable(f"A JSON {type(document).__name__} is not rows: send [[…], …].")
    if not document:
        raise NoContent("The request has no rows.")
    if isinstance(document[0], Mapping):
        return [row for item in document for row in _rows(item)]
    return document if isinstance(document[0], list) else [document]


# Sparse rows become dense ones: of a short body that must not take much memory, at most 80 MB. AWS's linear
# learner takes as many features at most.
_MAX_SPARSE_CELLS = 10_000_000


@dataclass(frozen=True)
class _SparseRow:
    keys: list[int]
    values: list[float]
    width: int


def _values_row(document: Mapping[str, Any]) -> list[Any]:
    values = document["values"]
    if "keys" not in document:
        return [values]
    try:
        keys = [int(key) for key in document["keys"]]
        width = int(document["shape"][0]) if document.get("shape") else max(keys, default=-1) + 1
        row = _SparseRow(keys, [float(value) for value in values], width)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise Unparseable(f"A sparse row needs keys, shape and values, all numbers: {error}.") from error
    if not 0 < width <= _MAX_SPARSE_CELLS:
        raise Unparseable(f"A sparse row of {width} features is not supported.")
    if len(keys) != len(row.values) or not all(0 <= key < width for key in keys):
        raise Unparseable(f"A sparse row needs as many values as keys, and keys from 0 to {width - 1}.")
    return [row]


def parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unparseable(f"The body is not JSON: {error}.") from error


def _jsonlines_rows_in(body: bytes) -> list[Any]:
    lines = [line.encode() for line in _text(body).split("\n") if line.strip()]
    return [row for line in lines for row in json_rows(parse_json(line))]


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unparseable(f"The body is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def _delimiter(line: str) -> str | None:
    """The mark between a row's fields; None is any white space, as numpy.savetxt writes it."""
    for mark in ",;|":
        if mark in line:
            return mark
    if "\t" in line and all(len(field.split()) < 2 for field in line.split("\t")):
        return "\t"
    return None if len(line.split()) > 1 else ","


def _numbers(fields: list[str], line: int) -> list[float]:
    try:
        return list(map(float, fields))
    except ValueError:  # an empty field, or one that is no number
        return [_number(field, line, column) for column, field in enumerate(fields, 1)]


def _number(field: str, line: int, column: int) -> float:
    try:
        return float(field) if field.strip() else math.nan
    except ValueError:
        shown = field[:40]
        raise Unparseable(
            f"Line {line}, field {column}: '{shown}' is not a number: send numbers only, without a header line.",
        ) from None


def _number_or_text(field: str) -> float | str:
    if not field.strip():
        return math.nan
    try:
        return float(field)
    except ValueError:
        return field


def _matrix(rows: list[Any], unit: str) -> np.ndarray[Any, Any]:
    """Rows of numbers, dense or sparse."""
    if not any(isinstance(row, _SparseRow) for row in rows):
        return _rectangle(rows, unit)
    width = rows[0].width if isinstance(rows[0], _SparseRow) else None
    if not all(isinstance(row, _SparseRow) and row.width == width for row in rows):
        raise Unparseable("The rows differ in their shape: send all rows sparse and of one width, or all dense.")
    if len(rows) * rows[0].width > _MAX_SPARSE_CELLS:
        raise Unparseable(f"The sparse rows make more than {_MAX_SPARSE_CELLS} values: send fewer.")
    matrix = np.zeros((len(rows), rows[0].width))
    for row, sparse in zip(matrix, rows, strict=True):
        row[sparse.keys] = sparse.values
    return matrix


def _table(rows: list[Any], unit: str) -> np.ndarray[Any, Any]:
    """Rows of numbers and texts: of dtype float where all are numbers, else object."""
    if not rows:
        raise NoContent("The request has no rows.")
    if any(isinstance(row, _SparseRow) for row in rows):
        return _matrix(rows, unit)
    _check_equal(rows, unit)
    if not any(isinstance(value, (str, list, Mapping)) for row in rows for value in row):
        return _rectangle(rows, unit)
    if any(isinstance(value, (list, Mapping)) for row in rows for value in row):
        raise Unparseable("A row holds a list or an object: send rows of numbers and texts.")
    return np.array([[math.nan if value is None else value for value in row] for row in rows], dtype=object)


def _check_equal(rows: list[Any], unit: str) -> None:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list):
            raise Unparseable(f"{unit} {number} is a {type(row).__name__}, not a list: send rows of fields.")
        if len(row) != len(rows[0]):
            raise Unparseable(
                f"{unit} {number} has {len(row)} fields, {unit.lower()} 1 has {len(rows[0])}: send equal rows.",
            )


def _rectangle(rows: list[Any], unit: str) -> np.ndarray[Any, Any]:
    if not rows:
        raise NoContent("The request has no rows.")
    _check_equal(rows, unit)
    try:
        matrix = np.array(rows, dtype=float)
    except (TypeError, ValueError, OverflowError) as error:
        raise Unparseable(f"The rows hold something that is not a number: {error}.") from error
    if matrix.ndim != 2:
        raise Unparseable(f"The rows have {matrix.ndim} dimensions: send a list of rows of numbers.")
    return matrix


# Encoding


def encode_json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, default=_plain, indent=indent).encode()


def encode_jsonlines(items: Sequence[Any]) -> bytes:
    return "".join(json.dumps(item, default=_plain) + "\n" for item in items).encode()


def encode_csv_rows(rows: Sequence[Any]) -> bytes:
    """One line a row, which is a list or a single field; a field with a comma in it, or that is a list, is quoted."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(row if isinstance(row, list) else [row] for row in rows)
    return stream.getvalue().rstrip("\n").encode()


def encode_npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    """Scalars and arrays of numpy as what JSON knows."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"{type(value).__name__} does not go into JSON")
