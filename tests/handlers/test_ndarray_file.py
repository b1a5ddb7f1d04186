"""MXNet's .params files: what is written is read, and MXNet itself agrees, in both directions."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MXNET_PYTHON, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from polyhost_handlers.ndarray_file import BrokenParams, read_params, write_params
from support.forms import examples

DTYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?")
ANY_ARRAY = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)),
)


@settings(max_examples=examples(25))
@given(contents=st.dictionaries(st.text(max_size=8), ANY_ARRAY, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, contents: dict[str, np.ndarray]) -> None:
    """Every type, scalars and empty arrays, names of any letters."""
    path = tmp_path_factory.getbasetemp() / "any.params"
    write_params(path, contents)
    read = read_params(path.read_bytes())

    assert list(read) == list(contents)
    for name, array in contents.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array)


def array_v0(shape: tuple[int, ...], data: bytes) -> bytes:
    return struct.pack(f"<I{len(shape)}I", len(shape), *shape) + struct.pack("<iii", 1, 0, 0) + data


def array_v1(shape: tuple[int, ...], data: bytes) -> bytes:
    head = struct.pack(f"<II{len(shape)}q", 0xF993FAC8, len(shape), *shape)
    return head + (struct.pack("<iii", 2, 3, 0) + data if shape else b"")


def params(*items: bytes, names: int | None = None) -> bytes:
    count = len(items) if names is None else names
    head = struct.pack("<QQQ", 0x112, 0, len(items)) + b"".join(items)
    return head + struct.pack("<Q", count) + b"".join(struct.pack("<Q", 1) + b"%d" % number for number in range(count))


NUMBERS = np.arange(6, dtype="<f4").reshape(2, 3)


@pytest.mark.parametrize("old", [array_v0, array_v1])
def test_older_headers(old: Any) -> None:
    """Before 0.12 and before 1.0, on a CPU or saved from a GPU; an array of no dimensions is none."""
    none = struct.pack("<I", 0) if old is array_v0 else old((), b"")
    read = read_params(params(old((2, 3), NUMBERS.tobytes()), none, old((2, 3), NUMBERS.tobytes())))

    np.testing.assert_array_equal(read["0"], NUMBERS)
    np.testing.assert_array_equal(read["2"], NUMBERS)
    assert read["1"].shape == (0,)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it ends at byte 0"),
        (b"x" * 30, "does not begin as an NDArray list"),
        (params(names=3) + b"", "0 arrays have 3 names"),
        (struct.pack("<QQQ", 0x112, 0, 2**60), "promises 1152921504606846976 items"),
        (params(struct.pack("<Iii", 0xF993FAC9, 1, 0)), "sparse array"),
        (params(struct.pack("<Iii", 0xF993FAC9, 0, 33)), "33 dimensions"),
        (params(struct.pack("<Iii", 0xF993FAC9, 0, -1)), "-1 dimensions"),
        (params(struct.pack("<Iiiq", 0xF993FAC9, 0, 1, -1)), r"shape \(-1,\)"),
        (params(struct.pack("<Iiiqiii", 0xF993FAC9, 0, 1, 1, 1, 0, 99)), "unknown type 99"),
        (params(struct.pack("<Iiiqqiii", 0xF993FAC9, 0, 2, 2**40, 2**40, 1, 0, 0)), "more were due"),
        (params(struct.pack("<Iiiqqqiii", 0xF993FACA, 0, 3, 0, 2**62, 2**62, 1, 0, 0)), "array of shape"),
    ],
)
def test_broken_files(content: bytes, sentence: str) -> None:
    """Nothing is reserved for what a file only promises."""
    with pytest.raises(BrokenParams, match=sentence):
        read_params(content)


@settings(max_examples=examples(100))
@given(data=st.data())
def test_any_damage_is_broken_params_or_arrays(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Never another exception."""
    path = tmp_path_factory.getbasetemp() / "damaged.params"
    write_params(path, {"weight": NUMBERS, "bias": np.zeros(()), "empty": np.zeros((0, 2))})
    content = bytearray(path.read_bytes())
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)
    ):
        content[position] = byte
    try:
        read_params(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except BrokenParams as error:
        assert str(error)  # noqa: PT017


# Reads with MXNet what we have written, and writes with MXNet what we shall read.
MXNET = """
import json, sys, warnings
warnings.simplefilter("ignore")
import mxnet as mx, numpy as np
from mxnet import npx

folder = sys.argv[1]
told = {name: [np.dtype(array.dtype).name, array.shape, array.asnumpy().tolist()]
        for name, array in mx.nd.load(folder + "/ours.params").items()}
values = {dtype: mx.nd.array([[0, 1, 1], [1, 0, 1]], dtype=dtype)
          for dtype in ("float32", "float64", "float16", "uint8", "int32", "int8", "int64")}
mx.nd.save(folder + "/v2.params", values)
npx.set_np()
told.update({"np " + name: [np.dtype(array.dtype).name, array.shape, array.asnumpy().tolist()]
             for name, array in npx.load(folder + "/ours-np.params").items()})
values = {"scalar": mx.np.array(5.0), "empty": mx.np.zeros((0, 3)), "matrix": mx.np.ones((2, 3)),
          "bool": mx.np.array([True, False], dtype=bool)}
npx.save(folder + "/v3.params", values)
print(json.dumps(told))
"""


@pytest.mark.mxnet
def test_mxnet_reads_ours_and_we_read_mxnets(tmp_path: Path) -> None:
    """Arrays of `mx.nd` (V2) and of `mx.np` (V3), which knows scalars and empty arrays."""
    ours = {dtype: np.array([[0, 1, 1], [1, 0, 1]], dtype) for dtype in DTYPES}
    ours_np = {"scalar": np.array(2.5, "f4"), "empty": np.zeros((0, 2), "f4"), "matrix": NUMBERS}
    write_params(tmp_path / "ours.params", ours)
    write_params(tmp_path / "ours-np.params", ours_np)
    command = [MXNET_PYTHON, "-c", MXNET, tmp_path]
    process = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    told = json.loads(process.stdout.splitlines()[-1])

    for name, array in {**ours, **{f"np {name}": array for name, array in ours_np.items()}}.items():
        assert told[name] == [array.dtype.name, list(array.shape), array.tolist()]
    read = read_params((tmp_path / "v2.params").read_bytes())
    assert {name: array.dtype.name for name, array in read.items()} == {name: name for name in read}
    assert len(read) == 7
    assert all(array.tolist() == [[0, 1, 1], [1, 0, 1]] for array in read.values())
    read = read_params((tmp_path / "v3.params").read_bytes())
    assert {name: array.shape for name, array in read.items()} == {
        "scalar": (), "empty": (0, 3), "matrix": (2, 3), "bool": (2,),
    }  # fmt: skip
    assert (read["scalar"], read["bool"].tolist()) == (5, [True, False])


def test_the_mxnet_environment_imports_our_tree() -> None:
    """What is tested there is what is tested here."""
    command = [
        MXNET_PYTHON if MXNET_PYTHON.exists() else sys.executable,
        "-c",
        "import polyhost_handlers as p; print(p.__file__)",
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.startswith(str(ROOT))
