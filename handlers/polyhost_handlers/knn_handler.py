"""
SageMaker's k-NN: the labels of the nearest vectors decide. Computed with numpy; faiss is not needed.

The archive has three files: `model_algo-1`, an index of faiss; `model_algo-1.labels`, a float32 for each vector; and
`model_algo-1.json` with `k`, `predictor_type`, `normalize` and `dimension_reduction`. The last may be edited, as AWS
documents it: k and the kind of predictor need no training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import KNN_INDEX, KNN_LABELS, KNN_METADATA
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.builtin_formats import (
    OUTPUTS,
    Prediction,
    decode_features,
    encode_predictions,
    parameter,
)
from polyhost_handlers.errors import BadInput, HandlerError, LoadFailed, load_errors_named
from polyhost_handlers.faiss_index import BrokenIndex, Index, read_index
from polyhost_handlers.media_types import JSON, choose_accept

CLASSIFIER, REGRESSOR = "classifier", "regressor"
_MAX_K = 1024**2


class KnnHandler(Handler):
    kind = "knn"

    def __init__(
        self, index: Index, labels: np.ndarray[Any, Any], k: int, predictor: str, is_normalized: bool, accept: str
    ) -> None:
        self._index = index
        self._labels = labels
        self._k = k
        self._predictor = predictor
        self._is_normalized = is_normalized
        self._default_accept = accept

    @classmethod
    def load(cls, source: ModelSource) -> KnnHandler:
        metadata = _metadata(source.model_dir / KNN_METADATA)
        k, predictor = _k(metadata), _predictor(metadata)
        _refuse_dimension_reduction(metadata.get("dimension_reduction"))
        path = source.model_dir / KNN_INDEX
        with load_errors_named(path.name, path.stat().st_size):
            try:
                index = read_index(path.read_bytes())
            except BrokenIndex as error:
                raise LoadFailed(f"Unable to load model: {path.name} is not a readable index: {error}.") from error
        labels = _labels(source.model_dir / KNN_LABELS)
        if len(labels) != index.count:
            raise LoadFailed(f"Unable to load model: {KNN_LABELS} has {len(labels)} labels for {index.count} vectors.")
        return cls(index, labels, k, predictor, bool(metadata.get("normalize")), source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = choose_accept(request.accept, OUTPUTS, self._default_accept)
        is_verbose = parameter(request.accept or self._default_accept, "verbose").lower() == "true"
        rows = decode_features(request, self._index.features)
        rows = self._prepared(rows if isinstance(rows, np.ndarray) else rows.toarray())
        found = self._index.search(rows, self._k)
        predictions = [self._prediction(ids, distances, is_verbose) for ids, distances in found]
        return encode_predictions(predictions, accept, _csv_fields)

    def _prepared(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
        if not np.isfinite(rows).all():
            raise BadInput("A number is too large for this model: its features are float32.")
        if not self._is_normalized:
            return rows
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
        return (rows / np.where(lengths, lengths, 1)).astype(np.float32)

    def _prediction(
        self, ids: np.ndarray[Any, Any], distances: np.ndarray[Any, Any], is_verbose: bool
    ) -> dict[str, Any]:
        if not len(ids):
            raise HandlerError("The index has no vector near this row: its lists there are empty.")
        labels = self._labels[ids]
        label = float(np.mean(labels, dtype=np.float64)) if self._predictor == REGRESSOR else _most_frequent(labels)
        prediction: dict[str, Any] = {"predicted_label": label}
        if is_verbose:
            # Nine digits hold a float32.
            prediction["distances"] = [float(f"{distance:.9g}") for distance in distances]
            prediction["labels"] = labels.tolist()
        return prediction


def _most_frequent(labels: np.ndarray[Any, Any]) -> float:
    """The smallest of those that are the most frequent, as scipy's mode decides it."""
    values, counts = np.unique(labels, return_counts=True)
    return float(values[np.argmax(counts)])


def _metadata(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LoadFailed(f"Unable to load model: {path.name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise LoadFailed(f"Unable to load model: {path.name} is no object with k and predictor_type.")
    return document


def _k(metadata: dict[str, Any]) -> int:
    k = metadata.get("k")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= _MAX_K:
        raise LoadFailed(f"Unable to load model: {KNN_METADATA} has k {k}: write a whole number from 1 to {_MAX_K}.")
    return k


def _predictor(metadata: dict[str, Any]) -> str:
    predictor = metadata.get("predictor_type")
    if predictor not in (CLASSIFIER, REGRESSOR):
        raise LoadFailed(
            f"Unable to load model: {KNN_METADATA} has predictor_type {predictor}: write classifier or regressor.",
        )
    return str(predictor)


def _refuse_dimension_reduction(reduction: Any) -> None:
    kind = reduction.get("type") if isinstance(reduction, dict) else reduction
    if kind:
        raise LoadFailed(
            f"Unable to load model: it was trained with dimension_reduction_type {kind}, whose random projection is "
            "made inside SageMaker's container. Train it again without dimension reduction.",
        )


def _labels(path: Path) -> np.ndarray[Any, Any]:
    data = path.read_bytes()
    if data.startswith(b"\x93NUMPY"):
        with load_errors_named(path.name, len(data)):
            array = codecs.decode_array_npy(data)
            if array.dtype.kind not in "biuf" or array.ndim != 1:
                raise LoadFailed(f"Unable to load model: {path.name} is not a list of numbers.")
            return array.astype(np.float32)
    if len(data) % 4:
        raise LoadFailed(f"Unable to load model: {path.name} has {len(data)} bytes, which are no float32 numbers.")
    return np.frombuffer(data, "<f4")


def _csv_fields(prediction: Prediction) -> list[Any]:
    return [prediction["predicted_label"], *prediction.get("labels", ()), *prediction.get("distances", ())]


HANDLER = KnnHandler
handle = entry_point(KnnHandler)
