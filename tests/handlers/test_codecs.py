"""Bodies to arrays: every format, every way to get it wrong, and what it may cost."""

from __future__ import annotations

import io
import json
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost_handlers import codecs
from polyhost_handlers.errors import BadInput, HandlerError, NoContent, Unparseable, UnsupportedMediaType
from polyhost_handlers.media_types import (
    CSV,
    JSON,
    JSONLINES,
    LIBSVM,
    NPY,
    NPZ,
    RECORDIO,
    choose_accept,
    decoder_for,
    header_of,
)
from polyhost_handlers.tables import AsFloat, Choice, Number, Schema, Text, arranged, columns_of

from handlers.calling import npy, npy_header, npz

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
    """Parameters, case and aliases; what HTTP clients add by themselves means the default."""
    assert decoder_for(header, ALL) == name


@pytest.mark.parametrize("header", ["image/png", "text/html", "application/x-pickle", "/", "\x00"])
def test_an_unknown_content_type_is_415(header: str) -> None:
    """The sentence names what can be sent."""
    with pytest.raises(UnsupportedMediaType, match=r"send text/csv or application/json"):
        decoder_for(header, (CSV, JSON))


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
    """The first that the handler knows; anything means the default."""
    assert choose_accept(accept, (CSV, JSON), JSON) == name


@pytest.mark.parametrize(
    ("accept", "default"), [("text/html", JSON), ("text/*", JSON), ("", "text/html"), ("*/*", NPY)]
)
def test_an_unknown_accept_is_415(accept: str, default: str) -> None:
    """Also where the container's environment sets a default that this handler does not know."""
    with pytest.raises(UnsupportedMediaType, match=r"ask for text/csv or application/json"):
        choose_accept(accept, (CSV, JSON), default)


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
    """An array of float64 in this machine's byte order; a missing value is NaN in each."""
    rows = codecs.decode_matrix(body, content_type)

    np.testing.assert_array_equal(rows, ROWS)
    assert rows.dtype == np.dtype(float)
    assert rows.dtype.isnative


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(b"1,2", CSV), (b"[1, 2]", JSON), (b'{"features": [1, 2]}', JSON), (b"[1, 2]", JSONLINES), (npy([1, 2]), NPY)],
)
def test_a_single_row_needs_no_brackets(body: bytes, content_type: str) -> None:
    """One dimension is one row."""
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
    """Nothing was asked, nothing is answered: 204."""
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
        (b"{}", JSON, 'no "instances"'),
        (b'{"values": 5}', JSON, "Row 1 is a int"),
        (b"[[1" + b"0" * 400 + b"]]", JSON, "does not fit into float64"),
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
        (npy([["a"]]), NPY, "Row 1, field 1: 'a' is not a number"),
        (npy(np.array([[1, "1e4000"]], "longdouble")), NPY, "does not fit into float64"),
        (npy([1j]), NPY, "dtype complex128: send numbers"),
        (npy(np.zeros(1, dtype=[("a", "f8")])), NPY, "send numbers"),
        (npy(5.0), NPY, "send rows of numbers"),
        (npy(np.zeros((1, 2, 3))), NPY, "send rows of numbers"),
        (npy([[1.0, 2.0]])[:-1], NPY, "promises 16 bytes|not a .npy file"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, content_type: str, sentence: str) -> None:
    """In one sentence, with the line and the field where there are any."""
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
@pytest.mark.parametrize("decode", [lambda body: codecs.decode_matrix(body, NPY), codecs.decode_array_npy])
def test_a_crafted_npy_header_is_refused_for_nothing(header: str, decode: Callable[[bytes], object]) -> None:
    """No code, no memory, and never MemoryError: that would be a 507, upon which the platform unloads every model."""
    body = npy_header(header, bytes(16))
    with _costs_less_than(4_000_000), pytest.raises(Unparseable):
        decode(body)


def test_sparse_rows_cost_no_more_than_they_may() -> None:
    """A hundred bytes must not make gigabytes, neither in one row nor in many."""
    row = {"keys": [0], "shape": [10_000_000], "values": [1]}
    with _costs_less_than(95_000_000):
        assert codecs.decode_matrix(json.dumps([row]).encode(), JSON).shape == (1, 10_000_000)
    with _costs_less_than(10_000_000), pytest.raises(Unparseable, match=r"send fewer"):
        codecs.decode_matrix(json.dumps([row] * 1000).encode(), JSON)


