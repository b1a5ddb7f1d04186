"""libsvm's text format: parsed to the last character, and counted from 0 or from 1 by the model's setting alone."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost_handlers.errors import LoadFailed, NoContent, Unparseable
from polyhost_handlers.libsvm import decode_libsvm, first_index_of

NAN = math.nan


@pytest.mark.parametrize(
    ("body", "first_index", "rows"),
    [
        (b"1 0:1 2:3\n0 1:2", 0, [[1, 0, 3], [0, 2, 0]]),
        (b"0:1 2:3\n1:2", 0, [[1, 0, 3], [0, 2, 0]]),
        (b"1 1:1 3:3\r\n0 2:2\r\n", 1, [[1, 0, 3], [0, 2, 0]]),
        (b"1 1:1 2:3", 0, [[0, 1, 3]]),
        (b"1 1:1 2:3", 1, [[1, 3, 0]]),
        (b"1\n0 0:5", 0, [[0, 0, 0], [5, 0, 0]]),
        (b"-1.5 0:nan 1:1e3", 0, [[NAN, 1000, 0]]),
        (b"+1 2:-.5 0:+2. 1:3E-1 # a note 9:9", 0, [[2, 0.3, -0.5]]),
        (b"3 qid:17 0:1\n0 qid:17", 0, [[1, 0, 0], [0, 0, 0]]),
        (b"# made by hand\n\n  1\t0:1   1:2  \n \n", 0, [[1, 2, 0]]),
        (b"\xef\xbb\xbf1 0:1", 0, [[1, 0, 0]]),
        (b"nan 0:inf", 0, [[math.inf, 0, 0]]),
    ],
)
def test_rows(body: bytes, first_index: int, rows: list[list[float]]) -> None:
    np.testing.assert_array_equal(decode_libsvm(body, 3, first_index).toarray(), rows)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"1,2,3", "Line 1 begins '1,2,3': it is not libsvm: '1,2,3' is not index:value."),
        (b"1 2 3", "Line 1 begins '1 2 3': it is not libsvm: '2' is not index:value."),
        (b"0 0:1\n[1, 2, 3]", "Line 2 begins '[1, 2, 3]': it is not libsvm"),
        (b'{"instances": [[1, 2, 3]]}', "begins '{\"instances\": [[1, 2, 3]]}': it is not libsvm"),
        (b"label 0:1", "'label' is not index:value"),
        (b"1 0:x", "'0:x'"),
        (b"1 x:1", "'x:1'"),
        (b"1 0:1 5", "'5'"),
        (b"1 -1:2", "'-1:2'"),
        (b"1 0:1:2", "'0:1:2'"),
        (b"1 0: 1", "'0:'"),
        (b"1 0 :1", "'0'"),
        (b"1 0:1_0", "'0:1_0'"),
        ("1 0:\u0661".encode(), "'0:\u0661'"),  # a digit in Arabic
        (b"1 0:0x10", "'0:0x10'"),
        (b"1 qid:a 0:1", "'qid:a'"),
        (b"1 0:1 qid:1", "'qid:1'"),
        (b"\xff", "is not index:value"),
        (b"\x00" * 100, "is not index:value"),
        (
            b"1 3:2",
            "Line 1 begins '1 3:2': index 3 is none of the model's, which are 0 to 2 (set POLYHOST_",
        ),
        (b"0 0:1 3:1", "index 3 is none"),
        (b"1 999999999999999999:1", "index 999999999999999999 is none"),
        (b"1 99999999999999999999:1", "'99999999999999999999:1' is not index:value"),
        (b"1 0:1 1:2 0:1", "an index is there twice"),
    ],
)
def test_what_is_none_is_quoted(body: bytes, sentence: str) -> None:
    with pytest.raises(Unparseable) as raised:
        decode_libsvm(body, 3, 0)

    assert sentence in raised.value.message


def test_counted_from_1_there_is_no_0() -> None:
    with pytest.raises(Unparseable) as raised:
        decode_libsvm(b"1 0:1", 3, 1)

    assert (
        "index 0 is none of the model's, which are 1 to 3 (set POLYHOST_LIBSVM_FIRST_INDEX=0 if" in raised.value.message
    )


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 5), st.floats(-1e9, 1e9), min_size=1), min_size=1), st.integers(0, 1))
def test_the_same_rows_counted_from_0_or_1(rows: list[dict[int, float]], first_index: int) -> None:
    """What a row names and what it leaves out does not change where the first feature is."""
    body = "\n".join(" ".join(f"{index + first_index}:{value!r}" for index, value in row.items()) for row in rows)
    expected = [[row.get(index, 0.0) for index in range(6)] for row in rows]

    np.testing.assert_array_equal(decode_libsvm(body.encode(), 6, first_index).toarray(), expected)


def test_without_a_model_the_lines_say_how_wide_they_are() -> None:
    np.testing.assert_array_equal(decode_libsvm(b"1 0:1 2:3\n0 1:2", None).toarray(), [[1, 0, 3], [0, 2, 0]])
    assert decode_libsvm(b"1 2147483646:1", None).shape == (1, 2**31 - 1)
    with pytest.raises(Unparseable, match=r"index 2147483647 is none"):
        decode_libsvm(b"1 2147483647:1", None)


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf", b"\n", b"# nothing\n  \n"])
def test_no_lines(body: bytes) -> None:
    with pytest.raises(NoContent):
        decode_libsvm(body, 3, 0)


def test_a_short_body_takes_little_memory() -> None:
    """Whatever index it names, and however many features the model has."""
    tracemalloc.start()
    rows = decode_libsvm(b"1 2000000000:1", 2_000_000_001, 0)
    with pytest.raises(Unparseable):
        decode_libsvm(b"1 999999999999999999:1", 2_000_000_001, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert rows.shape == (1, 2_000_000_001)
    assert peak < 10_000_000


def test_memory_is_in_proportion_to_the_body() -> None:
    body = b"0:1 1:1 2:1\n" * 50_000
    decode_libsvm(b"0:1", 3, 0)
    tracemalloc.start()
    decode_libsvm(body, 3, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 40 * len(body)


@pytest.mark.parametrize(
    "body", [b"1" * 10**6 + b"x", b"1 " + b" " * 10**6 + b"x", b"1." * 10**6, b"0:" + b"1" * 10**6 + b"_"]
)
def test_a_hostile_line_is_refused_in_linear_time(body: bytes) -> None:
    """In the square of its length, any of these would take hours."""
    with pytest.raises(Unparseable):
        decode_libsvm(body, 3, 0)


@pytest.mark.parametrize(("setting", "first_index"), [("", 0), ("0", 0), ("1", 1)])
def test_the_setting(setting: str, first_index: int) -> None:
    assert first_index_of(setting) == first_index


def test_a_setting_that_is_none() -> None:
    with pytest.raises(LoadFailed, match=r"POLYHOST_LIBSVM_FIRST_INDEX is 'auto': set it to 0 or 1"):
        first_index_of("auto")
