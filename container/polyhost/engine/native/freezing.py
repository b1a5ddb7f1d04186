"""Keeps models out of the garbage collector's sight: looking through thousands of them would hold requests up."""

from __future__ import annotations

import gc

_FIRST = 512
# So few that a look at what has come since the last time takes the front a millisecond.
_STEP = 128


class Freezing:
    """At so many models, and at each doubling. What is frozen is never looked through again."""

    def __init__(self) -> None:
        self._next = _FIRST

    def freeze_if_many(self, models: int) -> None:
        if models >= self._next:
            gc.freeze()
            self._next *= 2


class SteadyFreezing:
    """After so many loads: what they have left is looked through once, and never again. For models of few objects."""

    def __init__(self) -> None:
        self._loads = 0

    def loaded(self) -> None:
        self._loads += 1
        if self._loads % _STEP == 0:
            gc.collect()
            gc.freeze()
