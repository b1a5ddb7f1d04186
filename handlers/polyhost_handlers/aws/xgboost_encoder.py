"""`sagemaker_xgboost_container.encoder`: request bodies as XGBoost's DMatrix."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from polyhost_handlers.aws.errors import UnsupportedFormatError
from polyhost_handlers.libsvm import decode_libsvm
from polyhost_handlers.media_types import CSV, LIBSVM, RECORDIO, media_type


def dmatrix(data: Any) -> Any:
    import xgboost

    return xgboost.DMatrix(data)


def csv_to_dmatrix(input: str | bytes, dtype: Any = None) -> Any:  # noqa: A002 - scripts may name it
    """An empty field is missing. The delimiter is the one that the first line shows."""
    text = input if isinstance(input, str) else bytes(input).decode()
    lines = text.split("\n")
    try:
        found = csv.Sniffer().sniff(lines[0][:512]).delimiter
    except csv.Error:  # a line of one number
        found = ","
    delimiter = "," if found.isalnum() or not found else found
    rows = [["nan" if field == "" else field for field in line.split(delimiter)] for line in lines]
    return dmatrix(np.array([[float(field) for field in row] for row in rows], dtype=dtype))


def libsvm_to_dmatrix(string_like: str | bytes) -> Any:
    """As XGBoost reads it, from index 0; but what is no libsvm is refused, where XGBoost skips it."""
    raw = string_like.encode() if isinstance(string_like, str) else bytes(string_like)
    return dmatrix(decode_libsvm(raw, None))


def recordio_protobuf_to_dmatrix(string_like: bytes) -> Any:
    from polyhost_handlers.recordio import decode_recordio

    return dmatrix(decode_recordio(bytes(string_like)))


_DECODERS: dict[str, Callable[[Any], Any]] = {
    CSV: csv_to_dmatrix,
    LIBSVM: libsvm_to_dmatrix,
    RECORDIO: recordio_protobuf_to_dmatrix,
}
CONTENT_TYPES = tuple(_DECODERS)


def decode(obj: Any, content_type: str) -> Any:
    name = media_type(content_type)
    if name not in _DECODERS:
        raise UnsupportedFormatError(name)
    return _DECODERS[name](obj)


def json_to_jsonlines(json_data: dict[str, Any] | str | bytes) -> bytes:
    """`{"predictions": [a, b]}` as a line for each."""
    document = json_data if isinstance(json_data, dict) else json.loads(json_data)
    if len(document) != 1:
        raise ValueError("JSON response is not compatible for conversion to jsonlines.")
    stream = io.StringIO()
    for entries in document.values():
        stream.writelines(json.dumps(entry) + "\n" for entry in entries)
    return stream.getvalue().encode()
