"""The library in C, built with the address and undefined-behaviour sanitizers, under blobs and bodies of malice."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from conftest import ROOT
from polyhost_handlers.compiled.library import FILE, library
from polyhost_handlers.xgboost_artifact import load_booster
from polyhost_handlers.xgboost_compiler import compiled_blob
from support.forms import by_form

COMPILER = shutil.which("gcc")
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-ffp-contract=off", "-std=c11", "-O1", "-g")
_ADDR_NO_RANDOMIZE = 0x0040000  # <sys/personality.h>
KINDS: dict[str, dict[str, Any]] = {
    "number": {"objective": "reg:squarederror"},
    "chances": {"objective": "multi:softprob", "num_class": 3},
    "linear": {"objective": "multi:softprob", "num_class": 3, "booster": "gblinear"},
    "class of dart": {"objective": "multi:softmax", "num_class": 3, "booster": "dart"},
}


@pytest.fixture(scope="module")
def sanitizer() -> str:
    """The library that must be loaded before all others."""
    if library is None or COMPILER is None:
        pytest.skip("there is no gcc")
    found = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    file = found.stdout.strip()
    if not Path(file).is_absolute():
        pytest.skip("gcc has no address sanitizer here")
    return file


@pytest.fixture(scope="module")
def sanitized(sanitizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert sanitizer
    assert COMPILER is not None
    target = tmp_path_factory.mktemp("sanitized") / "libtrees.so"
    source = FILE.with_name("trees.c")
    subprocess.run([COMPILER, *FLAGS, "-fPIC", "-shared", "-o", str(target), str(source), "-lm"], check=True)
    return target


def blob_of(parameters: dict[str, Any], folder: Path) -> bytes:
    chosen = np.random.default_rng(3)
    rows = chosen.normal(size=(80, 4))
    rows[:, 0] = chosen.integers(0, 40, size=len(rows))
    is_linear = parameters.get("booster") == "gblinear"
    types = ["q" if is_linear else "c", "q", "q", "q"]
    matrix = xgboost.DMatrix(rows, rows[:, 0] % 3, feature_types=types, enable_categorical=True)
    model = xgboost.train({"nthread": 1, **({} if is_linear else {"max_depth": 3}), **parameters}, matrix, 3)
    file = folder / "model"
    file.write_bytes(model.save_raw("ubj"))
    return compiled_blob(load_booster(file), (0, 0)).tobytes()


def run(program: list[str], sanitizer: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ, "LD_PRELOAD": sanitizer, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{ROOT / 'handlers'}:{ROOT / 'tests' / 'handlers'}",
    }  # fmt: skip
    # With the kernel's widest range of random addresses the sanitizer's own memory is sometimes taken already.
    keep_addresses = functools.partial(ctypes.CDLL(None).personality, _ADDR_NO_RANDOMIZE)
    return subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, check=False, env=environ,
        preexec_fn=keep_addresses,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_beside_blobs_and_bodies(kind: str, sanitizer: str, sanitized: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(blob_of(KINDS[kind], tmp_path))
    count = by_form(short=1500, long=60_000)

    done = run(["-m", "sanitized", str(sanitized), str(tmp_path / "blob"), str(count)], sanitizer)

    assert done.returncode == 0, done.stderr[-3000:]
    refused, used, answered = json.loads(done.stdout)
    assert refused + used == count
    assert min(refused, used, answered) > count // 50


def test_the_sanitizer_sees_a_byte_too_many(sanitizer: str, sanitized: Path) -> None:
    """Otherwise the test above could not fail."""
    program = f"""
from pathlib import Path
from polyhost_handlers.compiled.library import Library
from sanitized import Area
with Area(bytes(100)) as address:
    Library(Path({str(sanitized)!r})).checksum(address, 104)
"""
    done = run(["-c", program], sanitizer)

    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
