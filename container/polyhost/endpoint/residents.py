"""Which models are in memory, in the order of their use, and how they leave it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import NamedTuple

from polyhost.artifacts import Artifacts
from polyhost.artifacts.eviction import plan_eviction
from polyhost.endpoint.environs import Environs
from polyhost.endpoint.events import ModelLeaving, ModelLoaded, ModelSwapped, ModelUnloaded, Publisher
from polyhost.endpoint.residency import Afterwards, afterwards
from polyhost.endpoint.shelf import Loaded, Model
from polyhost.engine.errors import ModelNotFound
from polyhost.engine.protocol import Engine
from polyhost.tasks import Tasks


class _OnDisk(NamedTuple):
    """A resident model, and what of the disk it holds alone."""

    model: Model
    disk_bytes: int


class Use(NamedTuple):
    """How another process has used a model. `last_used`: by time.time()."""

    model: Model
    calls: int
    last_used: float


class Residents:
    """
    A model is resident when requests go to a version of it in the engine. A version that was replaced or unloaded while
    it was used is not: it leaves the engine with its last user.
    """

    def __init__(
        self, engine: Engine, artifacts: Artifacts, environs: Environs, events: Publisher, tasks: Tasks,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._artifacts = artifacts
        self._environs = environs
        self._events = events
        self._tasks = tasks
        # Called before it is decided by the order of use: what other processes have answered may not be in it yet.
        self.before_choice: Callable[[], None] = lambda: None
        # Least recently used first.
        self._models: OrderedDict[Model, None] = OrderedDict()
        # How many versions the engine has, the leaving ones included.
        self._versions = 0
        # Loads that wait until something else changes.
        self._waiting: set[asyncio.Future[None]] = set()

    def __len__(self) -> int:
        return len(self._models)

    @property
    def models(self) -> Collection[Model]:
        """Least recently used first; a live view, to be read and not kept."""
        self.before_choice()
        return self._models.keys()

    @property
    def leaving(self) -> int:
        """How many versions are in the engine that no request goes to."""
        return self._versions - len(self._models)

    @property
    def is_empty(self) -> bool:
        return not self._versions

    # Coming

    def add(self, model: Model, loaded: Loaded, load_secs: float) -> None:
        """A version is in the engine. What was there before it leaves when it is idle."""
        shelf = model.shelf
        shelf.versions += 1
        self._versions += 1
        if model.loaded is not None:
            self.retire(model, is_stale=True)
            self._events.publish(ModelSwapped(shelf, model.target, load_secs))
        model.loaded = loaded
        self._models[model] = None
        self._events.publish(ModelLoaded(shelf, model.target, loaded.artifact.fetch_secs, load_secs))

    # Being used

    def take(self, model: Model, loaded: Loaded) -> None:
        """A request goes to this version: it is the most recently used now, and stays until `leave`."""
        loaded.users += 1
        model.uses += 1
        model.last_used = time.time()
        if model in self._models:
            self._models.move_to_end(model)

    def used(self, uses: Collection[Use]) -> None:
        """Requests that other processes have answered, which take nobody's time here."""
        for model, calls, last_used in uses:
            model.uses += calls
            model.last_used = max(model.last_used, last_used)
        first = min((last_used for _, _, last_used in uses), default=0.0)
        moved = {model for model, _, _ in uses if model in self._models}
        for model in reversed(self._models) if moved else ():
            if model not in moved and model.last_used < first:
                break
            moved.add(model)
        for model in sorted(moved, key=lambda model: model.last_used):
            self._models.move_to_end(model)

    def leave(self, model: Model, loaded: Loaded) -> None:
        loaded.users -= 1
        if loaded.users:
            return
        is_current, is_cached = loaded is model.loaded, model.shelf.container.is_cached
        match afterwards(is_current=is_current, is_cached=is_cached, is_wanted=bool(model.waiting)):
            case Afterwards.STAY:
                self.changed()
            case Afterwards.UNLOAD:
                self.unload_soon(model, loaded)
            case Afterwards.DISCARD:
                self.retire(model, is_stale=True)

    def pin(self, model: Model, *, is_pinned: bool) -> None:
        """Loads that wait decide again: it may be what they evict now, or what they waited for in vain."""
        model.is_pinned = is_pinned
        self.changed()

    # Leaving

    def drop(self, model: Model, *, is_evicted: bool = False) -> Loaded:
        """It is no longer resident: the next request loads it. Its version is the caller's to unload."""
        assert model.loaded is not None
        loaded, model.loaded = model.loaded, None
        self._models.pop(model, None)
        self._events.publish(ModelLeaving(model.shelf, model.target, is_evicted))
        return loaded

    def retire(self, model: Model, *, is_stale: bool) -> None:
        """No further call gets this version. It is unloaded now, or when its last call ends."""
        loaded = self.drop(model)
        loaded.is_stale = is_stale
        if not loaded.users:
            self.unload_soon(model, loaded)

    def unload_soon(self, model: Model, loaded: Loaded) -> None:
        self._tasks.start(self.unload(model, loaded))

    async def unload(self, model: Model, loaded: Loaded, *, was_evicted: bool = False) -> None:
        """A version that was dropped, and that nobody uses any more."""
        begin = time.perf_counter()
        try:
            await self.unload_from_engine(loaded.name)
        finally:
            self._left(model, loaded)
        secs = time.perf_counter() - begin
        self._events.publish(ModelUnloaded(model.shelf, model.target, secs, was_evicted))

    async def unload_from_engine(self, name: str) -> None:
        with contextlib.suppress(ModelNotFound):  # somebody has unloaded it by MMS's own routes
            await self._engine.unload(name)

    def _left(self, model: Model, loaded: Loaded) -> None:
        shelf = model.shelf
        shelf.versions -= 1
        self._versions -= 1
        if shelf.is_closed and not shelf.versions:
            self._tasks.start(self._environs.forget(shelf))
        if loaded.is_stale:
            self._artifacts.discard(loaded.artifact)
        else:
            self._artifacts.release(loaded.artifact)
        self.changed()

    # Making room

    async def evict(self, victims: Collection[Model]) -> None:
        """Returns when they have left memory. The unloads go on even if the caller is cancelled."""
        dropped = [(victim, self.drop(victim, is_evicted=True)) for victim in victims]
        unloads = [self._tasks.start(self.unload(*victim, was_evicted=True)) for victim in dropped]
        await asyncio.shield(asyncio.gather(*unloads))

    async def evict_for_disk(self, need_bytes: int) -> bool:
        """
        Unload those idle models whose files make the room, least recently used first.

        False, and nothing is unloaded, where all of them would not.
        """
        idle = [
            _OnDisk(model, self._artifacts.bytes_of(model.loaded.artifact))
            for model in self.models
            if model.loaded is not None and model.is_idle and not model.is_pinned
        ]
        victims = plan_eviction(need_bytes, 0, idle)
        if not victims:
            return False
        await self.evict([victim.model for victim in victims])
        return True

    def may_leave_the_disk(self, need_bytes: int) -> bool:
        """Whether so much may become free by itself: held by models that are asked just now, or that leave."""
        if self.leaving:
            return True
        loaded = (model.loaded for model in self._models if not model.is_pinned)
        return 0 < need_bytes <= sum(self._artifacts.bytes_of(one.artifact) for one in loaded if one)

    # Waiting for room

    async def change(self) -> None:
        """Returns when something was loaded, unloaded, or has become idle."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(change)
        await change

    def changed(self) -> None:
        """Wake up the loads that wait for room."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, set()
        for change in waiting:
            if not change.done():
                change.set_result(None)
