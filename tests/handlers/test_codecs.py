"""Bodies to arrays: every format, every way to get it wrong, and what it may cost."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from polyhost_handlers import codecs
from polyhost_handlers.codecs import CSV, JSON, JSONLINES, LIBSVM, NPY, RECORDIO
from polyhost_handlers.errors import HandlerError, NoContent, Unparseable, UnsupportedMediaType

from handlers.calling import npy, npy_header

NAN = math.nan
ROWS = [[1.0, 2.5], [NAN, -3.0]]
ALL = (CSV, JSON, JSONLINES, LIBSVM, NPY, RECORDIO)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("text/csv", CSV),
        ("Text/CSV; charset=utf-8; label_size=0", CSV),
        ("csv", CSV),
        ("text/x-libsvm", LIBSVM),
        ("libsvm", LIBSVM),
        ("application/x-jsonlines", JSONLINES),
        ("", CSV),
        ("application/x-www-form-urlencoded", CSV),
        ("application/octet-stream", CSV),
        ("text/plain; charset=utf-8", CSV),
    ],
)
def test_content_types_have_many_spellings(header: str, name: str) -> None:
    """
    Parameters, case and aliases; what HTTP clients add by themselves means the default.
    """
    assert codecs.decoder_for(header, ALL) == name


@pytest.mark.parametrize("header", ["image/png", "text/html", "application/x-pickle", "/", "\x00"])
def test_an_unknown_content_type_is_415(header: str) -> None:
    """
    The sentence names what can be sent.
    """
    with pytest.raises(UnsupportedMediaType, match=r"send text/csv or application/json"):
        codecs.decoder_for(header, (CSV, JSON))


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html, application/*;q=0.9", JSON),
        ("text/csv", CSV),
        ("text/html,text/csv;q=0.5", CSV),
        ("csv", CSV),
    ],
)
def test_accept(accept: str, name: str) -> None:
    """
    The first that the handler knows; anything means the default.
    """
    assert codecs.choose_accept(accept, (CSV, JSON), JSON) == name


@pytest.mark.parametrize(
    ("accept", "default"), [("text/html", JSON), ("text/*", JSON), ("", "text/html"), ("*/*", NPY)]
)
def test_an_unknown_accept_is_415(accept: str, default: str) -> None:
    """
    Also where the container's environment sets a default that this handler does not know.
    """
    with pytest.raises(UnsupportedMediaType, match=r"ask for text/csv or application/json"):
        codecs.choose_accept(accept, (CSV, JSON), default)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"1,2.5\n,-3", CSV),
        (b"1,2.5\r\nNaN,-3\r\n", CSV),
        (b"\xef\xbb\xbf1,2.5\n nan ,-3\n\n", CSV),
        (b"1;2.5\n;-3", CSV),
        (b"1\t2.5\n\t-3", CSV),
        (b"1|2.5\n|-3", CSV),
        (b"[[1, 2.5], [null, -3]]", JSON),
        (b"[[1, 2.5], [NaN, -3]]", JSON),
        (b'{"instances": [[1, 2.5], [null, -3]]}', JSON),
        (b'{"instances": [{"features": [1, 2.5]}, {"features": [null, -3]}]}', JSON),
        (
            b'{"instances": [{"data": {"features": {"values": [1, 2.5]}}}, {"features": {"values": [null, -3]}}]}',
            JSON,
        ),
        (b'[{"values": [1, 2.5]}, [{"values": [null, -3]}]]', JSON),
        (b'{"inputs": [[1, 2.5], [null, -3]]}', JSON),
        (b'{"data": [[1, 2.5], [null, -3]]}', JSON),
        (b'[{"keys": [0, 1], "shape": [2], "values": [1, 2.5]}, {"keys": [0, 1], "values": [NaN, -3]}]', JSON),
        (b"[1, 2.5]\n[null, -3]\n", JSONLINES),
        (b'{"features": [1, 2.5]}\n\n{"features": [null, -3]}', JSONLINES),
        (b'{"data": {"features": {"values": [1, 2.5]}}}\r\n{"features": [null, -3]}', JSONLINES),
        (npy(ROWS), NPY),
        (npy(np.asfortranarray(ROWS)), NPY),
        (npy(np.array(ROWS, ">f8")), NPY),
        (npy(np.array(ROWS, "f2")), NPY),
        (npy(np.array(ROWS, "longdouble")), NPY),
    ],
)
def test_the_same_rows_in_every_format(body: bytes, content_type: str) -> None:
    """
    An array of float64 in this machine's byte order; a missing value is NaN in each.
    """
    rows = codecs.decode_matrix(body, content_type)

    np.testing.assert_array_equal(rows, ROWS)
    assert rows.dtype == np.dtype(float)
    assert rows.dtype.isnative


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"1,2", CSV), (b"[1, 2]", JSON), (b'{"features": [1, 2]}', JSON), (b"[1, 2]", JSONLINES), (npy([1, 2]), NPY)],
)
def test_a_single_row_needs_no_brackets(body: bytes, content_type: str) -> None:
    """
    One dimension is one row.
    """
    np.testing.assert_array_equal(codecs.decode_matrix(body, content_type), [[1, 2]])


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\xef\xbb\xbf", CSV),
        (b"\n\r\n", CSV),
        (b"[]", JSON),
        (b'{"instances": []}', JSON),
        (b"\xef\xbb\xbf", JSONLINES),
        (b" \n ", JSONLINES),
        (npy(np.zeros((0, 4))), NPY),
    ],
)
def test_no_rows_is_no_content(body: bytes, content_type: str) -> None:
    """
    Nothing was asked, nothing is answered: 204.
    """
    with pytest.raises(NoContent):
        codecs.decode_matrix(body, content_type)


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (b"1,2\n3,four", CSV, "Line 2, field 2: 'four' is not a number: send numbers only, without a header line."),
        (b"year,feet\n1,2", CSV, "Line 1, field 1: 'year' is not a number"),
        (b"1,2\n3", CSV, "Line 2 has 1 fields, line 1 has 2: send equal rows."),
        (b"1,2\xff", CSV, "The body is not UTF-8 text: invalid start byte at byte 3."),
        (b"1.5,2;3,5", CSV, "'2;3' is not a number"),
        (b"{", JSON, "The body is not JSON"),
        (b"[[1, 2], [3]]", JSON, "Row 2 has 1 fields, row 1 has 2"),
        (b"[[1], 2]", JSON, "Row 2 is a int, not a list"),
        (b"[[1], {}]", JSON, "Row 2 is a dict, not a list"),
        (b'[["a"]]', JSON, "not a number"),
        (b"[[[1]]]", JSON, "3 dimensions"),
        (b"[[1, [2]]]", JSON, "not a number"),
        (b"5", JSON, "A JSON int is not rows"),
        (b'"abc"', JSON, "A JSON str is not rows"),
        (b'{"rows": [1]}', JSON, 'no "instances"'),
        (b'{"values": 5}', JSON, "Row 1 is a int"),
        (b"[[1" + b"0" * 400 + b"]]", JSON, "not a number: int too large"),
        (b"[[1" + b"0" * 5000 + b"]]", JSON, "The body is not JSON"),
        (b"[" * 100_000, JSON, "not JSON"),
        (b'[{"data":' * 450 + b"[1]" + b"}]" * 450, JSON, "nested too deeply"),
        (b"[1]\n{", JSONLINES, "not JSON"),
        (b"[1]\n[1, 2]", JSONLINES, "Line 2 has 2 fields"),
        (b'{"keys": "ab", "values": [1]}', JSON, "A sparse row needs keys, shape and values"),
        (b'{"keys": 5, "values": [1]}', JSON, "A sparse row needs keys, shape and values"),
        (b'{"keys": [0], "shape": 5, "values": [1]}', JSON, "A sparse row needs keys, shape and values"),
        (b'{"keys": [0], "shape": [Infinity], "values": [1]}', JSON, "A sparse row needs keys, shape and values"),
        (b'{"keys": [0, 1], "shape": [2], "values": [1]}', JSON, "as many values as keys"),
        (b'{"keys": [-1], "shape": [3], "values": [1]}', JSON, "keys from 0 to 2"),
        (b'{"keys": [3], "shape": [3], "values": [1]}', JSON, "keys from 0 to 2"),
        (b'{"keys": [1], "shape": [99999999999999999999], "values": [1]}', JSON, "is not supported"),
        (b'[{"keys": [0], "values": [1]}, [1]]', JSON, "differ in their shape"),
        (b"", NPY, "header cannot be read"),
        (b"\x93NUMPY\x01\x00", NPY, "header cannot be read"),
        (b"PK\x03\x04", NPY, "header cannot be read"),
        (npy([["a"]]), NPY, "send rows of numbers"),
        (npy([1j]), NPY, "dtype complex128: send numbers"),
        (npy(np.zeros(1, dtype=[("a", "f8")])), NPY, "send numbers"),
        (npy(5.0), NPY, "send rows of numbers"),
        (npy(np.zeros((1, 2, 3))), NPY, "send rows of numbers"),
        (npy([[1.0, 2.0]])[:-1], NPY, "promises 16 bytes|not a .npy file"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, content_type: str, sentence: str) -> None:
    """
    In one sentence, with the line and the field where there are any.
    """
    with pytest.raises(Unparseable, match=sentence):
        codecs.decode_matrix(body, content_type)


@pytest.mark.parametrize(
    "header",
    [
        "-" * 9000 + "1",  # Python's parser answers this with MemoryError
        "(" * 9000,
        "[" * 150 + "]" * 150,
        '"""never closed',
        "{\n(",
        "__import__('os').system('false')",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000,), }",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 4), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (True, True), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 0), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1" + "0" * 30 + ", 0), }",
        "{'descr': ('<f8', (1000000,)), 'fortran_order': False, 'shape': (1,), }",
        "{'descr': (), 'fortran_order': False, 'shape': (1,), }",
        "{'descr': 5, 'fortran_order': False, 'shape': (1,), }",
    ],
)
@pytest.mark.parametrize("decode", [codecs.decode_npy, codecs.decode_array_npy])
def test_a_crafted_npy_header_is_refused_for_nothing(header: str, decode: Callable[[bytes], object]) -> None:
    """
    No code, no memory, and never MemoryError: that would be a 507, upon which the platform unloads every model.
    """
    body = npy_header(header, bytes(16))
    with _costs_less_than(4_000_000), pytest.raises(Unparseable):
        decode(body)


