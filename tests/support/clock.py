"""
A clock that knows starvation: it stands still while the processes that are timed wait for a core.

Tests of times share the machine with others. What they assert is the server's doing, not the scheduler's: that no
request waits for a slow neighbour, that a stop is quick. Linux counts, for each thread, how long it was ready to run
and had no core (the second figure of /proc/PID/task/TID/schedstat, nanoseconds). Here the waits of all threads of the
server's processes and of this one are added up and taken off. That is more than the request itself has waited, so a
starved machine makes these assertions lenient, and a quiet one leaves them as strict as they are written.

A virtual machine loses time, too. Some tell how much their host gave to others; of those that do not, a thread that is
woken twenty times a second notices it.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator

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
        self._stalls = _Stalls()
        # The longest wait seen of each thread, by its folder: those of a thread that has ended still count.
        self._waits_nanos: dict[str, int] = {}
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
        self._read(os.getpid())
        for pid in _tree(self._pid):
            self._read(pid)
        return sum(self._waits_nanos.values()) / 1e9 + _stolen_secs() + self._stalls.secs

    def _read(self, pid: int) -> None:
        for thread in _threads(pid):
            with contextlib.suppress(OSError):
                self._waits_nanos[thread] = max(_waited_nanos(thread), self._waits_nanos.get(thread, 0))


class _Stalls:
    """`secs`: for how long a thread was not woken that had not to wait for a core. It ends with this object."""

    def __init__(self) -> None:
        self.secs = 0.0
        threading.Thread(target=_note_stalls, args=(weakref.ref(self),), daemon=True).start()


def _note_stalls(stalls: weakref.ref[_Stalls]) -> None:
    seen, waited = time.monotonic(), _waited_nanos("/proc/thread-self")
    while (noted := stalls()) is not None:
        now, waited_now = time.monotonic(), _waited_nanos("/proc/thread-self")
        late = now - seen - _LOOK_SECS - (waited_now - waited) / 1e9
        noted.secs += late if late > _LOOK_SECS else 0.0
        del noted
        seen, waited = now, waited_now
        time.sleep(_LOOK_SECS)


def _waited_nanos(thread: str) -> int:
    with open(f"{thread}/schedstat") as file:
        return int(file.read().split()[1])


def _threads(pid: int) -> list[str]:
    """Their folders; none of a process that is gone."""
    with contextlib.suppress(OSError):
        return [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    return []


def _tree(pid: int) -> Iterator[int]:
    """
    A process and its descendants.

    By what the kernel says of each thread: to look through all processes of the machine, twenty times a second, would
    take a part of the core that the server under test is to have.
    """
    yield pid
    for thread in _threads(pid):
        with contextlib.suppress(OSError), open(f"{thread}/children") as file:
            for child in file.read().split():
                yield from _tree(int(child))


def _stolen_secs() -> float:
    """What the host of a virtual machine gave to others, all cores together."""
    try:
        with open("/proc/stat") as file:
            return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0
