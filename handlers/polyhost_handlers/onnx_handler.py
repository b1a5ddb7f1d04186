"""ONNX networks, run by onnxruntime on one thread: CSV, JSON and npy in, JSON, CSV and npy out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import networks_in
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.codecs import CSV, JSON, JSONLINES, NPY
from polyhost_handlers.errors import (
    BadInput,
    HandlerError,
    LoadFailed,
    Unparseable,
    is_out_of_memory,
    load_errors_named,
)
from polyhost_handlers.onnx_files import names_files_elsewhere

_INPUTS = (CSV, JSON, JSONLINES, NPY)
_OUTPUTS = (JSON, CSV, NPY)
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype("float32"),
    "tensor(double)": np.dtype("float64"),
    "tensor(float16)": np.dtype("float16"),
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{f"tensor({name})": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64")},
    "tensor(bool)": np.dtype(bool),
    "tensor(string)": np.dtype(object),
}


@dataclass(frozen=True)
class Input:
    """What the network declares; a dimension that it leaves open is None or has a name."""

    name: str
    type: str
    shape: list[int | str | None]


class OnnxHandler(Handler):
    kind = "onnx"

    def __init__(self, session: Any, default_accept: str) -> None:
        self._session = session
        self._default_accept = default_accept
        # Read once, while loading: the names in a damaged file are no text.
        self._inputs = [Input(spec.name, spec.type, spec.shape) for spec in session.get_inputs()]
        self._names = ", ".join(spec.name for spec in self._inputs)
        self._outputs = [output.name for output in session.get_outputs()]

    @classmethod
    def load(cls, source: ModelSource) -> OnnxHandler:
        import onnxruntime

        networks = networks_in(source.model_dir)
        if len(networks) != 1:
            found = ", ".join(path.name for path in networks) or "none"
            raise LoadFailed(f"Unable to load model: one *.onnx file belongs in the archive, found {found}.")
        options = onnxruntime.SessionOptions()
        # Many models share this machine: a session's own thread pool would cost more than it gives.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with load_errors_named(networks[0].name, networks[0].stat().st_size):
            if names_files_elsewhere(networks[0]):
                raise LoadFailed(f"Unable to load model: {networks[0].name} names files outside of its archive.")
            session = onnxruntime.InferenceSession(
                str(networks[0]), sess_options=options, providers=["CPUExecutionProvider"],
            )  # fmt: skip
            return cls(session, source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = codecs.choose_accept(request.accept, _OUTPUTS, self._default_accept)
        feed = self._feed(request)
        try:
            outputs = self._session.run(self._outputs, feed)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise BadInput(f"The model cannot take this input: {error}") from error
        return Response(self._encode(outputs, accept), accept)

    def _feed(self, request: Request) -> dict[str, np.ndarray[Any, Any]]:
        content_type = codecs.decoder_for(request.content_type, _INPUTS)
        if content_type == JSON and len(self._inputs) > 1:
            return self._named_feed(request.body)
        if len(self._inputs) > 1:
            raise BadInput(f'The model has several inputs: send JSON {{"inputs": {{name: rows}}}} with {self._names}.')
        spec = self._inputs[0]
        if content_type == JSON:
            values = _json_tensor(request.body, spec.name)
        elif content_type == NPY:
            values = codecs.decode_array_npy(request.body)
        elif content_type == CSV and spec.type == "tensor(string)":
            values = codecs.decode_csv_table(request.body)
        else:
            values = codecs.decode_matrix(request.body, content_type)
        return {spec.name: _fitted(values, spec)}

    def _named_feed(self, body: bytes) -> dict[str, np.ndarray[Any, Any]]:
        named = _inputs_of(codecs.parse_json(body))
        missing = [spec.name for spec in self._inputs if not isinstance(named, dict) or spec.name not in named]
        if missing:
            raise BadInput(f'Inputs are missing: {", ".join(missing)}; send {{"inputs": {{name: rows}}}}.')
        return {spec.name: _fitted(_as_array(named[spec.name]), spec) for spec in self._inputs}

    def _encode(self, outputs: list[Any], accept: str) -> bytes:
        if accept == CSV:
            return codecs.encode_csv_rows(np.atleast_1d(outputs[0]).tolist())
        if accept == NPY:
            array = np.asarray(outputs[0])
            if array.dtype == object:
                raise HandlerError("The output is not numeric, so it has no .npy form: ask for application/json.", 415)
            return codecs.encode_npy(array)
        answer = outputs[0] if len(outputs) == 1 else dict(zip(self._outputs, outputs, strict=True))
        return codecs.encode_json({"predictions": answer})


def _json_tensor(body: bytes, name: str) -> np.ndarray[Any, Any]:
    """Rows in any JSON form, nested lists of any depth (images, sequences), or either by the input's name."""
    document = _inputs_of(codecs.parse_json(body))
    if isinstance(document, dict):
        document = document.get(name, document)
    if isinstance(document, dict) and isinstance(document.get("instances"), list):
        document = document["instances"]
    if isinstance(document, list) and not any(isinstance(item, dict) for item in document):
        return _as_array(document)
    return _as_array(codecs.json_rows(document))


def _inputs_of(document: Any) -> Any:
    return document.get("inputs", document) if isinstance(document, dict) else document


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise Unparseable(f"The rows differ in length: {error}.") from error


def _fitted(values: np.ndarray[Any, Any], spec: Input) -> np.ndarray[Any, Any]:
    """`values` with the dtype and rank that the network declares; free dimensions may be any size."""
    dtype = _DTYPES.get(spec.type)
    if dtype is None:
        raise BadInput(f"Input {spec.name} is a {spec.type}, which cannot be sent.")
    array = _cast(values, dtype, spec)
    shape = spec.shape
    if not shape:
        return array  # a scalar, or of a shape that the network leaves open
    if array.ndim == len(shape) - 1:
        array = array[np.newaxis, ...]
    elif array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]  # a column of CSV
    if array.ndim != len(shape):
        raise BadInput(f"Input {spec.name} has shape {_shown(shape)}, the request {_shown(array.shape)}.")
    for wanted, got in zip(shape[1:], array.shape[1:], strict=True):
        if isinstance(wanted, int) and wanted != got:
            raise BadInput(f"Input {spec.name} has shape {_shown(shape)}, the request {_shown(array.shape)}.")
    return array


def _cast(values: np.ndarray[Any, Any], dtype: np.dtype[Any], spec: Input) -> np.ndarray[Any, Any]:
    try:
        if dtype.kind == "O":
            return (np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values).astype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            array: np.ndarray[Any, Any] = values.astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInput(f"Input {spec.name} takes {spec.type}: {error}.") from error
    if dtype.kind in "iu" and values.dtype.kind == "f" and not np.array_equal(array, values):
        raise BadInput(f"Input {spec.name} takes {spec.type}: send whole numbers.")
    return array


def _shown(shape: Any) -> str:
    return "[" + ", ".join(str(size) if isinstance(size, int) else "any" for size in shape) + "]"


HANDLER = OnnxHandler
handle = entry_point(OnnxHandler)
