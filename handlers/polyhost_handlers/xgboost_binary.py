"""
Whether a model in XGBoost's old binary format is whole, and its trees are trees.

XGBoost reserves what the numbers in the file say before it reads: a wrong byte in a file of two kilobytes costs
all memory. The layout is that of `Learner::Save` up to 1.7, little-endian.
"""

from __future__ import annotations

import struct

import numpy as np

from polyhost_handlers.xgboost_document import check_trees, groups_of
from polyhost_handlers.xgboost_releases import Learner, Release
from polyhost_handlers.xgboost_ubjson import BrokenModel, Trees

# What `load_booster` puts before every model in this format: XGBoost takes the first bytes of one without it, which
# may be any, for another format's mark.
BINARY_MARK = b"binf"
_LEARNER_PARAM = 136
_TREES_PARAM, _TREE_PARAM, _LINEAR_PARAM = 160, 148, 136
_NODE, _STATISTICS = 20, 16
_SIZE_OF_TREE = struct.Struct("<4xi12xi")  # how many nodes, how many values a leaf
_WITHOUT_FLAG = 2**31 - 1  # the highest bit says which child a node is, and which way a missing value goes
_MIN_ATTRIBUTE = 16  # two lengths


def check_binary(data: bytes | bytearray) -> Learner:
    """What the model says about itself. Raises BrokenModel."""
    try:
        return _Walk(data).learner()
    except (struct.error, ValueError, RecursionError) as error:
        raise BrokenModel(f"it is cut off or broken: {error}") from error


def release_of_binary(data: bytes | bytearray) -> Release:
    """The release that wrote it, () before 1.0 or if it does not tell."""
    try:
        return _Walk(data).release()
    except struct.error:
        return ()


class _Walk:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._offset = len(BINARY_MARK) if data.startswith(BINARY_MARK) else 0

    def release(self) -> Release:
        release = (self._number("<I", 20), self._number("<I", 24))
        return release if release > (0, 0) else ()

    def learner(self) -> Learner:
        release = self.release()
        (base_score,) = struct.unpack_from("<f", self._data, self._offset)
        features, has_attributes = self._number("<I", 4), self._number("<i", 12)
        # Versions without several targets wrote 0.
        groups = groups_of([self._number("<i", 8), self._number("<I", 28)], len(self._data))
        self._skip(_LEARNER_PARAM)
        objective = self._text()
        booster = self._text()
        if booster == b"gblinear":
            self._skip(_LINEAR_PARAM)
            weights = self._count(4)
            if weights not in (0, (features + 1) * groups):
                raise BrokenModel(f"{weights} weights are not one for each feature")
            self._skip(weights * 4)
        else:
            trees = self._trees(features, groups)
            if booster == b"dart" and trees:
                self._skip(self._count(4) * 4)
        for _ in range(self._count(_MIN_ATTRIBUTE) if has_attributes else 0):
            self._text()
            self._text()
        return Learner(booster.decode(), objective.decode(), release, (base_score,), groups)

    def _trees(self, features: int, groups: int) -> int:
        trees = self._number("<i", 0)
        self._skip(_TREES_PARAM)
        sizes, parts = [], []
        for _ in range(trees):
            nodes, leaf_values = _SIZE_OF_TREE.unpack_from(self._data, self._offset)
            if nodes < 1 or leaf_values not in (0, 1):
                raise BrokenModel(f"a tree has {nodes} nodes, a leaf {leaf_values} values")
            begin = self._offset + _TREE_PARAM
            self._skip(_TREE_PARAM + nodes * (_NODE + _STATISTICS))
            sizes.append(nodes)
            parts.append(self._data[begin : begin + nodes * _NODE])
        group_of_tree = np.frombuffer(self._data[self._offset :], "<i4", max(0, trees))
        self._skip(trees * 4)
        if not ((group_of_tree >= 0) & (group_of_tree < groups)).all():
            raise BrokenModel("a tree is of no class")
        # Each node has its parent, its children, its feature and its value.
        parents, left, right, splits, _ = np.frombuffer(b"".join(parts), "<i4").reshape(-1, 5).T
        nodes_of_all = np.stack([left, right, parents & _WITHOUT_FLAG, splits & _WITHOUT_FLAG])
        check_trees(Trees(np.array(sizes, np.int64), nodes_of_all), features)
        return trees

    def _text(self) -> bytes:
        length = self._count(1)
        self._skip(length)
        return bytes(self._data[self._offset - length : self._offset])

    def _count(self, item_bytes: int) -> int:
        """How many items follow, if so many fit into the rest."""
        count = self._number("<Q", 0)
        self._skip(8)
        if count * item_bytes > len(self._data) - self._offset:
            raise BrokenModel(f"{count} items are due at byte {self._offset}")
        return count

    def _number(self, form: str, ahead: int) -> int:
        return int(struct.unpack_from(form, self._data, self._offset + ahead)[0])

    def _skip(self, count: int) -> None:
        if count < 0 or count > len(self._data) - self._offset:
            raise BrokenModel(f"{count} more bytes are due at byte {self._offset} of {len(self._data)}")
        self._offset += count
