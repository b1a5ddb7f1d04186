"""What the native engine decides, case by case."""

from __future__ import annotations

import itertools

import pytest
from polyhost.engine.native.placement import (
    MAX_DEATHS,
    SLOW_CALL_SECS,
    Admission,
    AfterLoss,
    Begin,
    EndThese,
    Growth,
    HeapState,
    HeapUse,
    Manner,
    Memory,
    Refuse,
    Seat,
    Tried,
    TrimThese,
    admit,
    after_loss,
    give_away,
    is_blamed,
    need_bytes,
    needs_own_worker,
    outgrown,
    place,
    recent_deaths,
    share_bytes,
)
from polyhost.engine.native.pool import End

MIB = 1024**2
KIB = 1024


@pytest.mark.parametrize(
    ("isolation", "has_code", "is_pickle", "isolates_pickles", "is_alone"),
    [
        ("auto", False, False, False, False),
        ("auto", True, False, False, True),
        ("auto", False, True, False, False),  # a pickle is trusted
        ("auto", False, True, True, True),  # but not where the mode is hardened
        ("auto", False, False, True, False),
        ("process", False, False, False, True),
        ("shared", True, True, True, False),
    ],
)
def test_which_models_share_no_worker(
    isolation: str, *, has_code: bool, is_pickle: bool, isolates_pickles: bool, is_alone: bool
) -> None:
    alone = needs_own_worker(isolation, has_code=has_code, is_pickle=is_pickle, isolates_pickles=isolates_pickles)
    assert alone is is_alone


@pytest.mark.parametrize(
    ("seats", "chosen"),
    [
        ([Seat(False, 0, 0)], 0),
        ([Seat(False, 2, 0), Seat(False, 1, 0)], 1),
        ([Seat(False, 1, 0), Seat(False, 1, 0)], 0),
        ([Seat(False, 1, 3), Seat(False, 2, 0)], 1),  # orders that wait count as models do
        ([Seat(True, 1, 0), Seat(False, 9, 9)], 1),  # a second copy goes elsewhere, however busy it is there
        ([Seat(True, 3, 0), Seat(True, 2, 0)], 1),  # unless all have it
    ],
)
def test_where_a_model_goes(seats: list[Seat], chosen: int) -> None:
    assert place(seats) == chosen


@pytest.mark.parametrize(
    ("artifact_bytes", "heaps", "need"),
    [
        (7 * MIB, [], 7 * MIB),  # nothing is known yet
        (7 * MIB, [HeapUse(25 * MIB, 10 * MIB)], 14 * MIB),  # 5 MiB are the frameworks', 20 are ten's
        (7 * MIB, [HeapUse(25 * MIB, 10 * MIB), HeapUse(25 * MIB, 10 * MIB)], 14 * MIB),
        (7 * MIB, [HeapUse(6 * MIB, 10 * MIB)], 7 * MIB),  # never less than the archive
        (50 * MIB, [HeapUse(4 * MIB, 1 * KIB)], 50 * MIB),  # a tiny one, whose frameworks take 4,000 times as much
        (50 * MIB, [HeapUse(80 * MIB, 1 * KIB)], 800 * MIB),  # whatever it is that takes so much
        (3 * MIB, [HeapUse(5 * MIB, 0)], 3 * MIB),
    ],
)
def test_what_a_model_in_a_shared_worker_needs(artifact_bytes: int, heaps: list[HeapUse], need: int) -> None:
    assert need_bytes(artifact_bytes, heaps) == need


@pytest.mark.parametrize(
    ("artifact_bytes", "heaps", "share"),
    [
        (7, [], 7),
        (7, [HeapUse(20, 10)], 14),
        (7, [HeapUse(20, 10), HeapUse(10, 20)], 7),
        (7, [HeapUse(5, 10)], 7),
        (7, [HeapUse(4000, 1)], 28_000),  # it is loaded: what it took is known
        (7, [HeapUse(50, 0)], 7),
    ],
)
def test_what_a_loaded_model_takes(artifact_bytes: int, heaps: list[HeapUse], share: int) -> None:
    assert share_bytes(artifact_bytes, heaps) == share


