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
import re
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polyhost_handlers import exact, json_forms, tables
from polyhost_handlers.errors import BadInput, HandlerError, NoContent, Unparseable, sentence_of
from polyhost_handlers.exact import Misfit
from polyhost_handlers.media_types import (  # noqa: F401 - custom handlers find them here (docs/handlers.md)
    CSV,
    JSON,
    JSONLINES,
    LIBSVM,
    NPY,
    NPZ,
    RECORDIO,
    choose_accept,
    decoder_for,
    media_type,
)
from polyhost_handlers.tables import Number, Schema, Table

_WHITE_SPACE = " "
# What Python's splitlines takes for the end of a line besides these, as U+2028, may be part of a text.
_LINE_END = re.compile(r"\r\n|\r|\n")
_ANY = Schema()
# Where JSON may have one: escaped, in UTF-8 as Python reads it, or in UTF-16 and UTF-32, which have bytes of zero.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\0")
_TOO_LARGE = "The body has a number that does not fit into float64."
_HALF_A_PAIR = "a text that is no Unicode: it has half of a pair of surrogates."
# All that plain numbers and rows of them are written with, and from which size on it pays to look.
_PLAIN_BYTES = b"0123456789+-.eE,\n"
_MANY_BYTES = 64 * 1024
# numpy.savez_compressed makes a thousandth of an array of zeros; one request must not fill the memory so.
_MAX_NPZ_RATIO = 20
# A field may be as long as a request. Python's own limit, of 131,072 characters, is for the whole process.
csv.field_size_limit(2**31 - 1)

Matrix = Any  # np.ndarray of shape (rows, features), or scipy's csr_matrix of the same shape


def require_body(body: bytes) -> None:
    if not body.strip():
        raise NoContent("The request has no body.")


# Decoding


def decode_matrix(
    body: bytes, content_type: str, schema: Schema = _ANY, header: bool | None = None
) -> np.ndarray[Any, Any]:
    """
    Numbers only, shape (rows, features), float64; an empty field, `null` and `nan` are NaN.

    Names of columns put them into the order of `schema`. Raises Unparseable, naming the line and the field, and
    BadInput where the columns are not the model's. `header` is what the client says of a CSV's first line.
    """
    if content_type == CSV:
        if header:
            return tables.matrix_of(tables.arranged(decode_table(body, content_type, schema, header), schema))
        if header is None and schema.has_numbers_as_names:
            _check_first_line(_text(body).strip("\r\n"), schema)
        try:
            matrix = decode_csv(body, schema.width)
        except Unparseable:
            table = None if header is False else _with_header(body, schema)
            if table is None and b'"' in body:  # numbers in quotes
                table = decode_table(body, content_type, schema, header=False)
            if table is None:
                raise
            return tables.matrix_of(tables.arranged(table, schema))
        if np.isinf(matrix).any():  # is it one that was sent, or a number that is too large?
            matrix = tables.matrix_of(decode_table(body, content_type, schema, header=False))
        return tables.matrix_of(tables.arranged(Table(matrix, unit="Line"), schema))
    matrix = tables.matrix_of(tables.arranged(decode_table(body, content_type, schema), schema), schema.absent)
    check_infinite(matrix, body, content_type)
    return matrix


def check_infinite(values: np.ndarray[Any, Any], body: bytes, content_type: str) -> None:
    """Raise Unparseable where a number of JSON, such as 1e999, became infinite while it was read."""
    if content_type in (JSON, JSONLINES) and b"Infinity" not in body and np.isinf(values).any():
        raise Unparseable(_TOO_LARGE)


def decode_table(body: bytes, content_type: str, schema: Schema = _ANY, header: bool | None = None) -> Table:
    """
    Numbers and texts as they were sent, with the names of the columns where the body has any.

    `schema` tells a CSV's delimiter and whether it begins with names, which `header` says if the client did.
    """
    if content_type == CSV:
        is_numbers = not header and schema.is_numbers and not schema.has_numbers_as_names
        quick = quick_matrix(body) if is_numbers else None
        return _csv_table(body, schema, header) if quick is None else Table(quick, unit="Line")
    if content_type == NPY:
        return _array_table(decode_npy(body))
    if content_type == NPZ:
        return _arrays_table(decode_npz(body), schema)
    names = schema.known
    if content_type == JSONLINES:
        documents = [parse_json(line.encode()) for line in _text(body).split("\n") if line.strip()]
        if not documents:
            raise NoContent("The request has no rows.")
        return json_forms.table_of_lines(documents, names)
    return json_forms.table_of(parse_json(body), names)


