"""
One row of floats for a booster, by C functions called through ctypes: `python -m benchmarks.rows BOOSTER`.

Prints microseconds for a row, by Polyhost's library and, where the Python package treelite is installed, by Treelite's.
"""

from __future__ import annotations

import ctypes
import json
import sys
import timeit
from collections.abc import Callable
from pathlib import Path

import numpy as np
from polyhost_handlers.compiled.library import library
from polyhost_handlers.xgboost_artifact import load_booster
from polyhost_handlers.xgboost_compiler import compiled_blob

from benchmarks.artifacts import ROW

Floats = np.ndarray[tuple[int], np.dtype[np.float32]]
_CALLS, _ROUNDS = 20_000, 5


def main(file: Path) -> None:
    row = np.array(ROW, np.float32)
    answers = {name: np.zeros(1, np.float32) for name in ("own", "treelite")}
    found = {"own": own(file, row, answers["own"]), "treelite": treelite(file, row, answers["treelite"])}
    told = {name: microsecs(call) for name, call in found.items() if call is not None}
    if len({f"{float(answers[name][0]):.5g}" for name in told}) > 1:
        raise SystemExit(f"the answers differ: {answers}")
    print(json.dumps(told))


def own(file: Path, row: Floats, answer: Floats) -> Callable[[], object] | None:
    if library is None:
        return None
    blob = compiled_blob(load_booster(file), (0, 0))
    predict, places = library.predict, (blob.ctypes.data, row.ctypes.data, 1, answer.ctypes.data)
    return lambda _kept=(blob, row, answer): predict(*places)


def treelite(file: Path, row: Floats, answer: Floats) -> Callable[[], object] | None:
    """Its General Tree Inference Library; the compiler that it once had is a package of its own, and wants gcc."""
    try:
        from treelite import frontend
        from treelite.core import _LIB
        from treelite.gtil.gtil import GTILConfig
    except ImportError:
        return None
    model = frontend.load_xgboost_model(file, format_choice="ubjson")
    config = GTILConfig(nthread=1, predict_type="default")
    places = (
        model.handle, ctypes.c_void_p(row.ctypes.data), ctypes.c_char_p(b"float32"), ctypes.c_uint64(1),
        ctypes.c_void_p(answer.ctypes.data), config.handle,
    )  # fmt: skip
    return lambda _kept=(model, row, answer, config): _LIB.TreeliteGTILPredict(*places)


def microsecs(call: Callable[[], object]) -> float:
    """The least of some rounds: what else the machine does only adds to it."""
    return min(timeit.repeat(call, number=_CALLS, repeat=_ROUNDS)) / _CALLS * 1e6


if __name__ == "__main__":
    main(Path(sys.argv[1]))
