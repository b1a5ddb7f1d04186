"""How much of the time that a process takes is its own fault."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from polyhost.processes import state_of


class CpuTimes(NamedTuple):
    """How long a process has run, and how long it was ready and had no CPU, before it got one the last time."""

    ran_secs: float = 0.0
    waited_secs: float = 0.0


def own_secs(passed_secs: float, before: CpuTimes, now: CpuTimes, *, is_ready: Callable[[], bool]) -> float:
    """
    How much of the time between two looks at a process is its own: it ran, or slept.

    The kernel counts a wait for a CPU only when it is over. So what a process that is ready has not run, it has waited.
    """
    ran_secs = now.ran_secs - before.ran_secs
    own = max(0.0, passed_secs - (now.waited_secs - before.waited_secs))
    return min(own, ran_secs) if ran_secs < own and is_ready() else own


class Clock:
    """Times what a process is at. To be asked again and again: what passed before the first look is not seen."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._schedstat = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY)
        self._watched: object = None
        self._watched_since = 0.0
        self._own_secs = 0.0
        self._seen = (0.0, CpuTimes())

    def look(self, what: object) -> tuple[float, float]:
        """
        Since when it is at that, seconds, and how much of them is its own fault.

        Time in which it was ready to run and the machine had no CPU for it is not.
        """
        now, times = time.monotonic(), self._cpu_times() if what is not None else CpuTimes()
        if what is not self._watched:
            self._watched, self._watched_since, self._own_secs = what, now, 0.0
        else:
            before, times_before = self._seen
            self._own_secs += own_secs(now - before, times_before, times, is_ready=lambda: state_of(self._pid) == b"R")
        self._seen = (now, times)
        return now - self._watched_since, self._own_secs

    def close(self) -> None:
        """The process is gone."""
        os.close(self._schedstat)
        self._schedstat = -1

    def _cpu_times(self) -> CpuTimes:
        try:
            ran, waited, *_ = os.pread(self._schedstat, 128, 0).split()
            return CpuTimes(int(ran) / 1e9, int(waited) / 1e9)
        except (OSError, ValueError):
            return CpuTimes()
