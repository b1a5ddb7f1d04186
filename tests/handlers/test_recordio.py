"""RecordIO-protobuf, against records that are built from the wire format by hand."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhost_handlers.errors import HandlerError, NoContent, Unparseable
from polyhost_handlers.recordio import decode_recordio, encode_recordio
from support.records import encode_features

# The fields of aialgs.data.Value that hold a tensor, and how a number in each is packed.
TENSORS = {"f": 2, "d": 3, "i": 7}


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def record(values: Any, keys: Any = (), shape: Any = (), kind: str = "f", name: bytes = b"values") -> bytes:
    packed = (
        b"".join(varint(value) for value in values) if kind == "i" else struct.pack(f"<{len(values)}{kind}", *values)
    )
    tensor = field(1, packed)
    tensor += field(2, b"".join(map(varint, keys))) if keys else b""
    tensor += field(3, b"".join(map(varint, shape))) if shape else b""
    entry = field(1, name) + field(2, field(TENSORS[kind], tensor))
    return frame(field(1, entry))


def frame(payload: bytes) -> bytes:
    return struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)


@pytest.mark.parametrize("kind", TENSORS)
def test_dense_records(kind: str) -> None:
    """Each of the three kinds of tensors, as SageMaker's SDK writes them."""
    rows = decode_recordio(record([1, 2, 3], kind=kind) + record([4, 5, 6], shape=[3], kind=kind))

    np.testing.assert_array_equal(rows, [[1, 2, 3], [4, 5, 6]])


def test_our_own_encoder_writes_the_same_bytes() -> None:
    """What tests and examples send is what a client would."""
    assert encode_features([[1, 2], [3, 4]]) == record([1, 2]) + record([3, 4])


@pytest.mark.parametrize(
    ("body", "features", "rows"),
    [
        (record([1, 2], [0, 2], [4]) + record([3], [3], [4]), None, [[1, 0, 2, 0], [0, 0, 0, 3]]),
        (record([1, 2], [0, 2]) + record([3], [3]), 5, [[1, 0, 2, 0, 0], [0, 0, 0, 3, 0]]),
        (record([1, 2], [0, 2]), None, [[1, 0, 2]]),
        (record([1, 2], [2, 0], kind="d"), 3, [[2, 0, 1]]),
        (record([], shape=[3]), None, [[0, 0, 0]]),
        (record([1], [1], [3]) + record([], shape=[3]), None, [[0, 1, 0], [0, 0, 0]]),
    ],
)
def test_sparse_records(body: bytes, features: int | None, rows: list[list[float]]) -> None:
    """As wide as they say, else as the model; a row of zeros has no keys."""
    np.testing.assert_array_equal(decode_recordio(body, features).toarray(), rows)


@pytest.mark.parametrize(
    "body",
    [
        record([1, 2]) + record([1]),
        record([1, 2], [0]),
        record([1], [5], [3]),
        record([1, 2], [0, 0], [3]),
        record([1, 2], shape=[3]),
        record([1], [0], [3]) + record([1, 2]),
        record([1], [2**63], []),
        record([1], [0], [3]) + record([1], [0], [4]),
        record([1], [0], [2**40]),
        record([1, 2])[:-1],
        record([1, 2])[:4],
        record([1, 2])[4:],
        record([1, 2], name=b"other"),
        frame(field(1, field(1, b"values") + field(2, field(9, b"bytes")))),
        frame(b"\xff\xff"),
        frame(b""),
        frame(field(1, field(1, b"\xff\xfe") + field(2, b""))),
        struct.pack("<II", 0xCED7230A, 2**32 - 1),
        b"not recordio",
    ],
)
def test_broken_records(body: bytes) -> None:
    """Never another exception than Unparseable."""
    with pytest.raises(Unparseable):
        decode_recordio(body, 3)


def test_no_records() -> None:
    """An empty body has no rows."""
    with pytest.raises(NoContent):
        decode_recordio(b"")


def test_an_answer_has_its_values_among_the_labels() -> None:
    """`record.label[name].float32_tensor.values`, as AWS's algorithms answer."""
    tensor = field(TENSORS["f"], field(1, struct.pack("<2f", 0.5, 0.25)))
    expected = frame(field(2, field(1, b"score") + field(2, tensor)))

    assert encode_recordio([{"score": [0.5, 0.25]}]) == expected


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3), min_size=1, max_size=5))
def test_any_rows_arrive(rows: list[list[float]]) -> None:
    """Float32 in, the same float32 out."""
    np.testing.assert_array_equal(decode_recordio(encode_features(rows)), rows)


@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 255))
def test_any_bytes_are_rows_or_a_sentence(payload: bytes, position: int, byte: int) -> None:
    """In a good frame, and as one changed byte of a good record."""
    damaged = bytearray(record([1, 2], [0, 2], [4]) + record([3], [3], [4]))
    damaged[position] = byte
    for body in (frame(payload), payload, bytes(damaged)):
        with contextlib.suppress(HandlerError):
            assert decode_recordio(body, 4).shape[0] >= 1
