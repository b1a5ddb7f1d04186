"""
XGBoost's boosters, compiled: flat nodes or weights that compiled/trees.c predicts with, bit for bit as XGBoost does.

A booster of an old release or another format is written out once more by the installed XGBoost, so that there is one
form to read. What cannot be computed exactly is not compiled.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyhost_handlers.compiled.trees import Description, Nodes, Transform, blob_of, linear_blob_of, sealed
from polyhost_handlers.xgboost_artifact import Written, installed_release
from polyhost_handlers.xgboost_releases import Learner, base_scores_of, margins_of
from polyhost_handlers.xgboost_ubjson import Array, Trees, read_ubjson, values_of

_TRANSFORMS = {
    "reg:squarederror": Transform.IDENTITY,
    "reg:linear": Transform.IDENTITY,
    "reg:squaredlogerror": Transform.IDENTITY,
    "reg:pseudohubererror": Transform.IDENTITY,
    "reg:absoluteerror": Transform.IDENTITY,
    "reg:quantileerror": Transform.IDENTITY,
    "reg:logistic": Transform.SIGMOID,
    "binary:logistic": Transform.SIGMOID,
    "binary:logitraw": Transform.IDENTITY,
    "binary:hinge": Transform.HINGE,
    "count:poisson": Transform.EXPONENTIAL,
    "reg:gamma": Transform.EXPONENTIAL,
    "reg:tweedie": Transform.EXPONENTIAL,
    "survival:cox": Transform.EXPONENTIAL,
    "survival:aft": Transform.EXPONENTIAL_OF_DOUBLE,
    "multi:softprob": Transform.SOFTMAX,
    "multi:softmax": Transform.LARGEST,
    "rank:pairwise": Transform.IDENTITY,
    "rank:ndcg": Transform.IDENTITY,
    "rank:map": Transform.IDENTITY,
}


# Compiled trees read rows that have every feature, 4 bytes each. Models of more features (hashed words) are asked with
# sparse rows, which would take megabytes each.
MOST_FEATURES = 2**16


class NotCompiled(Exception):
    """Why a booster stays with XGBoost."""


def compiled_blob(booster: Any, rounds: tuple[int, int]) -> Array:
    """
    The sealed blob of a booster as `load_booster` makes it, uint8.

    `rounds`: those to predict with; (0, 0) is all. Raises NotCompiled.
    """
    try:
        return _blob_of(booster.written or _written_anew(booster), booster.starts, rounds)
    except _UNREADABLE as error:
        raise NotCompiled(f"it is not written as is known here ({type(error).__name__}: {error})") from error


def _written_anew(booster: Any) -> Written:
    data = bytes(booster.save_raw("ubj"))
    return Written(data, read_ubjson(data))


# What a damaged document may raise: XGBoost loads some that it should not.
_UNREADABLE = (ValueError, LookupError, TypeError, OverflowError, struct.error)


def _blob_of(written: Written, starts: Array | None, rounds: tuple[int, int]) -> Array:
    learner = written.document["learner"]
    objective = bytes(learner["objective"]["name"]).decode()
    if objective not in _TRANSFORMS:
        raise NotCompiled(f"its objective {objective} is not one that is compiled")
    gradient_booster = learner["gradient_booster"]
    if bytes(gradient_booster["name"]) == b"gblinear":
        return _linear_blob(gradient_booster["model"], _parameters_of(learner), starts, objective)
    weights = None
    if bytes(gradient_booster["name"]) == b"dart":
        weights = np.asarray(gradient_booster["weight_drop"], np.float32)
        gradient_booster = gradient_booster["gbtree"]
    if "trees" not in gradient_booster["model"]:
        raise NotCompiled("it has no trees")
    return _blob(gradient_booster["model"], _parameters_of(learner), written.data, starts, objective, weights, rounds)


def _parameters_of(learner: Mapping[str, Any]) -> dict[str, str]:
    return {name: bytes(value).decode() for name, value in learner["learner_model_param"].items()}


def _linear_blob(
    model: Mapping[str, Any], parameters: Mapping[str, str], starts: Array | None, objective: str
) -> Array:
    if platform.machine() != "x86_64":  # where a compiler may have made one rounding of two
        raise NotCompiled("linear boosters are compiled on x86-64 alone")
    features, groups = _shape_of(parameters)
    weights = np.asarray(model["weights"], np.float32)
    if not len(weights):
        raise NotCompiled("it has no weights")
    by_feature = weights.reshape(features + 1, groups)
    if starts is None:
        starts = _margins(parameters, groups, objective, "gblinear")
    # The last row's are the bias, which XGBoost adds to the base score first.
    return sealed(linear_blob_of(by_feature[:-1], by_feature[-1] + np.float32(starts), _TRANSFORMS[objective]))


def _shape_of(parameters: Mapping[str, str]) -> tuple[int, int]:
    """How many features, and how many numbers a prediction takes before it is transformed."""
    features = int(parameters["num_feature"])
    if features > MOST_FEATURES:
        raise NotCompiled(f"it has {features} features, more than {MOST_FEATURES}")
    return features, max(1, int(parameters["num_class"]), int(parameters["num_target"]))


def _blob(
    model: Mapping[str, Any],
    parameters: Mapping[str, str],
    data: bytes,
    starts: Array | None,
    objective: str,
    weights: Array | None,
    rounds: tuple[int, int],
) -> Array:
    features, groups = _shape_of(parameters)
    count = _tree_count(model, rounds)
    nodes = _nodes_of(model["trees"], count, data)
    if not len(nodes.sizes):
        raise NotCompiled("it has no trees")
    inner = nodes.left >= 0
    if bool((nodes.right[inner] != nodes.left[inner] + 1).any()):
        raise NotCompiled("the children of a split do not stand side by side")
    description = Description(
        features=features,
        groups=np.asarray(model["tree_info"][:count], np.uint32),
        weights=None if weights is None else weights[:count],
        starts=_margins(parameters, groups, objective, "gbtree") if starts is None else np.asarray(starts, np.float32),
        transform=_TRANSFORMS[objective],
    )
    return sealed(blob_of(nodes, description))


def _tree_count(model: Mapping[str, Any], rounds: tuple[int, int]) -> int:
    """How many of the trees predict; they are the first ones."""
    ends = np.asarray(model["iteration_indptr"])
    return int(ends[rounds[1]]) if rounds[1] else len(model["trees"])


def _margins(parameters: Mapping[str, str], groups: int, objective: str, booster: str) -> Array:
    """What a prediction begins with, in the way of the installed XGBoost."""
    learner = Learner(booster, objective, installed_release(), base_scores_of(parameters["base_score"]), groups)
    return margins_of(learner)


def _nodes_of(trees: Trees | Sequence[Mapping[str, Any]], count: int, data: bytes) -> Nodes:
    """The nodes of the first `count` trees."""
    if isinstance(trees, Trees):
        sizes = trees.sizes[:count]
        end = int(sizes.sum())
        left, right, _, features = trees.nodes[:, :end]
        thresholds, default_left = values_of(trees, data)
        return Nodes(sizes, left, right, features, thresholds[:end], default_left[:end], {})
    some = trees[:count]
    sizes = np.array([len(tree["left_children"]) for tree in some], np.int64)
    if any(int(tree["tree_param"]["size_leaf_vector"]) > 1 for tree in some):
        raise NotCompiled("its leaves are vectors")
    left, right, features, thresholds, default_left = (
        np.concatenate([np.asarray(tree[name]) for tree in some]) if some else np.zeros(0)
        for name in ("left_children", "right_children", "split_indices", "split_conditions", "default_left")
    )
    begins = (sizes.cumsum() - sizes).tolist()
    categories = {
        begin + node: chosen
        for begin, tree in zip(begins, some, strict=True)
        for node, chosen in _categories_of(tree).items()
    }
    return Nodes(
        sizes, left.astype(np.int32), right.astype(np.int32), features.astype(np.int32),
        thresholds.astype(np.float32), default_left.astype(np.uint8), categories,
    )  # fmt: skip


def _categories_of(tree: Mapping[str, Any]) -> dict[int, Array]:
    """The categories that go to the right, by node."""
    segments = zip(tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True)
    every = np.asarray(tree["categories"], np.int64)
    return {int(node): every[int(begin) : int(begin) + int(length)] for node, begin, length in segments}
