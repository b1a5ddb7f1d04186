"""Tensors of the Open Inference Protocol: numpy and Triton's client say what they mean."""

from __future__ import annotations

import contextlib
import io
import json
import math
import tracemalloc
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost.api.open_inference.answers import chosen, encoded, outputs_of, raw_of
from polyhost.api.open_inference.bodies import ROWS_ALONE, body_of
from polyhost.api.open_inference.requests import Asked, read_request
from polyhost.engine.errors import BadRequest
from support.forms import examples
from tritonclient.utils import (
    deserialize_bytes_tensor,
    serialize_bf16_tensor,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

NUMBERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
FIELDS = ("name", "datatype", "shape", "data")


def document(*inputs: Mapping[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}).encode()


def tensor(datatype: str, shape: Any, data: Any, name: Any = "x") -> dict[str, Any]:
    return dict(zip(FIELDS, (name, datatype, shape, data), strict=True))


def binary(datatype: str, shape: Any, raw: bytes, size: Any = None) -> tuple[bytes, str]:
    """A request of one binary tensor, and the length of its JSON."""
    one = {"name": "x", "datatype": datatype, "shape": shape}
    text = document({**one, "parameters": {"binary_data_size": len(raw) if size is None else size}})
    return text + raw, str(len(text))


def some(datatype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The datatype's extremes among numbers that no shorter type holds."""
    dtype = np.dtype(triton_to_np_dtype(datatype))
    info: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    values = [info.min, info.max, *np.linspace(0.1, 7.7, math.prod(shape) - 2)]
    return np.array([dtype.type(value) for value in values]).reshape(shape)


# What comes


@pytest.mark.parametrize("datatype", NUMBERS)
def test_a_tensor_means_the_same_in_each_form(datatype: str) -> None:
    """Nested, flat, binary: the bytes that numpy has."""
    array = some(datatype, (3, 4))
    nested = read_request(document(tensor(datatype, [3, 4], array.tolist())), None)
    flat = read_request(document(tensor(datatype, [3, 4], array.ravel().tolist())), None)
    raw = read_request(*binary(datatype, [3, 4], array.tobytes()))

    assert nested == flat == raw
    assert raw.inputs[0].raw == array.tobytes()


def test_decimals_become_the_nearest_number_of_the_datatype() -> None:
    (read,) = read_request(document(tensor("FP32", [2], [0.1, None])), None).inputs

    assert read.raw == np.array([0.1, np.nan], dtype=np.float32).tobytes()


def test_bf16_is_widened() -> None:
    array = np.array([[1.0, -2.5, 3.140625]], dtype=np.float32)
    (read,) = read_request(*binary("BF16", [1, 3], serialize_bf16_tensor(array).item())).inputs

    assert (read.datatype, read.values()) == ("FP32", tuple(array[0]))


def test_texts_come_as_tritons_client_writes_them() -> None:
    texts = ["", "ä", "a,b\n" * 100]
    raw = serialize_byte_tensor(np.array(texts, dtype=object)).item()

    assert read_request(*binary("BYTES", [3], raw)) == read_request(document(tensor("BYTES", [3], texts)), None)


def test_truths() -> None:
    array = np.array([True, False, True])

    assert read_request(*binary("BOOL", [3], array.tobytes())).inputs[0].values() == (True, False, True)
    assert read_request(document(tensor("BOOL", [3], array.tolist())), None).inputs[0].raw == array.tobytes()


# What a handler is sent


@pytest.mark.parametrize("datatype", NUMBERS)
def test_a_table_becomes_csv_that_reads_back_exactly(datatype: str) -> None:
    array = some(datatype, (3, 2))
    body = body_of(read_request(*binary(datatype, [3, 2], array.tobytes())))
    read = float if array.dtype.kind == "f" else int

    assert body.content_type == "text/csv"
    assert body.headers[ROWS_ALONE] == "absent"
    assert [list(map(read, line.split(b","))) for line in body.content.split(b"\n")] == array.tolist()


def test_a_wide_row_is_written_in_little_memory() -> None:
    """It is made in a thread of the server's own process: at once, six million numbers took 600 MB."""
    wide = np.arange(300_000, dtype=np.int8)
    asked = read_request(*binary("INT8", [1, wide.size], wide.tobytes()))
    tracemalloc.start()
    try:
        body = body_of(asked)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    np.testing.assert_array_equal(np.loadtxt(io.BytesIO(body.content), delimiter=",", dtype=np.int8), wide)
    assert most < 5 * len(body.content)


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 2, 2, 2)])
@pytest.mark.parametrize("datatype", NUMBERS)
def test_more_dimensions_become_npy(datatype: str, shape: tuple[int, ...]) -> None:
    array = some(datatype, shape)
    body = body_of(read_request(*binary(datatype, list(shape), array.tobytes())))
    loaded = np.load(io.BytesIO(body.content), allow_pickle=False)

    assert body.content_type == "application/x-npy"
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


