"""
CatBoost: `.cbm`, or `.bin` of the same format. A classifier answers with probabilities, as XGBoost's handler does, and
every other model as `CatBoostRegressor.predict`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyhost_handlers import codecs, tables
from polyhost_handlers.artifacts import catboost_models_in, files_of
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.errors import BadInput, LoadFailed, is_out_of_memory, load_errors_named, sentence_of
from polyhost_handlers.media_types import CSV, JSON, JSONLINES, NPY, NPZ, choose_accept, decoder_for, header_of
from polyhost_handlers.tables import Number, Schema, Text

_INPUTS = (CSV, JSON, JSONLINES, NPY, NPZ)
_OUTPUTS = (JSON, CSV, NPY)


class CatBoostHandler(Handler):
    kind = "catboost"

    def __init__(self, model: Any, default_accept: str) -> None:
        self._model = model
        self._default_accept = default_accept
        names = tuple(model.feature_names_)
        # CatBoost calls the columns of an array by their numbers.
        is_named = names != tuple(map(str, range(len(names))))
        texts = {*model.get_cat_feature_indices(), *model.get_text_feature_indices()}
        kinds = tuple(Text() if place in texts else Number() for place in range(len(names)))
        self._schema = Schema(len(names), names if is_named else None, kinds if texts else None, absent=float("nan"))
        self._is_classifier = hasattr(model, "predict_proba")

    @classmethod
    def load(cls, source: ModelSource) -> CatBoostHandler:
        import catboost

        path = _model_file(source.model_dir)
        with load_errors_named(path.name, path.stat().st_size):
            plain = catboost.CatBoost().load_model(str(path))
            if plain.get_embedding_feature_indices():
                raise LoadFailed(f"Unable to load model: {path.name} takes embeddings, which no format here can send.")
            is_classifier = _loss_of(plain) in ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll")
            made = catboost.CatBoostClassifier() if is_classifier else catboost.CatBoostRegressor()
            return cls(made.load_model(str(path)), source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = choose_accept(request.accept, _OUTPUTS, self._default_accept)
        rows = self._rows(request)
        try:
            prediction = self._answer(rows)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise BadInput(f"The model cannot take these rows: {sentence_of(error)}") from error
        return Response(codecs.encode_array(prediction, accept), accept)

    def _answer(self, rows: Any) -> Any:
        if not self._is_classifier:
            return self._model.predict(rows, thread_count=1)
        probabilities = self._model.predict_proba(rows, thread_count=1)
        return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities

    def _rows(self, request: Request) -> Any:
        content_type, header = decoder_for(request.content_type, _INPUTS), header_of(request.content_type)
        if self._schema.kinds is None:
            return codecs.decode_matrix(request.body, content_type, self._schema, header)
        table = tables.arranged(codecs.decode_table(request.body, content_type, self._schema, header), self._schema)
        return [list(row) for row in zip(*tables.columns_of(table, self._schema), strict=True)]


def _loss_of(model: Any) -> str:
    """The name of the loss, without its parameters: `Quantile:alpha=0.5` is Quantile."""
    return str(model.get_all_params().get("loss_function", "")).partition(":")[0]


def _model_file(model_dir: Path) -> Path:
    found = catboost_models_in(model_dir)
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found or files_of(model_dir)) or "nothing"
    raise LoadFailed(f"Unable to load model: one CatBoost model belongs in the archive, found {names}.")


HANDLER = CatBoostHandler
handle = entry_point(CatBoostHandler)
