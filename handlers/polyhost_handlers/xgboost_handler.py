"""
XGBoost, as SageMaker's built-in algorithm answers (sagemaker-xgboost-container is the source).

Every generation of artifact: UBJSON, JSON, the old binary format, pickles back to those from before 1.0.
Several boosters in one archive are an ensemble.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import files_of, is_booster
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.codecs import CSV, JSON, JSONLINES, LIBSVM, NPY, NPZ, RECORDIO, Matrix
from polyhost_handlers.errors import BadInput, HandlerError, LoadFailed, Unparseable, is_out_of_memory, sentence_of
from polyhost_handlers.libsvm import FIRST_INDEX, decode_libsvm, first_index_of
from polyhost_handlers.recordio import decode_recordio, encode_recordio
from polyhost_handlers.tables import Schema
from polyhost_handlers.xgboost_artifact import load_booster
from polyhost_handlers.xgboost_predict import predictor_of
from polyhost_handlers.xgboost_selection import select

_INPUTS = (CSV, LIBSVM, RECORDIO, JSON, JSONLINES, NPY, NPZ)
_OUTPUTS = (JSON, CSV, JSONLINES, RECORDIO)
_VOTING_OBJECTIVES = ("multi:softmax", "binary:hinge")


# Numbers and commas alone. What else may stand in a row goes the long way, which says what is wrong with it.
_NUMBER = rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_PLAIN_ROW = re.compile(rb"%b(?:,%b)*\n?" % (_NUMBER, _NUMBER))
_MAX_REMEMBERED = 64


class XGBoostHandler(Handler):
    kind = "xgboost"

    def __init__(self, boosters: list[Any], source: ModelSource) -> None:
        self._predictors = [predictor_of(booster) for booster in boosters]
        self._features = int(boosters[0].num_features())
        self._libsvm_first_index = first_index_of(source.environ.get(FIRST_INDEX, ""))
        self._schema = Schema(self._features, tuple(boosters[0].feature_names or ()) or None, absent=math.nan)
        selected = source.environ.get("SAGEMAKER_INFERENCE_OUTPUT", "")
        self._selected = [key for key in selected.replace(" ", "").lower().split(",") if key]
        # What only these ask for: reading it costs a fifth of the load of a small model.
        is_asked = self._selected or len(boosters) > 1
        self._objective, self._classes = _objective_of(boosters[0]) if is_asked else ("", 0)
        self._is_multi_model = source.is_multi_model
        self._is_batch = bool(source.environ.get("SAGEMAKER_BATCH"))
        self._default_accept = source.default_accept(JSON if self._is_multi_model else CSV)
        # Whether a row's answer is a bare number; and how it is sent, by Content-Type and Accept (None: the long way).
        self._is_plain = self._is_multi_model and len(boosters) == 1 and not self._selected and not self._is_batch
        self._row_accepts: dict[tuple[str, str], str | None] = {}

    @classmethod
    def load(cls, source: ModelSource) -> XGBoostHandler:
        paths = _booster_files(source.model_dir)
        if source.environ.get("SAGEMAKER_INFERENCE_ENSEMBLE", "true").lower() == "false":
            paths = paths[:1]
        _import_without_pandas()
        boosters = [load_booster(path) for path in paths]
        if len(boosters) > 1 and len({(booster.num_features(), _objective_of(booster)[1]) for booster in boosters}) > 1:
            names = ", ".join(path.name for path in paths)
            raise LoadFailed(f"Unable to load model: {names} differ in features or classes, so they are no ensemble.")
        if len({tuple(booster.feature_names or ()) for booster in boosters}) > 1:
            names = ", ".join(path.name for path in paths)
            raise LoadFailed(f"Unable to load model: {names} differ in their features' names or in the order of these, "
                             "so they are no ensemble.")  # fmt: skip
        return cls(boosters, source)

    def predict(self, request: Request) -> Response:
        if self._is_plain and _PLAIN_ROW.fullmatch(request.body):
            answer = self._answer_of_row(request)
            if answer is not None:
                return answer
        codecs.require_body(request.body)
        accept = codecs.choose_accept(request.accept, _OUTPUTS, self._default_accept)
        rows = self._decode(request)
        try:
            prediction = self._predict(rows)
        except ValueError as error:  # XGBoostError is one
            if is_out_of_memory(error):
                raise
            raise BadInput(f"Unable to evaluate payload provided: {sentence_of(error)}") from error
        return Response(self._encode(prediction, accept), accept)

    def _answer_of_row(self, request: Request) -> Response | None:
        """To one row of CSV, which is what is asked most: as the long way answers it, or None to go that way."""
        kinds = request.content_type, request.accept
        accept = self._row_accepts.get(kinds, "")
        if accept is None:
            return None
        if not accept:
            accept = codecs.choose_accept(request.accept, _OUTPUTS, self._default_accept)
            is_csv = codecs.decoder_for(request.content_type, _INPUTS) == CSV
            if len(self._row_accepts) < _MAX_REMEMBERED:
                self._row_accepts[kinds] = accept if is_csv and accept in (CSV, JSON) else None
            return None
        value = self._predictors[0].predict_row(list(map(float, request.body.split(b","))))
        if value is None or not math.isfinite(value):
            return None
        if accept == JSON:
            return Response(b"[%b]" % repr(value).encode(), JSON)
        return Response(repr(value).encode(), CSV)

    def _decode(self, request: Request) -> Matrix:
        content_type = codecs.decoder_for(request.content_type, _INPUTS)
        try:
            if content_type == LIBSVM:
                return decode_libsvm(request.body, self._features, self._libsvm_first_index)
            if content_type == RECORDIO:
                rows = decode_recordio(request.body, self._features)
            else:
                header = codecs.header_of(request.content_type)
                return codecs.decode_matrix(request.body, content_type, self._schema, header)
        except Unparseable as error:
            raise _Unparseable415(error) from error
        if rows.shape[1] != self._features:
            raise BadInput(f"Each row has {rows.shape[1]} features, the model was trained on {self._features}.")
        return rows

    def _predict(self, rows: Matrix) -> np.ndarray[Any, Any]:
        """Predictions of shape (rows,) or (rows, classes): the one booster's, or the ensemble's."""
        votes = [predictor.predict(rows) for predictor in self._predictors]
        if len(votes) == 1:
            return votes[0]
        prediction: np.ndarray[Any, Any]
        if self._objective in _VOTING_OBJECTIVES:
            prediction = np.apply_along_axis(_most_common, 0, np.stack(votes))
        else:
            prediction = np.mean(votes, axis=0)
        return prediction

    def _encode(self, prediction: np.ndarray[Any, Any], accept: str) -> bytes:
        if self._selected:
            return self._encode_selected(prediction, accept)
        values = prediction.tolist()
        if accept == CSV:
            # One line joined by commas is no CSV of rows, but it is what AWS's container answers.
            text = "\n".join(map(str, values)) + "\n" if self._is_batch else ",".join(map(str, values))
            return text.encode()
        if accept == JSON and self._is_multi_model:
            return json.dumps(values).encode()
        scores = [{"score": value} for value in values]
        return _encode_rows(scores, accept)

    def _encode_selected(self, prediction: np.ndarray[Any, Any], accept: str) -> bytes:
        rows = select(prediction, self._selected, self._objective, self._classes)
        if accept == CSV:
            lines = [[row[key] for key in self._selected] for row in rows]
            text = codecs.encode_csv_rows(lines)
            return text + b"\n" if self._is_batch else text
        return _encode_rows(rows, accept)


class _Unparseable415(HandlerError):
    """What cannot be parsed is 415 from AWS's XGBoost container, not 400."""

    status = 415
    type = "UnsupportedMediaTypeException"

    def __init__(self, error: Unparseable) -> None:
        super().__init__(error.message)


