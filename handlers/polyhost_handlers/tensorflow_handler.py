"""
TensorFlow: a SavedModel, or a Keras model in one file. Asked and answered as TensorFlow Serving is, and by CSV and JSON
lines as SageMaker's TensorFlow container passes them on to it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyhost_handlers import codecs, tables, tensors
from polyhost_handlers.artifacts import keras_models_in
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.errors import (
    BadInput,
    HandlerError,
    LoadFailed,
    NoContent,
    is_out_of_memory,
    load_errors_named,
    sentence_of,
)
from polyhost_handlers.media_types import (
    CSV,
    JSON,
    JSONLINES,
    NPY,
    choose_accept,
    decoder_for,
    header_of,
    media_type,
)
from polyhost_handlers.network_files import chosen_saved_model, saved_models_in
from polyhost_handlers.tables import Number, Schema, Text
from polyhost_handlers.tensors import Spec

_INPUTS = (JSON, CSV, JSONLINES, NPY)
_OUTPUTS = (JSON, JSONLINES, CSV, NPY)
_DEFAULT = "serving_default"
_NUMBERS = "biuf"

Arrays = Mapping[str, np.ndarray[Any, Any]]


class Signature(NamedTuple):
    """A function of the model. A dtype of None is one that no request can send."""

    inputs: Sequence[Spec]
    run: Callable[[Arrays], Arrays]


class Asked(NamedTuple):
    """`rows`: how many instances were sent; None for `inputs`, whose answer is `outputs`."""

    signature: Signature
    given: Mapping[str, Any]
    rows: int | None
    unit: str = "Instance"


class TensorFlowHandler(Handler):
    kind = "tensorflow"

    def __init__(self, signatures: Mapping[str, Signature], default_accept: str) -> None:
        self._signatures = signatures
        self._default_accept = default_accept

    @classmethod
    def load(cls, source: ModelSource) -> TensorFlowHandler:
        path = _model_path(source)
        with load_errors_named("the SavedModel" if path.is_dir() else path.name, 0):
            _share_the_machine()
            signatures = _signatures_of_saved_model(path) if path.is_dir() else {_DEFAULT: _signature_of_keras(path)}
        if not signatures:
            raise LoadFailed(
                "Unable to load model: the SavedModel has no signatures: save it by model.export, or by "
                "tf.saved_model.save with signatures=…."
            )
        return cls(signatures, source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = choose_accept(request.accept, _OUTPUTS, self._default_accept)
        asked = self._asked(request)
        feed = self._feed(asked, request)
        try:
            outputs = asked.signature.run(feed)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise BadInput(f"The model cannot take this input: {sentence_of(error)}") from error
        return Response(_encoded(outputs, asked.rows, accept), accept)

    @staticmethod
    def _feed(asked: Asked, request: Request) -> Arrays:
        feed = {spec.name: _fitted(asked.given[spec.name], spec, asked.unit) for spec in asked.signature.inputs}
        for array in feed.values():
            if array.dtype.kind == "f":
                codecs.check_infinite(array, request.body, decoder_for(request.content_type, _INPUTS, default=JSON))
        return feed

    def _asked(self, request: Request) -> Asked:
        _check_method(request.headers.get("x-amzn-sagemaker-custom-attributes", ""))
        content_type = decoder_for(request.content_type, _INPUTS, default=JSON)
        if content_type in (JSON, JSONLINES):
            return self._asked_by_json(_document_of(request.body, content_type))
        signature = self._signature("")
        if len(signature.inputs) > 1:
            names = ", ".join(spec.name for spec in signature.inputs)
            raise BadInput(f'The model has several inputs: send JSON {{"inputs": {{name: rows}}}} with {names}.')
        values = codecs.decode_npy(request.body) if content_type == NPY else _table(request, signature.inputs[0])
        rows = len(values) if np.ndim(values) else None
        return Asked(signature, {signature.inputs[0].name: values}, rows, "Line" if content_type == CSV else "Row")

    def _asked_by_json(self, document: Mapping[str, Any]) -> Asked:
        """What TensorFlow Serving takes: `instances`, one for each row, or `inputs`, and a `signature_name`."""
        signature = self._signature(document.get("signature_name", ""))
        names = [spec.name for spec in signature.inputs]
        if "inputs" in document:
            return Asked(signature, tensors.by_name({"inputs": _plain(document["inputs"])}, signature.inputs), None)
        instances = _plain(document["instances"])
        if not isinstance(instances, list):
            raise BadInput('"instances" is not a list: send {"instances": [value, …]}, one for each row.')
        if not instances:
            raise NoContent("The request has no rows.")
        if tensors.is_records(instances):
            return Asked(signature, tensors.of_records(instances, names), len(instances))
        if len(names) > 1:
            raise BadInput(
                f'The model has several inputs: send {{"instances": [{{name: value}}, …]}} with {", ".join(names)}.'
            )
        return Asked(signature, {names[0]: instances}, len(instances))

    def _signature(self, name: Any) -> Signature:
        """That of a name; without one the default, or the only one."""
        found = self._signatures.get(str(name or _DEFAULT))
        if found is None and not name and len(self._signatures) == 1:
            found = next(iter(self._signatures.values()))
        if found is None:
            raise BadInput(
                f"The model has no signature {str(name or _DEFAULT)[:80]}: name one of "
                f"{tables.listed([*self._signatures])} as signature_name."
            )
        return found


# Loading


def _model_path(source: ModelSource) -> Path:
    """A file of Keras's, or the folder of a SavedModel. Raises LoadFailed."""
    files = keras_models_in(source.model_dir)
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise LoadFailed(f"Unable to load model: one Keras model belongs in the archive, found {names}.")
    if files:
        return files[0]
    wanted = source.environ.get("SAGEMAKER_TFS_DEFAULT_MODEL_NAME", "")
    return chosen_saved_model(saved_models_in(source.model_dir), source.model_dir, wanted)


