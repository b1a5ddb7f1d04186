"""Mistakes that the cache could make, each planted by a function that takes pytest's `monkeypatch`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from polyhost.endpoint import loader, refresher, residency
from polyhost.endpoint.events import Event, ModelLoaded, ModelUnloaded, Publisher
from polyhost.endpoint.loader import Loader
from polyhost.endpoint.residency import Change, Evict, Situation
from polyhost.endpoint.residents import Residents
from polyhost.endpoint.shelf import Loaded, Model
from polyhost.tasks import SingleFlight

Plant = Callable[[pytest.MonkeyPatch], None]
Step = Callable[[Situation[Any]], object]


@dataclass(frozen=True)
class _SeenAs:
    """A model as a mistaken decision sees it."""

    model: Any
    is_idle: bool
    is_pinned: bool


def _seeing(residents: Callable[[list[Any]], list[Any]]) -> Step:
    """A decision that sees other residents than there are."""

    def next_step(now: Situation[Any]) -> object:
        step = residency.next_step(replace(now, residents=residents([*now.residents])))
        return Evict(step.victim.model) if isinstance(step, Evict) and isinstance(step.victim, _SeenAs) else step

    return next_step


def _evicts_before_memory_is_short(now: Situation[Any]) -> object:
    victim = next((one for one in now.residents if one.is_idle and not one.is_pinned), None)
    return Evict(victim) if victim else residency.next_step(now)


# Mistakes of the decision alone.
STEPS: dict[str, Step] = {
    "evicts what is pinned": _seeing(lambda models: [_SeenAs(one, one.is_idle, False) for one in models]),
    "evicts what is in use": _seeing(lambda models: [_SeenAs(one, True, one.is_pinned) for one in models]),
    "evicts the most recently used": _seeing(lambda models: models[::-1]),
    "evicts before memory is short": _evicts_before_memory_is_short,
    "waits for what is pinned": lambda now: (
        residency.Wait() if now.shortage and now.has_turn and now.residents else residency.next_step(now)
    ),
    "takes no turn": lambda now: residency.next_step(replace(now, has_turn=True)),
    "does not wait for a version that leaves": lambda now: residency.next_step(replace(now, leaving=0)),
    "does not wait for another load": lambda now: residency.next_step(replace(now, loading=0)),
    "loads what was overwritten": lambda now: residency.next_step(replace(now, is_outdated=False)),
    "tries what is known to be too large": lambda now: residency.next_step(replace(now, is_known_too_large=False)),
    "evicts for what can never fit": lambda now: residency.next_step(replace(now, files_bytes=0)),
}


def _deciding(step: Step) -> Plant:
    return lambda patch: patch.setattr(loader, "next_step", step)


def _forgets_a_wake_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Residents, "changed", lambda _: None)


def _forgets_the_order_of_use(patch: pytest.MonkeyPatch) -> None:
    def take(_: Residents, model: Model, loaded: Loaded) -> None:
        loaded.users += 1
        model.uses += 1

    patch.setattr(Residents, "take", take)


def _forgets_to_leave(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Residents, "leave", lambda *_: None)


def _forgets_to_release(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("support.stack.Fetching.release", lambda *_: None)


def _publishing(changed: Callable[[Event], list[Event]]) -> Plant:
    publish = Publisher.publish

    def plant(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Publisher, "publish", lambda self, event: [publish(self, one) for one in changed(event)])

    return plant


def _counts_evictions_as_unloads(event: Event) -> list[Event]:
    return [replace(event, was_evicted=False) if isinstance(event, ModelUnloaded) else event]


def _loads_once_for_each_caller(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SingleFlight, "begin", lambda _, start: start())


def _keeps_the_old_version(patch: pytest.MonkeyPatch) -> None:
    add = Residents.add

    def add_the_first(self: Residents, model: Model, loaded: Loaded, secs: float) -> None:
        before = model.loaded
        add(self, model, loaded, secs)
        if before is not None:
            model.loaded = before

    patch.setattr(Residents, "add", add_the_first)


def _does_not_unload_the_old_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Residents, "retire", lambda self, model, *, is_stale: self.drop(model))


def _does_not_see_that_an_archive_changed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(refresher, "change_of", lambda **_: Change.KEEP)


def _loads_on_when_the_last_caller_has_gone_and_forgets_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loader, "_forget_if_unknown", lambda model: model.shelf.models.pop(model.target, None))


def _never_gives_its_turn_back(patch: pytest.MonkeyPatch) -> None:
    class Kept(asyncio.Lock):
        def release(self) -> None: ...

    init = Loader.__init__

    def with_such_a_lock(self: Loader, *args: Any, **settings: Any) -> None:
        init(self, *args, **settings)
        self._turn = Kept()

    patch.setattr(Loader, "__init__", with_such_a_lock)


# Mistakes that the machine must find; in the short form the first ones, which it finds soon.
MUTANTS: dict[str, Plant] = {
    "forgets to release an archive": _forgets_to_release,
    "counts a load twice": _publishing(lambda event: [event] * (2 if isinstance(event, ModelLoaded) else 1)),
    "keeps the old version": _keeps_the_old_version,
    "forgets a wake-up": _forgets_a_wake_up,
    "forgets the order of use": _forgets_the_order_of_use,
    "forgets that a call has ended": _forgets_to_leave,
    "counts evictions as unloads": _publishing(_counts_evictions_as_unloads),
    "loads once for each caller": _loads_once_for_each_caller,
    "does not unload the old version": _does_not_unload_the_old_version,
    "does not see that an archive changed": _does_not_see_that_an_archive_changed,
    "forgets a model that is loaded": _loads_on_when_the_last_caller_has_gone_and_forgets_it,
    "never gives its turn back": _never_gives_its_turn_back,
    **{
        name: _deciding(STEPS[name])
        for name in (
            "evicts what is pinned", "evicts what is in use", "evicts the most recently used",
            "evicts before memory is short", "waits for what is pinned",
        )
    },
}  # fmt: skip
SHORT_MUTANTS = 3
