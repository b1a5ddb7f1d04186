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

_MAX_DEPTH = 32  # XGBoost's own documents have fewer than 12 levels
_NO_CHILD = -1
_MAX_CATEGORY = 2**24  # XGBoost's limit
_TREES_AT_ONCE = 500  # enough for numpy to be quick, few enough to take little memory

_LENGTH = struct.Struct(">q")
_OBJECT, _OBJECT_END, _ARRAY, _ARRAY_END = b"{}[]"
_TYPED, _COUNTED, _TEXT, _LENGTH_TYPE = b"$#SL"
# Of UBJSON's types those that XGBoost writes.
_DTYPES = {
    kind: np.dtype(name) for kind, name in zip(b"iUIlLdD", ("i1", "u1", ">i2", ">i4", ">i8", ">f4", ">f8"), strict=True)
}
_CONSTANTS = dict(zip(b"ZTF", (None, True, False), strict=True))


class BrokenModel(ValueError):
    """The document is cut off, or its trees point to nodes that they do not have."""


def check_document(data: bytes | bytearray) -> None:
    """`data` is a model or a snapshot of a learner, in UBJSON or JSON. Raises BrokenModel."""
    try:
        document = _value(data, 0)[0] if data.startswith(b"{L") else json.loads(data)
        learner = document.get("Model", document)["learner"]
        booster = learner["gradient_booster"]
        features = int(learner["learner_model_param"]["num_feature"])
        groups = max(1, *(int(learner["learner_model_param"].get(name, 1)) for name in ("num_class", "num_target")))
        # Each row's prediction takes as many numbers, and a model has at least a number for each.
        _require(groups * 4 <= len(data), "num_class")
        for model in (booster.get("model"), booster.get("gbtree", {}).get("model")):
            if model is not None:
                _check_model(model, features, groups)
    except BrokenModel:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise BrokenModel(f"the document is not an XGBoost model ({type(error).__name__}: {error})") from error


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
    for start in range(0, len(trees), _TREES_AT_ONCE):
        _check_nodes(trees[start : start + _TREES_AT_ONCE], features)
    for tree in trees:
        _check_categories(tree)


def _check_nodes(trees: Sequence[Mapping[str, Any]], features: int) -> None:
    """Of many trees at once: each child is a node of its tree and names the node that it is a child of."""
    sizes = np.array([len(tree["left_children"]) for tree in trees])
    left, right, parents, splits = (
        _column(trees, name, sizes) for name in ("left_children", "right_children", "parents", "split_indices")
    )
    _require(bool((sizes > 0).all()), "left_children")
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    inner = np.flatnonzero(left != _NO_CHILD)
    _require(np.array_equal(inner, np.flatnonzero(right != _NO_CHILD)), "right_children")
    _require(_are_within(splits[inner], features), "split_indices")
    for name, children in (("left_children", left[inner]), ("right_children", right[inner])):
        # No child is the root: with one parent each, the nodes cannot form a ring.
        _require(bool(((children > 0) & (children < np.repeat(sizes, sizes)[inner])).all()), name)
        _require(np.array_equal(parents[starts[inner] + children], inner - starts[inner]), "parents")


def _column(trees: Sequence[Mapping[str, Any]], name: str, sizes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    parts = [np.asarray(tree[name]) for tree in trees]
    _require(np.array_equal([len(part) for part in parts], sizes), name)
    return np.concatenate(parts).astype(np.int64)


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


def _are_within(values: np.ndarray[Any, Any], limit: Any) -> bool:
    return bool(((values >= 0) & (values < limit)).all())


def _require(condition: bool, name: str) -> None:
    if not condition:
        raise BrokenModel(f"its {name} do not fit together")


def _value(data: bytes | bytearray, at: int, depth: int = 0) -> tuple[Any, int]:
    """
    The UBJSON value at `at`, as XGBoost writes it, and where it ends; what XGBoost does not write is refused.

    Beyond the end, `data[at]` raises IndexError and `unpack_from` struct.error. Takes its letters by number and
    calls little: half of the time of loading a model could else be spent here.
    """
    kind = data[at]
    if kind == _ARRAY and data[at + 1] == _TYPED:
        dtype = _DTYPES[data[at + 2]]
        if data[at + 3] != _COUNTED:
            raise BrokenModel(f"no array begins at byte {at}")
        count, at = _length(data, at + 4)
        end = _within(data, at + count * dtype.itemsize)
        return np.frombuffer(data, dtype, count, at), end
    if kind == _TEXT:
        count, at = _length(data, at + 1)
        end = _within(data, at + count)
        return data[at:end], end
    if kind in _DTYPES:
        end = _within(data, at + 1 + _DTYPES[kind].itemsize)
        return np.frombuffer(data, _DTYPES[kind], 1, at + 1)[0], end
    if kind in _CONSTANTS:
        return _CONSTANTS[kind], at + 1
    if depth == _MAX_DEPTH:
        raise BrokenModel("it is nested too deeply")
    if kind == _OBJECT:
        return _members(data, at + 1, depth + 1)
    if kind == _ARRAY:
        return _items(data, at + 1, depth + 1)
    raise BrokenModel(f"no value begins at byte {at}")


def _members(data: bytes | bytearray, at: int, depth: int) -> tuple[dict[str, Any], int]:
    members = {}
    while data[at] != _OBJECT_END:
        count, at = _length(data, at)
        name = data[at : at + count].decode()
        members[name], at = _value(data, at + count, depth)
    return members, at + 1


def _items(data: bytes | bytearray, at: int, depth: int) -> tuple[list[Any], int]:
    items = []
    if data[at] == _COUNTED:
        count, at = _length(data, at + 1)
        for _ in range(count):
            item, at = _value(data, at, depth)
            items.append(item)
        return items, at
    while data[at] != _ARRAY_END:
        item, at = _value(data, at, depth)
        items.append(item)
    return items, at + 1


def _length(data: bytes | bytearray, at: int) -> tuple[int, int]:
    count = _LENGTH.unpack_from(data, at + 1)[0]
    if data[at] != _LENGTH_TYPE or not 0 <= count <= len(data):
        raise BrokenModel(f"no length stands at byte {at}")
    return count, at + 9


def _within(data: bytes | bytearray, end: int) -> int:
    if end > len(data):
        raise BrokenModel(f"it ends at byte {len(data)}, {end - len(data)} more are due")
    return end