def test_several_tensors_stay_the_protocols_json() -> None:
    inputs = [tensor("FP32", [2, 1], [[0.5], [None]], "a"), tensor("BYTES", [2], ["x", "y"], "b")]
    body = body_of(read_request(document(*inputs), None))

    assert body.content_type == "application/json"
    assert json.loads(body.content)["inputs"] == [
        tensor("FP32", [2, 1], [0.5, None], "a"),
        tensor("BYTES", [2], ["x", "y"], "b"),
    ]


def test_a_body_of_another_media_type_is_sent_as_it_is() -> None:
    one = {**tensor("BYTES", [1, 1], ['{"a": 1}']), "parameters": {"content_type": "application/json"}}

    assert body_of(read_request(document(one), None)) == ("application/json", b'{"a": 1}', {})
    one["parameters"] = {"content_type": "str"}
    assert body_of(read_request(document(one), None)).content != b'{"a": 1}'


# What is refused


# More than Python reads or writes of a number.
DIGITS = b"1" + b"0" * 9999
HOSTILE = {
    "no JSON": b"{",
    "no object": b"[]",
    "deep": b"[" * 100_000,
    "not UTF-8": b'{"inputs": "\xff"}',
    "no inputs": document(),
    "no tensor": b'{"inputs": [1]}',
    "NaN": document(tensor("FP32", [1], [math.nan])),
    "too large a number": b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1e999]}]}',
    "too large for FP32": document(tensor("FP32", [1], [1e39])),
    "too large for FP16": document(tensor("FP16", [1], [70000])),
    "too large for FP64": document(tensor("FP64", [1], [10**400])),
    "too large for INT8": document(tensor("INT8", [1], [128])),
    "negative for UINT64": document(tensor("UINT64", [1], [-1])),
    "a fraction for INT64": document(tensor("INT64", [1], [1.5])),
    "a truth for INT64": document(tensor("INT64", [1], [True])),
    "a text for FP64": document(tensor("FP64", [1], ["1"])),
    "a number for BYTES": document(tensor("BYTES", [1], [1])),
    "a number for BOOL": document(tensor("BOOL", [1], [1])),
    "half of a surrogate": b'{"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["\\ud800"]}]}',
    "unknown datatype": document(tensor("FP128", [1], [1])),
    "no datatype": document({"name": "x", "shape": [1], "data": [1]}),
    "no data": document({"name": "x", "shape": [1], "datatype": "FP32"}),
    "no list": document(tensor("FP32", [1], {"0": 1})),
    "negative size": document(tensor("FP32", [-1, -1], [1])),
    "huge size": document(tensor("FP32", [2**62, 2**62], [1])),
    "a size beyond all": document(tensor("FP32", [10**400], [1])),
    "a size of digits": document(tensor("FP32", ["DIGITS"], [1])).replace(b'"DIGITS"', DIGITS),
    "a number of digits": document(tensor("INT8", [1], ["DIGITS"])).replace(b'"DIGITS"', DIGITS),
    "no truth of digits": document(tensor("BOOL", [1], ["DIGITS"])).replace(b'"DIGITS"', DIGITS),
    "no elements": document(tensor("FP32", [0, 5], [])),
    "a size of text": document(tensor("FP32", ["1"], [1])),
    "many dimensions": document(tensor("FP32", [1] * 33, [1])),
    "too few": document(tensor("FP32", [2, 2], [1, 2, 3])),
    "ragged": document(tensor("FP32", [2, 2], [[1, 2], [3]])),
    "nested otherwise": document(tensor("FP32", [2, 2], [[1, 2, 3, 4]])),
    "twice": document(tensor("FP32", [1], [1]), tensor("FP32", [1], [1])),
    "a hundred thousand, the last one twice": b'{"inputs": [%b]}'
    % b",".join(
        b'{"name":"%d","datatype":"BOOL","shape":[1],"data":[true]}' % min(number, 99_999) for number in range(100_001)
    ),
    "an output twice": document(tensor("FP32", [1], [1]), outputs=[{"name": "y"}, {"name": "z"}, {"name": "y"}]),
    "BF16 in JSON": document(tensor("BF16", [1], [1])),
    "shared memory": document({**tensor("FP32", [1], [1]), "parameters": {"shared_memory_region": "a"}}),
    "classification": document(tensor("FP32", [1], [1]), outputs=[{"name": "y", "parameters": {"classification": 3}}]),
    "a flag of text": document(tensor("FP32", [1], [1]), parameters={"binary_data_output": "yes"}),
    "two bodies": document(
        {**tensor("BYTES", [2], ["a", "b"]), "parameters": {"content_type": "text/csv"}},
    ),
    "no media type": document({**tensor("BYTES", [1], ["a"]), "parameters": {"content_type": "text/csv\r\nx: y"}}),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_hostile_documents_are_refused_in_a_sentence(body: bytes) -> None:
    with pytest.raises(BadRequest) as refused:
        body_of(read_request(body, None))

    assert refused.value.message.endswith((".", "`"))
    assert len(refused.value.message) < 500