def _share_the_machine() -> None:
    """Many models and processes share it: one thread for each, and of a CUDA device the memory that is needed."""
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # it has begun already, for another model
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)


def _signatures_of_saved_model(folder: Path) -> dict[str, Signature]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    # Without them nothing of the model would be alive but its functions.
    return {name: _signature_of(function, loaded) for name, function in loaded.signatures.items()}


def _signature_of(function: Any, model: Any) -> Signature:
    import tensorflow as tf

    declared = function.structured_input_signature[1]

    def run(feed: Arrays, _model: Any = model) -> Arrays:
        given = {name: tf.constant(array, declared[name].dtype) for name, array in feed.items()}
        return {name: value.numpy() for name, value in function(**given).items()}

    return Signature([_spec(name, one.dtype.name, one.shape) for name, one in sorted(declared.items())], run)


def _signature_of_keras(path: Path) -> Signature:
    """Raises LoadFailed."""
    import keras

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except ValueError as error:
        if "Lambda" not in str(error):
            raise
        raise LoadFailed(
            f"Unable to load model: {path.name} has a Lambda layer, which is Python code in the file: save the model "
            "without it, or load it in a code/inference.py of the archive if you trust whoever made it."
        ) from error
    if not getattr(model, "inputs", None):
        raise LoadFailed(
            f"Unable to load model: {path.name} does not say what it takes: call the model once, then save it."
        )
    specs = [_spec(one.name, one.dtype, one.shape) for one in model.inputs]
    # A Sequential model has no names for them.
    names = getattr(model, "output_names", None) or [one.name for one in model.outputs]

    def run(feed: Arrays) -> Arrays:
        given = [feed[spec.name] for spec in specs]
        return _named(model.predict_on_batch(given[0] if len(given) == 1 else given), names)

    return Signature(specs, run)


def _named(outputs: Any, names: Sequence[str]) -> Arrays:
    if isinstance(outputs, Mapping):
        return {str(name): np.asarray(value) for name, value in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}
    return {names[0]: np.asarray(outputs)}


def _spec(name: str, dtype: str, shape: Any) -> Spec:
    """`shape`: TensorFlow's or Keras's. Text, and what numpy has not (bfloat16), are objects here."""
    known = None if getattr(shape, "rank", 0) is None else tuple(shape)
    found = np.dtype(object)
    with contextlib.suppress(TypeError):
        found = np.dtype(dtype)
    return Spec(name, np.dtype("float32") if dtype == "bfloat16" else found, known)


# Asking


def _check_method(attributes: str) -> None:
    """SageMaker's container names the method of TensorFlow Serving's there. Raises BadInput."""
    method = next(
        (part.partition("=")[2] for part in attributes.split(",") if part.strip().startswith("tfs-method=")), ""
    )
    if method.strip() not in ("", "predict"):
        raise BadInput(
            f"The method {method.strip()[:40]} of TensorFlow Serving is not supported here: ask for predict."
        )


