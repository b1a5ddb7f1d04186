"""What SageMaker's built-in algorithms have in common: rows of numbers in, one prediction a row out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.base import Request, Response
from polyhost_handlers.errors import BadInput, Unparseable
from polyhost_handlers.media_types import CSV, JSON, JSONLINES, RECORDIO, decoder_for, header_of
from polyhost_handlers.recordio import decode_recordio, encode_recordio

INPUTS = (CSV, JSON, JSONLINES, RECORDIO)
OUTPUTS = (JSON, CSV, JSONLINES, RECORDIO)
Prediction = Mapping[str, Any]


def decode_features(request: Request, features: int) -> Any:
    """
    Finite numbers of shape (rows, features), dense or sparse.

    `text/csv; label_size=1` says that each row begins with so many labels, which are left out.
    """
    content_type = decoder_for(request.content_type, INPUTS)
    if content_type == RECORDIO:
        rows = decode_recordio(request.body, features)
    else:
        rows = codecs.decode_matrix(request.body, content_type, header=header_of(request.content_type))
    if content_type == CSV:
        rows = rows[:, _label_size(request.content_type) :]
    if rows.shape[1] != features:
        raise BadInput(f"Each row has {rows.shape[1]} features, the model was trained on {features}.")
    if not np.isfinite(rows if isinstance(rows, np.ndarray) else rows.data).all():
        raise BadInput("This model cannot take missing or infinite values: fill empty and NaN fields first.")
    return rows


def _label_size(content_type: str) -> int:
    value = parameter(content_type, "label_size") or "0"
    if not value.isdecimal() or len(value) > 9:
        raise Unparseable(f"Content-Type has label_size={value[:20]}: send a whole number.")
    return int(value)


def parameter(header: str, name: str) -> str:
    """`text/csv; label_size=1` has the parameter `label_size` with the value `1`; "" where there is none."""
    match = re.search(rf';\s*{name}\s*=\s*"?([^;,"\s]*)', header, re.IGNORECASE)
    return match[1] if match else ""


def encode_predictions(
    predictions: list[dict[str, Any]], accept: str, csv_fields: Callable[[Prediction], list[Any]]
) -> Response:
    """`{"predictions": [{…}, …]}`, and the same by lines, as records, or as CSV with the fields that are asked for."""
    if accept == JSON:
        body = codecs.encode_json({"predictions": predictions})
    elif accept == JSONLINES:
        body = codecs.encode_jsonlines(predictions)
    elif accept == RECORDIO:
        body = encode_recordio(
            [{name: np.atleast_1d(value).tolist() for name, value in one.items()} for one in predictions]
        )
    else:
        body = codecs.encode_csv_rows([csv_fields(one) for one in predictions])
    return Response(body, accept)
