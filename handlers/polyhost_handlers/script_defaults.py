"""
What a script's functions do where it leaves them out: SageMaker's inference toolkit, function by function.

Its decoder reads CSV with `numpy.genfromtxt`, so that one row has one dimension and texts stay texts, and makes an
array of whatever JSON holds; its encoder writes whatever has `tolist`. Where the toolkit would answer, these answer
the same, with two exceptions: a pickle in a body is refused, and so is a body that would fill the memory. Where the
toolkit would fail, these may be kinder.
"""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
import zipfile
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.errors import BadInput, HandlerError, NoContent, Unparseable, is_out_of_memory, sentence_of
from polyhost_handlers.media_types import CSV, JSON, NPY, NPZ, choose_accept, decoder_for, media_type

_INPUTS = (JSON, CSV, NPY, NPZ)
_OUTPUTS = (JSON, CSV, NPY)

# Numbers, complex ones too, texts, times and records: all but objects, which are pickles.
_ARRAYS = "biufcSUMmV"
# Arrays of text give each cell the room of the longest one, and compressed arrays unpack to any size.
_SMALL_BYTES = 64 * 1024**2
_MOST_BYTES_A_BYTE = 16
# genfromtxt keeps about 700 bytes for each column of a table, and is slow at it.
_MOST_COLUMNS = 100_000


def input_fn(body: Any, content_type: str) -> Any:
    raw = body.encode() if isinstance(body, str) else bytes(body)
    name = decoder_for(content_type, _INPUTS, default=JSON)
    if not raw and name != CSV:  # of CSV the toolkit makes an empty array
        raise NoContent("The request has no body.")
    return {CSV: _read_csv, JSON: _read_json, NPY: _read_npy, NPZ: _read_npz}[name](raw)


def predict_fn(data: Any, model: Any) -> Any:
    """The toolkit has none. What has `predict` or can be called predicts; a scikit-learn model gets rows."""
    predict = getattr(model, "predict", None) or (model if callable(model) else None)
    if predict is None:
        raise HandlerError(f"The script has no predict_fn, and its {type(model).__name__} cannot predict.")
    width = getattr(model, "n_features_in_", None)
    if width is None:
        return predict(data)
    try:
        return predict(_rows(data, width))
    except (ValueError, TypeError) as error:
        raise BadInput(f"The model cannot take these rows: {sentence_of(error)}") from error


def output_fn(prediction: Any, accept: str) -> tuple[bytes, str]:
    name = choose_accept(accept, _OUTPUTS, JSON)
    if name == JSON:
        return json.dumps(prediction, default=plain).encode(), name
    # A tensor that still has its gradient cannot become an array.
    values = prediction.detach().cpu().numpy() if hasattr(prediction, "detach") else prediction
    return (_csv_of(values) if name == CSV else _npy_of(values)), name


def booster_input_fn(body: Any, content_type: str) -> Any:
    """AWS's XGBoost container gives a script's booster a DMatrix. It knows no JSON; the toolkit's is as good."""
    from polyhost_handlers.aws import xgboost_encoder

    try:
        if media_type(content_type) in xgboost_encoder.CONTENT_TYPES:
            return xgboost_encoder.decode(body, content_type)
        array = input_fn(body, content_type)
        return xgboost_encoder.dmatrix(np.atleast_2d(array) if isinstance(array, np.ndarray) else array)
    except HandlerError:
        raise
    except ValueError as error:  # XGBoost's own errors too
        raise Unparseable(f"The body does not hold rows of numbers: {sentence_of(error)}") from error


def booster_predict_fn(data: Any, model: Any) -> Any:
    return model.predict(data, validate_features=False)


def is_booster(model: Any) -> bool:
    xgboost = sys.modules.get("xgboost")
    return xgboost is not None and isinstance(model, xgboost.Booster)


def plain(value: Any) -> Any:
    """For `json.dumps`: arrays, tensors and series as lists."""
    if isinstance(value, np.longdouble):  # whose tolist gives it back
        return float(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"{type(value).__name__} does not go into JSON")


