"""A gRPC message's tensors, raw or by their types, and the message of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyhost.api.open_inference.answers import Output, raw_of
from polyhost.api.open_inference.grpc_messages import CLASSES
from polyhost.api.open_inference.inference import VERSION, Answered
from polyhost.api.open_inference.requests import (
    Asked,
    Parameters,
    asked_of,
    media_type_of,
    refuse_unsupported,
    require_few,
)
from polyhost.api.open_inference.tensors import (
    BYTES,
    Tensor,
    shown,
    tensor_of_json,
    tensor_of_raw,
    tensor_of_texts,
)
from polyhost.engine.errors import BadRequest

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


def parameters_of(its: Mapping[str, Any]) -> Parameters:
    """Of a map of InferParameter or ModelRepositoryParameter."""
    chosen = {name: (value, value.WhichOneof("parameter_choice")) for name, value in its.items()}
    return {name: getattr(value, choice) for name, (value, choice) in chosen.items() if choice}


def asked_by(message: Any) -> Asked:
    """Of a ModelInferRequest. Raises BadRequest."""
    require_few(len(message.inputs), len(message.outputs))
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise BadRequest(
            f"The request has {len(raw)} raw_input_contents for {len(message.inputs)} inputs: send as many."
        )
    inputs = [
        _tensor(one, raw[place] if raw else None, parameters_of(one.parameters))
        for place, one in enumerate(message.inputs)
    ]
    parameters = parameters_of(message.parameters)
    media_type = ""
    if len(inputs) == 1 and inputs[0].datatype == BYTES:
        media_type = media_type_of(parameters_of(message.inputs[0].parameters)) or media_type_of(parameters)
    outputs = [(one.name, parameters_of(one.parameters)) for one in message.outputs]
    return asked_of(message.id, tuple(inputs), outputs, {}, media_type)


def _tensor(one: Any, raw: bytes | None, parameters: Parameters) -> Tensor:
    refuse_unsupported(one.name, parameters)
    shape = list(one.shape)
    if raw is not None:
        if one.HasField("contents"):
            raise BadRequest(f"Tensor {shown(one.name)} has contents beside raw_input_contents: send one of them.")
        return tensor_of_raw(one.name, one.datatype, shape, raw)
    if one.datatype == BYTES:
        return tensor_of_texts(one.name, shape, tuple(one.contents.bytes_contents))
    field = _CONTENTS.get(one.datatype)
    if field is None and one.datatype in ("FP16", "BF16"):
        raise BadRequest(
            f"Tensor {shown(one.name)} of {one.datatype} comes in raw_input_contents: it has no other field."
        )
    return tensor_of_json(one.name, one.datatype, shape, list(getattr(one.contents, field)) if field else [])


def response_of(name: str, answered: Answered, *, is_raw: bool) -> Any:
    """`is_raw`: as the request's tensors were."""
    response = CLASSES["ModelInferResponse"](model_name=name, model_version=VERSION, id=answered.asked.id)
    for output in answered.outputs:
        its_name = output.name.encode("utf-8", "replace").decode()  # a model's JSON may have half a character there
        one = response.outputs.add(name=its_name, datatype=output.datatype, shape=output.shape)
        if is_raw:
            response.raw_output_contents.append(raw_of(output))
        else:
            _fill(one.contents, output)
    return response


def _fill(contents: Any, output: Output) -> None:
    getattr(contents, _CONTENTS[output.datatype]).extend(output.data)
