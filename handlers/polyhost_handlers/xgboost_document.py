"""
What XGBoost does not check before it reads a model: that the document is whole, and that its trees are trees.

Where they are not, XGBoost 3.0 reads beyond its memory: it crashes the process, or runs for ever. Only that is
looked at here; what else may be wrong with a model it says itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyhost_handlers.xgboost_releases import Learner, Release, base_scores_of
from polyhost_handlers.xgboost_ubjson import TREES_AT_ONCE, Array, BrokenModel, Trees, read_ubjson

_NO_CHILD = -1
_MAX_CATEGORY = 2**24  # XGBoost's limit


def check_document(data: bytes | bytearray) -> Learner:
    """
    What the model in UBJSON or JSON says about itself, once it is seen to be whole.

    Raises BrokenModel.
    """
    return read_document(data)[0]


def read_document(data: bytes | bytearray) -> tuple[Learner, Any]:
    """As `check_document`; with the document where all its trees are `Trees`, of one known layout, else with None."""
    try:
        document = _read(data)
        learner = document["learner"]
        booster = learner["gradient_booster"]
        parameters = learner["learner_model_param"]
        features = int(parameters["num_feature"])
        counts = [int(parameters.get(name, 1)) for name in ("num_class", "num_target")]
        groups = groups_of(counts, len(data))
        both = booster.get("model"), booster.get("gbtree", {}).get("model")
        models = [model for model in both if model is not None]
        for model in models:
            _check_model(model, features, groups)
        said = Learner(
            booster=_text(booster["name"]),
            objective=_text(learner["objective"]["name"]),
            release=_release_in(document),
            base_scores=base_scores_of(_text(parameters["base_score"])),
            groups=groups,
            lacks_rounds=any(map(_lacks_rounds, models)),
        )
    except BrokenModel:
        raise
    except _NOT_A_MODEL as error:
        raise BrokenModel(f"the document is not an XGBoost model ({type(error).__name__}: {error})") from error
    is_plain = all(isinstance(model.get("trees"), Trees) for model in models)
    return said, document if is_plain else None


def release_of_document(data: bytes | bytearray) -> Release:
    """The release that wrote it, () if it does not tell."""
    try:
        return _release_in(_read(data))
    except _NOT_A_MODEL:
        return ()


_NOT_A_MODEL = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, struct.error)


def _read(data: bytes | bytearray) -> Any:
    return read_ubjson(data) if data.startswith(b"{L") else json.loads(data)


def _release_in(document: Any) -> Release:
    return tuple(int(number) for number in document.get("version", ()))


def _text(value: Any) -> str:
    """UBJSON's texts are bytes here."""
    return value if isinstance(value, str) else bytes(value).decode()


def groups_of(counts: Sequence[int], model_bytes: int) -> int:
    """
    How many numbers each row's prediction takes, by the numbers of classes and targets. Raises BrokenModel.

    A model has at least a number for each.
    """
    groups = max(1, *counts)
    _require(min(counts) >= 0 and groups * 4 <= model_bytes, "num_class")
    return groups


def _check_model(model: Mapping[str, Any], features: int, groups: int) -> None:
    if "weights" in model:
        # None before the first round.
        _require(len(model["weights"]) in (0, (features + 1) * groups), "weights")
        return
    trees = model["trees"]
    tree_info = np.asarray(model["tree_info"])
    _require(len(tree_info) == len(trees) and _are_within(tree_info, groups), "tree_info")
    rounds = np.asarray(model.get("iteration_indptr", []))
    _require(bool((np.diff(rounds) >= 0).all()) and _are_within(rounds, len(trees) + 1), "iteration_indptr")
    if isinstance(trees, Trees):
        check_trees(trees, features)
        return
    for start in range(0, len(trees), TREES_AT_ONCE):
        check_trees(_shape(trees[start : start + TREES_AT_ONCE]), features)
    for tree in trees:
        _check_categories(tree)


def _lacks_rounds(model: Mapping[str, Any]) -> bool:
    """Whether a model of trees has no rounds. A linear model needs none."""
    return "trees" in model and len(model["trees"]) == len(model.get("iteration_indptr", ())) == 0


def check_trees(trees: Trees, features: int) -> None:
    """
    Each child is a node of its tree and names the node that it is a child of; each split is by a feature there is.

    Raises BrokenModel.
    """
    sizes, (left, right, parents, splits) = trees.sizes, trees.nodes
    _require(bool((sizes > 0).all()), "nodes")
    is_inner = left != _NO_CHILD
    inner = is_inner.nonzero()[0]
    _require(bool((is_inner == (right != _NO_CHILD)).all()), "children")
    _require(_are_within(splits.take(inner), features), "split_indices")
    tree_of = np.arange(len(sizes)).repeat(sizes).take(inner)
    roots = (sizes.cumsum() - sizes).take(tree_of)
    children = trees.nodes[:2].take(inner, axis=1)
    # No child is the root: with one parent each, the nodes cannot form a ring.
    _require(bool(((children > 0) & (children < sizes.take(tree_of))).all()), "children")
    _require(bool((parents.take(roots + children) == inner - roots).all()), "parents")


def _shape(trees: Sequence[Mapping[str, Any]]) -> Trees:
    sizes = np.array([len(tree["left_children"]) for tree in trees])
    rows = []
    for name in ("left_children", "right_children", "parents", "split_indices"):
        parts = [np.asarray(tree[name]) for tree in trees]
        _require(np.array_equal([len(part) for part in parts], sizes), name)
        rows.append(np.concatenate(parts).astype(np.int64))
    return Trees(sizes, np.stack(rows))


def _check_categories(tree: Mapping[str, Any]) -> None:
    nodes = tree.get("categories_nodes", ())
    if len(nodes) == 0:
        return
    categories, segments, lengths = (
        np.asarray(tree[name]) for name in ("categories", "categories_segments", "categories_sizes")
    )
    _require(_are_within(np.asarray(nodes), len(tree["left_children"])), "categories_nodes")
    _require(_are_within(categories, _MAX_CATEGORY), "categories")
    _require(len(segments) == len(lengths) == len(nodes), "categories_sizes")
    _require(_are_within(lengths, len(categories) + 1), "categories_sizes")
    _require(_are_within(segments, len(categories) + 1 - lengths), "categories_segments")


def _are_within(values: Array, limit: Any) -> bool:
    return bool(((values >= 0) & (values < limit)).all())


def _require(condition: bool, name: str) -> None:
    if not condition:
        raise BrokenModel(f"its {name} do not fit together")
