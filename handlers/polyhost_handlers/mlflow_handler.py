"""
MLflow: the Python function of a folder with an `MLmodel`, asked and answered as MLflow's own scoring server is.

It brings Python code: what it has pickled, and its folder `code`. So each has a process of its own.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from polyhost_handlers import codecs, json_forms
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.errors import BadInput, LoadFailed, Unparseable, is_out_of_memory, load_errors_named, sentence_of
from polyhost_handlers.media_types import CSV, JSON, choose_accept, decoder_for
from polyhost_handlers.signature import UNNAMED_INPUT, UNNAMED_OUTPUT, Signature, TensorSpec, in_json, inputs_of_table

# What a header says of a CSV that has no names: MLflow's own has them always.
ROWS_ALONE = "x-polyhost-csv-header"
_ROWS = "rows"
# By MLflow's names of columns' types, and numpy's of tensors'.
_DATATYPES = {
    "boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64", "string": "BYTES",
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class MLflowHandler(Handler):
    kind = "mlflow"

    def __init__(self, model: Any, default_accept: str) -> None:
        self._model = model
        schema = self._schema = model.metadata.get_input_schema() if model.metadata else None
        self._columns: tuple[str, ...] | None = None
        if schema is not None and not schema.is_tensor_spec() and schema.has_input_names():
            self._columns = tuple(schema.input_names())
        self._default_accept = default_accept

    @classmethod
    def load(cls, source: ModelSource) -> MLflowHandler:
        import mlflow.pyfunc

        with load_errors_named("MLmodel", 0):
            try:
                model = mlflow.pyfunc.load_model(str(source.model_dir))
            except ModuleNotFoundError as error:
                raise LoadFailed(
                    f"Unable to load model: it needs the Python module {error.name}, which is not installed here: "
                    "build an environment of your own with it."
                ) from error
        return cls(model, source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        from mlflow.exceptions import MlflowException

        codecs.require_body(request.body)
        choose_accept(request.accept, (JSON,), self._default_accept)
        content_type = decoder_for(request.content_type, (CSV, JSON))
        try:
            has_names = request.headers.get(ROWS_ALONE) != "absent"
            data, params = self._asked(request.body, content_type if has_names else _ROWS)
            prediction = self._model.predict(data, params=params)
        except MlflowException as error:
            raise BadInput(f"The model cannot take this request: {sentence_of(error)}") from error
        except (ValueError, TypeError, KeyError) as error:
            if is_out_of_memory(error):
                raise
            raise BadInput(
                f"The model cannot take this request: {type(error).__name__}: {sentence_of(error)}"
            ) from error
        return Response(_encoded(prediction), JSON)

    def signature(self) -> Signature:
        outputs = self._model.metadata.get_output_schema() if self._model.metadata else None
        return Signature(_taken(self._schema), _answered(outputs))

    def _asked(self, body: bytes, content_type: str) -> tuple[Any, Any]:
        """What the function is called with, by MLflow's own reading of it, and its parameters."""
        from mlflow.pyfunc import scoring_server

        if content_type == _ROWS:
            lines = body.decode().splitlines()
            return self._of_rows([list(map(_number, line.split(","))) for line in lines], self._columns), None
        if content_type == CSV:
            try:
                text = body.decode()
            except UnicodeDecodeError as error:
                raise Unparseable("The body is not UTF-8.") from error
            return scoring_server.parse_csv_input(io.StringIO(text), schema=self._schema), None
        document = codecs.parse_json(body)
        if isinstance(document, dict) and json_forms.tensors_of(document.get("inputs")) is not None:
            return self._of_tensors(document["inputs"]), None
        forms = [form for form in _FORMS if isinstance(document, dict) and form in document]
        if len(forms) != 1:
            raise BadInput(f"MLflow takes one of these fields: {', '.join(_FORMS)}; the body has {len(forms)} of them.")
        params = document.pop("params", None)
        return scoring_server.infer_and_parse_data(document, schema=self._schema), params

    def _of_rows(self, rows: list[Any], names: Sequence[str] | None) -> Any:
        """A frame where the signature has columns, else an array."""
        from mlflow.pyfunc import scoring_server

        document = {"inputs": rows} if names is None else {"dataframe_split": {"columns": names, "data": rows}}
        return scoring_server.infer_and_parse_data(document, schema=self._schema)

    def _of_tensors(self, document: list[Any]) -> Any:
        """The Open Inference Protocol's: columns by their names where the signature has columns, else arrays."""
        from mlflow.pyfunc import scoring_server

        if self._columns is not None:
            table = json_forms.table_of(document, self._columns)
            return self._of_rows(table.lists, table.names or self._columns)
        arrays = {tensor.name: tensor.array.tolist() for tensor in json_forms.tensors_of(document) or ()}
        inputs = arrays if len(arrays) > 1 else next(iter(arrays.values()))
        return scoring_server.infer_and_parse_data({"inputs": inputs}, schema=self._schema)


def _taken(schema: Any) -> tuple[TensorSpec, ...]:
    if schema is None:
        return ()
    if schema.is_tensor_spec():
        specs = [_tensor_spec(spec, UNNAMED_INPUT) for spec in schema.inputs]
        return () if None in specs else tuple(spec for spec in specs if spec is not None)
    names = schema.input_names() if schema.has_input_names() else None
    return inputs_of_table(len(schema.inputs), names, [_datatype_of(spec) for spec in schema.inputs])


def _answered(schema: Any) -> tuple[TensorSpec, ...]:
    """As JSON has it: columns by their names, or one array."""
    if schema is None:
        return ()
    specs = []
    for spec in schema.inputs:
        datatype = in_json(_datatype_of(spec))
        if datatype is None or (len(schema.inputs) > 1 and not spec.name):
            return ()
        specs.append(TensorSpec(spec.name or UNNAMED_OUTPUT, datatype, _shape_of(spec, (-1,))))
    return tuple(specs)


def _tensor_spec(spec: Any, otherwise: str) -> TensorSpec | None:
    datatype = _datatype_of(spec)
    return None if datatype is None else TensorSpec(spec.name or otherwise, datatype, _shape_of(spec, (-1, 1)))


def _shape_of(spec: Any, of_column: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(size) for size in getattr(spec, "shape", of_column))


def _datatype_of(spec: Any) -> str | None:
    """The Open Inference Protocol's, of a column or a tensor; None where it has none."""
    return _DATATYPES.get(getattr(spec.type, "name", ""))


def _number(field: str) -> float | int:
    try:
        return int(field)
    except ValueError:
        return float(field)


def _encoded(prediction: Any) -> bytes:
    from mlflow.pyfunc.scoring_server import predictions_to_json

    text = io.StringIO()
    predictions_to_json(prediction, text)
    return json.dumps(json.loads(text.getvalue())).encode()


HANDLER = MLflowHandler
handle = entry_point(MLflowHandler)