def memory(used_bytes: int, reserved_bytes: int = 0, *, is_empty: bool = False) -> Memory:
    return Memory(100, used_bytes, reserved_bytes, is_empty)


TIGHT = {"a": HeapState(50, 0), "b": HeapState(40, 0)}
LOOSE = {"a": HeapState(50, 30), "b": HeapState(40, 1)}
LEAK = {"c": Growth(10, 60)}


@pytest.mark.parametrize(
    ("now", "heaps", "growth", "tried", "was_in_vain", "decision"),
    [
        # 1. It fits, or has the server to itself.
        (memory(90), LOOSE, LEAK, Tried.NOTHING, False, Begin()),
        (memory(500, is_empty=True), TIGHT, {}, Tried.NOTHING, False, Begin()),
        (memory(50, 40), TIGHT, {}, Tried.NOTHING, False, Begin()),
        # 2. What counts as used may be used no more.
        (memory(91), LOOSE, LEAK, Tried.NOTHING, False, TrimThese(["a", "b"])),
        (memory(50, 41), LOOSE, {}, Tried.NOTHING, False, TrimThese(["a", "b"])),
        (memory(91), LOOSE, {}, Tried.NOTHING, True, TrimThese(["a"])),  # a fortieth of b is not worth it
        (memory(90), LOOSE, {}, Tried.TRIM, False, Begin()),
        # 3. A model that leaks goes before its neighbours do.
        (memory(91), LOOSE, LEAK, Tried.TRIM, True, EndThese({"c": Manner.AFTER_ITS_CALLS})),
        (memory(91), TIGHT, LEAK, Tried.NOTHING, False, EndThese({"c": Manner.AFTER_ITS_CALLS})),
        (memory(91), TIGHT, {"c": Growth(10, 12)}, Tried.NOTHING, False, Refuse()),
        (memory(190), TIGHT, {"c": Growth(0, 100)}, Tried.NOTHING, False, EndThese({"c": Manner.AFTER_ITS_CALLS})),
        (memory(191), TIGHT, {"c": Growth(0, 101)}, Tried.NOTHING, False, EndThese({"c": Manner.AT_ONCE})),
        # 4. All that is loaded stays.
        (memory(91), LOOSE, LEAK, Tried.END, True, Refuse()),
        (memory(91), LOOSE, {}, Tried.TRIM, True, Refuse()),
        (memory(91), TIGHT, {}, Tried.NOTHING, False, Refuse()),
    ],
)
def test_whether_a_load_of_10_of_100_bytes_may_begin(
    now: Memory, heaps: dict[str, HeapState], growth: dict[str, Growth], tried: Tried, decision: Admission[str],
    *, was_in_vain: bool,
) -> None:  # fmt: skip
    assert admit(10, now, heaps, growth, tried, was_trimmed_in_vain=was_in_vain) == decision


@pytest.mark.parametrize("used_bytes", [0, 91, 10_000])
@pytest.mark.parametrize(("heaps", "growth"), list(itertools.product([{}, TIGHT, LOOSE], [{}, LEAK])))
def test_a_load_is_decided_after_two_things_at_most(
    used_bytes: int, heaps: dict[str, HeapState], growth: dict[str, Growth]
) -> None:
    """Also where neither is of any use."""
    tried = Tried.NOTHING
    for _ in range(3):
        decision = admit(10, memory(used_bytes), heaps, growth, tried, was_trimmed_in_vain=False)
        if isinstance(decision, (Begin, Refuse)):
            return
        tried = Tried.TRIM if isinstance(decision, TrimThese) else Tried.END
    pytest.fail("it goes on")