def decode_texts(
    body: bytes, content_type: str, schema: Schema, is_plain: bool = False, header: bool | None = None
) -> list[str]:
    """
    One text a row, for models of texts. The first line is one too, unless the client says that it is a `header`.

    `is_plain` is for a body of text/plain: each line is a text, commas and quotes are its own. In CSV a text with a
    comma stands in quotes: without them it is not known to be one text.
    """
    if content_type != CSV:
        table = tables.arranged(decode_table(body, content_type, schema), schema)
        return [_one_text(row[0], f"{table.unit} {number}") for number, row in enumerate(table.lists, table.first)]
    lines = _text(body).rstrip("\r\n")
    if not lines:
        raise NoContent("The request has no rows.")
    if is_plain:
        return _LINE_END.split(lines)
    texts = []
    for number, fields in enumerate(_csv_rows(lines, ","), 1):
        if len(fields) > 1:
            raise Unparseable(
                f"Line {number} has {len(fields)} fields, the model takes one text a line: put a text with a comma in "
                'double quotes, "like, this", or send the Content-Type text/plain.',
            )
        texts.append(fields[0] if fields else "")
    if header and len(texts) == 1:
        raise NoContent("The request has no rows.")
    return texts[1:] if header else texts


def _one_text(value: Any, where: str) -> str:
    try:
        return exact.text(value)
    except Misfit as misfit:
        raise BadInput(f"{where}: {exact.shown(value)} {misfit}.") from misfit


def decode_csv(body: bytes, features: int | None = None) -> np.ndarray[Any, Any]:
    """
    Rows of numbers, delimited by one mark or by white space; a body may be indented, its lines may end with blanks.

    Where the model's number of `features` is known, a tab at the end of each line, or at its beginning, is no field.
    """
    quick = quick_matrix(body)
    if quick is not None:
        return quick
    text = _text(body)
    lines = text.strip("\r\n").splitlines()
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
    read = _numbers if exact.is_plain(text) else _plain_numbers
    return _rectangle([read(row, line) for line, row in enumerate(rows, skipped + 1)], "Line")


def quick_matrix(body: bytes) -> np.ndarray[Any, Any] | None:
    """
    Many rows of plain numbers with commas between them, all at once; None for what must be looked at line by line.

    What is read is what `decode_csv` reads, which takes four times as long and twenty times the memory.
    """
    if len(body) < _MANY_BYTES or body.translate(None, _PLAIN_BYTES):
        return None
    body = body.strip(b"\n")
    counts = {line.count(b",") for line in body.split(b"\n")}
    if len(counts) != 1:
        return None
    width = counts.pop() + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy stops at what is no number, and warns
        try:
            values = np.fromstring(body.replace(b"\n", b","), sep=",")
        except (ValueError, DeprecationWarning):
            return None
    is_whole = len(values) == width * (body.count(b"\n") + 1) and bool(np.isfinite(values).all())
    return values.reshape(-1, width) if is_whole else None


def _without_margin(rows: list[list[str]]) -> list[list[str]]:
    """Rows of one field too many, without the first or the last if that is empty in all of them."""
    first, last = (not any(row[end].strip() for row in rows) for end in (0, -1))
    return [row[1:] if first else row[:-1] for row in rows] if first != last else rows


def decode_array_npy(body: bytes, kinds: str = "biufSU") -> np.ndarray[Any, Any]:
    """An array of numbers or texts, or of numpy's `kinds`, of any shape; one of objects, a pickle, is refused."""
    _check_npy_header(body, kinds)
    try:
        array: np.ndarray[Any, Any] = np.load(io.BytesIO(body), allow_pickle=False)
    except (ValueError, TypeError, OverflowError, EOFError, OSError) as error:
        raise Unparseable(f"The body is not a .npy file of numbers: {error}.") from error
    if any(points.max(initial=0) > sys.maxunicode for points in _code_points(array)):
        raise Unparseable("The array holds a text that is no Unicode: a code point is beyond 0x10FFFF.")
    return array