class _costs_less_than:
    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, *_: object) -> None:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < self._most_bytes


def test_arrays_by_name() -> None:
    """A .npz file of one array, or of a column each."""
    np.testing.assert_array_equal(codecs.decode_matrix(npz(arr_0=np.array(ROWS)), NPZ), ROWS)
    np.testing.assert_array_equal(codecs.decode_matrix(npz(a=[1, NAN], b=[[2.5], [-3]]), NPZ), ROWS)
    schema = Schema(2, ("b", "a"))
    np.testing.assert_array_equal(codecs.decode_matrix(npz(a=[1, 2], b=[3, 4]), NPZ, schema), [[3, 1], [4, 2]])


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "not a .npz file"),
        (b"PK\x03\x04", "not a .npz file"),
        (npz(a=[1])[:-30], "not a .npz file"),
        (npz(a=[1], b=[1, 2]), "a column each"),
        (npz(a=np.zeros((1, 2, 3))), "send rows of numbers"),
        (npz(a=[1j]), "send numbers"),
    ],
)
def test_broken_arrays(body: bytes, sentence: str) -> None:
    """One sentence, whatever is wrong with the zip or with what is in it."""
    with pytest.raises(BadInput, match=sentence):
        codecs.decode_matrix(body, NPZ)


def test_arrays_cost_no_more_than_they_may() -> None:
    """Zeros pack to a thousandth of their size, and a zip may hold many."""
    stream = io.BytesIO()
    np.savez_compressed(stream, np.zeros(10_000_000))
    with _costs_less_than(4_000_000), pytest.raises(Unparseable, match="more than 20 times what was sent"):
        codecs.decode_matrix(stream.getvalue(), NPZ)


@pytest.mark.parametrize(
    ("body", "content_type", "unit", "table"),
    [
        (b"1,y\n2,n", CSV, "Line", [["1", "y"], ["2", "n"]]),
        (b"1,y\r\n,n\r\n", CSV, "Line", [["1", "y"], [None, "n"]]),
        (b'1,"a, b"\n2,"say ""hi"""', CSV, "Line", [["1", "a, b"], ["2", 'say "hi"']]),
        (b'"two\nlines",1', CSV, "Line", [["two\nlines", "1"]]),
        (b"y;2\nn;3", CSV, "Line", [["y", "2"], ["n", "3"]]),
        (b"y\t2", CSV, "Line", [["y", "2"]]),
        (b"\xc3\xa9,1", CSV, "Line", [["é", "1"]]),
        (b'[[1, "y"], [null, "n"]]', JSON, "Row", [[1, "y"], [None, "n"]]),
        (b'{"instances": [{"features": [1, "y"]}, {"features": [null, "n"]}]}', JSON, "Row", [[1, "y"], [None, "n"]]),
        (b'[1, "y"]\n{"features": [null, "n"]}', JSONLINES, "Line", [[1, "y"], [None, "n"]]),
        (npy([["a", "02"]]), NPY, "Row", [["a", "02"]]),
        (npy([[b"a", b"02"]]), NPY, "Row", [["a", "02"]]),
    ],
)
def test_tables_keep_what_was_sent(body: bytes, content_type: str, unit: str, table: list[list[object]]) -> None:
    """A field of CSV is a text, and only an empty one is missing; a model's schema makes numbers of them."""
    decoded = codecs.decode_table(body, content_type, Schema(otherwise=Text()))

    assert (decoded.rows, decoded.unit, decoded.names) == (table, unit, None)


NUMBERS_3 = Schema(3, ("a", "b", "c"))
WORDS_2 = Schema(2, ("city", "kind"), (Choice(["oslo", "rome"]), Choice(["a", "kind"])))
MIXED_2 = Schema(2, ("age", "city"), (Number(), Text()))


