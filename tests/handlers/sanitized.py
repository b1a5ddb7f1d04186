"""
Blobs and bodies of malice for the library in C, built with sanitizers: `python -m sanitized LIBRARY BLOB COUNT`.

Each lies in memory of exactly its length, so that the sanitizers see the first byte that is read beside it. Nothing is
imported that is not ours: the address sanitizer would judge it, too.
"""

from __future__ import annotations

import ctypes
import json
import random
import struct
import sys
from pathlib import Path

from polyhost_handlers.compiled.library import DamagedBlob, Library
from polyhost_handlers.compiled.rows import Shape

_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype, _LIBC.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_LIBC.free.argtypes = [ctypes.c_void_p]
_MOST_FEATURES, _MOST_GROUPS = 5000, 500
_ROWS = 3
_PIECES = (b"1", b"-0.5", b"1e", b"e5", b".", b",", b"\n", b"\r", b"nan", b" ", b"9" * 40, b"1e-400", b"\0", b"\xff")
_BYTES = (0, 1, 127, 128, 255)


class Area:
    """Memory of exactly these bytes."""

    def __init__(self, content: bytes) -> None:
        self.address = _LIBC.malloc(len(content))
        ctypes.memmove(self.address, content, len(content))

    def __enter__(self) -> int:
        return int(self.address)

    def __exit__(self, *_: object) -> None:
        _LIBC.free(self.address)


def changed(blob: bytes, chosen: random.Random, library: Library) -> bytes:
    """With some bytes changed, or of another length; its header and checksum often fit."""
    other = bytearray(blob)
    for _ in range(chosen.randint(1, 3)):
        other[chosen.randrange(24, len(other))] = chosen.choice((*_BYTES, chosen.randrange(256)))
    if chosen.random() < 0.1:
        del other[chosen.randrange(len(other)) :]
    if chosen.random() < 0.9 and len(other) >= 24:
        struct.pack_into("<Q", other, 8, len(other))
        with Area(bytes(other)) as address:
            struct.pack_into("<Q", other, 16, library.checksum(address, len(other)))
    return bytes(other)


def body(features: int, chosen: random.Random) -> bytes:
    fields = [repr(chosen.uniform(-10, 10)).encode() for _ in range(min(features, _MOST_FEATURES))]
    text = bytearray(b",".join(fields))
    for _ in range(chosen.choice((0, 0, 1, 2))):
        place = chosen.randrange(len(text) + 1)
        text[place : place + chosen.randrange(3)] = chosen.choice(_PIECES)
    return bytes(text[: chosen.randrange(len(text) + 1)] if chosen.random() < 0.2 else text)


def predict(library: Library, blob: bytes, address: int, chosen: random.Random) -> int:
    """How many bodies were answered."""
    shape = Shape.of(blob)
    if shape.features > _MOST_FEATURES or shape.groups > _MOST_GROUPS:
        return 0
    rows = struct.pack(f"<{_ROWS * shape.features}I", *(chosen.getrandbits(32) for _ in range(_ROWS * shape.features)))
    answered = 0
    with Area(rows) as rows_at, Area(bytes(4 * _ROWS * shape.groups)) as out:
        library.predict(address, rows_at, _ROWS, out)
        for _ in range(3):
            text = body(shape.features, chosen)
            with Area(text) as text_at, Area(bytes(4 * shape.groups)) as one:
                answered += library.predict_csv(address, ctypes.cast(text_at, ctypes.c_char_p), len(text), one)
    return answered


def main(file: str, blob_file: str, count: str) -> None:
    library, blob = Library(Path(file)), Path(blob_file).read_bytes()
    chosen = random.Random(7)
    refused = used = answered = 0
    for _ in range(int(count)):
        other = changed(blob, chosen, library)
        with Area(other) as address:
            try:
                library.check(address, len(other))
            except DamagedBlob:
                refused += 1
                continue
            used += 1
            answered += predict(library, other, address, chosen)
    sys.stdout.write(json.dumps([refused, used, answered]))


if __name__ == "__main__":
    main(*sys.argv[1:])
