"""
The library in C (trees.c), called through ctypes.

It is built with the package where a C compiler is at hand. Without it `library` is None, and models stay with their
frameworks. Imported by the server's front too, which has no numpy.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

logger = logging.getLogger("polyhost.handlers")

FILE = Path(__file__).with_name("libtrees.so")
_DAMAGES = {
    1: "it does not begin as a blob of this version",
    2: "its length is not the one that it names",
    3: "its checksum is another",
    4: "its header has a number out of range",
    5: "one of its trees lies outside of it",
    6: "one of its nodes points outside of its tree",
}


class DamagedBlob(ValueError):
    """A blob that must not be predicted with; the message says why."""


class Library:
    """`file`: the shared object. Raises OSError where it cannot be loaded, AttributeError where it is another one."""

    def __init__(self, file: Path = FILE) -> None:
        functions = ctypes.CDLL(str(file))
        self._check = functions.polyhost_trees_check
        self._check.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
        self._checksum = functions.polyhost_trees_checksum
        self._checksum.argtypes, self._checksum.restype = [ctypes.c_void_p, ctypes.c_uint64], ctypes.c_uint64
        self.predict = functions.polyhost_trees_predict
        self.predict.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p]
        self.predict.restype = None
        self.predict_csv = functions.polyhost_trees_predict_csv
        self.predict_csv.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint64, ctypes.c_void_p]

    def check(self, address: int, count_bytes: int) -> None:
        """Raise DamagedBlob unless every place that a prediction can visit lies within the blob at this address."""
        damage = self._check(address, count_bytes)
        if damage:
            raise DamagedBlob(f"the compiled model is damaged: {_DAMAGES[damage]}")

    def checksum(self, address: int, count_bytes: int) -> int:
        return int(self._checksum(address, count_bytes))


def _loaded() -> Library | None:
    if not FILE.exists():
        return None
    try:
        return Library()
    except (OSError, AttributeError) as error:
        logger.warning("%s cannot be used (%s): models are not compiled, their frameworks answer", FILE.name, error)
        return None


library = _loaded()
