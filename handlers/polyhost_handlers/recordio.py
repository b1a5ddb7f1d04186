"""
RecordIO-protobuf, the binary format of SageMaker's built-in algorithms.

Framing: little-endian magic and length, payload padded to four bytes. Payload: `aialgs.data.Record` of AWS's
public schema, here built with protobuf's own descriptors so that no generated file is needed.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from polyhost_handlers.codecs import Matrix
from polyhost_handlers.errors import NoContent, Unparseable

_MAGIC = 0xCED7230A
_HEADER = struct.Struct("<II")
_MAX_WIDTH = 2**31 - 1


def decode_recordio(body: bytes, features: int | None = None) -> Matrix:
    """
    The records' `values` feature, labels ignored: shape (rows, features), dense or csr_matrix.

    `features` is the width of sparse records that do not tell theirs. Raises Unparseable.
    """
    tensors = [_tensor_of(record) for record in _records(body)]
    if not tensors:
        raise NoContent("The body holds no record.")
    if any(_is_sparse(tensor) for tensor in tensors):
        return _sparse(tensors, features)
    rows = [list(tensor.values) for tensor in tensors]
    if len({len(row) for row in rows}) > 1:
        raise Unparseable("The records differ in their number of features: send equal records.")
    return np.array(rows, dtype=float)


def encode_recordio(rows: Sequence[dict[str, Sequence[float]]]) -> bytes:
    """One record a row; each name becomes a float32 tensor among the record's labels, as AWS answers."""
    frames = []
    for row in rows:
        record = _record_class()()
        for name, values in row.items():
            record.label[name].float32_tensor.values.extend(values)
        frames.append(_frame(record.SerializeToString()))
    return b"".join(frames)


def _frame(payload: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, len(payload)) + payload + b"\0" * (-len(payload) % 4)


def _records(body: bytes) -> Iterator[Any]:
    offset = 0
    while offset < len(body):
        if offset + _HEADER.size > len(body):
            raise Unparseable(f"The record at byte {offset} is cut off.")
        magic, length = _HEADER.unpack_from(body, offset)
        offset += _HEADER.size
        if magic != _MAGIC:
            raise Unparseable(f"No RecordIO frame begins at byte {offset - _HEADER.size}.")
        if offset + length > len(body):
            raise Unparseable(f"The record at byte {offset - _HEADER.size} is cut off.")
        yield _parse(body[offset : offset + length])
        offset += length + -length % 4


def _parse(payload: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return _record_class().FromString(payload)
    except DecodeError as error:
        raise Unparseable("A record is not AWS's Record message.") from error


def _tensor_of(record: Any) -> Any:
    if "values" not in record.features:
        raise Unparseable("A record has no feature named 'values'.")
    value = record.features["values"]
    kind = value.WhichOneof("value")
    if kind not in ("float32_tensor", "float64_tensor", "int32_tensor"):
        raise Unparseable("A record's 'values' is not a tensor of numbers.")
    return getattr(value, kind)


def _is_sparse(tensor: Any) -> bool:
    """A sparse row of zeros only has no keys: its shape tells."""
    return bool(tensor.keys) or (len(tensor.shape) > 0 and tensor.shape[-1] != len(tensor.values))


def _sparse(tensors: Sequence[Any], features: int | None) -> Matrix:
    from scipy.sparse import csr_matrix

    widths = {tensor.shape[-1] for tensor in tensors if tensor.shape}
    if len(widths) > 1:
        raise Unparseable("The records differ in their shape: send equal records.")
    values: list[float] = []
    columns: list[int] = []
    starts = [0]
    for tensor in tensors:
        keys = list(tensor.keys) or list(range(len(tensor.values)))
        if len(keys) != len(tensor.values):
            raise Unparseable("A sparse record has as many keys as values, or it is broken.")
        if len(set(keys)) < len(keys):
            raise Unparseable("A sparse record has a key twice.")
        columns.extend(keys)
        values.extend(tensor.values)
        starts.append(len(values))
    width = widths.pop() if widths else features or max(columns, default=-1) + 1
    for tensor in tensors:
        if tensor.values and not tensor.keys and len(tensor.values) != width:
            raise Unparseable(f"A record without keys has {len(tensor.values)} values, the rows have {width} features.")
    if columns and max(columns) >= width:
        raise Unparseable(f"Key {max(columns)} is too large: the rows have {width} features.")
    if width > _MAX_WIDTH:
        raise Unparseable(f"Records of {width} features are not supported.")
    return csr_matrix((values, columns, starts), shape=(len(tensors), width))


@functools.cache
def _record_class() -> Any:
    """`aialgs.data.Record`, made from its field numbers."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="polyhost/record.proto", package="aialgs.data", syntax="proto2")

    def message(name: str, *fields: tuple[str, int, int, bool, str]) -> Any:
        proto = file.message_type.add(name=name)
        for field_name, number, kind, is_repeated, type_name in fields:
            label = field_type.LABEL_REPEATED if is_repeated else field_type.LABEL_OPTIONAL
            field = proto.field.add(name=field_name, number=number, type=kind, label=label)
            if type_name:
                field.type_name = type_name  # set to "" it is an error
            if is_repeated and kind != field_type.TYPE_MESSAGE:
                field.options.packed = True
        return proto

    for name, kind in (
        ("Float32Tensor", field_type.TYPE_FLOAT),
        ("Float64Tensor", field_type.TYPE_DOUBLE),
        ("Int32Tensor", field_type.TYPE_INT32),
    ):
        message(
            name,
            ("values", 1, kind, True, ""),
            ("keys", 2, field_type.TYPE_UINT64, True, ""),
            ("shape", 3, field_type.TYPE_UINT64, True, ""),
        )
    tensors = (
        ("float32_tensor", 2, "Float32Tensor"),
        ("float64_tensor", 3, "Float64Tensor"),
        ("int32_tensor", 7, "Int32Tensor"),
    )
    value = message(
        "Value",
        *((name, number, field_type.TYPE_MESSAGE, False, f".aialgs.data.{kind}") for name, number, kind in tensors),
    )
    value.oneof_decl.add(name="value")
    for field in value.field:
        field.oneof_index = 0

    record = message(
        "Record",
        ("features", 1, field_type.TYPE_MESSAGE, True, ".aialgs.data.Record.FeaturesEntry"),
        ("label", 2, field_type.TYPE_MESSAGE, True, ".aialgs.data.Record.LabelEntry"),
    )
    for name in ("FeaturesEntry", "LabelEntry"):
        entry = record.nested_type.add(name=name)
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=field_type.TYPE_STRING, label=field_type.LABEL_OPTIONAL)
        entry.field.add(
            name="value", number=2, type=field_type.TYPE_MESSAGE, label=field_type.LABEL_OPTIONAL,
            type_name=".aialgs.data.Value",
        )  # fmt: skip

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("aialgs.data.Record"))
