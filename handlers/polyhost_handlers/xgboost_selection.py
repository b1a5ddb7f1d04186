"""
SAGEMAKER_INFERENCE_OUTPUT: which parts of an XGBoost prediction the answer holds.

The meaning of each key follows AWS's documentation of selectable inference content; a key that an objective
does not have is NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyhost_handlers.errors import HandlerError

_REGRESSIONS = (
    "reg:squarederror",
    "reg:linear",
    "reg:absoluteerror",
    "reg:squaredlogerror",
    "reg:pseudohubererror",
    "reg:logistic",
    "reg:gamma",
    "reg:tweedie",
    "count:poisson",
)
_SCORED = ("predicted_label", "labels", "raw_score", "raw_scores")
_KEYS = {
    **dict.fromkeys(_REGRESSIONS, ("predicted_score",)),
    "binary:logistic": (*_SCORED, "probability", "probabilities"),
    "binary:logitraw": _SCORED,
    "binary:hinge": _SCORED,
    "multi:softmax": _SCORED,
    "multi:softprob": (*_SCORED, "probability", "probabilities"),
}


def select(prediction: np.ndarray[Any, Any], keys: list[str], objective: str, classes: int) -> list[dict[str, Any]]:
    """One dict of `keys` per row. Raises HandlerError for an objective without selectable content."""
    if objective not in _KEYS:
        raise HandlerError(f"SAGEMAKER_INFERENCE_OUTPUT knows no content for the objective {objective}.")
    return [
        {key: _value(key, row, objective, classes) if key in _KEYS[objective] else math.nan for key in keys}
        for row in prediction
    ]


def _value(key: str, row: Any, objective: str, classes: int) -> Any:
    if key == "predicted_label":
        return _label(row, objective)
    if key == "labels":
        return [0, 1] if objective.startswith("binary:") else list(range(classes))
    if key in ("probability", "raw_score", "predicted_score"):
        return float(np.max(row))
    if objective == "multi:softprob":
        return row.tolist()
    return [1.0 - float(row), float(row)]


def _label(row: Any, objective: str) -> float | int:
    if objective == "multi:softprob":
        return int(np.argmax(row))
    if objective == "binary:logistic":
        return int(row > 0.5)
    if objective == "binary:logitraw":
        return int(row > 0)
    return float(row)