@pytest.mark.parametrize("decode", [codecs.decode_json, codecs.decode_json_table])
def test_sparse_rows_cost_no_more_than_they_may(decode: Callable[[bytes], np.ndarray]) -> None:
    """
    A hundred bytes must not make gigabytes, neither in one row nor in many.
    """
    row = {"keys": [0], "shape": [10_000_000], "values": [1]}
    with _costs_less_than(90_000_000):
        assert decode(json.dumps([row]).encode()).shape == (1, 10_000_000)
    with _costs_less_than(10_000_000), pytest.raises(Unparseable, match=r"send fewer"):
        decode(json.dumps([row] * 1000).encode())


class _costs_less_than:
    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, *_: object) -> None:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < self._most_bytes


@pytest.mark.parametrize(
    ("body", "table"),
    [
        (b"1,y\n2,n", [[1.0, "y"], [2.0, "n"]]),
        (b"1,y\r\n,n\r\n", [[1.0, "y"], [NAN, "n"]]),
        (b'1,"a, b"\n2,"say ""hi"""', [[1.0, "a, b"], [2.0, 'say "hi"']]),
        (b'"two\nlines",1', [["two\nlines", 1.0]]),
        (b"y\n\nn", [["y"], [NAN], ["n"]]),
        (b"\xc3\xa9,1", [["é", 1.0]]),
    ],
)
def test_csv_with_text(body: bytes, table: list[list[object]]) -> None:
    """
    Numbers are numbers, quoted fields are one field, an empty one is missing.
    """
    decoded = codecs.decode_csv_table(body)

    assert decoded.dtype == object
    assert repr(decoded.tolist()) == repr(table)


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (codecs.decode_json_table, b'[[1, "y"], [null, "n"]]'),
        (codecs.decode_json_table, b'{"instances": [{"features": [1, "y"]}, {"features": [null, "n"]}]}'),
        (codecs.decode_jsonlines_table, b'[1, "y"]\n{"features": [null, "n"]}'),
    ],
)
def test_json_with_text(decode: Callable[[bytes], np.ndarray], body: bytes) -> None:
    """
    The same forms as for numbers; null is missing here too.
    """
    assert repr(decode(body).tolist()) == repr([[1, "y"], [NAN, "n"]])


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (codecs.decode_csv_table, b"1,2\n3,"),
        (codecs.decode_json_table, b"[[1, 2], [3, null]]"),
        (codecs.decode_json_table, b'[{"keys": [0, 1], "values": [1, 2]}, {"keys": [0, 1], "values": [3, NaN]}]'),
        (codecs.decode_jsonlines_table, b"[1, 2]\n[3, null]"),
    ],
)
def test_a_table_of_numbers_is_of_numbers(decode: Callable[[bytes], np.ndarray], body: bytes) -> None:
    """
    An estimator of numbers sees float64, not objects.
    """
    table = decode(body)

    assert table.dtype == np.dtype(float)
    np.testing.assert_array_equal(table, [[1, 2], [3, NAN]])


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (codecs.decode_csv_table, b"1,2\n3"),
        (codecs.decode_csv_table, b'"never closed,1\n2,3'),
        (codecs.decode_csv_table, b'"' + b"a" * 200_000 + b'"'),
        (codecs.decode_csv_table, b"\xff"),
        (codecs.decode_json_table, b'[["a"], 2]'),
        (codecs.decode_json_table, b'[["a"], "ab"]'),
        (codecs.decode_json_table, b'[["a", [1, 2]]]'),
        (codecs.decode_json_table, b'[[{"a": 1}]]'),
        (codecs.decode_json_table, b'[["a"], ["b", 1]]'),
        (codecs.decode_json_table, b"[[1" + b"0" * 400 + b"]]"),
        (codecs.decode_jsonlines_table, b'["a"]\n["b", 1]'),
    ],
)
def test_a_broken_table_is_said(decode: Callable[[bytes], np.ndarray], body: bytes) -> None:
    """
    Never another exception than Unparseable.
    """
    with pytest.raises(Unparseable):
        decode(body)


