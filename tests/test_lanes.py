"""What decides how the tests run: groups, the short form, the table of durations."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from durations import BUDGETS_SECS, Durations, Line, Looks, folder_of, slowness, table
from lanes import group_of
from support.clock import FairClock


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/aws/test_plan.py::test_a", "aws/test_plan.py"),
        ("tests/aws/test_plan.py::test_b[x-mms]", "aws/test_plan.py"),
        ("tests/contract/test_bad_input.py::test_a[mms]", "contract/test_bad_input.py-mms"),
        ("tests/contract/test_bad_input.py::test_a[native-1,2-text/csv]", "contract/test_bad_input.py-native"),
        ("tests/server/test_serve.py::test_a[mms]", "tests/server/test_serve.py::test_a[mms]"),
        ("tests/test_log.py::test_a", "test_log.py"),
    ],
)
def test_what_shares_a_server_stays_together(nodeid: str, group: str) -> None:
    assert group_of(nodeid) == group


@pytest.mark.parametrize(
    ("nodeid", "folder"), [("tests/aws/test_plan.py::test_a", "aws"), ("tests/test_log.py::test_a[a/b/c]", "tests")]
)
def test_a_test_is_of_its_folder(nodeid: str, folder: str) -> None:
    assert folder_of(nodeid) == folder


def durations(cpu_secs: float, *slowness: float) -> Durations:
    """Of one test; `slowness`: what workers have seen."""
    durations = Durations()
    for phase, secs in (("setup", 100.0), ("call", 30.0)):
        durations.add("tests/aws/test_plan.py::test_a", phase, secs)
    durations.add("tests/aws/test_plan.py::test_a", "teardown", 1.0, cpu_secs)
    for one in slowness:
        durations.add("tests/test_log.py::test_a", "teardown", 1.0, slowness=one)
    return durations


def test_phases_are_added_up_and_held_against_the_budget() -> None:
    budget_secs = BUDGETS_SECS["aws"]
    (line,) = durations(budget_secs + 1.0).lines()

    assert line == Line("aws", 1, 131.0, budget_secs + 1.0, budget_secs)
    assert "over" in table([line]).splitlines()[1]


@pytest.mark.parametrize(
    ("budgets", "slowness", "is_over", "is_far_over"),
    [
        (0.9, (), False, False),
        (1.1, (), True, False),
        (1.9, (), True, False),
        (2.1, (), True, True),
        # The mean counts.
        (2.1, (1.0, 1.0, 2.5), True, False),
        (2.9, (2.0, 4.0), False, False),
        (6.1, (2.0, 4.0), True, True),
    ],
)
def test_a_budget_is_for_a_machine_that_was_as_slow(
    budgets: float, slowness: tuple[float, ...], is_over: bool, is_far_over: bool
) -> None:
    line = durations(budgets * BUDGETS_SECS["aws"], *slowness).lines()[0]

    assert (line.is_over, line.is_far_over) == (is_over, is_far_over)


def test_a_machine_is_never_quicker_than_the_reference() -> None:
    assert slowness() >= 1


def test_a_worker_looks_at_once_and_now_and_then() -> None:
    times = iter([5.0, 6.0, 34.0, 36.0, 37.0, 99.0])
    looks = Looks(lambda: next(times))

    assert [looks.look() is not None for _ in range(6)] == [True, False, False, True, False, True]


def test_each_folder_has_a_budget() -> None:
    tests = Path(__file__).parent
    folders = {path.parent.relative_to(tests).as_posix() for path in tests.glob("*/test_*.py")} - {"image", "routers"}

    assert {*folders, "tests"} == set(BUDGETS_SECS)


def test_a_clock_of_a_process_that_sleeps_goes_on() -> None:
    """Only what is waited for a core is taken off: a server that does nothing is late."""
    clock = FairClock(os.getpid())
    with clock.watching():
        begun, fair = time.monotonic(), clock()
        threading.Event().wait(0.3)
        # In this order: what is taken off was waited within the span.
        fair_secs, ended = clock() - fair, time.monotonic()
    assert fair_secs + clock.waited_between(begun, ended) >= 0.29
    assert clock.waited_between(begun, ended) >= 0


def test_a_clock_stands_still_while_threads_wait_for_a_core() -> None:
    """Three threads of C code on one core: two of them wait at each moment."""
    cores = os.sched_getaffinity(0)
    clock = FairClock(os.getpid())
    try:
        os.sched_setaffinity(0, {min(cores)})
        begun = time.monotonic()
        threads = [threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 400_000)) for _ in range(3)]
        with clock.watching():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            ended = time.monotonic()
    finally:
        os.sched_setaffinity(0, cores)
    assert clock.waited_between(begun, ended) > (ended - begun) / 2
