"""
XGBoost, as SageMaker's built-in algorithm answers (sagemaker-xgboost-container is the source).

Every generation of artifact: UBJSON, JSON, the old binary format, pickles back to those from before 1.0.
Several boosters in one archive are an ensemble.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import files_of, is_booster
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.codecs import Matrix
from polyhost_handlers.compiled.rows import INPUTS, OUTPUTS, PlainRows, Shape, Way, number_body, row_accept
from polyhost_handlers.compiled.trees import CompiledTrees, view_of
from polyhost_handlers.errors import BadInput, HandlerError, LoadFailed, Unparseable, is_out_of_memory, sentence_of
from polyhost_handlers.libsvm import FIRST_INDEX, decode_libsvm, first_index_of
from polyhost_handlers.media_types import (
    CSV,
    JSON,
    JSONLINES,
    LIBSVM,
    RECORDIO,
    choose_accept,
    decoder_for,
    header_of,
)
from polyhost_handlers.recordio import decode_recordio, encode_recordio
from polyhost_handlers.signature import UNNAMED_OUTPUT, Signature, inputs_of_table, output_of_rows
from polyhost_handlers.tables import Schema
from polyhost_handlers.xgboost_artifact import load_booster
from polyhost_handlers.xgboost_predict import CompiledPredictor, Predictor, predictor_of
from polyhost_handlers.xgboost_selection import select

_VOTING_OBJECTIVES = ("multi:softmax", "binary:hinge")


class Objective(NamedTuple):
    """`classes`: 0 where there are none."""

    name: str
    classes: int


class XGBoostHandler(Handler):
    kind = "xgboost"

    def __init__(
        self, predictors: list[Predictor], features: int, names: tuple[str, ...], objective: Objective | None,
        source: ModelSource,
    ) -> None:  # fmt: skip
        """`names`: of the features, none for a model without. `objective`: None where it is not needed."""
        self._predictors = predictors
        self._features = features
        self._names = names
        self._libsvm_first_index = first_index_of(source.environ.get(FIRST_INDEX, ""))
        self._schema = Schema(self._features, names or None, absent=math.nan)
        self._selected = _selected_by(source)
        self._objective, self._classes = objective or Objective("", 0)
        self._is_multi_model = source.is_multi_model
        self._is_batch = bool(source.environ.get("SAGEMAKER_BATCH"))
        self._default_accept = source.default_accept(JSON if self._is_multi_model else CSV)
        # Whether a row's answer is a bare number.
        self._is_plain = self._is_multi_model and len(predictors) == 1 and not self._selected and not self._is_batch

    @classmethod
    def load(cls, source: ModelSource) -> XGBoostHandler:
        paths = _booster_files(source.model_dir)
        if source.environ.get("SAGEMAKER_INFERENCE_ENSEMBLE", "true").lower() == "false":
            paths = paths[:1]
        _import_without_pandas()
        boosters = [load_booster(path) for path in paths]
        if (
            len(boosters) > 1
            and len({(booster.num_features(), _objective_of(booster).classes) for booster in boosters}) > 1
        ):
            names = ", ".join(path.name for path in paths)
            raise LoadFailed(f"Unable to load model: {names} differ in features or classes, so they are no ensemble.")
        if len({tuple(booster.feature_names or ()) for booster in boosters}) > 1:
            names = ", ".join(path.name for path in paths)
            raise LoadFailed(f"Unable to load model: {names} differ in their features' names or in the order of these, "
                             "so they are no ensemble.")  # fmt: skip
        first = boosters[0]
        # What only these ask for: reading it costs a fifth of the load of a small model.
        objective = _objective_of(first) if _selected_by(source) or len(boosters) > 1 else None
        predictors = [predictor_of(booster) for booster in boosters]
        return cls(predictors, int(first.num_features()), tuple(first.feature_names or ()), objective, source)

    @classmethod
    def of_compiled(cls, address: int, count_bytes: int, source: ModelSource) -> XGBoostHandler:
        both = view_of(address, count_bytes)
        end = Shape.at(address).count_bytes
        trees, names = CompiledTrees(both[:end]), both[end:].tobytes()
        predictors: list[Predictor] = [CompiledPredictor(trees)]
        return cls(predictors, trees.features, tuple(json.loads(names)) if names else (), None, source)

    def predict(self, request: Request) -> Response:
        if self._is_plain:
            answer = self._answer_of_row(request)
            if answer is not None:
                return answer
        codecs.require_body(request.body)
        accept = choose_accept(request.accept, OUTPUTS, self._default_accept)
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
        accept = row_accept(request.content_type, request.accept, self._default_accept)
        value = self._predictors[0].predict_csv_row(request.body) if accept else None
        return None if value is None or accept is None else Response(number_body(value, accept), accept)

    def plain_rows(self) -> PlainRows | None:
        predictor = self._predictors[0]
        if not self._is_plain or not isinstance(predictor, CompiledPredictor):
            return None
        names = json.dumps(self._names).encode() if self._names else b""
        return PlainRows(predictor.blob(), names, self._default_accept)

    def way(self) -> Way:
        """How an ensemble predicts: compiled, where all its boosters are."""
        ways = [predictor.way for predictor in self._predictors]
        return next((way for way in ways if not way.is_compiled), ways[0])

    def signature(self) -> Signature:
        """Answers of which parts were chosen are told by nobody's artifact."""
        inputs = inputs_of_table(self._features, self._names, ["FP32"])
        if self._selected:
            return Signature(inputs)
        shape = self._predict(np.zeros((1, self._features), np.float32)).shape
        return Signature(inputs, output_of_rows("FP64", shape, UNNAMED_OUTPUT if self._is_multi_model else "score"))

    def _decode(self, request: Request) -> Matrix:
        content_type = decoder_for(request.content_type, INPUTS)
        try:
            if content_type == LIBSVM:
                return decode_libsvm(request.body, self._features, self._libsvm_first_index)
            if content_type == RECORDIO:
                rows = decode_recordio(request.body, self._features)
            else:
                header = header_of(request.content_type)
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

    Our own engine's processes have both already, and share them, unless frameworks are imported late.
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


def _selected_by(source: ModelSource) -> list[str]:
    """What an answer is to have of a prediction, where that was chosen."""
    selected = source.environ.get("SAGEMAKER_INFERENCE_OUTPUT", "")
    return [key for key in selected.replace(" ", "").lower().split(",") if key]


def _objective_of(booster: Any) -> Objective:
    learner = json.loads(booster.save_config())["learner"]
    return Objective(str(learner["objective"]["name"]), int(learner["learner_model_param"].get("num_class", 0)))


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
