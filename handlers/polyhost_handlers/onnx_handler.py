"""ONNX networks, run by onnxruntime on one thread: CSV, JSON and npy in, JSON, CSV and npy out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyhost_handlers import codecs, exact, json_forms, tables
from polyhost_handlers.artifacts import networks_in
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.errors import (
    BadInput,
    HandlerError,
    LoadFailed,
    Unparseable,
    is_out_of_memory,
    load_errors_named,
)
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
from polyhost_handlers.onnx_files import names_files_elsewhere
from polyhost_handlers.onnx_locale import english_locale, missing_locale
from polyhost_handlers.signature import OUTPUTS_BY_NAME, Signature, TensorSpec, in_json
from polyhost_handlers.tables import Kind, Number, Schema, Table, Text, Truth
from polyhost_handlers.tensors import shaped

_INPUTS = (CSV, JSON, JSONLINES, NPY, NPZ)
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
# The Open Inference Protocol's datatypes, of what is sent.
_DATATYPES = {
    "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(float16)": "FP16", "tensor(bool)": "BOOL",
    "tensor(string)": "BYTES",
    **{f"tensor({sign}int{bits})": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
# What skl2onnx makes of a classifier's probabilities.
_OF_PROBABILITIES = re.compile(r"seq\(map\((int64|string),tensor\(float\)\)\)")
_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")


_ABOUT_THE_REQUEST = ("id", "parameters", "signature_name")


@dataclass(frozen=True)
class Input:
    """What the network declares; a dimension that it leaves open is None or has a name."""

    name: str
    type: str
    shape: list[int | str | None]

    @property
    def width(self) -> int | None:
        """How many fields a row has, where the network tells."""
        if len(self.shape) == 1:
            return 1
        last = self.shape[-1] if len(self.shape) == 2 else None
        return last if isinstance(last, int) else None

    @property
    def is_one_text(self) -> bool:
        return self.type == "tensor(string)" and self.width == 1

    @property
    def kind(self) -> Kind:
        if self.type == "tensor(bool)":
            return Truth()
        return Text() if self.type == "tensor(string)" else Number()

    @property
    def spec(self) -> TensorSpec | None:
        """None for what is no tensor that the Open Inference Protocol knows."""
        datatype = _DATATYPES.get(self.type)
        return None if datatype is None else TensorSpec(self.name, datatype, _sizes(self.shape))

    @property
    def schema(self) -> Schema:
        """Of the rows of the only input: the network has no names for its columns, unless it has one column."""
        return Schema(self.width, (self.name,) if self.width == 1 else None, otherwise=self.kind)


class OnnxHandler(Handler):
    kind = "onnx"

    def __init__(self, session: Any, default_accept: str) -> None:
        self._session = session
        self._default_accept = default_accept
        # Read once, while loading: the names in a damaged file are no text.
        self._inputs = [Input(spec.name, spec.type, spec.shape) for spec in session.get_inputs()]
        self._names = ", ".join(spec.name for spec in self._inputs)
        # Of a network with an input for each column, as skl2onnx exports a DataFrame's.
        self._is_columns = all(spec.width == 1 for spec in self._inputs)
        kinds = tuple(spec.kind for spec in self._inputs)
        self._schema = Schema(len(self._inputs), tuple(spec.name for spec in self._inputs), kinds)
        # The one that each run has to be lent; None where the system has it, or where the load was enough.
        self._locale: str | None = None
        self._outputs = [output.name for output in session.get_outputs()]
        self._answered = [_answered_spec(output) for output in session.get_outputs()]

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
        # What goes wrong is raised, too; onnxruntime's own lines on it would only repeat it.
        options.log_severity_level = 4
        with load_errors_named(networks[0].name, networks[0].stat().st_size):
            if names_files_elsewhere(networks[0]):
                raise LoadFailed(f"Unable to load model: {networks[0].name} names files outside of its archive.")
            return cls(_session(networks[0], options), source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        codecs.require_body(request.body)
        accept = choose_accept(request.accept, _OUTPUTS, self._default_accept)
        feed = self._feed(request)
        try:
            outputs = self._run(feed)
        except HandlerError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise BadInput(f"The model cannot take this input: {error}") from error
        return Response(self._encode(outputs, accept, request.headers.get(OUTPUTS_BY_NAME) == "named"), accept)

    def signature(self) -> Signature:
        inputs = [spec.spec for spec in self._inputs]
        is_known = None not in inputs, None not in self._answered
        return Signature(
            tuple(one for one in inputs if one is not None and is_known[0]),
            tuple(one for one in self._answered if one is not None and is_known[1]),
        )

    def _run(self, feed: Mapping[str, Any]) -> list[Any]:
        if self._locale is None:
            try:
                return list(self._session.run(self._outputs, feed))
            except Exception as error:
                self._locale = missing_locale(error)
                if self._locale is None:
                    raise
        with english_locale(self._locale):
            return list(self._session.run(self._outputs, feed))

    def _feed(self, request: Request) -> dict[str, np.ndarray[Any, Any]]:
        content_type = decoder_for(request.content_type, _INPUTS)
        if len(self._inputs) > 1:
            feed = self._named_feed(request, content_type)
        else:
            feed = {self._inputs[0].name: _fitted(*self._values(request, content_type), self._inputs[0])}
        for array in feed.values():
            if array.dtype.kind == "f":
                codecs.check_infinite(array, request.body, content_type)
        return feed

    def _values(self, request: Request, content_type: str) -> tuple[Any, str, int]:
        """What the one input is given, as it was sent; what an error calls a row of it, and the first one's number."""
        spec, schema, body = self._inputs[0], self._inputs[0].schema, request.body
        header = header_of(request.content_type)
        if content_type == NPY:
            return codecs.decode_npy(body), "Row", 1
        if content_type == NPZ:
            arrays = codecs.decode_npz(body)
            if len(arrays) == 1:
                return next(iter(arrays.values())), "Row", 1
        if content_type == JSON:
            document = codecs.parse_json(body)
            values = _nested(document, spec.name)
            if values is not None:
                return values, "Row", 1
        if spec.is_one_text:
            is_plain = media_type(request.content_type) == "text/plain"
            texts = codecs.decode_texts(body, content_type, schema, is_plain, header)
            return [[text] for text in texts], "Line", 1
        if content_type == CSV and spec.type in _FLOATS and schema.width != 1:
            return codecs.decode_matrix(body, content_type, schema, header), "Line", 1
        table = codecs.decode_table(body, content_type, schema, header)
        table = tables.arranged(table, schema)
        return _fields(table), table.unit, table.first

    def _named_feed(self, request: Request, content_type: str) -> dict[str, np.ndarray[Any, Any]]:
        if content_type == NPZ:
            return self._fitted_by_name(codecs.decode_npz(request.body))
        if content_type == JSON:
            document = codecs.parse_json(request.body)
            named = _by_name(document, self._schema.names or ())
            if named is not None:
                return self._fitted_by_name(named)
        if not self._is_columns:
            raise BadInput(f'The model has several inputs: send JSON {{"inputs": {{name: rows}}}} with {self._names}.')
        header = header_of(request.content_type)
        table = tables.arranged(codecs.decode_table(request.body, content_type, self._schema, header), self._schema)
        columns = zip(*_fields(table), strict=True)
        return {
            spec.name: _fitted([[value] for value in column], table.unit, table.first, spec)
            for spec, column in zip(self._inputs, columns, strict=True)
        }

    def _fitted_by_name(self, named: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        missing = [spec.name for spec in self._inputs if spec.name not in named]
        unknown = [str(name) for name in named if name not in self._schema.known]
        if missing:
            raise BadInput(f'Inputs are missing: {", ".join(missing)}; send {{"inputs": {{name: rows}}}}.')
        if unknown:
            raise BadInput(f"The model has no inputs {tables.listed(unknown)}: its inputs are {self._names}.")
        return {spec.name: _fitted(named[spec.name], "Row", 1, spec) for spec in self._inputs}

    def _encode(self, outputs: list[Any], accept: str, is_by_name: bool) -> bytes:
        if accept != JSON and isinstance(outputs[0], list) and isinstance(next(iter(outputs[0]), None), np.ndarray):
            raise HandlerError("The output is a sequence of arrays, which is no table: ask for application/json.", 415)
        if accept == CSV:
            return codecs.encode_csv_rows(np.atleast_1d(_table_of(outputs[0])).tolist())
        if accept == NPY:
            array = np.asarray(_table_of(outputs[0]))
            if array.dtype == object:
                raise HandlerError("The output is not numeric, so it has no .npy form: ask for application/json.", 415)
            return codecs.encode_npy(array)
        is_alone = len(outputs) == 1 and not is_by_name
        answer = outputs[0] if is_alone else dict(zip(self._outputs, outputs, strict=True))
        return codecs.encode_json({"predictions": answer})


def _sizes(shape: Sequence[int | str | None]) -> tuple[int, ...]:
    """-1 for a dimension that the network leaves open."""
    return tuple(size if isinstance(size, int) else -1 for size in shape)


def _answered_spec(output: Any) -> TensorSpec | None:
    """Of an output as JSON has it; None for what is no tensor then."""
    if _OF_PROBABILITIES.fullmatch(output.type):
        return TensorSpec(output.name, "FP64", (-1, -1))
    datatype = in_json(_DATATYPES.get(output.type))
    return TensorSpec(output.name, datatype, _sizes(output.shape)) if datatype else None


def _table_of(output: Any) -> Any:
    """
    An output; of a sequence of maps, as skl2onnx makes of a classifier's probabilities, the values alone.

    They stand in the order of the keys, which is that of scikit-learn's `classes_`. Raises HandlerError.
    """
    if isinstance(output, dict):
        output = [output]
    if not isinstance(output, list) or not output or not all(isinstance(row, dict) for row in output):
        return output
    if any(row.keys() != output[0].keys() for row in output):
        raise HandlerError("The output is maps of different keys, which is no table: ask for application/json.", 415)
    keys = sorted(output[0])
    return [[row[key] for key in keys] for row in output]


def _session(network: Path, options: Any) -> Any:
    from onnxruntime import InferenceSession

    try:
        return InferenceSession(str(network), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = missing_locale(error)
        if name is None:
            raise
    with english_locale(name):
        return InferenceSession(str(network), sess_options=options, providers=["CPUExecutionProvider"])


def _nested(document: Any, name: str) -> Any:
    """Nested lists of any depth (images, sequences) or a tensor, bare or by the input's name; None where rows are."""
    if isinstance(document, dict):
        tensors = json_forms.tensors_of(document.get("inputs"))
        if tensors is not None:
            return tensors[0].array if len(tensors) == 1 else None
        document = document.get("inputs", document)
    if isinstance(document, dict) and name in document:
        unknown = [other for other in document if other != name and other not in _ABOUT_THE_REQUEST]
        if unknown:
            raise BadInput(f"The model has no inputs {tables.listed(unknown)}: its input is {name}.")
        document = document[name]
    if isinstance(document, dict) and isinstance(document.get("instances"), list):
        document = document["instances"]
    if (
        isinstance(document, list)
        and document
        and all(isinstance(item, dict) and [*item] == [name] for item in document)
    ):
        return [item[name] for item in document]
    is_nested = isinstance(document, list) and not any(isinstance(item, dict) for item in document)
    return document if is_nested else None


def _by_name(document: Any, names: Sequence[str]) -> Mapping[str, Any] | None:
    """What each input is given, by its name; None where the body is rows, which are taken apart."""
    if isinstance(document, dict):
        tensors = json_forms.tensors_of(document.get("inputs"))
        if tensors is not None:
            doubled = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
            if doubled:
                raise BadInput(f"Inputs are there more than once: {tables.listed(doubled)}.")
            return {tensor.name: tensor.array for tensor in tensors}
        document = document.get("inputs", document)
    if isinstance(document, dict) and isinstance(document.get("instances"), list):
        document = document["instances"]
    if isinstance(document, dict) and document.keys() & set(names):
        return document
    if isinstance(document, list) and document and isinstance(document[0], dict) and document[0].keys() & set(names):
        records = json_forms.table_of(document, names)
        return dict(zip(records.names or (), map(list, zip(*records.rows, strict=True)), strict=True))
    return None


def _fields(table: Table) -> list[Any]:
    """The rows' fields as they were sent, sparse ones as numbers."""
    if any(isinstance(row, tables.SparseRow) for row in table.rows):
        dense: list[Any] = tables.matrix_of(table).tolist()
        return dense
    rows: list[Any] = table.rows if isinstance(table.rows, list) else table.rows.tolist()
    # A text may be empty; a number that is empty is missing.
    return [["" if field is None else field for field in row] for row in rows] if table.is_csv else rows


def _fitted(values: Any, unit: str, first: int, spec: Input) -> np.ndarray[Any, Any]:
    """`values` with the dtype and rank that the network declares; free dimensions may be any size."""
    array = _typed(values, unit, first, spec)
    shape = spec.shape
    if not shape:
        return array  # a scalar, or of a shape that the network leaves open
    return shaped(array, spec.name, shape)


def _typed(values: Any, unit: str, first: int, spec: Input) -> np.ndarray[Any, Any]:
    dtype = _DTYPES.get(spec.type)
    if dtype is None:
        raise BadInput(f"Input {spec.name} is a {spec.type}, which cannot be sent.")
    try:
        return exact.array_of(values, dtype, unit, first)
    except Unparseable:
        raise
    except BadInput as error:
        raise BadInput(f"Input {spec.name} takes {spec.type}. {error.message}") from error


HANDLER = OnnxHandler
handle = entry_point(OnnxHandler)
