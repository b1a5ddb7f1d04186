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


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("xgboost load", "std::bad_alloc"),
        ("xgboost predict", "std::bad_alloc"),
        ("compiled predict", "Unable to allocate"),
        ("onnx load", "std::bad_alloc"),
        ("onnx predict", "Failed to allocate memory for requested buffer"),
        ("sklearn load", "Unable to allocate"),
        ("sklearn predict", "Unable to allocate"),
    ],
)
def test_no_memory_is_a_memory_error(case: str, words: str, raised: dict[str, list[list[str]]]) -> None:
    """Wherever memory ends, and whatever the library calls it (`words`). With enough of it, nothing is raised."""
    check(raised[case], words)


@pytest.mark.mxnet
def test_no_memory_in_mxnet(tmp_path: Path) -> None:
    """Its network reserves, while it is loaded, what the declared shape takes."""
    check(told(MXNET_PYTHON, tmp_path, "mxnet")["mxnet load"], "Failed to allocate CPU Memory")


def check(raised: list[list[str]], words: str) -> None:
    *short, enough = raised

    assert short, raised
    assert all("MemoryError" in kind for kind, _ in short), raised
    assert any(words in text for _, text in short), raised
    assert enough == ["nothing", ""], raised
