"""
Which files beside itself a network reads its weights from.

onnxruntime 1.23, the last for Python 3.10, reads any file that a network names: `../other/model`,
`/proc/self/environ`. Looks only at the few fields on the way to these names, and only where a network has any.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# The messages of onnx.proto on the way to TensorProto.external_data: which field holds which message.
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 100  # protobuf's own limit


def names_files_elsewhere(network: Path) -> bool:
    """Whether `network` names a file that does not lie in its own folder, unless it has none at all."""
    folder = network.parent.resolve()
    return any(not (folder / name).resolve().is_relative_to(folder) for name in _locations(network))


def _locations(network: Path) -> Iterator[str]:
    if not network.stat().st_size:
        return
    with network.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if data.find(b"location") == -1:
        return
    for entry in _entries(memoryview(data), "model", 0):
        members = {kind: bytes(content).decode("utf-8", "replace") for kind, content in _parts(entry, "entry")}
        if members.get("key") == "location":
            yield members.get("value", "")


def _entries(message: memoryview, kind: str, depth: int) -> Iterator[memoryview]:
    if depth > _MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    for part, content in _parts(message, kind):
        if part == "entry":
            yield content
        else:
            yield from _entries(content, part, depth + 1)


def _parts(message: memoryview, kind: str) -> Iterator[tuple[str, memoryview]]:
    """The fields of a message that matter, by what they hold."""
    fields, at = _FIELDS[kind], 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("it is cut off")
            if tag >> 3 in fields:
                yield fields[tag >> 3], message[at : at + length]
            at += length
        else:
            raise ValueError(f"no field begins at byte {at}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