def check_text_size(count: int, longest: int, sent_bytes: int) -> None:
    """Raises Unparseable where an array of `count` texts would need much more memory than was sent."""
    need_bytes = 4 * count * longest
    if need_bytes > _SMALL_BYTES + _MOST_BYTES_A_BYTE * sent_bytes:
        raise Unparseable(
            f"An array of {count} texts, the longest of {longest} characters, would need {need_bytes} bytes: "
            "send fewer or shorter texts at once, or give the script an input_fn."
        )


# Reading


def _read_csv(raw: bytes) -> Any:
    text = _text(raw)
    columns = 1 + max((line.count(",") for line in text.splitlines()), default=0)
    if columns > _MOST_COLUMNS:
        raise Unparseable(
            f"A line has {columns} fields, at most {_MOST_COLUMNS} are read: give the script an input_fn."
        )
    fields = re.split(r"[,\n]", text)
    check_text_size(len(fields), max(map(len, fields)), len(raw))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a body without rows
            return np.genfromtxt(io.StringIO(text), dtype=None, delimiter=",")
    except MemoryError:
        raise
    except Exception as error:  # ValueError mostly, but numpy trips over some texts in other ways too
        # "Some errors were detected !", then a line for each.
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        raise Unparseable(f"The body is not CSV: {lines[min(1, len(lines) - 1)]}.") from error


def _read_json(raw: bytes) -> Any:
    document = codecs.parse_json(raw, with_surrogates=True)
    if isinstance(document, list) and b'"' in raw:
        check_text_size(*_texts_of(document), len(raw))
    try:
        return np.array(document)
    except (ValueError, OverflowError) as error:
        raise Unparseable(f"The rows differ in length: {error}.") from error


def _texts_of(document: list[Any]) -> tuple[int, int]:
    """How many values a JSON list holds, those of its lists too, and the length of the longest text."""
    count = longest = 0
    lists = [document]
    while lists:
        for value in lists.pop():
            if isinstance(value, list):
                lists.append(value)
            else:
                count += 1
                longest = max(longest, len(value)) if isinstance(value, str) else longest
    return count, longest


def _read_npy(raw: bytes) -> Any:
    return codecs.decode_array_npy(raw, _ARRAYS)


def _read_npz(raw: bytes) -> Any:
    """What `scipy.sparse.save_npz` wrote."""
    from scipy import sparse

    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > _SMALL_BYTES + _MOST_BYTES_A_BYTE * len(raw):
                raise Unparseable(f"The body unpacks to {unpacked} bytes: send fewer rows at once.")
            for name in archive.namelist():
                codecs.decode_array_npy(archive.read(name), _ARRAYS)
        matrix = sparse.load_npz(io.BytesIO(raw))
        if hasattr(matrix, "indptr"):
            matrix.check_format(full_check=True)  # scipy trusts its indices, and reads beyond the data by them
    except HandlerError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # zipfile and scipy raise what they like: BadZipFile, KeyError, NotImplementedError, zlib.error …
        raise Unparseable(f"The body is not a sparse matrix from scipy.sparse.save_npz: {error}.") from error
    return matrix


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unparseable(f"The body is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def _rows(data: Any, width: int) -> Any:
    """
    The rows a scikit-learn model takes, from what genfromtxt makes of CSV.

    One row has one dimension, and so has a column of many; the number of features tells which it is. A row of
    numbers and texts, or of whole numbers and others, is a record.
    """
    if not isinstance(data, np.ndarray):
        return data
    if data.dtype.names:
        records = np.atleast_1d(data).tolist()
        is_text = any(data.dtype[name].kind in "US" for name in data.dtype.names)
        return np.array([list(record) for record in records], dtype=object if is_text else None)
    if data.ndim < 2 and data.size in (width, 1):
        return data.reshape(1, -1)
    return data.reshape(-1, 1) if data.ndim == 1 and width == 1 else data


# Writing


def _csv_of(values: Any) -> bytes:
    stream = io.StringIO()
    array = np.asarray(values)
    np.savetxt(stream, array if array.ndim else array.reshape(1), delimiter=",", fmt="%s")
    return stream.getvalue().encode()


def _npy_of(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()
