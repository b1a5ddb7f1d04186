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
from polyhost_handlers.errors import BadInput, HandlerError, LoadFailed, is_out_of_memory, sentence_of
from polyhost_handlers.media_types import (
    CSV,
    JSON,
    JSONLINES,
    NPY,
    NPZ,
    choose_accept,
    decoder_for,
    header_of,
    media_type,
)
from polyhost_handlers.signature import UNNAMED_INPUT, Signature, TensorSpec, inputs_of_table, output_of_rows
from polyhost_handlers.sklearn_artifact import Unpickled, unpickle, versions_differ
from polyhost_handlers.sklearn_columns import wanted_by
from polyhost_handlers.tables import Table
from polyhost_handlers.xgboost_guard import refuse_newer_models

logger = logging.getLogger("polyhost.handlers")

_INPUTS = (CSV, JSON, JSONLINES, NPY, NPZ)
_OUTPUTS = (JSON, CSV, NPY)
# The words that pandas takes for booleans.
_TRUTHS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,19}\s*")


class SklearnHandler(Handler):
    kind = "sklearn"

    def __init__(self, unpickled: Unpickled, default_accept: str) -> None:
        estimator = unpickled.estimator
        self._written_by = unpickled.version
        self._default_accept = default_accept
        self._answer = estimator.predict if hasattr(estimator, "predict") else estimator.transform
        self._wanted = wanted_by(estimator)
        self._schema = self._wanted.schema
        kinds = self._schema.kinds or (self._schema.otherwise,)
        self._may_be_whole = any(isinstance(kind, tables.AsFloat) for kind in kinds)

    @classmethod
    def load(cls, source: ModelSource) -> SklearnHandler:
        refuse_newer_models()  # a pipeline may hold a booster
        name, unpickled = cls.read(source)
        estimator = unpickled.estimator
        if not hasattr(estimator, "predict") and not hasattr(estimator, "transform"):
            its = type(estimator).__name__
            raise LoadFailed(f"Unable to load model: {name} holds a {its}, which cannot predict nor transform.")
        # It speaks of arrays for models of named columns, which are put into the model's order before.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        model = cls(unpickled, source.default_accept(JSON))
        if model._wanted.needs_frame and importlib.util.find_spec("pandas") is None:
            raise LoadFailed(
                "Unable to load model: it finds its columns by name, which needs pandas: pip install pandas."
            )
        model._check_release(name)
        if unpickled.version is not None:
            logger.warning("model %s: %s", source.model_name, versions_differ(unpickled.version))
        return model

    @classmethod
    def read(cls, source: ModelSource) -> tuple[str, Unpickled]:
        """The file's name, and the estimator in it."""
        path = _estimator_file(source.model_dir)
        return path.name, unpickle(path)

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = choose_accept(request.accept, _OUTPUTS, self._default_accept)
        rows = self._rows(request)
        try:
            prediction = self._answer_to(rows)
        except (ValueError, TypeError) as error:
            raise BadInput(f"The model cannot take these rows: {error}") from error
        except Exception as error:
            if is_out_of_memory(error) or self._written_by is None:
                raise
            raise HandlerError(
                f"Prediction failed: {type(error).__name__}: {sentence_of(error)}. {versions_differ(self._written_by)}"
            ) from error
        return Response(_encode(prediction, accept), accept)

    def signature(self) -> Signature:
        schema, wanted = self._schema, self._wanted
        if wanted.is_records:
            return Signature((), self._outputs())
        if wanted.is_texts or wanted.is_column:
            datatype = "BYTES" if wanted.is_texts else tables.datatype_of(schema.kinds_for(1)[0])
            inputs = (TensorSpec(UNNAMED_INPUT, datatype, (-1,)),) if datatype else ()
            return Signature(inputs, self._outputs())
        datatypes = [tables.datatype_of(kind) for kind in schema.kinds or (schema.otherwise,)]
        return Signature(inputs_of_table(schema.width, schema.names, datatypes), self._outputs())

    def _outputs(self) -> tuple[TensorSpec, ...]:
        """By the answer to a row: no estimator says what it answers."""
        try:
            answer = self._answer_to(self._probe())
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return ()
        datatype = _datatype_of(array := np.asarray(answer.toarray() if hasattr(answer, "toarray") else answer))
        return output_of_rows(datatype, array.shape) if datatype else ()

    def _answer_to(self, rows: Any) -> Any:
        """
        The answer to rows whose numbers are float64, unless the model cannot take these.

        What an error of Python's types says is that the training had whole numbers: for `&`, or to count positions.
        """
        try:
            return self._answer(rows)
        except (TypeError, IndexError):
            whole = _as_whole(rows) if self._may_be_whole else None
            if whole is None:
                raise
            return self._answer(whole)

    def _rows(self, request: Request) -> Any:
        """The request's rows as the model was trained on them."""
        content_type = decoder_for(request.content_type, _INPUTS)
        if self._wanted.is_texts:
            is_plain = media_type(request.content_type) == "text/plain"
            header = header_of(request.content_type)
            return codecs.decode_texts(request.body, content_type, self._schema, is_plain, header)
        if self._wanted.is_records:
            if content_type != JSON:
                raise BadInput('The model takes records: send JSON, [{"name": value, …}, …].')
            return json_forms.records_of(codecs.parse_json(request.body))
        header = header_of(request.content_type)
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
        if table.is_csv:
            kinds = self._schema.kinds_for(len(columns))
            columns = [
                _looked_at(kind, values, [row[place] for row in table.rows])
                for place, (kind, values) in enumerate(zip(kinds, columns, strict=True))
            ]
        are_texts = list(map(tables.has_learned_texts, self._schema.kinds_for(len(columns))))
        if self._wanted.needs_frame:
            made = zip(columns, are_texts, strict=True)
            return _frame([_objects(one) if is_text else _column(one) for one, is_text in made], self._schema.names)
        if self._wanted.is_column:
            return _column(columns[0])
        values = [value for column in columns for value in column]
        together = _objects(values) if any(are_texts) else _column(values)
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
            raise LoadFailed(
                f"Unable to load model: {name} does not run here: {reason}. {versions_differ(self._written_by)}"
            ) from error
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