def test_encoding() -> None:
    """
    Values of numpy as JSON knows them, a field with a comma in it quoted in CSV.
    """
    assert (
        codecs.encode_json({"a": np.float32(0.5), "b": np.arange(2), "c": b"d"}) == b'{"a": 0.5, "b": [0, 1], "c": "d"}'
    )
    assert codecs.encode_csv_rows([1.5, "a, b", [1, [2, 3]], None]) == b'1.5\n"a, b"\n1,"[2, 3]"\n""'
    assert codecs.encode_jsonlines([{"a": np.int64(1)}, 2]) == b'{"a": 1}\n2\n'
    with pytest.raises(TypeError, match=r"object does not go into JSON"):
        codecs.encode_json(object())
    np.testing.assert_array_equal(codecs.decode_array_npy(codecs.encode_npy(np.eye(2))), np.eye(2))


def test_an_empty_body_is_no_content() -> None:
    """
    As AWS's XGBoost answers it.
    """
    for body in (b"", b" \r\n\t"):
        with pytest.raises(NoContent):
            codecs.require_body(body)
    codecs.require_body(b"0")


def test_every_handler_error_is_a_sentence() -> None:
    """
    The classes differ by status alone.
    """
    assert [error.status for error in (NoContent, Unparseable, UnsupportedMediaType, HandlerError)] == [
        204,
        400,
        415,
        500,
    ]