FOUR = np.arange(4, dtype=np.float32).tobytes()
LYING = {
    "shorter": binary("FP32", [4], FOUR[:-1]),
    "longer": binary("FP32", [4], FOUR + b"x"),
    "more behind": binary("FP32", [4], FOUR + b"x", size=16),
    "less behind": binary("FP32", [4], FOUR, size=17),
    "negative": binary("FP32", [4], FOUR, size=-1),
    "a truth": binary("FP32", [4], FOUR, size=True),
    "a fraction": binary("FP32", [4], FOUR, size=16.0),
    "huge": binary("FP32", [4], FOUR, size=10**30),
    "unknown": binary("FP31", [4], FOUR),
    "a text's length": binary("BYTES", [1], b"\xff\xff\xff\xffabc"),
    "half a length": binary("BYTES", [1], b"\1\0\0"),
    "a text too many": binary("BYTES", [1], b"\0\0\0\0" * 2),
    "not UTF-8": binary("BYTES", [1], b"\1\0\0\0\xff"),
    "a truth of 2": binary("BOOL", [4], b"\0\1\2\1"),
    "header too long": (b"{}", "3"),
    "header negative": (b"{}", "-1"),
    "header no number": (b"{}", "²"),
    "header endless": (b"{}", "9" * 5000),
    "header empty": (b"{}", ""),
    "header shorter": (binary("FP32", [4], FOUR)[0], "10"),
    "no header": (binary("FP32", [4], FOUR)[0], None),
}


@pytest.mark.parametrize("lie", LYING.values(), ids=LYING)
def test_lying_lengths_are_refused_in_a_sentence(lie: tuple[bytes, str | None]) -> None:
    with pytest.raises(BadRequest):
        body_of(read_request(*lie))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*NUMBERS, "BYTES", "BF16"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*FIELDS, "parameters", "binary_data_size", "content_type"]) | st.text(), inner, max_size=5
        )
    ),
    max_leaves=12,
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3),
        "datatype": st.sampled_from([*NUMBERS, "BOOL", "BYTES", "BF16"]) | JUNK,
        "shape": st.lists(st.integers(-1, 3) | st.integers(), max_size=3) | JUNK,
        "data": st.lists(st.integers(0, 1) | JUNK, max_size=6) | JUNK,
    },
    optional={"parameters": st.dictionaries(st.sampled_from(["binary_data_size", "content_type"]), JUNK)},
)


@settings(max_examples=examples(75))
@given(st.lists(TENSORS | JUNK, max_size=3), st.binary(max_size=20), st.none() | st.integers(-5, 5))
def test_whatever_comes_is_read_or_refused(inputs: list[Any], behind: bytes, length: int | None) -> None:
    text = json.dumps({"inputs": inputs}).encode()
    with contextlib.suppress(BadRequest):
        body_of(read_request(text + behind, str(len(text) + (length or 0))))


# What is answered


def answered(body: Any, content_type: str = "application/json") -> list[tuple[Any, ...]]:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [(one.name, one.datatype, one.shape, list(one.data)) for one in outputs_of(text, content_type)]


