"""A page of memory that the keeper and all fronts read."""

from __future__ import annotations

import fcntl
import mmap
import os

from polyhost.config import MOST_FRONTS

_COUNT_BYTES = 4
_BYTES = MOST_FRONTS * _COUNT_BYTES


class Board:
    """
    How many connections each front has: the limit is the server's.

    Each process writes its own number alone. What another has written an instant ago may be missed, so that a few
    connections more than allowed may come in at once.
    """

    def __init__(self, descriptor: int, number: int) -> None:
        """`descriptor`: of `new`, which may be closed then. `number`: whose board it is."""
        self._memory = mmap.mmap(descriptor, _BYTES)
        self._counts = memoryview(self._memory).cast("I")
        self._number = number

    @staticmethod
    def new() -> int:
        descriptor = os.memfd_create("polyhost-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, _BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor

    def others(self) -> int:
        return sum(self._counts) - self._counts[self._number]

    def tell(self, own: int) -> None:
        self._counts[self._number] = own

    def forget(self, number: int) -> None:
        """That front has ended."""
        self._counts[number] = 0
