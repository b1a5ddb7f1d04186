"""scikit-learn: `model.joblib` or a pickle; predictors answer with `predict`, transformers with `transform`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import estimators_in, files_of
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.codecs import CSV, JSON, JSONLINES, NPY
from polyhost_handlers.errors import BadInput, HandlerError, LoadFailed, load_errors_named
from polyhost_handlers.xgboost_guard import refuse_newer_models

_INPUTS = (CSV, JSON, JSONLINES, NPY)
_OUTPUTS = (JSON, CSV, NPY)


class SklearnHandler(Handler):
    kind = "sklearn"

    def __init__(self, estimator: Any, default_accept: str) -> None:
        self._estimator = estimator
        self._default_accept = default_accept
        self._answer = estimator.predict if hasattr(estimator, "predict") else estimator.transform

    @classmethod
    def load(cls, source: ModelSource) -> SklearnHandler:
        path = _estimator_file(source.model_dir)
        estimator = _unpickle(path)
        if not hasattr(estimator, "predict") and not hasattr(estimator, "transform"):
            name = type(estimator).__name__
            raise LoadFailed(f"Unable to load model: {path.name} holds a {name}, which cannot predict nor transform.")
        return cls(estimator, source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = codecs.choose_accept(request.accept, _OUTPUTS, self._default_accept)
        table = _decode(request.body, codecs.decoder_for(request.content_type, _INPUTS))
        self._check_width(table)
        try:
            prediction = self._answer(self._as_trained(table))
        except (ValueError, TypeError) as error:
            raise BadInput(f"The model cannot take these rows: {error}") from error
        return Response(_encode(prediction, accept), accept)

    def _check_width(self, table: np.ndarray[Any, Any]) -> None:
        expected = getattr(self._estimator, "n_features_in_", None)
        if expected is not None and table.shape[1] != expected:
            raise BadInput(f"Each row has {table.shape[1]} features, the model was trained on {expected}.")

    def _as_trained(self, table: np.ndarray[Any, Any]) -> Any:
        """
        The table as the model knows it.

        A model trained on a DataFrame finds its columns by name; without pandas it gets them by position. One that
        does not count features, a vectorizer of texts, takes a list of texts.
        """
        names = getattr(self._estimator, "feature_names_in_", None)
        if names is None:
            is_texts = table.dtype == object and 1 in table.shape and not hasattr(self._estimator, "n_features_in_")
            return table.ravel() if is_texts else table
        try:
            import pandas as pd
        except ImportError:
            return table
        return pd.DataFrame(table, columns=names).infer_objects()


def _estimator_file(model_dir: Path) -> Path:
    preferred = [model_dir / "model.joblib", model_dir / "model.pkl"]
    found = [path for path in preferred if path.is_file()] or estimators_in(model_dir)
    if not found:
        names = ", ".join(path.name for path in files_of(model_dir)) or "nothing"
        raise LoadFailed(f"Unable to load model: no model.joblib or *.pkl in the archive, found {names}.")
    if len(found) > 1 and found[0].name not in ("model.joblib", "model.pkl"):
        names = ", ".join(path.name for path in found)
        raise LoadFailed(f"Unable to load model: several pickles ({names}); name the model's own model.joblib.")
    return found[0]


def _unpickle(path: Path) -> Any:
    import joblib

    refuse_newer_models()
    with load_errors_named(f"{path.name} cannot be unpickled", path.stat().st_size):
        try:
            return joblib.load(path)
        except ModuleNotFoundError as error:
            raise LoadFailed(f"Unable to load model: {path.name} needs the Python module {error.name}, "
                             "which is not installed here.") from error  # fmt: skip


def _decode(body: bytes, content_type: str) -> np.ndarray[Any, Any]:
    if content_type == CSV:
        return codecs.decode_csv_table(body)
    if content_type == JSON:
        return codecs.decode_json_table(body)
    if content_type == JSONLINES:
        return codecs.decode_jsonlines_table(body)
    return codecs.decode_matrix(body, content_type)


def _encode(prediction: Any, accept: str) -> bytes:
    if hasattr(prediction, "toarray"):
        prediction = prediction.toarray()
    array = np.asarray(prediction)
    if accept == JSON:
        return codecs.encode_json(array.tolist())
    if accept == CSV:
        return codecs.encode_csv_rows(array.tolist())
    if array.dtype == object:
        raise HandlerError("The prediction is not numeric, so it has no .npy form: ask for application/json.", 415)
    return codecs.encode_npy(array)


HANDLER = SklearnHandler
handle = entry_point(SklearnHandler)