@pytest.mark.parametrize(
    ("body", "schema", "names", "rows"),
    [
        # The delimiter is the one that makes as many fields as the model wants.
        (b"1 2 3\n4 5 6", NUMBERS_3, None, [["1", "2", "3"], ["4", "5", "6"]]),
        (b"1.000e+00 2.000e+00 3.000e+00\n", NUMBERS_3, None, [["1.000e+00", "2.000e+00", "3.000e+00"]]),
        (b"  1\t2   3 \n", NUMBERS_3, None, [["1", "2", "3"]]),
        (b"30,new york\n", MIXED_2, None, [["30", "new york"]]),
        (b"30;a, b\n", MIXED_2, None, [["30", "a, b"]]),
        (b"30 oslo\n", MIXED_2, None, [["30", "oslo"]]),
        (b"30,\n", MIXED_2, None, [["30", None]]),
        # A first line of names.
        (b"c,b,a\n1,2,3", NUMBERS_3, ("c", "b", "a"), [["1", "2", "3"]]),
        (b"c , b, a\n1,2,3", NUMBERS_3, ("c", "b", "a"), [["1", "2", "3"]]),
        (b"c b a\n1 2 3", NUMBERS_3, ("c", "b", "a"), [["1", "2", "3"]]),
        (b"# c b a\n1 2 3", NUMBERS_3, ("c", "b", "a"), [["1", "2", "3"]]),
        (b"x,y,z\n1,2,3", NUMBERS_3, ("x", "y", "z"), [["1", "2", "3"]]),
        (b"kind,city\na,oslo", WORDS_2, ("kind", "city"), [["a", "oslo"]]),
        (b"city,age\noslo,30", MIXED_2, ("city", "age"), [["oslo", "30"]]),
        (b"town,age\noslo,30", MIXED_2, ("town", "age"), [["oslo", "30"]]),
        # A first line of values, one of which is called as a column is.
        (b"oslo,kind\nrome,a", WORDS_2, None, [["oslo", "kind"], ["rome", "a"]]),
        (b"30,city\n", MIXED_2, None, [["30", "city"]]),
        (b"nan,nan,1", NUMBERS_3, None, [["nan", "nan", "1"]]),
    ],
)
def test_the_lines_of_a_csv(
    body: bytes, schema: Schema, names: tuple[str, ...] | None, rows: list[list[str | None]]
) -> None:
    """What the model knows tells the delimiter and whether the first line has names."""
    table = codecs.decode_table(body, CSV, schema)

    assert (table.names, table.rows) == (names, rows)


def test_a_client_may_say_whether_there_are_names() -> None:
    """By the parameter of text/csv that RFC 4180 has for it."""
    assert header_of("text/csv; charset=utf-8; header=present") is True
    assert header_of("text/csv;header=ABSENT") is False
    assert header_of("text/csv; charset=utf-8") is None
    assert codecs.decode_table(b"1,2\n3,4", CSV, header=True).names == ("1", "2")
    assert codecs.decode_table(b"age,city\n3,4", CSV, MIXED_2, header=False).names is None


def test_numbers_with_names_come_in_the_models_order() -> None:
    """From each format that has names."""
    for body, content_type in (
        (b"c,b,a\n3,2,1", CSV),
        (b"c\tb\ta\n3\t2\t1", CSV),
        (b'{"columns": ["c", "b", "a"], "data": [[3, 2, 1]]}', JSON),
        (b'[{"c": 3, "a": 1, "b": 2}]', JSON),
        (b'{"c": 3, "a": 1, "b": 2}', JSONLINES),
        (npz(c=[3], b=[2], a=[1]), NPZ),
    ):
        np.testing.assert_array_equal(codecs.decode_matrix(body, content_type, NUMBERS_3), [[1, 2, 3]])
    for body in (b"c,b,x\n3,2,1", b"c,b,b\n3,2,1"):
        with pytest.raises(BadInput, match=r"unknown x; missing a|more than once: b"):
            codecs.decode_matrix(body, CSV, NUMBERS_3)


