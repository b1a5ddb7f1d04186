"""Hostile bytes in each binary format: read or refused, never another exception. `make fuzz` goes on with atheris."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.forms import examples

from fuzz.formats import FORMATS, failed


@pytest.mark.parametrize("name", FORMATS)
def test_what_fuzzing_begins_with_is_read(name: str) -> None:
    contents = list(FORMATS[name].contents())

    assert contents
    for data in contents:
        FORMATS[name].try_one(data)


@pytest.mark.parametrize("name", FORMATS)
def test_inputs_that_once_failed(name: str) -> None:
    for path in failed(name):
        FORMATS[name].try_one(path.read_bytes())


@pytest.mark.parametrize("name", FORMATS)
def test_any_damage_is_read_or_refused(name: str) -> None:
    seeds = [data for data in FORMATS[name].contents() if len(data) < 200_000]

    @settings(max_examples=examples(15))
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        content = bytearray(data.draw(st.sampled_from(seeds)))
        for _ in range(data.draw(st.integers(0, 4))):
            start = data.draw(st.integers(0, len(content)))
            content[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        FORMATS[name].try_one(bytes(content))

    holds()
