"""scikit-learn: `model.joblib` or a pickle; predictors answer with `predict`, transformers with `transform`."""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers import codecs, json_forms, tables
from polyhost_handlers.artifacts import estimators_in, files_of
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.codecs import CSV, JSON, JSONLINES, NPY, NPZ
from polyhost_handlers.errors import BadInput, HandlerError, LoadFailed, is_out_of_memory, sentence_of
from polyhost_handlers.sklearn_artifact import Unpickled, unpickle, versions_differ
from polyhost_handlers.sklearn_columns import wanted_by
from polyhost_handlers.tables import Table
from polyhost_handlers.xgboost_guard import refuse_newer_models

logger = logging.getLogger("polyhost.handlers")

_INPUTS = (CSV, JSON, JSONLINES, NPY, NPZ)
_OUTPUTS = (JSON, CSV, NPY)
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")


class SklearnHandler(Handler):
    kind = "sklearn"

    def __init__(self, unpickled: Unpickled, default_accept: str) -> None:
        estimator = unpickled.estimator
        self._written_by = unpickled.version
        self._default_accept = default_accept
        self._answer = estimator.predict if hasattr(estimator, "predict") else estimator.transform
        self._wanted = wanted_by(estimator)
        self._schema = self._wanted.schema

    @classmethod
    def load(cls, source: ModelSource) -> SklearnHandler:
        path = _estimator_file(source.model_dir)
        refuse_newer_models()  # a pipeline may hold a booster
        unpickled = unpickle(path)
        estimator = unpickled.estimator
        if not hasattr(estimator, "predict") and not hasattr(estimator, "transform"):
            name = type(estimator).__name__
            raise LoadFailed(f"Unable to load model: {path.name} holds a {name}, which cannot predict nor transform.")
        # It speaks of arrays for models of named columns, which are put into the model's order before.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        model = cls(unpickled, source.default_accept(JSON))
        if model._wanted.needs_frame and importlib.util.find_spec("pandas") is None:
            raise LoadFailed(
                "Unable to load model: it finds its columns by name, which needs pandas: pip install pandas."
            )
        model._check_release(path.name)
        if unpickled.version is not None:
            logger.warning("model %s: %s", source.model_name, versions_differ(unpickled.version))
        return model

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = codecs.choose_accept(request.accept, _OUTPUTS, self._default_accept)
        rows = self._rows(request)
        try:
            prediction = self._answer(rows)
        except (ValueError, TypeError) as error:
            raise BadInput(f"The model cannot take these rows: {error}") from error
        except Exception as error:
            if is_out_of_memory(error) or self._written_by is None:
                raise
            raise HandlerError(f"Prediction failed: {type(error).__name__}: {sentence_of(error)}. "
                               f"{versions_differ(self._written_by)}") from error  # fmt: skip
        return Response(_encode(prediction, accept), accept)

    def _rows(self, request: Request) -> Any:
        """The request's rows as the model was trained on them."""
        content_type = codecs.decoder_for(request.content_type, _INPUTS)
        if self._wanted.is_texts:
            is_plain = codecs.media_type(request.content_type) == "text/plain"
            header = codecs.header_of(request.content_type)
            return codecs.decode_texts(request.body, content_type, self._schema, is_plain, header)
        if self._wanted.is_records:
            if content_type != JSON:
                raise BadInput('The model takes records: send JSON, [{"name": value, …}, …].')
            return json_forms.records_of(codecs.parse_json(request.body))
        header = codecs.header_of(request.content_type)
        table = codecs.decode_table(request.body, content_type, self._schema, header)
        rows = self._typed(tables.arranged(table, self._schema))
        if isinstance(rows, np.ndarray) and rows.dtype.kind == "f":
            codecs.check_infinite(rows, request.body, content_type)
        return rows

    def _typed(self, table: Table) -> Any:
        """A DataFrame where the model finds its columns by name, else an array: of numbers, or of objects."""
        if self._schema.kinds is None and isinstance(self._schema.otherwise, tables.Number):
            matrix = tables.matrix_of(table)
            return _frame(matrix.T, self._schema.names) if self._wanted.needs_frame else matrix
        if any(isinstance(row, tables.SparseRow) for row in table.rows):
            return tables.matrix_of(table)
        columns = tables.columns_of(table, self._schema)
        if self._wanted.needs_frame:
            kinds = self._schema.kinds_for(len(columns))
            if table.is_csv:
                columns = [
                    _whole(values, [row[place] for row in table.rows]) if kind == tables.AsItLooks() else values
                    for place, (kind, values) in enumerate(zip(kinds, columns, strict=True))
                ]
            return _frame([_column(values) for values in columns], self._schema.names)
        if self._wanted.is_column:
            return _column(columns[0])
        together = _column([value for values in columns for value in values])
        return together.reshape(len(columns), -1).T

    def _check_release(self, name: str) -> None:
        """
        Refuse what another release has written and this one cannot run.

        An estimator whose insides have changed unpickles, and then each call ends in an AttributeError.
        """
        if self._written_by is None:
            return
        try:
            self._answer(self._probe())
        except (AttributeError, ImportError) as error:
            reason = f"{type(error).__name__}: {sentence_of(error)}"
            raise LoadFailed(f"Unable to load model: {name} does not run here: {reason}. "
                             f"{versions_differ(self._written_by)}") from error  # fmt: skip
        except Exception as error:
            if is_out_of_memory(error):
                raise

    def _probe(self) -> Any:
        """One row of what the model may be asked: missing values and zeros that it need not like."""
        if self._wanted.is_texts:
            return ["text"]
        if self._wanted.is_records:
            return [{}]
        width = self._schema.width or 1
        fields = [tables.example_of(kind) for kind in self._schema.kinds_for(width)]
        return self._typed(Table([fields]))


def _column(values: list[Any]) -> np.ndarray[Any, Any]:
    """As booleans, whole numbers or numbers where all values are, else as objects."""
    kinds = {type(value) for value in values}
    if kinds in ({bool}, {int}):
        return _objects(values) if _is_large(values) else np.array(values)
    if kinds and kinds <= {bool, int, float}:
        return np.array(values, dtype=float)
    return np.array(values) if kinds == {np.datetime64} else _objects(values)


def _whole(values: list[Any], fields: list[Any]) -> list[Any]:
    """A column of CSV as whole numbers where all its fields are written so: pandas reads it in this way, as JSON is."""
    return [int(field) for field in fields] if all(map(_is_whole, fields)) else values


def _is_whole(field: Any) -> bool:
    return isinstance(field, str) and _WHOLE.fullmatch(field) is not None


def _objects(values: list[Any]) -> np.ndarray[Any, Any]:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _is_large(values: list[Any]) -> bool:
    return not all(-(2**63) <= value < 2**63 for value in values)


def _frame(columns: Any, names: Any) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {name: pd.Series(column, dtype=column.dtype) for name, column in zip(names, columns, strict=True)}
    )


def _estimator_file(model_dir: Path) -> Path:
    found = estimators_in(model_dir)
    preferred = [path for path in found if path.name.partition(".")[0] == "model"]
    for name in ("model.joblib", "model.pkl"):
        preferred = [path for path in preferred if path.name == name] or preferred
    if not found:
        names = ", ".join(path.name for path in files_of(model_dir)) or "nothing"
        raise LoadFailed(f"Unable to load model: no model.joblib or *.pkl in the archive, found {names}.")
    if len(found) > 1 and len(preferred) != 1:
        names = ", ".join(path.name for path in found)
        raise LoadFailed(f"Unable to load model: several pickles ({names}); name the model's own model.joblib.")
    return preferred[0] if preferred else found[0]


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
