"""
UBJSON as XGBoost writes it: read whole or refused, before XGBoost itself reads beyond its end.

Trees are most of a model. Those without categories all have one layout, in which only the number of nodes varies:
they are compared with it in one pass of numpy over all trees. A single other byte, and each is read value by value.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

TREES_AT_ONCE = 500  # enough for numpy to be quick, few enough to take little memory
_MAX_DEPTH = 32  # XGBoost's own documents have fewer than 12 levels
_LENGTH = struct.Struct(">q")
_OBJECT, _OBJECT_END, _ARRAY, _ARRAY_END = b"{}[]"
_TYPED, _COUNTED, _TEXT, _LENGTH_TYPE = b"$#SL"
# The types of UBJSON that XGBoost writes.
_NUMBERS = {
    kind: struct.Struct(form) for kind, form in zip(b"iUIlLdD", (">b", ">B", ">h", ">i", ">q", ">f", ">d"), strict=True)
}
_DTYPES = {
    kind: np.dtype(name) for kind, name in zip(b"iUIlLdD", ("i1", "u1", ">i2", ">i4", ">i8", ">f4", ">f8"), strict=True)
}
_CONSTANTS = dict(zip(b"ZTF", (None, True, False), strict=True))

Array = np.ndarray[Any, Any]
Document = bytes | bytearray


class BrokenModel(ValueError):
    """The document is cut off, or its trees point to nodes that they do not have."""


@dataclass(frozen=True)
class Trees:
    """The shape of some trees: how many nodes each has; of all nodes the children, the parent and the feature."""

    sizes: Array
    # Rows: left child, right child, parent, feature; columns: the nodes, one tree after another.
    nodes: Array
    # Where in the document the thresholds of each tree begin (row 0), and which way its missing values go (row 1).
    value_begins: Array | None = None

    def __len__(self) -> int:
        return len(self.sizes)


def read_ubjson(data: Document) -> Any:
    """
    The document: dicts, lists, arrays of numpy, numbers, and bytes for text; a model's `trees` may be `Trees`.

    Raises BrokenModel, IndexError, KeyError, UnicodeDecodeError or struct.error.
    """
    return _value(data, 0, 0)[0]


def end_of_value(data: Document, at: int) -> int:
    """Where the value at `at` ends. Raises as `read_ubjson` does."""
    return _value(data, at, 0)[1]


def _value(data: Document, at: int, depth: int) -> tuple[Any, int]:
    """
    The value at `at`, and where it ends; what XGBoost does not write is refused.

    Beyond the end, `data[at]` raises IndexError and `unpack_from` struct.error. Takes its letters by number and
    calls little: much of the time of loading a small model is spent here.
    """
    kind = data[at]
    if kind == _TEXT:
        count, at = _length(data, at + 1)
        end = _within(data, at + count)
        return data[at:end], end
    if kind in _NUMBERS:
        number = _NUMBERS[kind]
        return number.unpack_from(data, at + 1)[0], at + 1 + number.size
    if kind in _CONSTANTS:
        return _CONSTANTS[kind], at + 1
    if kind == _ARRAY and data[at + 1] == _TYPED:
        dtype = _DTYPES[data[at + 2]]
        if data[at + 3] != _COUNTED:
            raise BrokenModel(f"no array begins at byte {at}")
        count, at = _length(data, at + 4)
        end = _within(data, at + count * dtype.itemsize)
        return np.frombuffer(data, dtype, count, at), end
    if depth == _MAX_DEPTH:
        raise BrokenModel("it is nested too deeply")
    if kind == _OBJECT:
        return _members(data, at + 1, depth + 1)
    if kind == _ARRAY:
        return _items(data, at + 1, depth + 1)
    raise BrokenModel(f"no value begins at byte {at}")


def _members(data: Document, at: int, depth: int) -> tuple[dict[str, Any], int]:
    members: dict[str, Any] = {}
    while data[at] != _OBJECT_END:
        count, at = _length(data, at)
        name = data[at : at + count].decode()
        if name in members:  # XGBoost might take the other one
            raise BrokenModel(f"it has two values of one name at byte {at}")
        members[name], at = _value(data, at + count, depth)
    return members, at + 1


def _items(data: Document, at: int, depth: int) -> tuple[Any, int]:
    items: list[Any] = []
    if data[at] == _COUNTED:
        count, at = _length(data, at + 1)
        found: tuple[Any, int] | None = None
        if count and data[at] in b"iIl":
            found = _small_integers(data, at, count)
        elif count and data.startswith(_TREE, at):
            found = _plain_trees(data, at, count)
        if found is not None:
            return found
        for _ in range(count):
            item, at = _value(data, at, depth)
            items.append(item)
        return items, at
    while data[at] != _ARRAY_END:
        item, at = _value(data, at, depth)
        items.append(item)
    return items, at + 1


def _length(data: Document, at: int) -> tuple[int, int]:
    count: int = _LENGTH.unpack_from(data, at + 1)[0]
    if data[at] != _LENGTH_TYPE or not 0 <= count <= len(data):
        raise BrokenModel(f"no length stands at byte {at}")
    return count, at + 9


def _within(data: Document, end: int) -> int:
    if end > len(data):
        raise BrokenModel(f"it ends at byte {len(data)}, {end - len(data)} more are due")
    return end


# Integers that name their type one by one, smaller types first: as XGBoost lists rounds and the classes of trees.

_SMALL_INTEGERS = [(kind, np.dtype([("kind", "u1"), ("value", _DTYPES[kind])])) for kind in b"iIl"]


def _small_integers(data: Document, at: int, count: int) -> tuple[Array, int] | None:
    """`count` integers and where they end; None if something else is among them."""
    runs = []
    for kind, dtype in _SMALL_INTEGERS:
        items = np.frombuffer(data, dtype, min(count, (len(data) - at) // dtype.itemsize), at)
        differs = np.flatnonzero(items["kind"] != kind)
        run = items["value"][: differs[0] if len(differs) else None]
        runs.append(run)
        count -= len(run)
        at += len(run) * dtype.itemsize
        if count == 0:
            return np.concatenate(runs), at
    return None


# Trees without categories. Their members, in order: type, and bytes per node, 0 of an array that is empty.

_ID = "id"
_MEMBERS = {
    "base_weights": (b"d", 4),
    "categories": (b"l", 0),
    "categories_nodes": (b"l", 0),
    "categories_segments": (b"L", 0),
    "categories_sizes": (b"L", 0),
    "default_left": (b"U", 1),
    _ID: (b"", 0),
    "left_children": (b"l", 4),
    "loss_changes": (b"d", 4),
    "parents": (b"l", 4),
    "right_children": (b"l", 4),
    "split_conditions": (b"d", 4),
    "split_indices": (b"l", 4),
    "split_type": (b"U", 1),
    "sum_hessian": (b"d", 4),
}
_SHAPE = ("left_children", "right_children", "parents", "split_indices")
_VALUES = ("split_conditions", "default_left")


def _named(name: str, value: bytes = b"") -> bytes:
    return b"L" + _LENGTH.pack(len(name)) + name.encode() + value


class _Layout:
    """
    Where everything lies in a tree, and the bytes that lie there in every tree.

    A place is so many bytes from the tree's begin, or from the end of its id, whose length varies; so many more for
    each node; and so many more in any case. Fixed bytes are compared in words of eight.
    """

    def __init__(self) -> None:
        counts, words, columns, literals = [], [], {}, []
        begin, per_node, offset, literal = [1, 0], 0, 0, b"{"
        for name, (kind, item_bytes) in _MEMBERS.items():
            literal += _named(name, b"[$" + kind + b"#L" if kind else b"")
            if name != _ID and not item_bytes:
                literal += _LENGTH.pack(0)
                continue
            # The last word may overlap the one before.
            for start in [*range(0, len(literal) - 8, 8), len(literal) - 8]:
                words.append([*begin, per_node, offset + start])
                literals.append(literal[start : start + 8])
            offset += len(literal)
            literal = b""
            if name == _ID:
                self.id = per_node, offset
                begin, per_node, offset = [0, 1], 0, 0
                continue
            counts.append([*begin, per_node, offset])
            offset += 8
            columns[name] = [*begin, per_node, offset]
            per_node += item_bytes
        self.first_count = counts[0][-1]
        self.end = per_node, offset
        self._words = np.frombuffer(b"".join(literals), "u8")
        self._counts = len(counts)
        self._columns = len(_SHAPE + _VALUES)
        self._places = np.array([*(columns[name] for name in _SHAPE + _VALUES), *counts, *words]).T

    def begins(self, begins: Array, id_ends: Array, sizes: Array, data: Document) -> Array | None:
        """
        Where the arrays of `_SHAPE` and `_VALUES` begin, a row for each tree; None where other bytes are between them.

        All that the trees hold must lie within the data.
        """
        places = np.array([begins, id_ends, sizes]).T @ self._places[:3] + self._places[3]
        # A word at every byte; numpy takes it for bytes, which need no alignment.
        all_words = np.ndarray((len(data) - 7,), "V8", data, strides=(1,))
        found = all_words[places[:, self._columns :]].view("u8")
        counts = sizes.astype(">i8").view("u8")
        is_right = (found[:, : self._counts] == counts[:, None]).all() and (
            found[:, self._counts :] == self._words
        ).all()
        return places[:, : self._columns] if is_right else None


_LAYOUT = _Layout()
_TREE = b"{" + _named("base_weights")
_ID_BYTES = {kind: 1 + _DTYPES[kind].itemsize for kind in b"iIl"}
# A number of at most ten digits, as text.
_DIGITS = rb"SL\0{7}(?:" + b"|".join(re.escape(bytes([count])) + rb"\d{%d}" % count for count in range(1, 11)) + rb")"
_TREE_END = re.compile(
    re.escape(_named("tree_param", b"{"))
    + b"".join(
        re.escape(_named(name)) + _DIGITS for name in ("num_deleted", "num_feature", "num_nodes", "size_leaf_vector")
    )
    + rb"\}\}",
)


def _plain_trees(data: Document, at: int, count: int) -> tuple[Trees, int] | None:
    """`count` trees without categories and where they end; None if what is there is not exactly that."""
    (id_per_node, id_offset), (end_per_node, end_offset) = _LAYOUT.id, _LAYOUT.end
    begins, id_ends, sizes = [], [], []
    good_ends: set[bytes] = set()  # few differ, for they hold little but the number of nodes
    try:
        for _ in range(count):
            (nodes,) = _LENGTH.unpack_from(data, at + _LAYOUT.first_count)
            if nodes < 0:
                return None
            id_end = at + id_offset + id_per_node * nodes
            id_end += _ID_BYTES[data[id_end]]
            begins.append(at)
            id_ends.append(id_end)
            sizes.append(nodes)
            end = id_end + end_offset + end_per_node * nodes
            at = data.index(b"}}", end) + 2
            tree_end = bytes(data[end:at])
            if tree_end not in good_ends:
                if not _TREE_END.fullmatch(tree_end):
                    return None
                good_ends.add(tree_end)
    except (struct.error, LookupError, ValueError, OverflowError):
        return None
    parts = []
    for first in range(0, count, TREES_AT_ONCE):
        some = slice(first, first + TREES_AT_ONCE)
        places = _LAYOUT.begins(np.array(begins[some]), np.array(id_ends[some]), np.array(sizes[some]), data)
        if places is None:
            return None
        parts.append(places)
    node_counts, places = np.array(sizes), np.concatenate(parts).T
    columns, value_begins = places[: len(_SHAPE)], places[len(_SHAPE) :]
    ends = (columns + 4 * node_counts).ravel().tolist()
    values = b"".join([data[begin:end] for begin, end in zip(columns.ravel().tolist(), ends, strict=True)])
    shape = np.frombuffer(values, ">i4").astype(np.int32).reshape(len(_SHAPE), -1)
    return Trees(node_counts, shape, value_begins), at


def values_of(trees: Trees, data: Document) -> tuple[Array, Array]:
    """Of `trees` that were read from `data`: each node's threshold or leaf value; 1 where missing values go left."""
    assert trees.value_begins is not None
    sizes = trees.sizes
    thresholds, directions = (
        b"".join([data[begin : begin + width * size] for begin, size in zip(begins, sizes, strict=True)])
        for begins, width in zip(trees.value_begins, (4, 1), strict=True)
    )
    return np.frombuffer(thresholds, ">f4").astype(np.float32), np.frombuffer(directions, np.uint8)