@pytest.mark.parametrize(
    ("workers", "missing", "ended"),
    [
        ({"a": Growth(10, 200), "b": Growth(10, 20)}, 5, ["a"]),
        ({"a": Growth(10, 200), "b": Growth(10, 300)}, 5, ["b"]),
        ({"a": Growth(10, 200)}, 190, ["a"]),
        ({"a": Growth(10, 200)}, 191, []),  # others have grown too: it alone is not the cause
        ({"a": Growth(10, 200), "b": Growth(10, 300)}, 480, ["b", "a"]),  # two that leak
        ({"a": Growth(10, 200), "b": Growth(10, 300)}, 481, []),
        ({"a": Growth(10, 110)}, 5, []),  # an eighth of the budget of 800
        ({"a": Growth(10, 111)}, 5, ["a"]),
        ({"a": Growth(150, 300)}, 5, []),  # it has doubled
        ({"a": Growth(150, 301)}, 5, ["a"]),
        ({"a": Growth(10, 200), "b": Growth(10, 300, is_busy=True)}, 190, ["a"]),  # the idle one does
        ({"a": Growth(10, 200), "b": Growth(10, 300, is_busy=True)}, 191, ["b"]),
        ({"a": Growth(10, 200), "b": Growth(10, 300, is_busy=True)}, 480, ["b", "a"]),
        ({}, 5, []),
    ],
)
def test_which_models_have_outgrown_the_budget(workers: dict[str, Growth], missing: int, ended: list[str]) -> None:
    assert outgrown(workers, 800, missing) == ended


RUNNING = {
    End.BY_ITSELF: (AfterLoss.ISOLATE, AfterLoss.REFUSE_AS_DEADLY),
    End.UNUSABLE: (AfterLoss.ISOLATE, AfterLoss.REFUSE_AS_DEADLY),
    End.NO_ANSWER: (AfterLoss.REFUSE_AS_TOO_SLOW, AfterLoss.REFUSE_AS_TOO_SLOW),
    End.OUTGROWN: (AfterLoss.ISOLATE, AfterLoss.REFUSE_AS_DEADLY),
    End.UNLOADED: (AfterLoss.RETRY, AfterLoss.RETRY),
    End.FORGOTTEN: (AfterLoss.RETRY, AfterLoss.RETRY),
    End.STOPPING: (AfterLoss.RETRY, AfterLoss.RETRY),
}


@pytest.mark.parametrize("end", End)
def test_what_becomes_of_calls_that_a_worker_was_at_when_it_ended(end: End) -> None:
    first, second = (after_loss(end, was_running=True, is_retry=is_retry, is_alone=False) for is_retry in (False, True))
    assert (first, second) == RUNNING[end]


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("is_retry", [False, True])
def test_only_a_model_that_is_alone_has_outgrown_the_budget(end: End, *, is_retry: bool) -> None:
    alone = after_loss(end, was_running=True, is_retry=is_retry, is_alone=True)
    assert alone is (AfterLoss.REFUSE_AS_OUTGROWN if end is End.OUTGROWN else RUNNING[end][is_retry])


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("is_retry", [False, True])
@pytest.mark.parametrize("is_alone", [False, True])
def test_calls_that_a_worker_had_not_begun_are_sent_again(end: End, *, is_retry: bool, is_alone: bool) -> None:
    assert after_loss(end, was_running=False, is_retry=is_retry, is_alone=is_alone) is AfterLoss.RETRY


def test_a_model_is_blamed_for_ends_that_nobody_else_has_decided() -> None:
    assert {after for after in AfterLoss if is_blamed(after)} == {AfterLoss.ISOLATE, AfterLoss.REFUSE_AS_DEADLY}


def test_deaths_count_for_ten_minutes() -> None:
    assert recent_deaths([0.0, 399.9, 400.1, 900.0], 1000.0) == [400.1, 900.0]
    assert MAX_DEATHS == 3


@pytest.mark.parametrize(
    ("own_secs", "behind", "is_dedicated", "is_given"),
    [
        (SLOW_CALL_SECS * 1.01, [1, 2], False, True),
        (SLOW_CALL_SECS, [1, 2], False, False),
        (9.0, [], False, False),
        (9.0, [1, 1], False, False),  # its own calls wait, as they would anywhere
        (9.0, [1, None], False, True),  # a trim waits, and with it a load
        (9.0, [2], True, False),  # it is another model's own already
    ],
)
def test_whether_a_slow_call_of_model_1_gets_its_worker(
    own_secs: float, behind: list[int | None], *, is_dedicated: bool, is_given: bool
) -> None:
    assert give_away(1, own_secs, behind, is_dedicated=is_dedicated) is is_given
