"""What decides how the tests run: groups, the short form, the table of durations."""

from __future__ import annotations

import pytest
from durations import BUDGETS_SECS, Durations, Line, folder_of, slowness, table
from lanes import group_of


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


def test_phases_are_added_up_and_held_against_the_budget() -> None:
    durations = Durations()
    for phase, secs in (("setup", 100.0), ("call", 30.0), ("teardown", 1.0)):
        durations.add("tests/aws/test_plan.py::test_a", phase, secs)
    budget_secs = BUDGETS_SECS["aws"]

    assert durations.lines(1) == [Line("aws", 1, 131.0, budget_secs)]
    assert durations.lines(1)[0].is_over
    assert not durations.lines(2)[0].is_over
    assert "over" in table(durations.lines(1)).splitlines()[1]


def test_a_machine_is_never_quicker_than_the_reference() -> None:
    assert slowness() >= 1