def test_a_field_may_be_long() -> None:
    """Longer than the 131,072 characters that Python's reader takes by itself."""
    text = "a" * 200_000

    assert codecs.decode_table(f'"{text}",1'.encode(), CSV, Schema(otherwise=Text())).rows == [[text, "1"]]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"1,2\n3", CSV),
        (b'"never closed,1\n2,3', CSV),
        (b"\xff", CSV),
        (b"a,b\n1,2,3", CSV),
        (b'[["a"], 2]', JSON),
        (b'[["a"], "ab"]', JSON),
        (b'[["a"], ["b", 1]]', JSON),
        (b'["a"]\n["b", 1]', JSONLINES),
        (npy(np.zeros((1, 2, 3))), NPY),
    ],
)
def test_a_broken_table_is_said(body: bytes, content_type: str) -> None:
    """Never another exception than Unparseable."""
    with pytest.raises(Unparseable):
        codecs.decode_table(body, content_type, Schema(otherwise=Text()))


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (npy(np.array([[0x110000]], "<u4").view("<U1")), NPY, "a code point is beyond 0x10FFFF"),
        (npy(np.array([[0x41, 0xFFFFFFFF]], ">u4").view(">U2")), NPY, "a code point is beyond 0x10FFFF"),
        (npy(np.array([[0xD800]], "<u4").view("<U1")), NPY, "half of a pair of surrogates"),
        (npy(np.array([[0x41, 0xDFFF]], ">u4").view(">U2")), NPY, "half of a pair of surrogates"),
        (npy([[b"caf\xe9"]]), NPY, "not UTF-8: unexpected end of data at byte 3. Send it with dtype U"),
        (npz(a=[b"caf\xe9"], b=["b"]), NPZ, "not UTF-8"),
        (b'[["\\ud800"]]', JSON, "half of a pair of surrogates"),
        (b'[["\xed\xa0\x80"]]', JSON, "half of a pair of surrogates"),
        ('[["\ud800"]]'.encode("utf-16", "surrogatepass"), JSON, "half of a pair of surrogates"),
        (b'"a"\n"\\uDFFF"', JSONLINES, "half of a pair of surrogates"),
    ],
)
def test_a_text_that_is_none_is_refused(body: bytes, content_type: str, sentence: str) -> None:
    """Before anything is made of it: no byte is replaced by a question mark."""
    with pytest.raises(Unparseable, match=sentence):
        codecs.decode_table(body, content_type, Schema(otherwise=Text()))


def test_texts_beyond_the_basic_plane() -> None:
    """The last code point, in both byte orders, and a pair of surrogates as JSON writes an emoji."""
    last = np.array([["\U0010ffff", "\ud7ff\ue000"]])

    for array in (last, last.astype(">U2"), np.char.encode(last, "utf-8")):
        assert codecs.decode_table(npy(array), NPY).rows == last.tolist()
    for body in (b'[["\\ud83d\\ude00"]]', '[["\U0001f600"]]'.encode(), '[["\U0001f600"]]'.encode("utf-16")):
        assert codecs.decode_table(body, JSON).rows == [["\U0001f600"]]


@pytest.mark.parametrize(
    ("body", "content_type", "is_plain", "texts"),
    [
        (b"great\nso bad\n", CSV, False, ["great", "so bad"]),
        (b'"great, loved it"\r\n2020\r\n', CSV, False, ["great, loved it", "2020"]),
        (b"a\n\nb\n\n", CSV, False, ["a", "", "b"]),
        (b'great, "loved" it\n\nb', CSV, True, ['great, "loved" it', "", "b"]),
        (b'["a", "b, c"]', JSON, False, ["a", "b, c"]),
        (b'[["a"], ["b, c"], [2020]]', JSON, False, ["a", "b, c", "2020"]),
        (b'{"instances": ["a", "b"]}', JSON, False, ["a", "b"]),
        (b'[{"text": "a"}, {"text": "b"}]', JSON, False, ["a", "b"]),
        (b'"a"\n"b"\n', JSONLINES, False, ["a", "b"]),
        (b'{"text": "a"}\n{"text": "b"}', JSONLINES, False, ["a", "b"]),
        (npy(["a", "b"]), NPY, False, ["a", "b"]),
    ],
)
def test_texts(body: bytes, content_type: str, is_plain: bool, texts: list[str]) -> None:
    """One a row: never two of one line, and never a number."""
    assert codecs.decode_texts(body, content_type, Schema(1), is_plain) == texts


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (b"good\ngreat, loved it", CSV, "Line 2 has 2 fields, the model takes one text a line"),
        (b'[["a", "b"]]', JSON, "Each row has 2 features"),
        (b"[[1.5]]", JSON, "Row 1: 1.5 is not text: put it in quotes"),
        (b"[[null]]", JSON, "Row 1: null is missing"),
        (b"[[[1]]]", JSON, "Row 1: a list is not text"),
    ],
)
def test_what_is_no_text(body: bytes, content_type: str, sentence: str) -> None:
    """The sentence says how to send it."""
    with pytest.raises(BadInput, match=sentence):
        codecs.decode_texts(body, content_type, Schema(1))


