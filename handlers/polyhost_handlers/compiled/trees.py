"""
Models as blobs: how a blob is written, and how it is predicted with.

The layout is trees.c's: a header, what predictions begin with, the trees, their nodes, sets of categories; of a linear
model, its weights instead of all these.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyhost_handlers.compiled.library import library
from polyhost_handlers.compiled.rows import RowPredictor, Shape

Array = np.ndarray[Any, Any]

_LEAF, _DEFAULT_LEFT, _CATEGORICAL = 0x80000000, 0x40000000, 0x20000000
_MAGIC = b"PHTREES1"
_NUMBERS = ("features", "groups", "trees", "nodes", "category_words", "transform", "is_weighted", "is_linear")
_HEADER = np.dtype(
    [("magic", "S8"), ("bytes", "<u8"), ("checksum", "<u8")]
    + [(name, "<u4") for name in _NUMBERS]
    + [("reserved", "<u4", 2)],
)
_TREE = np.dtype([("root", "<u4"), ("group", "<u4"), ("weight", "<f4")])
_NODE = np.dtype([("value", "<f4"), ("feature", "<u4"), ("next", "<u4")])


class Transform(enum.IntEnum):
    """What an objective makes of the sums of a row's leaves; trees.c has the same numbers."""

    IDENTITY = 0
    SIGMOID = 1
    EXPONENTIAL = 2
    SOFTMAX = 3
    LARGEST = 4
    HINGE = 5
    EXPONENTIAL_OF_DOUBLE = 6


@dataclass(frozen=True)
class Nodes:
    """
    The nodes of some trees, one tree after another; all arrays have an element for each node.

    `left` and `right` are indices within the tree; a leaf has -1 for both, and its value in `values`. A split's
    threshold is in `values` too. `categories` has the categories that go to the right, by the index of a node among
    all nodes.
    """

    sizes: Array
    left: Array
    right: Array
    features: Array
    values: Array
    default_left: Array
    categories: dict[int, Array]


@dataclass(frozen=True)
class Description:
    """What a blob has besides its nodes. `groups`: for each tree; `weights` too, or None; `starts`: for each group."""

    features: int
    groups: Array
    weights: Array | None
    starts: Array
    transform: Transform


def blob_of(nodes: Nodes, description: Description) -> Array:
    """The blob, uint8, unsealed: its checksum is 0."""
    order, places = _order_of(nodes)
    sets, places_of_sets = _sets_of(nodes.categories)
    is_leaf = nodes.left < 0
    first_nodes = nodes.sizes.cumsum() - nodes.sizes
    table = np.zeros(len(order), _NODE)
    feature = np.where(is_leaf, _LEAF, nodes.features.astype(np.uint32))
    feature |= np.where(nodes.default_left.astype(bool) & ~is_leaf, _DEFAULT_LEFT, 0).astype(np.uint32)
    values = nodes.values.astype(np.float32)
    for index, place in places_of_sets.items():
        feature[index] |= _CATEGORICAL
        values[index] = np.uint32(place).view(np.float32)
    children = np.where(is_leaf, 0, nodes.left + first_nodes.repeat(nodes.sizes))
    table["value"], table["feature"] = values[order], feature[order]
    table["next"] = np.where(is_leaf, 0, places[children])[order]
    trees = np.zeros(len(nodes.sizes), _TREE)
    trees["root"], trees["group"] = places[first_nodes], description.groups
    trees["weight"] = 1 if description.weights is None else description.weights
    head = np.zeros(1, _HEADER)
    parts = [head, description.starts.astype("<f4"), trees, table, sets]
    head["magic"], head["bytes"] = _MAGIC, sum(part.nbytes for part in parts)
    head["features"], head["groups"] = description.features, len(description.starts)
    head["trees"], head["nodes"], head["category_words"] = len(trees), len(table), len(sets)
    head["transform"], head["is_weighted"] = description.transform, description.weights is not None
    blob: Array = np.frombuffer(b"".join(part.tobytes() for part in parts), np.uint8).copy()
    return blob


def linear_blob_of(weights: Array, starts: Array, transform: Transform) -> Array:
    """The blob, uint8, unsealed. `weights`: shape (features, groups)."""
    head = np.zeros(1, _HEADER)
    parts = [head, starts.astype("<f4"), weights.astype("<f4")]
    head["magic"], head["bytes"] = _MAGIC, sum(part.nbytes for part in parts)
    head["features"], head["groups"] = weights.shape
    head["category_words"], head["transform"], head["is_linear"] = weights.size, transform, 1
    blob: Array = np.frombuffer(b"".join(part.tobytes() for part in parts), np.uint8).copy()
    return blob


