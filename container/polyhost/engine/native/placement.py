"""
What the native engine decides: pure functions of what it knows. They change nothing, wait for nothing and log nothing.

* `needs_own_worker`: whether a model shares its worker with others.
* `place`: which shared worker gets a model.
* `admit`: whether a load may begin, and what is to be done before.
* `outgrown`: whose growth is why memory is missing.
* `after_loss`: what becomes of calls whose worker has ended.
* `give_away`: whether a slow call's worker becomes its model's own.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, Union

from polyhost.engine.native.pool import End
from polyhost.memory import fits

T = TypeVar("T")

# What a worker that models share makes its own of the frameworks, beside its models, when they are first used.
FRAMEWORKS_BYTES = 5 * 1024**2
# No more than a byte of archive can reasonably unpack to.
_MOST_PER_ARTIFACT_BYTE = 16.0
# Trims hold calls up. Where the last one was in vain the next waits until this share of a heap may be free again: a
# server that is full, and loads one model for another all the time, would trim for each.
_WORTH_A_TRIM = 0.05
# A model that has ended this many workers in that time is refused.
MAX_DEATHS = 3
_DEATHS_SECS = 600.0
# A call that takes longer holds its worker up, if others wait there.
SLOW_CALL_SECS = 0.05


# Where a model goes


def needs_own_worker(isolation: str, *, has_code: bool, is_pickle: bool, isolates_pickles: bool) -> bool:
    """
    `isolation`: as the setting; "auto" gives a worker to what may do as it likes in its process.

    A pickle may, and is trusted where the mode is not hardened.
    """
    if isolation in ("process", "shared"):
        return isolation == "process"
    return has_code or (is_pickle and isolates_pickles)


class Seat(NamedTuple):
    """A shared worker as `place` sees it."""

    has_model: bool
    models: int
    orders: int


def place(seats: Sequence[Seat]) -> int:
    """The index of the least busy seat; one that has the model already only where all have it."""
    return min(range(len(seats)), key=lambda index: (seats[index].has_model, seats[index].models + seats[index].orders))


# What models take


class HeapUse(NamedTuple):
    """What a shared worker's models use, and the bytes of their archives, those of loads under way included."""

    used_bytes: int
    artifact_bytes: int


def need_bytes(artifact_bytes: int, heaps: Iterable[HeapUse]) -> int:
    """
    What one more model in a shared worker will add: its archive's bytes, times what others take for each of theirs.

    What the frameworks take counts for no model: a tiny one would seem to take a thousand times its size.
    """
    used_bytes, known_bytes = 0, 0
    for heap in heaps:
        used_bytes += max(0, heap.used_bytes - FRAMEWORKS_BYTES)
        known_bytes += heap.artifact_bytes
    per_byte = used_bytes / known_bytes if known_bytes else 1.0
    return int(artifact_bytes * min(max(per_byte, 1.0), _MOST_PER_ARTIFACT_BYTE))


def share_bytes(artifact_bytes: int, heaps: Iterable[HeapUse]) -> int:
    """What a model that is loaded takes: its part, by its archive's bytes, of what all take; at least these bytes."""
    used_bytes, known_bytes = 0, 0
    for heap in heaps:
        used_bytes += heap.used_bytes
        known_bytes += heap.artifact_bytes
    return int(artifact_bytes * max(1.0, used_bytes / known_bytes)) if known_bytes else artifact_bytes


# Whether a load may begin


class Memory(NamedTuple):
    """What models may use, use, and will use when the loads under way are done."""

    budget_bytes: int
    used_bytes: int
    reserved_bytes: int
    # Whether no model is loaded and none is being loaded.
    is_empty: bool

    def missing_bytes(self, need_bytes: int) -> int:
        return self.used_bytes + self.reserved_bytes + need_bytes - self.budget_bytes


class Tried(enum.IntEnum):
    """What has been done already to make room for one load."""

    NOTHING = 0
    TRIM = 1
    END = 2


class HeapState(NamedTuple):
    """The heap of a worker that could be trimmed now."""

    used_bytes: int
    loose_bytes: int


@dataclass(frozen=True)
class Begin:
    """The load may begin."""


@dataclass(frozen=True)
class Refuse:
    """There is no room now."""


@dataclass(frozen=True)
class TrimThese(Generic[T]):
    workers: list[T]


class Manner(enum.Enum):
    """How a worker ends whose models have outgrown what they took when they were loaded."""

    AT_ONCE = "with the call that it is at: it has outgrown the whole budget"
    AFTER_ITS_CALLS = "when it has answered what it was sent"


@dataclass(frozen=True)
class EndThese(Generic[T]):
    """Their models have grown so much that nothing would be missing without that growth."""

    workers: Mapping[T, Manner]


Admission = Union[Begin, TrimThese[T], EndThese[T], Refuse]  # noqa: UP007 - a generic alias in Python 3.10


