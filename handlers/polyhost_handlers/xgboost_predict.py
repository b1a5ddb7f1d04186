"""
Prediction of dense rows through XGBoost's public C API.

For a single row the Python wrapper costs several times what the booster does. `XGBoosterPredictFromDense` answers
bit by bit what the wrapper answers; boosters that it does not serve (gblinear) go through a DMatrix.

Where the installed XGBoost would begin elsewhere than the release that wrote the model, each row is given its start.
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from polyhost_handlers.compiled.library import DamagedBlob, library
from polyhost_handlers.compiled.rows import Way
from polyhost_handlers.compiled.trees import CompiledTrees
from polyhost_handlers.xgboost_compiler import NotCompiled, compiled_blob
from polyhost_handlers.xgboost_releases import ROUNDS_ARE_KNOWN

logger = logging.getLogger("polyhost.handlers")


# Numbers and commas alone. What else may stand in a row goes the long way, which says what is wrong with it.
_NUMBER = rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_PLAIN_ROW = re.compile(rb"%b(?:,%b)*\n?" % (_NUMBER, _NUMBER))
_EXPANDED_BYTES = 4 * 1024**2
_SAMPLE_ROWS = 16
# Arrays for rows of models with at most so many features are kept for the next call: 64 KB at most.
_FEW_FEATURES = 1024


def predictor_of(booster: Any) -> Predictor:
    """
    The fastest right way to ask `booster`, as `load_booster` loads it.

    Compiled trees do not need the booster any more. They are used where they answer a sample of rows as it does.
    """
    by_xgboost = TreePredictor(booster) if booster.kind == "gbtree" else Predictor(booster)
    if library is None:
        by_xgboost.way = Way(is_compiled=False, why_not="the library in C was not built with Polyhost")
        return by_xgboost
    try:
        compiled = CompiledPredictor(CompiledTrees(compiled_blob(booster, rounds_of(booster))))
    except (NotCompiled, DamagedBlob) as reason:
        by_xgboost.way = Way(is_compiled=False, why_not=str(reason))
        return by_xgboost
    finally:
        booster.written = None  # it is large, and was needed for this alone
    if not _answers_alike(compiled, by_xgboost, sample_rows(int(booster.num_features()))):
        logger.error("the compiled model differs from XGBoost, which answers instead: please report it")
        by_xgboost.way = Way(is_compiled=False, why_not="what was compiled differs from XGBoost", has_differed=True)
        return by_xgboost
    return compiled


def sample_rows(features: int) -> np.ndarray[Any, Any]:
    """Rows of all magnitudes, missing values among them; always the same ones, float32, not to be written."""
    return _few_sample_rows(features) if features <= _FEW_FEATURES else _new_sample_rows(features)


def _new_sample_rows(features: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(features)
    rows = random.normal(size=(_SAMPLE_ROWS, features)) * 10.0 ** random.integers(-2, 4, size=(_SAMPLE_ROWS, 1))
    rows[random.random(rows.shape) < 0.1] = math.nan
    return rows.astype(np.float32)


_few_sample_rows = functools.lru_cache(maxsize=64)(_new_sample_rows)


def _answers_alike(one: Predictor, other: Predictor, rows: np.ndarray[Any, Any]) -> bool:
    answers = one.predict(rows), other.predict(rows)
    return answers[0].shape == answers[1].shape and answers[0].tobytes() == answers[1].tobytes()


def rounds_of(booster: Any) -> tuple[int, int]:
    """The rounds to predict with: up to the best where training stopped early; (0, 0) is all."""
    best = booster.attr("best_iteration")
    if best is None or not best.isdigit():
        return 0, 0
    end = int(best) + 1
    limit = booster.attr("best_ntree_limit")
    if booster.release < ROUNDS_ARE_KNOWN and limit is not None and limit.isdigit():
        end = int(limit)  # XGBoost takes each tree of a forest for a round
    return 0, min(end, int(booster.num_boosted_rounds()))


class Predictor:
    """Any booster, any rows. `way`: why it was not compiled."""

    way = Way(is_compiled=False)

    def __init__(self, booster: Any) -> None:
        self._booster = booster
        self._rounds = rounds_of(booster)
        self._starts = booster.starts

    def predict_csv_row(self, body: bytes) -> float | None:  # noqa: ARG002 - for those that can do better
        """The finite number that answers a row of CSV; None where it is not so simple: `predict` will say why."""
        return None

    def predict(self, rows: Any) -> np.ndarray[Any, Any]:
        """`rows`: shape (rows, features), dense or csr. The answer: (rows,) or (rows, classes), float32."""
        import xgboost

        matrix = xgboost.DMatrix(rows, nthread=1, base_margin=self._starts_of(rows.shape[0]))
        prediction: np.ndarray[Any, Any] = self._booster.predict(
            matrix, iteration_range=self._rounds, validate_features=False,
        )  # fmt: skip
        return prediction

    def _starts_of(self, rows: int) -> np.ndarray[Any, Any] | None:
        """What the predictions of so many rows begin with, a column for each output."""
        return None if self._starts is None else np.tile(self._starts, (rows, 1))


class TreePredictor(Predictor):
    """Dense rows without the wrapper."""

    def __init__(self, booster: Any) -> None:
        super().__init__(booster)
        from xgboost.core import _LIB, _check_call

        self._call = _LIB.XGBoosterPredictFromDense
        self._check = _check_call
        self._config = _config_of(*self._rounds)
        self._handle = booster.handle
        # Where the C API writes what it answers; the memory behind `_result` stays the booster's.
        self._shape = ctypes.POINTER(ctypes.c_uint64)()
        self._dimensions = ctypes.c_uint64()
        self._result = ctypes.c_void_p()
        self._answer = (ctypes.byref(self._shape), ctypes.byref(self._dimensions), ctypes.byref(self._result))

    # What every call would otherwise make anew is made at the first: a load need not wait for it.

    @functools.cached_property
    def _matrix(self) -> Any:
        """What XGBoost takes for a matrix of the rows: of one row, or of any number where it knows their starts."""
        return _matrix_of_any() if self._starts is None else self._matrix_of(1)

    def _matrix_of(self, rows: int) -> Any:
        matrix = _new_matrix()
        matrix.set_info(base_margin=self._starts_of(rows))
        return matrix

    @functools.cached_property
    def _one_row(self) -> tuple[np.ndarray[Any, Any], bytes]:
        """Room for a row, and its address as XGBoost reads it."""
        row = np.empty((1, self._booster.num_features()), np.float32)
        return row, _interface_of(row)

    @functools.cached_property
    def _ask_one_row(self) -> Callable[[], int]:
        _, interface = self._one_row
        arguments = (self._handle, interface, self._config, self._matrix.handle, *self._answer)
        return functools.partial(self._call, *arguments)

    @functools.cached_property
    def _pack_row(self) -> Callable[..., None]:
        row, _ = self._one_row
        return functools.partial(struct.Struct(f"={row.size}f").pack_into, row.data, 0)

    def predict_csv_row(self, body: bytes) -> float | None:
        if not _PLAIN_ROW.fullmatch(body):
            return None
        values = list(map(float, body.split(b",")))
        try:
            self._pack_row(*values)
        except (struct.error, OverflowError):  # more or fewer features, or one beyond float32
            return None
        if math.inf in values or -math.inf in values or self._ask_one_row() or self._dimensions.value != 1:
            return None
        value = float(ctypes.c_float.from_address(self._result.value or 0).value)
        return value if self._shape[0] == 1 and math.isfinite(value) else None

    def predict(self, rows: Any) -> np.ndarray[Any, Any]:
        if not isinstance(rows, np.ndarray):
            return super().predict(rows)
        with np.errstate(over="ignore"):
            dense, interface = self._one_row
            if rows.shape == dense.shape:
                dense[:] = rows
            else:
                dense = np.ascontiguousarray(rows, dtype=np.float32)
                interface = _interface_of(dense)
        if np.isinf(dense).any():  # a DMatrix refuses it, this call does not look
            raise ValueError("Input data contains `inf`")
        matrix = self._matrix if self._starts is None or len(dense) == 1 else self._matrix_of(len(dense))
        self._check(self._call(self._handle, interface, self._config, matrix.handle, *self._answer))
        shape = self._shape[: self._dimensions.value]
        # Copied: the booster writes its next answer to the same place.
        answer = ctypes.string_at(self._result.value or 0, 4 * math.prod(shape))
        return np.frombuffer(answer, np.float32).reshape(shape)


def _new_matrix() -> Any:
    from xgboost.core import _ProxyDMatrix

    return _ProxyDMatrix()


# Each call gives it that call's rows, and nothing stays of them.
_matrix_of_any = functools.cache(_new_matrix)


class CompiledPredictor(Predictor):
    """Trees that were compiled: the booster is not needed."""

    way = Way(is_compiled=True)

    def __init__(self, trees: CompiledTrees) -> None:
        self._trees = trees

    def predict_csv_row(self, body: bytes) -> float | None:
        return self._trees.predict_csv_row(body)

    def blob(self) -> bytes:
        return self._trees.blob()

    def predict(self, rows: Any) -> np.ndarray[Any, Any]:
        if rows.shape[1] != self._trees.features:
            raise ValueError(
                f"Feature shape mismatch, expected: {self._trees.features}, got {rows.shape[1]}"
            )  # as XGBoost says it
        if isinstance(rows, np.ndarray):
            return self._predict(rows)
        some = max(1, _EXPANDED_BYTES // (4 * self._trees.features))
        parts = [self._predict(_expanded(rows[first : first + some])) for first in range(0, rows.shape[0], some)]
        return np.concatenate(parts)

    def _predict(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with np.errstate(over="ignore"):
            dense = np.ascontiguousarray(rows, np.float32)
        if np.isinf(dense).any():
            raise ValueError("Input data contains `inf`")
        return self._trees.predict(dense)


def _expanded(rows: Any) -> np.ndarray[Any, Any]:
    """Sparse rows as dense ones, in which what is not there is missing."""
    dense = np.full(rows.shape, math.nan, np.float32)
    counts = np.diff(rows.indptr)
    with np.errstate(over="ignore"):
        dense[np.arange(rows.shape[0]).repeat(counts), rows.indices] = rows.data
    return dense


def _interface_of(dense: np.ndarray[Any, Any]) -> bytes:
    address = dense.__array_interface__["data"][0]
    return b'{"data":[%d,true],"shape":[%d,%d],"typestr":"<f4","version":3}' % (address, *dense.shape)


@functools.lru_cache
def _config_of(first_round: int, end_round: int) -> bytes:
    return json.dumps(
        {
            "type": 0,
            "training": False,
            "iteration_begin": first_round,
            "iteration_end": end_round,
            "missing": math.nan,
            "strict_shape": False,
            "cache_id": 0,
        },
    ).encode()
