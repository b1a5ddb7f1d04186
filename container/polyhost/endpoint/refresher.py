"""
Archives that change: what was overwritten is swapped, what was deleted is served no more.

Nothing lists a source for that. A model in memory that is used is looked at when its last look is old enough, with one
request to its store; what nobody uses costs nothing. Meanwhile the version that is there answers.
"""

from __future__ import annotations

import asyncio
from weakref import WeakSet

from polyhost.artifacts import ArtifactForbidden, Artifacts
from polyhost.endpoint.events import ArchiveDeleted, ArchiveOverwritten, LookFailed, Publisher, SwapFailed
from polyhost.endpoint.loader import Loader
from polyhost.endpoint.residency import Change, change_of
from polyhost.endpoint.shelf import Model, Shelf
from polyhost.endpoint.shelves import Shelves
from polyhost.engine.errors import EngineError
from polyhost.service_errors import ArtifactMissing, EndpointError
from polyhost.tasks import SingleFlight, Tasks

# How many models in use are looked at in a second, however many are in memory.
_LOOKS_A_SEC = 50
_LOOKS_AT_ONCE = 16


class Refresher:
    def __init__(
        self, artifacts: Artifacts, shelves: Shelves, loader: Loader, events: Publisher, tasks: Tasks,
    ) -> None:  # fmt: skip
        self._artifacts = artifacts
        self._shelves = shelves
        self._loader = loader
        self._events = events
        self._tasks = tasks
        # Models to look at, the one that has waited longest first.
        self._due: dict[Model, None] = {}
        self._looking: SingleFlight[None] = SingleFlight()
        self._places = asyncio.Semaphore(_LOOKS_AT_ONCE)
        # Models to look at again when their loads are over.
        self._again: set[Model] = set()
        # Their stores did not answer the last time.
        self._failing: WeakSet[Shelf] = WeakSet()

    def look_soon(self, model: Model) -> None:
        """It is in use, and was not looked at for a while."""
        self._due[model] = None
        self._looking.begin(lambda: self._tasks.start(self._look_at_due()))

    async def refresh(self) -> None:
        """Look at all models now, whether they are used or not."""
        await asyncio.gather(*(self._look(model) for model in list(self._shelves.models())))

    async def _look_at_due(self) -> None:
        while self._due:
            model = next(iter(self._due))
            del self._due[model]
            async with self._places:  # where stores hang, they are not asked any more
                pass
            self._tasks.start(self._look(model))
            await asyncio.sleep(1 / _LOOKS_A_SEC)

    async def _look(self, model: Model) -> None:
        shelf = model.shelf
        async with self._places:
            try:
                version = await self._version_of(model)
            except ArtifactForbidden:  # access may come back
                self._failing.discard(shelf)
                return
            except EndpointError as error:
                if shelf not in self._failing:
                    self._events.publish(LookFailed(shelf, error))
                self._failing.add(shelf)
                return
        self._failing.discard(shelf)
        if shelf.models.get(model.target) is model:
            await self._apply(model, version)

    async def _version_of(self, model: Model) -> str | None:
        """None: it was deleted."""
        try:
            return (await self._artifacts.look_up(model.shelf.source, model.target)).version
        except ArtifactForbidden:
            raise
        except ArtifactMissing:
            return None

    async def _apply(self, model: Model, version: str | None) -> None:
        shelf, target = model.shelf, model.target
        loaded = model.loaded.artifact.version if model.loaded else None
        match change_of(listed=version, loaded=loaded, is_loading=model.loading.is_under_way):
            case Change.FORGET:
                del shelf.models[target]
                await self._loader.remove(model, is_stale=True)
                self._events.publish(ArchiveDeleted(shelf, target))
            case Change.SWAP:
                self._events.publish(ArchiveOverwritten(shelf, target))
                self._tasks.start(self._swap(model))
            case Change.LOOK_AGAIN:
                self._loader.tell(model, version)
                self._look_again(model)

    def _look_again(self, model: Model) -> None:
        if model not in self._again:
            self._again.add(model)
            self._tasks.start(self._look_when_loaded(model))

    async def _look_when_loaded(self, model: Model) -> None:
        await model.loading.ended()
        self._again.discard(model)
        if model.shelf.models.get(model.target) is model:
            await self._look(model)

    async def _swap(self, model: Model) -> None:
        try:
            await self._loader.load(model)
        except (EndpointError, EngineError, OSError) as error:
            self._events.publish(SwapFailed(model.shelf, model.target, error))
