"""
`sagemaker_containers.beta.framework.encoders`: arrays from bodies, and bodies from arrays.

CSV differs from the inference toolkit's, as it does at AWS: all fields become numbers, or all stay texts.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.aws.content_types import CSV, JSON, NPY
from polyhost_handlers.aws.errors import ClientError, UnsupportedFormatError
from polyhost_handlers.script_defaults import check_text_size, plain


def npy_to_numpy(npy_array: bytes) -> Any:
    """AWS's would run a pickle in it; this one refuses it."""
    return codecs.decode_array_npy(bytes(npy_array))


def json_to_numpy(string_like: str | bytes, dtype: Any = None) -> Any:
    return np.array(json.loads(string_like), dtype=dtype)


def csv_to_numpy(string_like: str, dtype: Any = None) -> Any:
    """Of shape (rows, fields), or fewer dimensions where there is one row, one field or both."""
    try:
        rows = list(csv.reader(io.StringIO(string_like), strict=True))
        lengths = [len(field) for row in rows for field in row]
        check_text_size(len(lengths), max(lengths, default=0), len(string_like))
        array = np.array(rows).squeeze()
    except (csv.Error, ValueError) as error:
        raise ClientError(f"Error while decoding csv: {error}") from error
    try:
        return array.astype(dtype)
    except ValueError as error:
        if dtype is None:
            return array
        raise ClientError(f"Error while writing numpy array: {error}. dtype is: {dtype}") from error


def array_to_npy(array_like: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array_like)
    return stream.getvalue()


def array_to_json(array_like: Any) -> str:
    return json.dumps(array_like, default=plain)


def array_to_csv(array_like: Any) -> str:
    """A line a row; of one dimension, a line a value."""
    array = np.array(array_like)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", strict=True).writerows(array[:, np.newaxis] if array.ndim == 1 else array)
    return stream.getvalue()


_DECODERS: dict[str, Callable[[Any], Any]] = {NPY: npy_to_numpy, CSV: csv_to_numpy, JSON: json_to_numpy}
_ENCODERS: dict[str, Callable[[Any], Any]] = {NPY: array_to_npy, CSV: array_to_csv, JSON: array_to_json}


def decode(obj: Any, content_type: str) -> Any:
    if content_type not in _DECODERS:
        raise UnsupportedFormatError(content_type)
    return _DECODERS[content_type](obj)


def encode(array_like: Any, content_type: str) -> Any:
    if content_type not in _ENCODERS:
        raise UnsupportedFormatError(content_type)
    return _ENCODERS[content_type](array_like)
