"""The shelves that there are: opened when an endpoint is first routed, prepared, closed when no endpoint needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator

from polyhost.artifacts import split_archive_url
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.environs import Environs, code_of, require_script
from polyhost.endpoint.events import Publisher, ShelfFailed
from polyhost.endpoint.loader import Loader
from polyhost.endpoint.script_trials import ScriptTrials
from polyhost.endpoint.shelf import Failure, Model, Shelf, ShelfClosed, ShelfKey
from polyhost.engine.errors import EngineError, EnvironmentBuilding
from polyhost.engine.protocol import Engine
from polyhost.service_errors import EndpointError
from polyhost.tasks import Tasks


class Shelves:
    def __init__(
        self, engine: Engine, environs: Environs, trials: ScriptTrials, loader: Loader, events: Publisher, tasks: Tasks,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._environs = environs
        self._trials = trials
        self._loader = loader
        self._events = events
        self._tasks = tasks
        self._shelves: dict[ShelfKey, Shelf] = {}

    def all(self) -> Collection[Shelf]:
        return self._shelves.values()

    def models(self) -> Iterator[Model]:
        return (model for shelf in self._shelves.values() for model in shelf.models.values())

    def get(self, container: Container, endpoint: str, variant: str, since: float) -> Shelf:
        """
        The models of a variant's container.

        `since` is when the variant was deployed. An update that keeps a container of many models keeps what is loaded
        of them; one with a single model, or with code of its own, is made anew.
        """
        is_kept = container.is_multi_model and not code_of(container)
        key = ShelfKey(endpoint, variant, container, 0.0 if is_kept else since)
        shelf = self._shelves.get(key)
        if shelf is None:
            source = container.source if container.is_multi_model else split_archive_url(container.source)[0]
            shelf = self._shelves[key] = Shelf(container, source, endpoint, variant)
            shelf.preparing = self._tasks.start(self._prepare(shelf))
        return shelf

    async def prepared(self, shelf: Shelf) -> Failure | None:
        """Returns when what can be done before its first request is done; why it was not, if it has failed."""
        assert shelf.preparing is not None
        await asyncio.wait({shelf.preparing})
        if shelf.preparing.cancelled():
            return ShelfClosed("The endpoint was deleted or updated meanwhile.")
        return shelf.preparing.result()

    async def _prepare(self, shelf: Shelf) -> Failure | None:
        """What can be done before the first request; it waits for a Python environment that is being built."""
        while True:
            try:
                await self._made_ready(shelf)
            except EnvironmentBuilding as building:
                await asyncio.wait({building.build})
            except (EndpointError, EngineError, OSError) as error:
                self._events.publish(ShelfFailed(shelf, error))
                return error
            else:
                return None

    async def _made_ready(self, shelf: Shelf) -> None:
        """Start its workers, load its only model. Raises EndpointError, EngineError, OSError."""
        environ = await self._environs.of(shelf)
        require_script(shelf.container, environ)
        await self._engine.prepare(environ)
        await self._trials.require_living_script(shelf, environ)
        if shelf.only_target:
            with self._loader.waiting(shelf.model(shelf.only_target)) as model:
                await self._loader.load(model)

    def keep_only(self, shelves: Collection[Shelf]) -> None:
        """The endpoints have changed: what is not needed any more is unloaded."""
        for key in [key for key, shelf in self._shelves.items() if shelf not in shelves]:
            self._tasks.start(self._close(self._shelves.pop(key)))

    async def _close(self, shelf: Shelf) -> None:
        shelf.is_closed = True
        models, shelf.models = shelf.models, {}
        for model in models.values():  # before anything is waited for: none of them must be loaded any more
            model.loading.cancel()
        shelf.localising.cancel()
        if shelf.preparing is not None:
            shelf.preparing.cancel()
            await asyncio.wait({shelf.preparing})
        await shelf.localising.ended()
        await asyncio.gather(*(self._loader.remove(model, is_stale=False) for model in models.values()))
        if not shelf.versions:
            await self._environs.forget(shelf)
