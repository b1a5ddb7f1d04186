"""
What each folder's tests take of the machine, and what they may.

The table is printed after each run of all tests. In continuous integration a folder over its budget fails the run, so
that the suite stays as quick as it is. The budget is of CPU time, the server's processes included: on a few cores that
is what the suite's own time comes from, and neighbours on the machine do not change it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

# CPU seconds that the tests of a folder may take in all, on the machine of the reference below: twice what they took
# when this was written.
BUDGETS_SECS: Mapping[str, int] = {
    "aws": 40, "bench": 10, "contract": 110, "deploy": 30, "endpoint": 380, "handlers": 140, "loadtest": 65,
    "native": 80, "notebooks": 145, "server": 240, "sizing": 35, "tests": 45,
}  # fmt: skip
# CPU seconds that `_reference_work` takes on that machine: two cores of an AMD EPYC of 2025.
_REFERENCE_SECS = 0.095


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


class Durations:
    """Adds up what pytest reports of each phase of each test."""

    def __init__(self) -> None:
        self._secs: Counter[str] = Counter()
        self._cpu_secs: Counter[str] = Counter()
        self._tests: Counter[str] = Counter()

    def add(self, nodeid: str, phase: str, secs: float, cpu_secs: float = 0.0) -> None:
        folder = folder_of(nodeid)
        self._secs[folder] += secs
        self._cpu_secs[folder] += cpu_secs
        self._tests[folder] += phase == "call"

    def lines(self, slowness: float) -> list[Line]:
        """By folder; the budgets are those of a machine that is `slowness` times as slow as the reference."""
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
    """How many times the CPU time of the reference this machine takes for the same work, at least 1."""
    begun = time.process_time()
    _reference_work()
    return max(1.0, (time.process_time() - begun) / _REFERENCE_SECS)


def _reference_work() -> None:
    total = 0
    for number in range(5_000_000):
        total += number % 7


def is_checked() -> bool:
    return bool(os.environ.get("CI"))
