"""
What XGBoost's releases write differently from the one that is installed, and what is done about it.

* Newer than `NEWEST_KNOWN`: refused, for nobody has compared their predictions with ours.
* 3.1 and later: `base_score` is a list, which 3.0 takes for 0.5. What a prediction begins with is given to XGBoost
  with each request instead (its `base_margin`); that also serves several classes, targets and quantiles.
* 1.0 to 1.2, binary:logitraw: these releases began with the logit of `base_score`, later ones with itself.
* Before 1.6: no model said how many trees a round has, so the rounds of a forest are counted by its trees.
* Before 2.0: a model without trees did not say that it has no rounds. 3.0 loads it and then fails at each prediction.
* Before 2.1, reg:gamma: it had no parameters, and 3.0 reads no model without them.
"""

from __future__ import annotations

import ctypes
import functools
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyhost_handlers.xgboost_ubjson import BrokenModel

Release = tuple[int, ...]

# The newest release whose models are compared with ours, bit for bit (tests/data/xgboost).
NEWEST_KNOWN: Release = (3, 2)
_LISTS_BASE_SCORES: Release = (3, 1)
# From here on, what is written of trees is the same in each release.
WRITES_AS_NOW: Release = (2, 1)
ROUNDS_ARE_KNOWN: Release = (1, 6)


@dataclass(frozen=True)
class Learner:
    """What a model says about itself. `release` is () where it does not tell, as none did before 1.0."""

    booster: str
    objective: str
    release: Release
    # More than one where classes or targets begin differently.
    base_scores: tuple[float, ...]
    # How many numbers a row's prediction takes before the objective makes an answer of them.
    groups: int
    # Whether it has no trees, and does not say either that it has no rounds.
    lacks_rounds: bool = False


def written(release: Release) -> str:
    return ".".join(map(str, release))


def base_scores_of(text: str) -> tuple[float, ...]:
    """`5E-1` or `[6.3E-2,-2.3E-1]`."""
    return tuple(float(number) for number in text.strip("[] ").split(",") if number.strip())


def starts_of(learner: Learner) -> np.ndarray[Any, Any] | None:
    """
    What each row's prediction begins with, shape (groups,); None where the installed XGBoost knows it.

    Raises BrokenModel.
    """
    if learner.objective == "binary:logitraw" and (1, 0) <= learner.release < (1, 3):
        return _logit(_filled(learner.base_scores, learner.groups))
    if learner.release < _LISTS_BASE_SCORES:
        return None
    return margins_of(learner)


def margins_of(learner: Learner) -> np.ndarray[Any, Any]:
    """
    What each row's prediction begins with by the rules of the learner's own release, shape (groups,).

    Raises BrokenModel.
    """
    # gblinear takes the first of several scores for all its outputs.
    scores = learner.base_scores[:1] if learner.booster == "gblinear" else learner.base_scores
    starts = _link_of(learner)(_filled(scores, learner.groups))
    if np.isnan(starts).any():
        raise BrokenModel(f"its base_score is out of range for {learner.objective}")
    return starts


def _filled(scores: Sequence[float], groups: int) -> np.ndarray[Any, Any]:
    if len(scores) not in (1, groups):
        raise BrokenModel(f"its base_score has {len(scores)} numbers for {groups} outputs")
    return np.broadcast_to(np.array(scores, np.float32), (groups,))


Link = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def _link_of(learner: Learner) -> Link:
    """How an objective makes of a base score what its trees add to: XGBoost's `ProbToMargin`."""
    objective = learner.objective
    kind, _, loss = objective.partition(":")
    if objective in ("binary:logistic", "reg:logistic"):
        return _logit if learner.release < (3, 2) else _clipped_logit
    if objective in ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"):
        return _logarithm
    if kind in ("multi", "rank") or (kind, loss) in _PLAIN_LOSSES:
        return lambda scores: scores
    raise BrokenModel(f"its objective {objective} is not known here")


_PLAIN_LOSSES = (
    ("binary", "logitraw"),
    ("binary", "hinge"),
    ("reg", "linear"),
    ("reg", "squarederror"),
    ("reg", "squaredlogerror"),
    ("reg", "pseudohubererror"),
    ("reg", "absoluteerror"),
    ("reg", "quantileerror"),
)


def _logit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with np.errstate(divide="ignore"):
        return -_logarithm(np.float32(1) / values - np.float32(1))


def _clipped_logit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As of 3.2, which trains on rows of one class only too."""
    least = np.float32(1e-6)
    return _logit(values.clip(least, np.float32(1) - least))


def _logarithm(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """By the C library's `logf`, as XGBoost computes it: numpy's own differs in the last bit."""
    return np.array([_logf()(float(value)) for value in values], np.float32)


@functools.cache
def _logf() -> Callable[[float], float]:
    logf = ctypes.CDLL(None).logf  # of this process: Python itself is linked with it
    logf.restype, logf.argtypes = ctypes.c_float, [ctypes.c_float]
    return logf


_GAMMA = b'{"name":"reg:gamma"}'
_GAMMA_WITH_PARAMETERS = b'{"name":"reg:gamma","reg_loss_param":{"scale_pos_weight":"1"}}'
_GAMMA_IN_JSON = re.compile(rb'"objective"\s*:\s*\{\s*"name"\s*:\s*"reg:gamma"\s*\}')


def with_gamma_parameters(data: bytes) -> bytes:
    """
    A model of reg:gamma with the parameters that its objective has since 2.1; `data` itself if it has them.

    Check the result again: the same bytes may stand in a text that says how long it is.
    """
    if data.startswith(b"{L"):
        return data.replace(_ubjson_object(_GAMMA_NAME), _ubjson_object(_GAMMA_NAME + _GAMMA_PARAMETERS))
    if data.startswith(b"{"):
        return _GAMMA_IN_JSON.sub(b'"objective":' + _GAMMA_WITH_PARAMETERS, data)
    return data.replace(_counted(_GAMMA), _counted(_GAMMA_WITH_PARAMETERS))


def _counted(text: bytes) -> bytes:
    """A text in the old binary format."""
    return struct.pack("<Q", len(text)) + text


def _ubjson_text(text: bytes) -> bytes:
    return b"L" + struct.pack(">q", len(text)) + text


def _ubjson_object(members: bytes) -> bytes:
    return _ubjson_text(b"objective") + b"{" + members + b"}"


_GAMMA_NAME = _ubjson_text(b"name") + b"S" + _ubjson_text(b"reg:gamma")
_GAMMA_PARAMETERS = (
    _ubjson_text(b"reg_loss_param") + b"{" + _ubjson_text(b"scale_pos_weight") + b"S" + _ubjson_text(b"1") + b"}"
)
