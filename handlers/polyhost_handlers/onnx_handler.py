"""ONNX networks, run by onnxruntime on one thread: CSV, JSON and npy in, JSON, CSV and npy out."""

from __future__ import annotations

from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import networks_in
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.codecs import CSV, JSON, JSONLINES, NPY
from polyhost_handlers.errors import BadInput, LoadFailed, Unparseable, is_out_of_memory

_INPUTS = (CSV, JSON, JSONLINES, NPY)
_OUTPUTS = (JSON, CSV, NPY)
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}


class OnnxHandler(Handler):
    kind = "onnx"

    def __init__(self, session: Any, default_accept: str) -> None:
        self._session = session
        self._default_accept = default_accept
        self._inputs = session.get_inputs()
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
        try:
            session = onnxruntime.InferenceSession(
                str(networks[0]), sess_options=options, providers=["CPUExecutionProvider"],
            )  # fmt: skip
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise LoadFailed(f"Unable to load model: {networks[0].name}: {error}") from error
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
            names = ", ".join(spec.name for spec in self._inputs)
            raise BadInput(f'The model has several inputs: send JSON {{"inputs": {{name: rows}}}} with {names}.')
        spec = self._inputs[0]
        if content_type == JSON:
            values = _json_tensor(request.body)
        elif content_type == NPY:
            values = codecs.decode_array_npy(request.body)
        else:
            values = codecs.decode_matrix(request.body, content_type)
        return {spec.name: _fitted(values, spec)}

    def _named_feed(self, body: bytes) -> dict[str, np.ndarray[Any, Any]]:
        document = codecs.parse_json(body)
        named = document.get("inputs", document) if isinstance(document, dict) else {}
        missing = [spec.name for spec in self._inputs if spec.name not in named]
        if missing:
            raise BadInput(f'Inputs are missing: {", ".join(missing)}; send {{"inputs": {{name: rows}}}}.')
        return {spec.name: _fitted(_as_array(named[spec.name]), spec) for spec in self._inputs}

    def _encode(self, outputs: list[Any], accept: str) -> bytes:
        if accept == CSV:
            return codecs.encode_csv_rows(np.asarray(outputs[0]).tolist())
        if accept == NPY:
            return codecs.encode_npy(np.asarray(outputs[0]))
        answer = outputs[0] if len(outputs) == 1 else dict(zip(self._outputs, outputs, strict=True))
        return codecs.encode_json({"predictions": answer})


def _json_tensor(body: bytes) -> np.ndarray[Any, Any]:
    """Rows in any JSON form, or nested lists of any depth (images, sequences)."""
    document = codecs.parse_json(body)
    for name in ("inputs", "instances"):
        if isinstance(document, dict) and isinstance(document.get(name), list):
            document = document[name]
    if isinstance(document, list) and not any(isinstance(item, dict) for item in document):
        return _as_array(document)
    return _as_array(codecs.json_rows(document))


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise Unparseable(f"The rows differ in length: {error}.") from error


def _fitted(values: np.ndarray[Any, Any], spec: Any) -> np.ndarray[Any, Any]:
    """`values` with the dtype and rank that the network declares; free dimensions may be any size."""
    dtype = _DTYPES.get(spec.type)
    if dtype is None:
        raise BadInput(f"Input {spec.name} is a {spec.type}, which cannot be sent.")
    try:
        array = values.astype(dtype)
    except (ValueError, TypeError) as error:
        raise BadInput(f"Input {spec.name} takes {spec.type}: {error}.") from error
    shape = spec.shape
    if array.ndim == len(shape) - 1:
        array = array[np.newaxis, ...]
    if array.ndim != len(shape):
        raise BadInput(f"Input {spec.name} has shape {_shown(shape)}, the request {_shown(array.shape)}.")
    for wanted, got in zip(shape[1:], array.shape[1:], strict=True):
        if isinstance(wanted, int) and wanted != got:
            raise BadInput(f"Input {spec.name} has shape {_shown(shape)}, the request {_shown(array.shape)}.")
    return array


def _shown(shape: Any) -> str:
    return "[" + ", ".join(str(size) if isinstance(size, int) else "any" for size in shape) + "]"


HANDLER = OnnxHandler
handle = entry_point(OnnxHandler)