def _order_of(nodes: Nodes) -> tuple[Array, Array]:
    """
    The nodes in the order of the blob, and where each one stands then.

    Level by level within a tree, so that the two children of a split stand side by side behind it.
    """
    roots = nodes.sizes.cumsum() - nodes.sizes
    if _are_in_order(nodes, roots):
        return (every := np.arange(len(nodes.left))), every
    level, seen = roots, []
    while len(level):
        seen.append(level)
        inner = level[nodes.left[level] >= 0]
        base = roots[_tree_of(roots, inner)]
        level = np.stack([base + nodes.left[inner], base + nodes.right[inner]], axis=1).ravel()
    by_level = np.concatenate(seen) if seen else roots
    order = by_level[np.argsort(_tree_of(roots, by_level), kind="stable")]
    places = np.zeros(len(nodes.left), np.int64)
    places[order] = np.arange(len(order))
    return order, places


def _are_in_order(nodes: Nodes, roots: Array) -> bool:
    """Whether they stand level by level already: a tree's split number n has the children 2n + 1 and 2n + 2."""
    is_inner = nodes.left >= 0
    splits_before = is_inner.cumsum() - is_inner
    firsts = 2 * (splits_before - splits_before[roots].repeat(nodes.sizes))[is_inner] + 1
    left, right = nodes.left[is_inner], nodes.right[is_inner]
    return bool((left == firsts).all() and (right == firsts + 1).all())


def _tree_of(roots: Array, indices: Array) -> Array:
    trees: Array = np.searchsorted(roots, indices, side="right") - 1
    return trees


def _sets_of(categories: dict[int, Array]) -> tuple[Array, dict[int, int]]:
    """All sets as words of 32 bits, each behind its number of words; and where each node's set begins."""
    words: list[Array] = []
    places: dict[int, int] = {}
    place = 0
    for index, chosen in categories.items():
        bits = np.zeros(int(chosen.max()) // 32 + 1 if len(chosen) else 0, np.uint32)
        np.bitwise_or.at(bits, chosen // 32, np.uint32(1) << (chosen % 32).astype(np.uint32))
        words.append(np.concatenate([np.array([len(bits)], np.uint32), bits]))
        places[index] = place
        place += len(words[-1])
    return (np.concatenate(words) if words else np.zeros(0, np.uint32)).astype("<u4"), places


def view_of(address: int, count_bytes: int) -> Array:
    """Memory that stays where it is, uint8, not to be written."""
    return np.asarray(_Memory(address, count_bytes))


class _Memory:
    def __init__(self, address: int, count_bytes: int) -> None:
        self.__array_interface__ = {"data": (address, True), "shape": (count_bytes,), "typestr": "|u1", "version": 3}


class CompiledTrees:
    """A checked blob. `features` and `groups` are its shape; any thread may predict with it."""

    def __init__(self, blob: Array) -> None:
        """Raises DamagedBlob."""
        assert library is not None
        library.check(blob.ctypes.data, blob.nbytes)
        shape = Shape.of(blob[: _HEADER.itemsize].tobytes())
        self._blob = blob
        self._address = blob.ctypes.data
        self._library = library
        self.features, self.groups = shape.features, shape.groups
        self.answers_with_one_number = shape.answers_with_one_number
        self._rows = RowPredictor(self._address, self.groups, library)

    @property
    def nbytes(self) -> int:
        return int(self._blob.nbytes)

    def blob(self) -> bytes:
        return self._blob.tobytes()

    def predict(self, rows: Array) -> Array:
        """`rows`: shape (rows, features), missing values NaN. The answer: (rows,) or (rows, groups), float32."""
        dense = np.ascontiguousarray(rows, np.float32)
        if dense.shape[1] != self.features:
            raise ValueError(f"the rows have {dense.shape[1]} features, the model has {self.features}")
        answer = np.empty((len(dense), self.groups), np.float32)
        self._library.predict(self._address, dense.ctypes.data, len(dense), answer.ctypes.data)
        return np.ascontiguousarray(answer[:, 0]) if self.answers_with_one_number else answer

    def predict_csv_row(self, body: bytes) -> float | None:
        """The one number that answers a row of plain numbers; None where it is none, or not finite. One thread only."""
        return self._rows.predict_csv_row(body) if self.answers_with_one_number else None


def sealed(blob: Array) -> Array:
    """The same blob with its checksum."""
    assert library is not None
    blob[: _HEADER.itemsize].view(_HEADER)["checksum"] = library.checksum(blob.ctypes.data, blob.nbytes)
    return blob