def admit(
    need_bytes: int,
    memory: Memory,
    heaps: Mapping[T, HeapState],
    growth: Mapping[T, Growth],
    tried: Tried,
    *,
    was_trimmed_in_vain: bool,
) -> Admission[T]:
    """
    What is to be done for a load that needs so much. Asked again after each thing done, with new measures.

    `growth`: of the workers that hold models, and load none now.
    """
    # 1. It fits, or has the server to itself.
    if fits(need_bytes, memory.budget_bytes, memory.used_bytes, memory.reserved_bytes, is_alone=memory.is_empty):
        return Begin()
    # 2. What counts as used may be used no more.
    if tried < Tried.TRIM:
        share = _WORTH_A_TRIM if was_trimmed_in_vain else 0.0
        loose = [worker for worker, heap in heaps.items() if heap.loose_bytes > heap.used_bytes * share]
        if loose:
            return TrimThese(loose)
    # 3. A model that leaks goes before its neighbours do. It is loaded again, without what it has leaked.
    if tried < Tried.END:
        workers = outgrown(growth, memory.budget_bytes, memory.missing_bytes(need_bytes))
        if workers:
            return EndThese({worker: _manner_of(growth[worker], memory.budget_bytes) for worker in workers})
    # 4. All that is loaded stays.
    return Refuse()


# Models that grow


class Growth(NamedTuple):
    """What a worker's models took when they were loaded, and what they take now, bytes."""

    loaded_bytes: int
    now_bytes: int
    is_busy: bool = False

    @property
    def grown_bytes(self) -> int:
        return self.now_bytes - self.loaded_bytes


def outgrown(workers: Mapping[T, Growth], budget_bytes: int, missing_bytes: int) -> list[T]:
    """
    The workers whose growth is why `missing_bytes` are missing, the largest first; none where others are to blame too.

    Each has more than doubled, and has grown by an eighth of the budget at least: many models allocate at their first
    call. Without their growth nothing would be missing. A busy one is among them only where the idle ones do not do.
    """
    grown = {
        worker: growth.grown_bytes
        for worker, growth in workers.items()
        if growth.grown_bytes > max(growth.loaded_bytes, budget_bytes // 8)
    }
    idle = {worker: grown_bytes for worker, grown_bytes in grown.items() if not workers[worker].is_busy}
    return _largest(idle, missing_bytes) or _largest(grown, missing_bytes)


def _largest(sizes: Mapping[T, int], need_bytes: int) -> list[T]:
    """The fewest that have `need_bytes` together; none where all have less."""
    by_size = sorted(sizes, key=lambda one: sizes[one], reverse=True)
    for count in range(1, len(by_size) + 1):
        if sum(sizes[one] for one in by_size[:count]) >= need_bytes:
            return by_size[:count]
    return []


def _manner_of(growth: Growth, budget_bytes: int) -> Manner:
    """What is larger than the budget leaves no room to anybody, however long its call may still take."""
    return Manner.AT_ONCE if growth.now_bytes > budget_bytes else Manner.AFTER_ITS_CALLS


# What becomes of calls whose worker has ended


class AfterLoss(enum.Enum):
    RETRY = "send them again as they are"
    ISOLATE = "give the model a worker of its own and send each call alone, once more"
    REFUSE_AS_TOO_SLOW = "answer that the model took too long"
    REFUSE_AS_OUTGROWN = "answer that the model has outgrown the budget"
    REFUSE_AS_DEADLY = "answer that the call has ended a worker, for the second time"


def after_loss(end: End, *, was_running: bool, is_retry: bool, is_alone: bool) -> AfterLoss:
    """
    `was_running`: whether the worker was at these calls. `is_retry`: whether they have lost one like that before.

    `is_alone`: whether the worker held no other model.
    """
    # 1. It never began, or the server has ended the worker for reasons of its own.
    if not was_running or end.is_expected:
        return AfterLoss.RETRY
    # 2. What took too long would take too long again, and what took too much too much.
    if end is End.NO_ANSWER:
        return AfterLoss.REFUSE_AS_TOO_SLOW
    if end is End.OUTGROWN and is_alone:
        return AfterLoss.REFUSE_AS_OUTGROWN
    # 3. The model may have done it, or a neighbour in its worker: alone, the model shows which.
    return AfterLoss.REFUSE_AS_DEADLY if is_retry else AfterLoss.ISOLATE


def is_blamed(after: AfterLoss) -> bool:
    """Whether the loss counts among those after which the model is refused."""
    return after in (AfterLoss.ISOLATE, AfterLoss.REFUSE_AS_DEADLY)


def recent_deaths(deaths: Iterable[float], now: float) -> list[float]:
    """The deaths that are recent enough to count. A model with MAX_DEATHS of them is refused."""
    return [moment for moment in deaths if moment > now - _DEATHS_SECS]


# A slow call


def give_away(model: int, own_secs: float, behind: Iterable[int | None], *, is_dedicated: bool) -> bool:
    """
    Whether a shared worker is given to the model that it is busy with, because calls of other models wait behind it.

    `own_secs`: how long it is at the call, without the time in which it had no CPU. `behind`: whose orders wait; None
    is of no model.
    """
    if is_dedicated or own_secs <= SLOW_CALL_SECS:
        return False
    return any(other != model for other in behind)