ANSWERS = {
    "numbers": ([1.5, 2.5], [("predict", "FP64", (2,), [1.5, 2.5])]),
    "a number": (7, [("predict", "INT64", (1,), [7])]),
    "a table": ([[1, 2], [3, 4.5]], [("predict", "FP64", (2, 2), [1.0, 2.0, 3.0, 4.5])]),
    "large": ([2**63], [("predict", "UINT64", (1,), [2**63])]),
    "truths": ([True, False], [("predict", "BOOL", (2,), [True, False])]),
    "texts": ([["a"], ["ä"]], [("predict", "BYTES", (2, 1), [b"a", "ä".encode()])]),
    "wrapped": ({"predictions": [[0.5]]}, [("predict", "FP64", (1, 1), [0.5])]),
    "scores": (
        {"predictions": [{"score": 0.5, "predicted_label": 1}, {"score": 0.25, "predicted_label": 0}]},
        [("score", "FP64", (2,), [0.5, 0.25]), ("predicted_label", "INT64", (2,), [1, 0])],
    ),
    "features": ({"instances": [{"features": [1.0, 2.0]}]}, [("features", "FP64", (1, 2), [1.0, 2.0])]),
    "outputs": (
        {"predictions": {"label": ["a", "b"], "probabilities": [{"a": 0.75, "b": 0.25}, {"a": 0.5, "b": 0.5}]}},
        [("label", "BYTES", (2,), [b"a", b"b"]), ("probabilities", "FP64", (2, 2), [0.75, 0.25, 0.5, 0.5])],
    ),
    "an object": ({"tone": "warm", "score": 2}, [("tone", "BYTES", (1,), [b"warm"]), ("score", "INT64", (1,), [2])]),
    "ragged": ([[1], [2, 3]], [("predict", "BYTES", (1,), [b"[[1], [2, 3]]"])]),
    "mixed": ([1, "a"], [("predict", "BYTES", (1,), [b'[1, "a"]'])]),
    "nothing": ([], [("predict", "FP64", (0,), [])]),
    "beyond all": ([10**400], [("predict", "BYTES", (1,), [b"[1" + b"0" * 400 + b"]"])]),
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_answers_become_tensors(answer: Any, expected: list[tuple[Any, ...]]) -> None:
    assert answered(answer) == expected


def test_answers_in_other_forms() -> None:
    assert answered(b"1.5\n2.5\n", "text/csv") == [("predict", "FP64", (2,), [1.5, 2.5])]
    assert answered(b"1,2\n3,4\n", "text/csv; charset=utf-8") == [("predict", "FP64", (2, 2), [1.0, 2.0, 3.0, 4.0])]
    for body in (b"1,2\n3\n", b"a,b", b"\xff"):
        assert answered(body, "text/csv") == [("predict", "BYTES", (1,), [body])]
    assert answered(b"{", "application/json") == [("predict", "BYTES", (1,), [b"{"])]
    assert answered(b"\0\1", "application/x-npy") == [("predict", "BYTES", (1,), [b"\0\1"])]


def test_numbers_that_json_lacks_are_in_binary_and_null_in_json() -> None:
    outputs = outputs_of(b"[NaN, 1.5, Infinity, -Infinity]", "application/json")
    body = json.loads(encoded("m", Asked("7", ()), outputs).body)

    assert body == {
        "model_name": "m", "model_version": "1", "id": "7",
        "outputs": [{"name": "predict", "datatype": "FP64", "shape": [4], "data": [None, 1.5, None, None]}],
    }  # fmt: skip
    np.testing.assert_array_equal(np.frombuffer(raw_of(outputs[0])), [np.nan, 1.5, np.inf, -np.inf])


def test_texts_are_answered_as_tritons_client_reads_them() -> None:
    (output,) = outputs_of('["", "ä"]'.encode(), "application/json")

    assert deserialize_bytes_tensor(raw_of(output)).tolist() == [b"", "ä".encode()]


def test_outputs_are_those_that_are_asked_for() -> None:
    def names(wanted: list[str], answer: Any) -> list[str]:
        asked = read_request(document(tensor("FP32", [1], [1]), outputs=[{"name": one} for one in wanted]), None)
        return [one.name for one in chosen(outputs_of(json.dumps(answer).encode(), "application/json"), asked.wanted)]

    assert names([], {"a": 1, "b": 2}) == ["a", "b"]
    assert names(["b"], {"a": 1, "b": 2}) == ["b"]
    assert names(["y"], [1]) == ["y"]
    for wanted, answer in ((["c"], {"a": 1, "b": 2}), (["y", "z"], [1]), (["y"], {"a": 1})):
        with pytest.raises(BadRequest, match="The model has no output"):
            names(wanted, answer)