def test_encoding() -> None:
    """Values of numpy as JSON knows them, a field with a comma in it quoted in CSV."""
    assert (
        codecs.encode_json({"a": np.float32(0.5), "b": np.arange(2), "c": b"d"}) == b'{"a": 0.5, "b": [0, 1], "c": "d"}'
    )
    assert codecs.encode_csv_rows([1.5, "a, b", [1, [2, 3]], None]) == b'1.5\n"a, b"\n1,"[2, 3]"\n""'
    assert codecs.encode_json([np.longdouble("0.5"), np.array([2], "longdouble")]) == b"[0.5, [2.0]]"
    assert codecs.encode_jsonlines([{"a": np.int64(1)}, 2]) == b'{"a": 1}\n2\n'
    with pytest.raises(TypeError, match=r"object does not go into JSON"):
        codecs.encode_json(object())
    np.testing.assert_array_equal(codecs.decode_array_npy(codecs.encode_npy(np.eye(2))), np.eye(2))


def test_an_empty_body_is_no_content() -> None:
    """As AWS's XGBoost answers it."""
    for body in (b"", b" \r\n\t"):
        with pytest.raises(NoContent):
            codecs.require_body(body)
    codecs.require_body(b"0")


def test_every_handler_error_is_a_sentence() -> None:
    """The classes differ by status alone."""
    assert [error.status for error in (NoContent, Unparseable, UnsupportedMediaType, HandlerError)] == [
        204,
        400,
        415,
        500,
    ]


# Many rows at once

QUICK = [
    "1,2\n3,4", "1\n2\n3", "+1,-1\n.5,5.", "1e5,1E-5\n1e+2,0", "\n1,2\n3,4\n\n", "1,2\n3", "1,,2\n3,4,5", "1,2,\n3,4,",
    "1-2,3\n4,5", "1e,2\n3,4", "--1,2\n3,4", "1.2.3,4\n5,6", "e5,1\n2,3", ".,1\n2,3", "-,1\n2,3", "1,2\n\n3,4", ",\n,",
    "1e999,1\n2,3", "1e-400,1\n2,3", "0.1,0.30000000000000004\n123456789012345678901234567890,9007199254740993",
    "1,2\n", "\n", "", "1e5e5,2\n3,4", "+,1\n2,3", "1+1\n2", "1\n2,3",
]  # fmt: skip


def decoded(body: bytes) -> Any:
    """The numbers, or the sentence."""
    try:
        return codecs.decode_csv(body).tolist()
    except HandlerError as error:
        return error.message


def test_many_rows_are_read_as_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, and refused in the same words."""
    few = {body: repr(decoded(body.encode())) for body in QUICK}
    monkeypatch.setattr(codecs, "_MANY_BYTES", 0)
    assert {body: repr(decoded(body.encode())) for body in QUICK} == few
    assert sum(codecs.quick_matrix(body.encode()) is not None for body in QUICK) >= 7


@pytest.mark.parametrize(
    "schema", [Schema(), Schema(2), Schema(2, ("a", "b")), Schema(3, ("1", "2", "3")), Schema(otherwise=AsFloat())]
)
def test_tables_of_many_rows_are_read_as_those_of_few(schema: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    def columns(body: str) -> Any:
        try:
            table = codecs.decode_table(body.encode(), CSV, schema)
            return columns_of(arranged(table, schema), schema)
        except HandlerError as error:
            return error.message

    few = {body: repr(columns(body)) for body in QUICK}
    monkeypatch.setattr(codecs, "_MANY_BYTES", 0)
    assert {body: repr(columns(body)) for body in QUICK} == few


@given(st.text("0123456789+-.eE,\n", max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_plain_text_is_read_the_same_way(text: str) -> None:
    body = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        slow = repr(decoded(body))
        patch.setattr(codecs, "_MANY_BYTES", 0)
        assert repr(decoded(body)) == slow


def test_a_large_table_of_numbers_is_read_at_once() -> None:
    rows = np.random.default_rng(1).normal(size=(5000, 6))
    body = "\n".join(",".join(map(repr, row)) for row in rows.tolist()).encode()
    assert codecs.quick_matrix(body) is not None
    for schema in (Schema(), Schema(6), Schema(6, tuple("abcdef"))):
        np.testing.assert_array_equal(codecs.decode_table(body, "text/csv", schema).rows, rows)
        np.testing.assert_array_equal(codecs.decode_matrix(body, "text/csv", schema), rows)
