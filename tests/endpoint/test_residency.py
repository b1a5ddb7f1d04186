"""What the cache decides, case by case."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from polyhost.endpoint.residency import (
    Afterwards,
    Change,
    Evict,
    Fail,
    FetchAnew,
    Load,
    Reason,
    Shortage,
    Situation,
    TakeTurn,
    Wait,
    afterwards,
    change_of,
    next_step,
)

from endpoint.cache_mutants import STEPS as STEPS_WITH_MISTAKES


@dataclass(frozen=True)
class Model:
    name: str
    is_idle: bool = True
    is_pinned: bool = False


IDLE, IDLE_TOO = Model("idle"), Model("idle, too")
BUSY = Model("busy", is_idle=False)
PINNED = Model("pinned", is_pinned=True)
BUSY_AND_PINNED = Model("busy and pinned", is_idle=False, is_pinned=True)

FIRST: Situation[Model] = Situation(files_bytes=10, budget_bytes=100)
SHORT = replace(FIRST, shortage=Shortage(), has_turn=True)
ALONE = Shortage(was_alone=True)
MAY_PASS = Shortage(was_alone=True, may_pass=True)
NO_ROOM, TOO_LARGE = Fail(Reason.NO_ROOM), Fail(Reason.TOO_LARGE)

# By the number of the case in `next_step`.
STEPS: list[tuple[int, Situation[Model], dict[str, Any], object]] = [
    (1, FIRST, {"is_outdated": True, "is_known_too_large": True}, FetchAnew()),
    (1, SHORT, {"is_outdated": True, "residents": [IDLE]}, FetchAnew()),
    (2, FIRST, {"is_known_too_large": True}, Fail(Reason.KNOWN_TOO_LARGE)),
    (2, FIRST, {"is_known_too_large": True, "files_bytes": 101}, Fail(Reason.KNOWN_TOO_LARGE)),
    (3, FIRST, {"files_bytes": 101}, Fail(Reason.FILES_TOO_LARGE)),
    (3, SHORT, {"files_bytes": 101, "residents": [IDLE]}, Fail(Reason.FILES_TOO_LARGE)),
    (4, FIRST, {"files_bytes": 100}, Load()),
    # Nothing is evicted before the engine has said that memory is short.
    (4, FIRST, {"residents": [IDLE, IDLE_TOO]}, Load()),
    (4, FIRST, {"residents": [PINNED], "leaving": 1, "loading": 1, "has_turn": True}, Load()),
    (5, SHORT, {"shortage": ALONE}, TOO_LARGE),
    (5, SHORT, {"shortage": MAY_PASS}, NO_ROOM),
    # Its turn or not, and whatever has come since.
    (5, SHORT, {"shortage": ALONE, "has_turn": False, "residents": [IDLE]}, TOO_LARGE),
    (6, SHORT, {"residents": [IDLE, IDLE_TOO]}, Evict(IDLE)),
    (6, SHORT, {"residents": [IDLE_TOO, IDLE]}, Evict(IDLE_TOO)),
    (6, SHORT, {"residents": [BUSY, PINNED, BUSY_AND_PINNED, IDLE, IDLE_TOO]}, Evict(IDLE)),
    (6, SHORT, {"residents": [IDLE], "has_turn": False}, Evict(IDLE)),
    (6, SHORT, {"residents": [IDLE], "leaving": 1, "loading": 1}, Evict(IDLE)),
    (7, SHORT, {"has_turn": False}, TakeTurn()),
    (7, SHORT, {"has_turn": False, "residents": [BUSY, PINNED]}, TakeTurn()),
    (7, SHORT, {"has_turn": False, "residents": [PINNED]}, TakeTurn()),
    (7, SHORT, {"has_turn": False, "leaving": 1, "loading": 1}, TakeTurn()),
    (8, SHORT, {"residents": [BUSY]}, Wait()),
    (8, SHORT, {"residents": [PINNED, BUSY]}, Wait()),
    (8, SHORT, {"residents": [PINNED], "leaving": 1}, Wait()),
    (8, SHORT, {"residents": [PINNED], "loading": 1}, Wait()),
    (8, SHORT, {"leaving": 1}, Wait()),
    (8, SHORT, {"loading": 1}, Wait()),
    (9, SHORT, {"residents": [PINNED]}, NO_ROOM),
    (9, SHORT, {"residents": [BUSY_AND_PINNED, PINNED]}, NO_ROOM),
    (10, SHORT, {}, Load()),
]


@pytest.mark.parametrize(("case", "situation", "changes", "step"), STEPS)
def test_the_next_step_of_a_load(case: int, situation: Situation[Model], changes: dict[str, Any], step: object) -> None:
    assert next_step(replace(situation, **changes)) == step, f"case {case} of next_step"


def test_each_case_of_a_load_is_in_the_table() -> None:
    assert {case for case, *_ in STEPS} == set(range(1, 11))


@pytest.mark.parametrize(
    ("listed", "loaded", "is_loading", "change"),
    [
        ("1", "1", True, Change.LOOK_AGAIN),
        ("2", "1", True, Change.LOOK_AGAIN),
        (None, "1", True, Change.LOOK_AGAIN),
        (None, None, True, Change.LOOK_AGAIN),
        (None, "1", False, Change.FORGET),
        (None, None, False, Change.FORGET),
        ("2", "1", False, Change.SWAP),
        ("1", "1", False, Change.KEEP),
        ("1", None, False, Change.KEEP),
    ],
)
def test_what_a_look_at_an_archive_changes(
    listed: str | None, loaded: str | None, is_loading: bool, change: Change
) -> None:
    assert change_of(listed=listed, loaded=loaded, is_loading=is_loading) is change


@pytest.mark.parametrize(
    ("is_current", "is_cached", "is_wanted", "then"),
    [
        (True, True, True, Afterwards.STAY),
        (True, True, False, Afterwards.STAY),
        (True, False, True, Afterwards.STAY),
        (True, False, False, Afterwards.DISCARD),
        (False, True, True, Afterwards.UNLOAD),
        (False, True, False, Afterwards.UNLOAD),
        (False, False, True, Afterwards.UNLOAD),
        (False, False, False, Afterwards.UNLOAD),
    ],
)
def test_what_becomes_of_a_version_that_nobody_uses_any_more(
    is_current: bool, is_cached: bool, is_wanted: bool, then: Afterwards
) -> None:
    assert afterwards(is_current=is_current, is_cached=is_cached, is_wanted=is_wanted) is then


@pytest.mark.parametrize("mistake", STEPS_WITH_MISTAKES)
def test_the_table_finds_a_mistake_of_the_decision(mistake: str) -> None:
    decide = STEPS_WITH_MISTAKES[mistake]
    assert any(decide(replace(situation, **changes)) != step for _, situation, changes, step in STEPS)