def _datatype_of(array: np.ndarray[Any, Any]) -> str | None:
    """The Open Inference Protocol's, of an answer as JSON has it."""
    if array.dtype.kind == "O":
        return "BYTES" if all(isinstance(value, str) for value in array.ravel()) else None
    return {"f": "FP64", "i": "INT64", "u": "INT64", "b": "BOOL", "U": "BYTES"}.get(array.dtype.kind)


def _column(values: list[Any]) -> np.ndarray[Any, Any]:
    """As booleans, whole numbers or numbers where all values are, else as objects."""
    kinds = {type(value) for value in values}
    if kinds in ({bool}, {int}):
        return _objects(values) if _is_large(values) else np.array(values)
    if kinds and kinds <= {bool, int, float}:
        return np.array(values, dtype=float)
    return np.array(values) if kinds == {np.datetime64} else _objects(values)


def _looked_at(kind: tables.Kind, values: list[Any], fields: list[Any]) -> list[Any]:
    """A column of CSV of which the model says nothing, as pandas reads it: all whole numbers, all true or false."""
    if isinstance(kind, tables.AsItLooks) and all(field in _TRUTHS for field in fields):
        return [_TRUTHS[field] for field in fields]
    return [int(field) for field in fields] if kind == tables.AsItLooks() and all(map(_is_whole, fields)) else values


def _as_whole(rows: Any) -> Any:
    """An array, or the columns of a DataFrame, as int64 where that changes no number; None where all would change."""
    if isinstance(rows, np.ndarray):
        return rows.astype(np.int64) if _are_whole(rows) else None
    whole = [name for name in rows.columns if _are_whole(rows[name].to_numpy())]
    return rows.astype(dict.fromkeys(whole, np.int64)) if whole else None


def _are_whole(values: np.ndarray[Any, Any]) -> bool:
    return values.dtype.kind == "f" and bool(np.all((values == np.floor(values)) & (np.abs(values) < 2**53)))


def _is_whole(field: Any) -> bool:
    return isinstance(field, str) and _WHOLE.fullmatch(field) is not None and not _is_large([int(field)])


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
    return codecs.encode_array(prediction.toarray() if hasattr(prediction, "toarray") else prediction, accept)


HANDLER = SklearnHandler
handle = entry_point(SklearnHandler)