def _import_without_pandas() -> None:
    """
    Import XGBoost without pandas, which it imports wherever it finds it: 24 MB for each process of the real MMS.

    Our own engine's processes have both already, and share them.
    """
    if sys.modules.keys() & {"xgboost", "sklearn", "pandas"}:
        return
    # While it is None, an import of it fails.
    sys.modules["pandas"] = None  # type: ignore[assignment]
    try:
        import xgboost  # noqa: F401
    finally:
        del sys.modules["pandas"]


def _booster_files(model_dir: Path) -> list[Path]:
    named = model_dir / "xgboost-model"
    files = files_of(model_dir)
    found = [path for path in files if is_booster(path)] or ([named] if named in files else [])
    if not found and len(files) == 1:
        found = files  # let XGBoost itself say what is wrong with it
    if not found:
        names = ", ".join(path.name for path in files) or "nothing"
        raise LoadFailed(f"Unable to load model: no XGBoost model in the archive, found {names}.")
    return found


def _objective_of(booster: Any) -> tuple[str, int]:
    """Its objective's name and how many classes, 0 where there are none."""
    learner = json.loads(booster.save_config())["learner"]
    return str(learner["objective"]["name"]), int(learner["learner_model_param"].get("num_class", 0))


def _most_common(votes: np.ndarray[Any, Any]) -> Any:
    values, counts = np.unique(votes, return_counts=True)
    return values[np.argmax(counts)]


def _encode_rows(rows: list[dict[str, Any]], accept: str) -> bytes:
    if accept == JSON:
        return codecs.encode_json({"predictions": rows})
    if accept == JSONLINES:
        return codecs.encode_jsonlines(rows)
    return encode_recordio([{key: np.ravel(value).tolist() for key, value in row.items()} for row in rows])


HANDLER = XGBoostHandler
handle = entry_point(XGBoostHandler)
