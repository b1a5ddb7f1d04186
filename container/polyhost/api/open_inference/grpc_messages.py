"""
The protocol's messages in gRPC, made from a table of their fields. With a pool of descriptors of their own, they do not
meet those that a client in the same process has brought.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_TENSOR = "string name=1, string datatype=2, repeated int64 shape=3"
_MODEL = "string name=1, string version=2"
_PARAMETERS = "map<InferParameter> parameters"
# The message's name, and its fields; a name with a dot is of one in another. `|` stands before fields of which one at
# most is there.
MESSAGES: Mapping[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live=1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready=1",
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": "bool ready=1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": f"{_MODEL}, repeated string extensions=3",
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": "string name=1, repeated string versions=2, string platform=3, "
    "repeated ModelMetadataResponse.TensorMetadata inputs=4, repeated ModelMetadataResponse.TensorMetadata outputs=5",
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "InferParameter": "|bool bool_param=1, |int64 int64_param=2, |string string_param=3, |double double_param=4, "
    "|uint64 uint64_param=5",
    "InferTensorContents": "repeated bool bool_contents=1, repeated int32 int_contents=2, "
    "repeated int64 int64_contents=3, repeated uint32 uint_contents=4, repeated uint64 uint64_contents=5, "
    "repeated float fp32_contents=6, repeated double fp64_contents=7, repeated bytes bytes_contents=8",
    "ModelInferRequest": f"string model_name=1, string model_version=2, string id=3, {_PARAMETERS}=4, "
    "repeated ModelInferRequest.InferInputTensor inputs=5, "
    "repeated ModelInferRequest.InferRequestedOutputTensor outputs=6, repeated bytes raw_input_contents=7",
    "ModelInferRequest.InferInputTensor": f"{_TENSOR}, {_PARAMETERS}=4, InferTensorContents contents=5",
    "ModelInferRequest.InferRequestedOutputTensor": f"string name=1, {_PARAMETERS}=2",
    "ModelInferResponse": f"string model_name=1, string model_version=2, string id=3, {_PARAMETERS}=4, "
    "repeated ModelInferResponse.InferOutputTensor outputs=5, repeated bytes raw_output_contents=6",
    "ModelInferResponse.InferOutputTensor": f"{_TENSOR}, {_PARAMETERS}=4, InferTensorContents contents=5",
    # Triton's own.
    "RepositoryIndexRequest": "string repository_name=1, bool ready=2",
    "RepositoryIndexResponse": "repeated RepositoryIndexResponse.ModelIndex models=1",
    "RepositoryIndexResponse.ModelIndex": "string name=1, string version=2, string state=3, string reason=4",
    "ModelRepositoryParameter": "|bool bool_param=1, |int64 int64_param=2, |string string_param=3, "
    "|bytes bytes_param=4",
    "RepositoryModelLoadRequest": "string repository_name=1, string model_name=2, "
    "map<ModelRepositoryParameter> parameters=3",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "string repository_name=1, string model_name=2, "
    "map<ModelRepositoryParameter> parameters=3",
    "RepositoryModelUnloadResponse": "",
}
_FIELD = re.compile(r"(\|?)(repeated )?(map<)?([\w.]+)>? (\w+)=(\d+)")
_CHOICE = "parameter_choice"
_Field = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for name, fields in MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        made[name] = (made[outer].nested_type if outer else file.message_type).add(name=inner)
        for field in _FIELD.finditer(fields):
            _add_field(made[name], f".{PACKAGE}.{name}", _Described(*field.groups("")))
    return file


class _Described(NamedTuple):
    """A field, as the table has it."""

    choice: str
    repeated: str
    map: str
    kind: str
    name: str
    number: str


def _add_field(message: Any, path: str, its: _Described) -> None:
    field = message.field.add(name=its.name, number=int(its.number), label=_Field.LABEL_OPTIONAL)
    if its.repeated or its.map:
        field.label = _Field.LABEL_REPEATED
    if its.map:
        entry = message.nested_type.add(name=f"{its.name.title()}Entry")
        entry.options.map_entry = True
        _add_field(entry, "", _Described("", "", "", "string", "key", "1"))
        _add_field(entry, "", _Described("", "", "", its.kind, "value", "2"))
        _set_type(field, f"{path}.{entry.name}")
    else:
        _set_type(field, its.kind)
    if its.choice:
        if not message.oneof_decl:
            message.oneof_decl.add(name=_CHOICE)
        field.oneof_index = 0


def _set_type(field: Any, kind: str) -> None:
    scalar = getattr(_Field, f"TYPE_{kind.upper()}", None)
    if scalar is not None:
        field.type = scalar
        return
    field.type = _Field.TYPE_MESSAGE
    field.type_name = kind if kind.startswith(".") else f".{PACKAGE}.{kind}"


def _classes() -> Iterator[tuple[str, Any]]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_file().SerializeToString())
    for name in MESSAGES:
        yield name, message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


CLASSES: Mapping[str, Any] = dict(_classes())
