"""The ledger of a worker's memory, without a worker: `process` is what its private memory is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhost.engine.native.heap import Heap


@dataclass
class Process:
    resident_bytes: int = 100

    def heap(self) -> Heap:
        heap = Heap(lambda: self.resident_bytes)
        heap.begin()
        return heap


@pytest.fixture
def process() -> Process:
    return Process()


def load(process: Process, heap: Heap, *, grown_bytes: int, artifact_bytes: int = 10) -> None:
    heap.loading(artifact_bytes)
    process.resident_bytes += grown_bytes
    heap.loaded(artifact_bytes, grown_bytes)


def test_what_the_process_had_before_its_models_is_not_theirs(process: Process) -> None:
    heap = process.heap()
    assert (heap.used_bytes, heap.loose_bytes, heap.wants_trim) == (0, 0, False)
    load(process, heap, grown_bytes=30)
    assert (heap.used_bytes, heap.artifact_bytes) == (30, 10)


def test_what_a_load_held_for_a_moment_is_loose_until_a_trim(process: Process) -> None:
    heap = process.heap()
    load(process, heap, grown_bytes=30)
    assert (heap.loose_bytes, heap.wants_trim) == (30, True)
    heap.trimming()
    heap.trimmed(process.resident_bytes - 18)
    process.resident_bytes -= 18
    assert (heap.used_bytes, heap.loose_bytes, heap.wants_trim) == (12, 0, False)


def test_what_begins_while_a_trim_is_answered_stays_loose(process: Process) -> None:
    """The worker says what it had after the trim; by then it may be at its next load."""
    heap = process.heap()
    load(process, heap, grown_bytes=30)
    process.resident_bytes += 5
    heap.trimmed(100 + 30)
    assert heap.loose_bytes == 5


def test_an_unloaded_model_leaves_room_that_the_next_fills(process: Process) -> None:
    heap = process.heap()
    load(process, heap, grown_bytes=30)
    heap.trimmed(process.resident_bytes)
    heap.unloaded(10, 25, 30)
    assert (heap.used_bytes, heap.artifact_bytes, heap.wants_trim) == (5, 0, True)
    assert heap.loose_bytes == 5  # it may have taken more than was estimated
    load(process, heap, grown_bytes=0, artifact_bytes=10)
    assert (heap.used_bytes, heap.loose_bytes, heap.artifact_bytes) == (15, 15, 10)


def test_models_that_moved_leave_room_until_their_worker_has_dropped_them(process: Process) -> None:
    heap = process.heap()
    load(process, heap, grown_bytes=30)
    heap.moved(10, 20, 30)
    assert (heap.used_bytes, heap.artifact_bytes) == (10, 0)
    process.resident_bytes -= 5  # less than estimated
    heap.trimmed(process.resident_bytes)
    assert heap.used_bytes == 25


def test_a_load_that_failed_leaves_what_it_took_to_a_trim(process: Process) -> None:
    heap = process.heap()
    heap.loading(10)
    process.resident_bytes += 40
    heap.failed(10)
    assert (heap.used_bytes, heap.loose_bytes, heap.artifact_bytes, heap.wants_trim) == (40, 40, 0, True)


def test_what_models_took_when_they_were_loaded_stays_known(process: Process) -> None:
    heap = process.heap()
    load(process, heap, grown_bytes=40)
    load(process, heap, grown_bytes=20)
    process.resident_bytes += 40
    assert (heap.loaded_bytes, heap.used_bytes) == (60, 100)
    heap.trimmed(process.resident_bytes)  # what leaked stays
    assert (heap.loaded_bytes, heap.used_bytes) == (60, 100)
    heap.unloaded(10, 20, 20)
    assert heap.loaded_bytes == 40
    heap.moved(10, 40, 40)
    assert heap.loaded_bytes == 0


def test_what_a_load_held_for_a_moment_is_no_part_of_its_model(process: Process) -> None:
    heap = process.heap()
    load(process, heap, grown_bytes=40)
    process.resident_bytes -= 25
    heap.trimmed(process.resident_bytes)
    assert heap.loaded_bytes == 15
    process.resident_bytes += 25
    assert (heap.loaded_bytes, heap.used_bytes) == (15, 40)


def test_a_worker_that_loads_is_known_to(process: Process) -> None:
    """What it grows by then is the load's; a trim before it is over does not count it either."""
    heap = process.heap()
    heap.loading(10)
    heap.loading(10)
    heap.failed(10)
    assert heap.is_loading
    process.resident_bytes += 40
    heap.loaded(10, 40)
    assert (heap.is_loading, heap.loaded_bytes) == (False, 40)


SIZES = st.integers(0, 1000)


@given(st.lists(st.tuples(st.sampled_from(["load", "fail", "unload", "move", "trim"]), SIZES, SIZES)))
def test_an_idle_ledger_is_exact_after_a_trim(events: list[tuple[str, int, int]]) -> None:
    """Whatever happened and however wrong the estimates were, nothing is negative, and nothing is left over."""
    process = Process()
    heap = process.heap()
    for event, first_bytes, second_bytes in events:
        if event == "load":
            load(process, heap, grown_bytes=first_bytes, artifact_bytes=second_bytes)
        elif event == "fail":
            heap.loading(first_bytes)
            heap.failed(first_bytes)
        elif event == "unload":
            heap.unloaded(0, second_bytes, first_bytes)
        elif event == "move":
            heap.moved(0, second_bytes, first_bytes)
        else:
            process.resident_bytes = max(0, process.resident_bytes - first_bytes)
            heap.trimmed(process.resident_bytes)
        assert heap.used_bytes >= 0
        assert heap.loose_bytes >= 0
        assert heap.loaded_bytes >= 0
    heap.trimmed(process.resident_bytes)
    assert heap.used_bytes == max(0, process.resident_bytes - 100)
    assert heap.loose_bytes == 0
