"""
The model cache: which models are resident, how they come and how they go. One event loop, changed between two awaits.

A request names a container's shelf and a target. Ten requests for a cold model wait for one load; loads of different
models run side by side. When the engine says that memory is short, idle models are unloaded, least recently used first,
until the load succeeds: never one in use, never one that is pinned. What a user loaded by MMS's own routes is
the engine's alone, counts in what it measures, and is not ours to unload.

Each fact has one owner: `Shelves` the shelves that there are, `Environs` their variables and code, `Residents` what is
in memory and in which order it was used, `Loader` the loads under way, `Refresher` what changes in the stores.
`residency` decides what they do next. What happens is published as `events`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection

from polyhost_handlers.signature import Signature

from polyhost.artifacts import Artifacts
from polyhost.endpoint.calls import CallContext
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.environs import Environs
from polyhost.endpoint.events import Publisher
from polyhost.endpoint.loader import Loader
from polyhost.endpoint.refresher import Refresher
from polyhost.endpoint.residents import Residents, Use
from polyhost.endpoint.script_trials import ScriptTrials
from polyhost.endpoint.shelf import Failure, Loaded, Model, Shelf
from polyhost.endpoint.shelves import Shelves
from polyhost.engine.errors import ModelNotFound
from polyhost.engine.protocol import Answer, Engine, Item, WhenDone
from polyhost.service_errors import ValidationError
from polyhost.tasks import Tasks


class ModelCache:
    def __init__(
        self,
        engine: Engine,
        artifacts: Artifacts,
        events: Publisher,
        *,
        ready_timeout_secs: float,
        load_timeout_secs: float,
        refresh_secs: float,
        response_timeout_secs: float | None = None,
    ) -> None:
        """
        `events`: where it publishes what happens to models.

        `response_timeout_secs`: how long a model may take to answer; None for the engine's own limit.
        """
        self._engine = engine
        self._artifacts = artifacts
        self._refresh_secs = refresh_secs
        self._tasks = Tasks()
        environs = Environs(engine, artifacts, self._tasks)
        self._residents = Residents(engine, artifacts, environs, events, self._tasks)
        self._loader = Loader(
            engine, artifacts, environs, self._residents, self._tasks,
            ready_timeout_secs=ready_timeout_secs,
            load_timeout_secs=load_timeout_secs,
            response_timeout_secs=response_timeout_secs,
        )  # fmt: skip
        trials = ScriptTrials(engine, artifacts, events, timeout_secs=load_timeout_secs)
        self._shelves = Shelves(engine, environs, trials, self._loader, events, self._tasks)
        self._refresher = Refresher(artifacts, self._shelves, self._loader, events, self._tasks)

    def __repr__(self) -> str:
        residents = self._residents
        return f"<ModelCache [{len(residents)} resident, {residents.leaving} leaving | {len(self._tasks)} tasks]>"

    def stop_soon(self) -> None:
        """The server answers what is in flight and stops: what nobody waits for is not loaded any more."""
        self._loader.stop_soon(self._shelves.models())

    async def stop(self) -> None:
        """Models stay in the engine, which ends with them."""
        await self._tasks.stop()

    # Shelves

    def shelf(self, container: Container, endpoint: str, variant: str, since: float = 0.0) -> Shelf:
        """The models of a variant's container. `since`: when the variant was deployed."""
        return self._shelves.get(container, endpoint, variant, since)

    async def prepared(self, shelf: Shelf) -> Failure | None:
        """Returns when what can be done before its first request is done; why it was not, if it has failed."""
        return await self._shelves.prepared(shelf)

    def shelves(self) -> Collection[Shelf]:
        return self._shelves.all()

    def keep_only(self, shelves: Collection[Shelf]) -> None:
        """The endpoints have changed: what is not needed any more is unloaded."""
        self._shelves.keep_only(shelves)

    # Using models

    def invoke(self, shelf: Shelf, target: str, item: Item, context: CallContext, done: WhenDone) -> None:
        """
        Have a model answer, loading it first if it is not resident.

        `done` is called once, now or later: with the answer, an EngineError for what the engine or handler says, or an
        EndpointError for the rest. It is not called where the client leaves before the model was asked.
        """
        model = shelf.models.get(target)
        loaded = None if model is None else model.loaded
        if shelf.container.is_multi_model:
            context.was_hit = loaded is not None
        if model is None or loaded is None:
            context.waits_for = self._tasks.start(self._load_and_call(shelf.model(target), item, context, done))
        else:
            self._call(model, loaded, item, context, done)

    async def _load_and_call(self, model: Model, item: Item, context: CallContext, done: WhenDone) -> None:
        with self._loader.waiting(model):
            failure = await self._failure_of_load(model, context)
            if failure is None:
                assert model.loaded is not None
                self._call(model, model.loaded, item, context, done)
        if failure is not None:
            done(failure)

    async def _failure_of_load(self, model: Model, context: CallContext) -> Exception | None:
        """None where the model is loaded now."""
        begin = time.perf_counter()
        try:
            await self._loader.wait_until_loaded(model)
        except Exception as error:  # noqa: BLE001 - whoever is told decides what it means
            return error
        finally:
            end = time.perf_counter()
            context.wait_secs += end - begin
            if context.trace is not None:
                context.trace.hop("load", begin, end, model.target)
        return None

    def _call(self, model: Model, loaded: Loaded, item: Item, context: CallContext, done: WhenDone) -> None:
        """It goes on when its client goes: the worker has it, and the model is in use until it is answered."""
        self._residents.take(model, loaded)
        now = time.perf_counter()
        if self._refresh_secs and now - loaded.looked_at > self._refresh_secs:
            loaded.looked_at = now
            self._refresher.look_soon(model)
        answered = functools.partial(self._answered, model, loaded, item, context, done, now)
        if item.is_streamed:
            self._engine.invoke(loaded.name, item, answered, context.stream)
        else:
            self._engine.invoke(loaded.name, item, answered)

    def _answered(
        self, model: Model, loaded: Loaded, item: Item, context: CallContext, done: WhenDone, sent: float,
        outcome: Answer | Exception,
    ) -> None:  # fmt: skip
        now = time.perf_counter()
        context.model_secs += now - sent
        if context.trace is not None:
            context.trace.hop("model", sent, now, model.target)
        was_unloaded = isinstance(outcome, ModelNotFound)  # by MMS's own routes, or with what the model was in
        if was_unloaded and loaded is model.loaded:
            self._residents.drop(model)
        self._residents.leave(model, loaded)
        if was_unloaded and not context.has_left:
            self.invoke(model.shelf, model.target, item, context, done)
        else:
            done(outcome)

    # What other processes of the server answer themselves

    def used(self, uses: Collection[Use]) -> None:
        """Requests for resident models that did not come here."""
        self._residents.used(uses)

    def ask_before_choice(self, ask: Callable[[], None]) -> None:
        """`ask`: to be called before models are chosen by their use; it calls `used`."""
        self._residents.before_choice = ask

    async def require(self, shelf: Shelf, target: str) -> None:
        """That there is such a model, loaded or not. Raises ArtifactMissing, ValidationError, StoreFailed."""
        model = shelf.models.get(target)
        if model is None or model.loaded is None:
            await self._artifacts.look_up(shelf.source, target)

    async def signature(self, shelf: Shelf, target: str) -> Signature:
        """What a resident model takes and answers, as far as that is known. Raises EngineError."""
        model = shelf.models.get(target)
        if model is None or model.loaded is None:
            return Signature()
        try:
            return await self._engine.signature(model.loaded.name)
        except ModelNotFound:  # it was evicted meanwhile
            return Signature()

    # What operators do

    async def load(self, shelf: Shelf, target: str, *, pin: bool = False) -> None:
        """Have a model resident before anybody asks for it. Raises as `invoke`."""
        model = shelf.model(target)
        with self._loader.waiting(model):
            await self._loader.wait_until_loaded(model)
            if pin:
                self._residents.pin(model, is_pinned=True)

    async def unload(self, shelf: Shelf, target: str) -> None:
        """Once nobody uses it. The archive stays on disk."""
        model = shelf.models.get(target)
        if model is None or model.loaded is None:
            raise ValidationError(f"The model {target} is not loaded.")
        model.is_pinned = False
        loaded = self._residents.drop(model)
        if not loaded.users:  # otherwise the last of them does it
            await self._residents.unload(model, loaded)

    def pin(self, shelf: Shelf, target: str, *, is_pinned: bool) -> None:
        model = shelf.models.get(target)
        if model is None or model.loaded is None:
            raise ValidationError(f"The model {target} is not loaded: load it first.")
        self._residents.pin(model, is_pinned=is_pinned)

    async def refresh(self) -> None:
        """Look at what is in the buckets and folders now: swap what was overwritten, drop what was deleted."""
        await self._refresher.refresh()

    @property
    def resident_count(self) -> int:
        return len(self._residents)