def _document_of(body: bytes, content_type: str) -> Mapping[str, Any]:
    """
    As SageMaker's container makes TensorFlow Serving's JSON of it: what has neither `instances` nor `inputs` is an
    instance, or a list of them if it is a list of lists or of objects. Of several lines, each is an instance.
    """
    lines = [line for line in body.splitlines() if line.strip()] if content_type == JSONLINES else [body]
    if len(lines) > 1:
        return {"instances": [codecs.parse_json(line) for line in lines]}
    document = codecs.parse_json(lines[0])
    if isinstance(document, Mapping):
        if "examples" in document:
            raise BadInput('"examples" are for classify and regress, which are not supported here: send "instances".')
        named = {"instances", "inputs"} & document.keys()
        if len(named) > 1:
            raise BadInput('The body has both "instances" and "inputs": send one of them.')
        return document if named else {"instances": [document]}
    is_many = isinstance(document, list) and document and isinstance(document[0], (list, Mapping))
    return {"instances": document if is_many else [document]}


def _plain(value: Any) -> Any:
    """With the bytes in place of each `{"b64": …}`. Raises BadInput."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if [*value] != ["b64"]:
        return {name: _plain(item) for name, item in value.items()}
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise BadInput(f'A value of "b64" is not base64: {error}.') from error


def _table(request: Request, spec: Spec) -> Any:
    header = header_of(request.content_type)
    if spec.dtype is None or spec.dtype.kind in _NUMBERS:
        kind: Number | Text = Number()
    else:
        kind = Text()
    schema = Schema(spec.width, (spec.name,) if spec.width == 1 else None, otherwise=kind)
    if isinstance(kind, Number):
        return codecs.decode_matrix(request.body, CSV, schema, header)
    if spec.width == 1:
        is_plain = media_type(request.content_type) == "text/plain"
        return codecs.decode_texts(request.body, CSV, schema, is_plain, header)
    table = tables.arranged(codecs.decode_table(request.body, CSV, schema, header), schema)
    return [["" if field is None else field for field in row] for row in table.rows]


def _fitted(values: Any, spec: Spec, unit: str) -> np.ndarray[Any, Any]:
    if spec.dtype is None or spec.dtype.kind != "O":
        return tensors.fitted(values, spec, unit)
    array = np.array(values, dtype=object)
    if not all(isinstance(value, (str, bytes)) for value in array.ravel()):
        raise BadInput(f"Input {spec.name} takes text: a value is something else, or the rows differ in length.")
    return array if spec.shape is None else tensors.shaped(array, spec.name, spec.shape)


# Answering


def _encoded(outputs: Arrays, rows: int | None, accept: str) -> bytes:
    if accept in (CSV, NPY):
        if len(outputs) > 1:
            raise HandlerError("The model has several outputs, which are no table: ask for application/json.", 415)
        ((name, array),) = outputs.items()
        values = np.array(_texts(name, array), dtype=object) if array.dtype.kind in "OS" else array
        return codecs.encode_array(np.atleast_1d(values) if accept == CSV else values, accept)
    named = {name: _texts(name, array) for name, array in outputs.items()}
    if rows is None:
        answer = {"outputs": named if len(named) > 1 else next(iter(named.values()))}
    else:
        _check_rows(outputs, rows)
        answer = {"predictions": _by_row(named)}
    body = codecs.encode_json(answer)
    return body + b"\n" if accept == JSONLINES else body


def _check_rows(outputs: Arrays, rows: int) -> None:
    for name, array in outputs.items():
        if not array.ndim or len(array) != rows:
            raise BadInput(
                f"Output {name} has shape {list(array.shape)}, which is not a value for each of {rows} instances: "
                'send {"inputs": …}, whose answer is {"outputs": …}.'
            )


def _by_row(named: Mapping[str, Any]) -> list[Any]:
    if len(named) == 1:
        (values,) = named.values()
        return list(values)
    return [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]


def _texts(name: str, array: np.ndarray[Any, Any]) -> Any:
    """Lists; bytes as text, or as base64 where the output's name says that they are none."""
    if array.dtype.kind not in "OS":
        return array.tolist()
    return _text_of(array.tolist(), is_binary=name.endswith("_bytes"))


def _text_of(value: Any, *, is_binary: bool) -> Any:
    if isinstance(value, list):
        return [_text_of(item, is_binary=is_binary) for item in value]
    if is_binary:
        return {"b64": base64.b64encode(value).decode()}
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


HANDLER = TensorFlowHandler
handle = entry_point(TensorFlowHandler)