def _code_points(array: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """The code points of an array's texts, and of the texts in its records, which numpy itself does not check."""
    for name in array.dtype.names or ():
        yield from _code_points(array[name])
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        points = np.dtype(np.uint32).newbyteorder(array.dtype.byteorder)
        yield np.ascontiguousarray(array).view(points)


def decode_npy(body: bytes) -> np.ndarray[Any, Any]:
    """
    An array of numbers or texts as libraries take it: float64 at most, in this machine's byte order, texts as str.

    Raises Unparseable where that would change a value.
    """
    array = decode_array_npy(body)
    if array.dtype.kind == "S":
        return _decoded(array)
    if array.dtype.kind == "b":
        # A byte of 2 is true, too; a library of C would calculate with it.
        is_true: np.ndarray[Any, Any] = array.view(np.uint8) != 0
        return is_true
    if array.dtype.kind == "f" and array.dtype.itemsize > np.dtype(float).itemsize:
        return _as_float64(array)
    if any(((points >= 0xD800) & (points <= 0xDFFF)).any() for points in _code_points(array)):
        raise Unparseable("The array holds " + _HALF_A_PAIR)
    return array.astype(array.dtype.newbyteorder("="))


def _as_float64(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(over="ignore"):
        plain = array.astype(float)
    if (np.isinf(plain) & ~np.isinf(array)).any():
        raise Unparseable(_TOO_LARGE)
    return plain


def _decoded(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise Unparseable(
            f"The array holds a text that is not UTF-8: {error.reason} at byte {error.start}. Send it with dtype U."
        ) from error


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


def decode_npz(body: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a .npz file by their names; what unpacks to far more than was sent is refused."""
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as file:
            members = [info for info in file.infolist() if info.filename.endswith(".npy")]
            if sum(info.file_size for info in members) > _MAX_NPZ_RATIO * len(body):
                raise Unparseable(f"The arrays unpack to more than {_MAX_NPZ_RATIO} times what was sent: "
                                  "send them uncompressed, with numpy.savez.")  # fmt: skip
            doubled = [name for name, count in Counter(info.filename for info in members).items() if count > 1]
            if doubled:
                raise Unparseable(f"Arrays are there more than once: {tables.listed(doubled)}.")
            for info in members:
                arrays[info.filename.removesuffix(".npy")] = decode_npy(file.read(info))
    except Unparseable:
        raise
    except Exception as error:
        # zipfile raises whatever a damaged member leads to: errors of zlib, of struct, of its own.
        raise Unparseable(f"The body is not a .npz file: {sentence_of(error)}.") from error
    if not arrays:
        raise NoContent("The request has no arrays.")
    return arrays


def _array_table(array: np.ndarray[Any, Any], unit: str = "Row") -> Table:
    if array.ndim not in (1, 2):
        raise Unparseable(f"The array has dtype {array.dtype} and shape {array.shape}: send rows of numbers.")
    if not array.size:
        raise NoContent("The request has no rows.")
    rows = np.atleast_2d(array)
    return Table(rows if array.dtype.kind in "biuf" else rows.tolist(), is_flat=array.ndim == 1, unit=unit)


def _arrays_table(arrays: Mapping[str, np.ndarray[Any, Any]], schema: Schema) -> Table:
    """One array holds all rows; several hold a column each, by their names."""
    (name, first), *others = arrays.items()
    if not others and name not in schema.known:
        return _array_table(first)
    columns = [array[:, 0] if array.shape[1:] == (1,) else array for array in arrays.values()]
    if any(column.ndim != 1 or len(column) != len(columns[0]) for column in columns):
        raise BadInput("Several arrays are a column each, of shape (rows,) or (rows, 1).")
    if not len(columns[0]):
        raise NoContent("The request has no rows.")
    rows = [list(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    # numpy.savez counts what it is given without a name.
    is_named = tuple(arrays) != tuple(f"arr_{number}" for number in range(len(arrays)))
    return Table(rows, tuple(arrays) if is_named else None)


def _csv_table(body: bytes, schema: Schema, header: bool | None) -> Table:
    text = _text(body).strip("\r\n")
    if not text:
        raise NoContent("The request has no rows.")
    first_line = text.splitlines()[0]
    commented = _commented_names(first_line, schema) if header is None else None
    if commented is not None:  # numpy.savetxt writes its header so
        text = text.partition("\n")[2].strip("\r\n")
        if not text:
            raise NoContent("The request has no rows.")
        first_line = text.splitlines()[0]
    rows = list(_csv_rows(text, _table_delimiter(first_line, schema)))
    names, first = commented, 1 if commented is None else 2
    if header is None and schema.has_numbers_as_names:
        _check_first_line(text, schema)
    if header or (header is None and commented is None and tables.is_header(rows[0], schema)):
        names, first = tuple(field.strip() for field in rows.pop(0)), 2
        if not rows and (header or not schema.known.isdisjoint(names)):
            raise NoContent("The request has no rows.")
        if not rows or (schema.names is None and header is None):
            raise Unparseable(
                f"Line 1 has no numbers, {tables.listed(names)}: "
                + (
                    "it is no row of this model."
                    if schema.names is not None
                    else "the model does not know its features' names, "
                    "so send the rows in the order of the training, without a header line."
                ),
            )
    tables.check_equal(rows, "Line", first)
    if names is not None and len(names) != len(rows[0]):
        raise Unparseable(f"Line 1 has {len(names)} names for {len(rows[0])} fields: send equal rows.")
    # A line of nothing is one missing value, and so is a field of nothing. Blanks may be a text.
    fields = [[field or None for field in row] for row in rows]
    return Table(fields, names, is_csv=True, unit="Line", first=first)


def _csv_rows(text: str, delimiter: str) -> Iterator[list[str]]:
    if delimiter == _WHITE_SPACE:
        yield from (line.split() or [""] for line in text.splitlines())
        return
    try:
        # A line of nothing is one field of nothing.
        yield from (row or [""] for row in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise Unparseable(f"The body is not CSV: {error}.") from error


def _table_delimiter(line: str, schema: Schema) -> str:
    """The one that makes as many fields of the first line as the model wants; without that, the first that is met."""
    if schema.width == 1:
        return ","
    found = [mark for mark in ",\t;|" if mark in line]
    if schema.width is None:
        words = line.split()
        is_numbers = len(words) > 1 and all(map(tables.is_number, words))
        return found[0] if found else _WHITE_SPACE if is_numbers else ","
    fitting = [mark for mark in found if len(next(csv.reader([line], delimiter=mark), [])) == schema.width]
    if len(fitting) > 1:  # 30;a, b
        kinds = schema.kinds_for(schema.width)
        for mark in fitting:
            fields = next(csv.reader([line], delimiter=mark))
            if all(kind.is_value(field) for kind, field in zip(kinds, fields, strict=True) if kind == Number()):
                return mark
    if fitting:
        return fitting[0]
    return _WHITE_SPACE if len(line.split()) == schema.width else found[0] if found else ","


def _check_first_line(text: str, schema: Schema) -> None:
    """Refuse names that are numbers, as pandas counts columns that have none: they cannot be told from a row."""
    line, _, more = text.partition("\n")
    if (
        more
        and {field.strip() for field in next(csv.reader([line], delimiter=_table_delimiter(line, schema)), [])}
        == schema.known
    ):
        raise Unparseable("Line 1 may be the names of the columns or a row of numbers: say which, with the "
                          "Content-Type text/csv; header=present or text/csv; header=absent.")  # fmt: skip


def _commented_names(line: str, schema: Schema) -> tuple[str, ...] | None:
    """The names in a first line such as `# a b c`; None where it is a row."""
    if not line.startswith("#") or schema.width is None:
        return None
    inner = line[1:].strip()
    fields = next(_csv_rows(inner, _table_delimiter(inner, schema)), [])
    names = tuple(field.strip() for field in fields)
    is_row = len(names) != schema.width or not tables.is_header(fields, schema)
    return None if is_row and set(names) != schema.known else names


def _with_header(body: bytes, schema: Schema) -> Table | None:
    """The table of numbers whose first line has the names of its columns; None where it is another fault."""
    if schema.names is None:
        return None
    table = decode_table(body, CSV, schema)
    return table if table.names is not None else None


def parse_json(body: bytes, *, with_surrogates: bool = False) -> Any:
    """`with_surrogates`: texts may have half of a pair of surrogates, which cannot be written as UTF-8."""
    try:
        document = json.loads(body, object_pairs_hook=_object)
        if not with_surrogates and _SURROGATE.search(body):
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unparseable("The JSON holds " + _HALF_A_PAIR) from error
    except (ValueError, RecursionError) as error:
        raise Unparseable(f"The body is not JSON: {error}.") from error
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python would keep the last of several values of one name, and drop the others without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        doubled = tables.listed([name for name, count in names.items() if count > 1])
        raise Unparseable(f"A JSON object has a name more than once: {doubled}.")
    return found


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
        return _plain_numbers(fields, line)


def _plain_numbers(fields: list[str], line: int) -> list[float]:
    return [_number(field, line, column) for column, field in enumerate(fields, 1)]


def _number(field: str, line: int, column: int) -> float:
    text = field.strip()
    try:
        if not exact.is_plain(text):
            raise ValueError
        return float(text) if text else math.nan
    except ValueError:
        shown = field[:40]
        raise Unparseable(
            f"Line {line}, field {column}: '{shown}' is not a number: send numbers only, without a header line.",
        ) from None


def _rectangle(rows: list[Any], unit: str) -> np.ndarray[Any, Any]:
    if not rows:
        raise NoContent("The request has no rows.")
    tables.check_equal(rows, unit)
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


def encode_array(prediction: Any, accept: str) -> bytes:
    """A prediction as JSON, CSV or npy. Raises HandlerError where it has no such form."""
    array = np.asarray(prediction)
    if accept == JSON:
        return encode_json(array.tolist())
    if accept == CSV:
        return encode_csv_rows(array.tolist())
    if array.dtype == object:
        raise HandlerError("The prediction is not numeric, so it has no .npy form: ask for application/json.", 415)
    return encode_npy(array)


def encode_npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _plain(value: Any) -> Any:
    """Scalars and arrays of numpy as what JSON knows."""
    if isinstance(value, np.longdouble):  # whose tolist gives it back
        return float(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"{type(value).__name__} does not go into JSON")
