"""An inference request as it comes: JSON, or JSON with the tensors' bytes behind it. All of it is hostile input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from polyhost.api.open_inference.tensors import BYTES, Tensor, shown, tensor_of_json, tensor_of_raw
from polyhost.engine.errors import BadRequest

HEADER_LENGTH = "inference-header-content-length"
_MOST_DIGITS = 12
# A table of so many columns may be a tensor for each. A small request could name millions, for half a minute of work.
_MOST_TENSORS = 10_000
_NOT_HERE = {
    "shared_memory_region": "Shared memory is not supported: send the data of tensor {} with the request.",
    "classification": "Classification is not supported: ask for tensor {} as it is.",
}
Parameters = dict[str, Any]


class Wanted(msgspec.Struct, frozen=True):
    """An output that the client asks for. `is_binary`: None where it does not say."""

    name: str
    is_binary: bool | None = None


class Asked(msgspec.Struct, frozen=True):
    """
    `media_type`: of a body that is the only element of the only input, "" where the inputs are tensors.

    `is_binary`: whether outputs are binary of which the client says nothing. No `wanted`: all of them.
    """

    id: str
    inputs: tuple[Tensor, ...]
    wanted: tuple[Wanted, ...] = ()
    is_binary: bool = False
    media_type: str = ""


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = {}
    data: Any = msgspec.UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters = {}


class _Document(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[_Output] = []


def read_request(body: bytes, header_length: str | None) -> Asked:
    """`header_length`: how long the JSON is, where bytes follow it. Raises BadRequest."""
    length = len(body) if header_length is None else _length(header_length, len(body))
    document = _document(body[:length])
    require_few(len(document.inputs), len(document.outputs))
    inputs = _inputs(document.inputs, body[length:])
    return asked_of(
        document.id, inputs, [(one.name, one.parameters) for one in document.outputs], document.parameters,
        _media_type(document),
    )  # fmt: skip


def asked_of(
    request_id: str, inputs: tuple[Tensor, ...], outputs: Sequence[tuple[str, Parameters]], parameters: Parameters,
    media_type: str,
) -> Asked:  # fmt: skip
    """Raises BadRequest."""
    if not inputs:
        raise BadRequest("The request has no inputs: send at least one tensor.")
    _require_once("has the input", [tensor.name for tensor in inputs])
    # Else one small request could ask for the same answer a hundred thousand times.
    _require_once("asks for the output", [name for name, _ in outputs])
    for name, its in outputs:
        refuse_unsupported(name, its)
    if media_type and (len(inputs) > 1 or len(inputs[0].texts) != 1):
        raise BadRequest(f"A body of {shown(media_type)} is one input of BYTES with one element.")
    wanted = tuple(Wanted(name, _flag(its, "binary_data")) for name, its in outputs)
    return Asked(request_id, inputs, wanted, bool(_flag(parameters, "binary_data_output")), media_type)


def require_few(inputs: int, outputs: int) -> None:
    """Raises BadRequest."""
    if max(inputs, outputs) > _MOST_TENSORS:
        raise BadRequest(
            f"The request has {inputs} inputs and asks for {outputs} outputs, {_MOST_TENSORS} of each are allowed."
        )


def _require_once(verb: str, names: Sequence[str]) -> None:
    """Raises BadRequest."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadRequest(f"The request {verb} {shown(name)} more than once.")
        seen.add(name)


def refuse_unsupported(name: str, parameters: Parameters) -> None:
    """Raises BadRequest."""
    for parameter, words in _NOT_HERE.items():
        if parameter in parameters:
            raise BadRequest(words.format(shown(name)))


def media_type_of(parameters: Parameters) -> str:
    """MLServer's clients name a codec there, such as `np`, `pd` or `str`, which the tensors themselves tell."""
    value = parameters.get("content_type")
    return value if isinstance(value, str) and "/" in value else ""


def _length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text) <= most):
        raise BadRequest(
            f"Inference-Header-Content-Length is {shown(text)}, the body has {most} bytes: say how many are JSON."
        )
    return int(text)


def _document(text: bytes) -> _Document:
    try:
        return msgspec.json.decode(text, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"The body is no inference request of the Open Inference Protocol: {error}.") from error


def _inputs(inputs: Sequence[_Input], binary: bytes) -> tuple[Tensor, ...]:
    tensors, at = [], 0
    for one in inputs:
        refuse_unsupported(one.name, one.parameters)
        if "binary_data_size" not in one.parameters:
            tensors.append(_of_json(one))
            continue
        size = one.parameters["binary_data_size"]
        if type(size) is not int or not 0 <= size <= len(binary) - at:
            raise BadRequest(
                f"Tensor {shown(one.name)} has the binary_data_size {shown(size)}, {len(binary) - at} bytes are left."
            )
        tensors.append(tensor_of_raw(one.name, one.datatype, one.shape, binary[at : at + size]))
        at += size
    if at != len(binary):
        raise BadRequest(
            f"Behind the tensors come {len(binary) - at} more bytes: say in binary_data_size whose they are."
        )
    return tuple(tensors)


def _of_json(one: _Input) -> Tensor:
    if one.data is msgspec.UNSET:
        raise BadRequest(f"Tensor {shown(one.name)} has no data.")
    return tensor_of_json(one.name, one.datatype, one.shape, one.data)


def _media_type(document: _Document) -> str:
    """As the only input says, or the request."""
    if len(document.inputs) == 1 and document.inputs[0].datatype == BYTES:
        return media_type_of(document.inputs[0].parameters) or media_type_of(document.parameters)
    return ""


def _flag(parameters: Parameters, name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"The parameter {name} is {shown(value)}: it is true or false.")
    return value
