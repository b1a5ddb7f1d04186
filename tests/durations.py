"""
What each folder's tests take of the machine, and what they may.

The table is printed after each run of all tests, and says which folder is over its budget. In continuous integration a
folder over twice its budget fails the run: so much is no other CPU and no neighbour, it is what the tests do. The
budget is of CPU time, the server's processes included: on a few cores that is what the suite's own time comes from.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# CPU seconds that the tests of a folder may take in all, on the machine of the reference below: about 1.6 times
# what they took beside neighbours when this was written. `tests` reads every page, and asks each command for its help.
BUDGETS_SECS: Mapping[str, int] = {
    "aws": 25, "bench": 10, "chaos": 10, "contract": 70, "deploy": 20, "endpoint": 280, "fleet": 10, "fuzz": 20,
    "handlers": 95, "loadtest": 30, "native": 65, "notebooks": 45, "server": 120, "sizing": 20, "tests": 45,
}  # fmt: skip
# CPU seconds that `_reference_work` takes on that machine: two cores of an AMD EPYC of 2025.
_REFERENCE_SECS = 0.019
# How often each of xdist's workers looks how slow the machine is. Neighbours come and go, and what runs beside the
# tests slows them down: one look, when all is over, would say nothing of it.
_LOOK_SECS = 30


@dataclass(frozen=True)
class Line:
    """`secs`: of waiting and of work, all tests one after the other. `cpu_secs` and `budget_secs`: of work alone."""

    folder: str
    tests: int
    secs: float
    cpu_secs: float
    budget_secs: float | None

    @property
    def is_over(self) -> bool:
        return self.budget_secs is not None and self.cpu_secs > self.budget_secs

    @property
    def is_far_over(self) -> bool:
        return self.budget_secs is not None and self.cpu_secs > 2 * self.budget_secs


class Durations:
    """Adds up what pytest reports of each phase of each test."""

    def __init__(self) -> None:
        self._secs: Counter[str] = Counter()
        self._cpu_secs: Counter[str] = Counter()
        self._tests: Counter[str] = Counter()
        self._slowness: list[float] = []

    def add(
        self, nodeid: str, phase: str, secs: float, cpu_secs: float = 0.0, slowness: float | None = None
    ) -> None:  # fmt: skip
        """`slowness`: of the machine, where a worker has looked."""
        folder = folder_of(nodeid)
        self._secs[folder] += secs
        self._cpu_secs[folder] += cpu_secs
        self._tests[folder] += phase == "call"
        if slowness is not None:
            self._slowness.append(slowness)

    def lines(self) -> list[Line]:
        """By folder; the budgets are those of a machine that is as slow as this one was in the mean."""
        slowness = statistics.fmean(self._slowness or [1.0])
        budgets = {folder: secs * slowness for folder, secs in BUDGETS_SECS.items()}
        return [
            Line(one, self._tests[one], self._secs[one], self._cpu_secs[one], budgets.get(one))
            for one in sorted(self._secs)
        ]


def cpu_secs() -> float:
    """What this process has used of CPUs, and those that it has started and seen end."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def folder_of(nodeid: str) -> str:
    """`tests/aws/test_x.py::test_y` is of `aws`, `tests/test_log.py::test_z` of `tests`."""
    parts = nodeid.partition("::")[0].split("/")
    return parts[1] if len(parts) > 2 else parts[0]


def table(lines: list[Line]) -> str:
    rows = ["folder      tests   secs    CPU  budget"]
    for line in lines:
        budget = "-" if line.budget_secs is None else f"{line.budget_secs:.0f}"
        over = "  over" if line.is_over else ""
        rows.append(f"{line.folder:10} {line.tests:6} {line.secs:6.0f} {line.cpu_secs:6.0f} {budget:>7}{over}")
    return "\n".join(rows)


def slowness() -> float:
    """How many times the CPU time of the reference this machine takes now for the same work, at least 1."""
    begun = time.thread_time()
    _reference_work()
    return max(1.0, (time.thread_time() - begun) / _REFERENCE_SECS)


def _reference_work() -> None:
    total = 0
    for number in range(1_000_000):
        total += number % 7


class Looks:
    """When a worker looks how slow the machine is: at its first test, and now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = -math.inf

    def look(self) -> float | None:
        """None where it is too early for another one."""
        now = self._clock()
        if now < self._next:
            return None
        self._next = now + _LOOK_SECS
        return slowness()


def is_checked() -> bool:
    return bool(os.environ.get("CI"))
