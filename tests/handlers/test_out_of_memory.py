"""Every library really runs out of memory, at load and at predict: each time a MemoryError, which is 507."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MXNET_PYTHON

CASES = Path(__file__).with_name("out_of_memory_cases.py")


def told(python: object, folder: Path, *which: str) -> dict[str, list[list[str]]]:
    # The limits must mean the same in each run. Memory that is freed goes back at once. There is one arena: another,
    # for threads that meet in malloc, would reserve 64 MiB of addresses, which the limit counts as taken already.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    environ = {**os.environ, **malloc, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.run([python, CASES, folder, *which], capture_output=True, text=True, check=False, env=environ)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    return told(sys.executable, tmp_path_factory.mktemp("short"))


@pytest.mark.parametrize("when", ["load", "predict"])
@pytest.mark.parametrize("library", ["xgboost", "onnx", "sklearn"])
def test_no_memory_is_a_memory_error(library: str, when: str, raised: dict[str, list[list[str]]]) -> None:
    """
    Whatever the library calls it, and wherever in it memory ends; with a little more there may be enough.
    """
    kinds = [kind for kind, _ in raised[f"{library} {when}"]]

    assert "MemoryError" in kinds[0], raised
    assert all("MemoryError" in kind or kind == "nothing" for kind in kinds), raised


def test_with_memory_there_is_none(raised: dict[str, list[list[str]]]) -> None:
    """
    The same process, the same load, more room.
    """
    assert raised["room"] == [["nothing", ""]]


@pytest.mark.mxnet
def test_no_memory_in_mxnet(tmp_path: Path) -> None:
    """
    Its network reserves, while it is loaded, what the declared shape takes.
    """
    raised = told(MXNET_PYTHON, tmp_path, "mxnet")

    for kind, text in raised["mxnet load"]:
        assert kind == "MemoryError", raised
        assert "Failed to allocate CPU Memory" in text
    assert raised["room"] == [["nothing", ""]]
