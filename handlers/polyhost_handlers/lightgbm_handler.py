"""LightGBM: a model's text or JSON, answered as `Booster.predict` answers, which is a probability for a classifier."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers import codecs, tables
from polyhost_handlers.artifacts import files_of, lightgbm_models_in
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.errors import BadInput, LoadFailed, is_out_of_memory, load_errors_named, sentence_of
from polyhost_handlers.lightgbm_model import BrokenModel, Model, read
from polyhost_handlers.media_types import CSV, JSON, JSONLINES, NPY, NPZ, choose_accept, decoder_for, header_of
from polyhost_handlers.signature import Signature, inputs_of_table, output_of_rows
from polyhost_handlers.tables import Choice, Number, Schema

_INPUTS = (CSV, JSON, JSONLINES, NPY, NPZ)
_OUTPUTS = (JSON, CSV, NPY)
# What LightGBM calls the columns of an array.
_UNNAMED = re.compile(r"Column_\d+")


class LightGBMHandler(Handler):
    kind = "lightgbm"

    def __init__(self, booster: Any, model: Model, default_accept: str) -> None:
        self._booster = booster
        self._default_accept = default_accept
        is_named = not all(map(_UNNAMED.fullmatch, model.names))
        columns = iter(model.categories)
        self._categories = {
            place: next(columns) for place, has_any in enumerate(model.categorical) if has_any and model.categories
        }
        kinds = [
            Choice(self._categories[place]) if place in self._categories else Number()
            for place in range(len(model.names))
        ]
        self._schema = Schema(
            len(model.names), model.names if is_named else None, tuple(kinds) if self._categories else None,
            absent=math.nan,
        )  # fmt: skip

    @classmethod
    def load(cls, source: ModelSource) -> LightGBMHandler:
        path = _model_file(source.model_dir)
        with load_errors_named(path.name, path.stat().st_size):
            try:
                model = read(path.read_text(encoding="utf-8"))
            except BrokenModel as error:
                raise LoadFailed(f"Unable to load model: {path.name} is damaged: {error}.") from error
            import lightgbm

            booster = lightgbm.Booster(model_str=model.text)
        return cls(booster, model, source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = choose_accept(request.accept, _OUTPUTS, self._default_accept)
        rows = self._rows(request)
        try:
            prediction = self._booster.predict(rows, num_threads=1)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise BadInput(f"The model cannot take these rows: {sentence_of(error)}") from error
        return Response(codecs.encode_array(prediction, accept), accept)

    def signature(self) -> Signature:
        schema, width = self._schema, self._schema.width or 0
        datatypes = [tables.datatype_of(kind) for kind in schema.kinds or (schema.otherwise,)]
        answer = self._booster.predict(np.zeros((1, width)), num_threads=1)
        return Signature(inputs_of_table(width, schema.names, datatypes), output_of_rows("FP64", answer.shape))

    def _rows(self, request: Request) -> np.ndarray[Any, Any]:
        content_type, header = decoder_for(request.content_type, _INPUTS), header_of(request.content_type)
        if not self._categories:
            return codecs.decode_matrix(request.body, content_type, self._schema, header)
        table = tables.arranged(codecs.decode_table(request.body, content_type, self._schema, header), self._schema)
        columns = tables.columns_of(table, self._schema)
        for place, values in self._categories.items():
            codes = {value: float(code) for code, value in enumerate(values)}
            columns[place] = [codes.get(value, math.nan) for value in columns[place]]  # as LightGBM takes unknown ones
        matrix: np.ndarray[Any, Any] = np.array(columns, dtype=float).T
        return matrix


def _model_file(model_dir: Path) -> Path:
    found = lightgbm_models_in(model_dir)
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found or files_of(model_dir)) or "nothing"
    raise LoadFailed(f"Unable to load model: one LightGBM model belongs in the archive, found {names}.")


HANDLER = LightGBMHandler
handle = entry_point(LightGBMHandler)
