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
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from polyhost_handlers.xgboost_releases import ROUNDS_ARE_KNOWN


def predictor_of(booster: Any) -> Predictor:
    """The fastest right way to ask `booster`, as `load_booster` loads it."""
    return TreePredictor(booster) if booster.kind == "gbtree" else Predictor(booster)


def _rounds_of(booster: Any) -> tuple[int, int]:
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
    """Any booster, any rows."""

    def __init__(self, booster: Any) -> None:
        self._booster = booster
        self._rounds = _rounds_of(booster)
        self._starts = booster.starts

    def predict_row(self, values: list[float]) -> float | None:  # noqa: ARG002 - for those that can do better
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
        return self._matrix_of(1)

    def _matrix_of(self, rows: int) -> Any:
        from xgboost.core import _ProxyDMatrix

        matrix = _ProxyDMatrix()
        if self._starts is not None:
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

    def predict_row(self, values: list[float]) -> float | None:
        """The one number that answers a row; None where it is not that simple, and `predict` will say why."""
        try:
            self._pack_row(*values)
        except (struct.error, OverflowError):  # more or fewer features, or one beyond float32
            return None
        if math.inf in values or -math.inf in values or self._ask_one_row() or self._dimensions.value != 1:
            return None
        return float(ctypes.c_float.from_address(self._result.value or 0).value) if self._shape[0] == 1 else None

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
