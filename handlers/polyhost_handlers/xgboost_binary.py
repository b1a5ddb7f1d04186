"""
Whether XGBoost's old binary format, and the snapshot of 1.0 to 1.2 that wraps it, is whole.

XGBoost reserves what the numbers in the file say before it reads: a wrong byte in a file of two kilobytes costs
all memory. The layout is that of `Learner::Save` up to 1.7, little-endian.
"""

from __future__ import annotations

import json
import struct

from polyhost_handlers.xgboost_document import BrokenModel

SNAPSHOT_MARK = b"CONFIG-offset:"
_SNAPSHOT_HEADER = len(SNAPSHOT_MARK) + 8
_LEARNER_PARAM = 136
_TREES_PARAM, _TREE_PARAM, _LINEAR_PARAM = 160, 148, 136
_NODE, _STATISTICS = 20, 16
_MIN_ATTRIBUTE = 16  # two lengths


def check_binary(data: bytes | bytearray) -> None:
    """Raises BrokenModel."""
    try:
        if data.startswith(SNAPSHOT_MARK):
            (model_bytes,) = struct.unpack_from("<Q", data, len(SNAPSHOT_MARK))
            json.loads(data[_SNAPSHOT_HEADER + model_bytes :])
            data = data[_SNAPSHOT_HEADER : _SNAPSHOT_HEADER + model_bytes]
        _Walk(data).learner()
    except (struct.error, ValueError, RecursionError) as error:
        raise BrokenModel(f"it is cut off or broken: {error}") from error


class _Walk:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._offset = 4 if data.startswith(b"binf") else 0

    def learner(self) -> None:
        has_attributes = self._number("<i", 12)
        self._skip(_LEARNER_PARAM)
        self._text()
        booster = self._text()
        if booster == b"gblinear":
            self._skip(_LINEAR_PARAM)
            self._skip(self._count(4) * 4)
        else:
            trees = self._trees()
            if booster == b"dart" and trees:
                self._skip(self._count(4) * 4)
        for _ in range(self._count(_MIN_ATTRIBUTE) if has_attributes else 0):
            self._text()
            self._text()

    def _trees(self) -> int:
        trees = self._number("<i", 0)
        self._skip(_TREES_PARAM)
        for _ in range(trees):
            nodes, leaf_values = self._number("<i", 4), self._number("<i", 20)
            if nodes < 1 or leaf_values not in (0, 1):
                raise BrokenModel(f"a tree has {nodes} nodes, a leaf {leaf_values} values")
            self._skip(_TREE_PARAM + nodes * (_NODE + _STATISTICS))
        self._skip(trees * 4)  # the group of each tree
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
