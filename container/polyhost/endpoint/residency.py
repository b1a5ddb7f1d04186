"""
What the cache does next for a load, and for a model whose archive has changed. Decisions only: no action, no log.

A load is tried, and the engine says whether there is memory for it. Only then is anything unloaded.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Resident(Protocol):
    """A model in memory."""

    @property
    def is_idle(self) -> bool:
        """No call uses it, and none waits to."""

    @property
    def is_pinned(self) -> bool: ...


M = TypeVar("M", bound=Resident)


class Reason(enum.Enum):
    """Why a load fails for lack of memory."""

    KNOWN_TOO_LARGE = "it did not fit before, with all memory to itself"
    FILES_TOO_LARGE = "its files are larger than the whole budget"
    TOO_LARGE = "it does not fit, with all memory to itself"
    NO_ROOM = "all that is loaded has to stay"


@dataclass(frozen=True)
class FetchAnew:
    """Begin again, with the archive as it is now."""


@dataclass(frozen=True)
class Load:
    """Ask the engine to load it."""


@dataclass(frozen=True)
class Evict(Generic[M]):
    """Unload this idle model, then try again."""

    victim: M


@dataclass(frozen=True)
class TakeTurn:
    """Wait until no other load is trying with nothing to evict, then try again."""


@dataclass(frozen=True)
class Wait:
    """Wait until something else is loaded, unloaded or idle, then try again."""


@dataclass(frozen=True)
class Fail:
    reason: Reason


@dataclass(frozen=True)
class Shortage:
    """
    The engine had no memory for the last try.

    `was_alone`: from its beginning to its end nothing of the cache was loaded or loading beside it. `may_pass`: it can
    end without the cache: models that users have loaded by MMS's own routes may go, processes may be started again.
    """

    was_alone: bool = False
    may_pass: bool = False


@dataclass(frozen=True, kw_only=True)
class Situation(Generic[M]):
    """All that the next step of a load depends on."""

    files_bytes: int
    budget_bytes: int
    # Whether the archive was overwritten or deleted since the load has fetched it.
    is_outdated: bool = False
    # Whether this very version has failed before for being too large.
    is_known_too_large: bool = False
    # None before the first try, and when something has changed since the last one.
    shortage: Shortage | None = None
    # Whether it is this load's turn to try with nothing to evict.
    has_turn: bool = False
    # Least recently used first.
    residents: Collection[M] = ()
    # Versions that stay in the engine only until their last calls end, and those that are being unloaded.
    leaving: int = 0
    # Other loads that the engine is busy with.
    loading: int = 0


def next_step(now: Situation[M]) -> FetchAnew | Load | Evict[M] | TakeTurn | Wait | Fail:
    """
    The next step of a load. Ten cases, the first that applies:

    1. The store has another version by now, or none: fetch anew. Whoever has joined the load since expects that one.
    2. This version is known to be too large: fail.
    3. Its files alone are larger than the whole budget: fail, and evict nothing for it.
    4. It was not tried since something changed: load.
    5. Nothing was beside it, and it did not fit: fail. Where the shortage may pass by itself, it is not too large.
    6. An idle model may go: evict the one that was least recently used. Never one in use, never one that is pinned.
    7. Nothing can be evicted, and it is not this load's turn: take a turn, so that loads do not fail for each other.
    8. Memory may become free by itself: wait. A model in use becomes idle, a version leaves, another load ends.
    9. What is resident is pinned: fail.
    10. All has left meanwhile: load, with the memory to itself.
    """
    if now.is_outdated:
        return FetchAnew()  # 1
    if now.is_known_too_large:
        return Fail(Reason.KNOWN_TOO_LARGE)  # 2
    if now.files_bytes > now.budget_bytes:
        return Fail(Reason.FILES_TOO_LARGE)  # 3
    if now.shortage is None:
        return Load()  # 4
    return _step_for_room(now, now.shortage)


def _step_for_room(now: Situation[M], shortage: Shortage) -> Load | Evict[M] | TakeTurn | Wait | Fail:
    """Cases 5 to 10."""
    if shortage.was_alone:
        return Fail(Reason.NO_ROOM if shortage.may_pass else Reason.TOO_LARGE)  # 5
    victim = next((model for model in now.residents if model.is_idle and not model.is_pinned), None)
    if victim is not None:
        return Evict(victim)  # 6
    if not now.has_turn:
        return TakeTurn()  # 7
    may_become_idle = any(not model.is_pinned for model in now.residents)
    if may_become_idle or now.leaving or now.loading:
        return Wait()  # 8
    if now.residents:
        return Fail(Reason.NO_ROOM)  # 9
    return Load()  # 10


class Change(enum.Enum):
    """What to do about a model, after a look at its archive."""

    KEEP = "it is as it was"
    LOOK_AGAIN = "it is being loaded, perhaps in an older version: tell the load, and look when it is over"
    FORGET = "its archive was deleted"
    SWAP = "its archive was overwritten: load the new version beside the old one"


def change_of(*, listed: str | None, loaded: str | None, is_loading: bool) -> Change:
    """
    `listed`: the version that the store has, None for none. `loaded`: the version in memory, None for none.

    1. It is being loaded: tell the load, which has asked the store before and may wait for memory, and look again.
    2. The store has no archive of this name: forget.
    3. Another version is in memory than in the store: swap.
    4. Anything else: keep.
    """
    if is_loading:
        return Change.LOOK_AGAIN  # 1
    if listed is None:
        return Change.FORGET  # 2
    if loaded is not None and loaded != listed:
        return Change.SWAP  # 3
    return Change.KEEP  # 4


class Afterwards(enum.Enum):
    """What becomes of a version when its last user has been answered."""

    STAY = "it waits for its next request, and may be evicted"
    UNLOAD = "another version has taken its place, or it was unloaded: it leaves memory"
    DISCARD = "its container keeps nothing: it leaves memory and disk"


def afterwards(*, is_current: bool, is_cached: bool, is_wanted: bool) -> Afterwards:
    """
    `is_current`: requests go to this version. `is_cached`: its container keeps models. `is_wanted`: somebody waits.

    1. Requests go to another version, or to none: unload.
    2. Its container keeps nothing, and nobody waits for it: discard.
    3. Anything else: stay.
    """
    if not is_current:
        return Afterwards.UNLOAD  # 1
    if not is_cached and not is_wanted:
        return Afterwards.DISCARD  # 2
    return Afterwards.STAY  # 3
