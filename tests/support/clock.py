"""
A clock that knows starvation: it stands still while the processes that are timed wait for a core.

Tests of times share the machine with others. What they assert is the server's doing, not the scheduler's: that no
request waits for a slow neighbour, that a stop is quick. Linux counts, for each thread, how long it was ready to run
and had no core (the second figure of /proc/PID/task/TID/schedstat, nanoseconds). Here the waits of all threads of the
server's processes and of this one are added up and taken off. That is more than the request itself has waited, so a
starved machine makes these assertions lenient, and a quiet one leaves them as strict as they are written.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from collections.abc import Iterator

import psutil

# How often the waits are looked up while a span of many requests is timed.
_LOOK_SECS = 0.05


class FairClock:
    """
    Seconds, as time.monotonic() counts them, less what a process, its descendants and this process waited for a core.

    Call it for the time. `with clock.watching(): …` looks all along, so that `waited_between` can tell later what was
    waited within any span of that block.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        # The longest wait seen of each thread: those of a thread that has ended still count.
        self._waits_nanos: dict[tuple[int, str], int] = {}
        # Of each look: when it began, when it had ended, what had been waited by then.
        self._begun: list[float] = []
        self._ended: list[float] = []
        self._waited: list[float] = []

    def __call__(self) -> float:
        waited_secs = self._waited_secs()
        return time.monotonic() - waited_secs

    @contextlib.contextmanager
    def watching(self) -> Iterator[FairClock]:
        self._begun, self._ended, self._waited = [], [], []
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True)
        self._look()
        watcher.start()
        try:
            yield self
        finally:
            over.set()
            watcher.join()
            self._look()

    def waited_between(self, begin: float, end: float) -> float:
        """
        Seconds waited for a core from `begin` to `end`, on time.monotonic()'s clock, within the last `watching`.

        From a look that had ended before the one to a look that began after the other, so never too little.
        """
        first = max(0, bisect.bisect_right(self._ended, begin) - 1)
        last = min(len(self._begun) - 1, bisect.bisect_left(self._begun, end))
        return self._waited[last] - self._waited[first]

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_LOOK_SECS):
            self._look()

    def _look(self) -> None:
        self._begun.append(time.monotonic())
        self._waited.append(self._waited_secs())
        self._ended.append(time.monotonic())

    def _waited_secs(self) -> float:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._pid).children(recursive=True)
            for pid in (self._pid, os.getpid(), *(child.pid for child in children)):
                self._read(pid)
        return sum(self._waits_nanos.values()) / 1e9 + _stolen_secs()

    def _read(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
                    nanos = int(file.read().split()[1])
                    key = (pid, thread)
                    self._waits_nanos[key] = max(nanos, self._waits_nanos.get(key, 0))


def _stolen_secs() -> float:
    """What the host of a virtual machine gave to others, all cores together."""
    try:
        with open("/proc/stat") as file:
            return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0
