"""
The native engine: all models' state, on one event loop, changed between two awaits.

A model has copies; a copy lives in a worker. Copies of our own handlers on archives of data share long-lived
workers; whatever brings code has workers of its own. A request goes to the copy with the least to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from polyhost_handlers.compiled.rows import Way
from polyhost_handlers.script_trial import Fault
from polyhost_handlers.signature import Signature

from polyhost.engine.errors import (
    BadRequest,
    Conflict,
    EngineError,
    ModelNotFound,
    Unavailable,
)
from polyhost.engine.loads import loaded, log_failed_load
from polyhost.engine.native.admission import Admission
from polyhost.engine.native.batcher import Batcher
from polyhost.engine.native.dispatch import Dispatcher, Prediction
from polyhost.engine.native.hardening import Hardening
from polyhost.engine.native.kept_rows import Found, KeptRows
from polyhost.engine.native.leases import Leases
from polyhost.engine.native.loading import Loader
from polyhost.engine.native.placement import needs_own_worker
from polyhost.engine.native.pool import Environment
from polyhost.engine.native.registry import Model, Registry, described
from polyhost.engine.native.retiring import Retiring
from polyhost.engine.native.rows import RowModel
from polyhost.engine.native.variables import environment_for
from polyhost.engine.native.workforce import Workforce
from polyhost.engine.protocol import PROCESSING, Item, Registration, Stream, WhenDone
from polyhost.engine.source import Inspector, Source
from polyhost.limits import Limits
from polyhost.metrics import Metrics
from polyhost.tasks import look_at


class NativeEngine:
    def __init__(
        self,
        *,
        inspector: Inspector,
        environ: Mapping[str, str],
        shared_workers: int,
        limits: Limits,
        isolation: str,
        budget_bytes: int | None,
        metrics: Metrics,
        hardening: Hardening | None = None,
        imports_late: bool = False,
    ) -> None:
        """`budget_bytes`: None for a share of what there is, less what the idle server uses."""
        self.has_ended = False
        self.on_end: Callable[[], None] = lambda: None
        self._inspector = inspector
        self._limits = limits
        # How many requests may wait for each copy of a model.
        self._job_queue_size = limits.job_queue_size
        self._isolation = isolation
        self._has_own_workers_for_pickles = hardening is not None and hardening.has_own_workers
        # Model code does not get what the front predicts with, not even to read: not where it may run in a worker that
        # models share, nor where it is expected that a worker is taken over.
        has_readers = isolation == "auto" and hardening is None
        self._registry = Registry(metrics, has_readers=has_readers)
        self._ways = self._registry.ways
        self._numbers = itertools.count(1)
        self._workforce = Workforce(
            environ=environ,
            numbers=self._numbers,
            shared_count=shared_workers,
            hardening=hardening,
            max_response_bytes=limits.max_response_bytes,
            has_readers=has_readers,
            imports_late=imports_late,
        )
        retiring = Retiring(self._registry, self._workforce, numbers=self._numbers)
        self._admission = Admission(budget_bytes, self._registry, self._workforce, retiring)
        self._kept_rows = KeptRows(self._registry, inspector, self._workforce.keep)
        self._loader = Loader(
            self._registry, self._workforce, self._admission, self._kept_rows, retiring,
            numbers=self._numbers, max_response_bytes=limits.max_response_bytes,
        )  # fmt: skip
        self._dispatcher = Dispatcher(self._workforce, self._loader, metrics, numbers=self._numbers)

    async def start(self) -> None:
        await self._workforce.start()
        self._workforce.keep(asyncio.create_task(self._admission.leave_room_for_the_idle_server()))

    async def stop(self) -> None:
        await self._inspector.stop()
        await self._workforce.stop()

    # The verbs

    async def load(self, registration: Registration) -> str:
        try:
            return await self._load(registration)
        except EngineError as error:
            log_failed_load(registration, error)
            raise

    async def _load(self, registration: Registration) -> str:
        found = await self._kept_rows.find(registration)
        source = (
            found.source
            if found
            else await self._inspector.inspect(
                registration.url, registration.handler, registration.environ, registration.image
            )
        )
        name = source.model_name(registration)
        if self._registry.find(name) is not None:
            await self._discard(source)
            raise Conflict(f"Model {name} is already registered.")
        model = self._new_model(name, source, registration)
        self._registry.add(model)
        workers = registration.initial_workers
        if workers is None:
            workers = self._limits.workers_per_model
        if workers == 0:
            return f'Model "{name}" registered'
        if found is not None and await self._has_kept_rows(model, found, workers):
            self._registry.loaded()
            return "Workers scaled"
        loading = asyncio.create_task(self._load_copies(model, workers))
        if not registration.is_synchronous:
            self._workforce.keep(loading)
            return PROCESSING
        loading.add_done_callback(look_at)  # of a caller who is gone when it fails
        await loaded(loading, name)
        self._registry.loaded()
        return "Workers scaled"

    async def _has_kept_rows(self, model: Model, found: Found, workers: int) -> bool:
        """
        Whether the front has the model, by what an earlier load has compiled.

        Then a worker loads it only when something else than a row is asked. Raises OutOfMemory.
        """
        if not self._kept_rows.may_keep(model):
            return False
        try:
            await self._admission.admit(lambda: len(found.rows.trees))
        except BaseException:  # no room, or nobody waits for it any more
            self._registry.forget(model)
            self._kept_rows.give_back(model.registration, found)
            raise
        if not self._registry.has(model):
            raise ModelNotFound(f"Model not found: {model.title}: it was unloaded while it was loading.")
        if not self._registry.adopt_rows(model, found.rows):
            return False
        self._loader.add_unloaded(model, workers)
        self._registry.goes(model, Way(is_compiled=True))
        return True

    def _new_model(self, name: str, source: Source, registration: Registration) -> Model:
        timeout_secs = registration.response_timeout_secs or self._limits.response_timeout_secs
        model = Model(
            key=next(self._numbers),
            name=name,
            source=source,
            registration=registration,
            timeout_secs=timeout_secs,
            load_timeout_secs=registration.load_timeout_secs or timeout_secs,
            is_dedicated=needs_own_worker(
                self._isolation, has_code=source.has_code, is_pickle=source.is_pickle,
                isolates_pickles=self._has_own_workers_for_pickles,
            ),
        )  # fmt: skip
        if registration.batch_size > 1:
            delay_secs = registration.max_batch_delay_ms / 1000
            model.batcher = Batcher(
                registration.batch_size, delay_secs, functools.partial(self._dispatcher.send_batch, model)
            )
        return model

    async def _load_copies(self, model: Model, count: int) -> None:
        try:
            await self._loader.scale(model, count)
        except BaseException:
            self._registry.forget(model)
            await self._discard(model.source)
            raise

    async def unload(self, name: str) -> None:
        model = self._registry.get(name)
        rows = model.rows
        self._registry.forget(model)
        copies, model.copies = model.copies, []
        await asyncio.gather(*(self._loader.remove_copy(model, copy) for copy in copies))
        if rows is not None:
            await self._registry.leases.settled(rows)
        await self._discard(model.source)

    async def scale(self, name: str, minimum: int, maximum: int | None, is_synchronous: bool) -> str:
        model = self._registry.get(name)
        if maximum is not None and maximum < minimum:
            raise BadRequest("max_worker cannot be less than min_worker.")
        model.max_workers = maximum if maximum is not None else minimum
        if is_synchronous:
            await self._loader.scale(model, minimum)
            return "Workers scaled"
        self._workforce.keep(asyncio.create_task(self._loader.scale(model, minimum)))
        return PROCESSING

    def invoke(self, name: str, item: Item, done: WhenDone, stream: Stream | None = None) -> None:
        model = self._registry.find(name)
        if model is None:
            done(ModelNotFound(f"Model not found: {name}"))
        elif model.rows is not None and (answer := model.rows.answer(item)) is not None:
            self._ways.front_rows += 1
            done(answer)
        elif model.in_flight >= self._job_queue_size * len(model.copies):
            done(
                Unavailable(
                    f"No worker is available to serve request for model: {name}. Consider increasing job queue size."
                )
            )
        else:
            model.in_flight += 1
            if item.is_streamed and (stream is None or model.batcher is not None):
                item = msgspec.structs.replace(item, is_streamed=False)
                stream = None
            if model.batcher is None:
                self._dispatcher.send(Prediction(model, [item], (done,), stream=stream))
            else:
                model.batcher.add((item, done))

    def names(self) -> list[str]:
        return self._registry.names()

    def url_of(self, name: str) -> str:
        return self._registry.get(name).registration.url

    @property
    def budget_bytes(self) -> int:
        return self._admission.budget_bytes

    def used_bytes(self) -> int:
        return self._admission.used_bytes()

    async def prepare(self, environ: tuple[tuple[str, str], ...]) -> None:
        await self._workforce.prepare(Environment("", environ))

    async def try_script(self, registration: Registration) -> Fault | None:
        script = self._inspector.script_of(registration.handler, registration.environ, registration.image)
        if script is None:
            return None
        environment = environment_for(script.environment, registration.environ, has_code=True)
        timeout_secs = registration.load_timeout_secs or self._limits.response_timeout_secs
        is_there = contextlib.nullcontext(Path(registration.url))
        with is_there if registration.url else self._inspector.empty_folder() as folder:
            return await self._workforce.try_script(environment, script.path, folder, timeout_secs)

    async def forget(self, environ: tuple[tuple[str, str], ...]) -> None:
        await self._workforce.forget(environ)

    async def describe(self, name: str) -> dict[str, Any]:
        return described(self._registry.get(name))

    async def signature(self, name: str) -> Signature:
        model = self._registry.get(name)
        if model.signature is None:
            model.signature = await self._dispatcher.signature(model)
        return model.signature

    # Other processes that answer rows

    @property
    def leases(self) -> Leases:
        return self._registry.leases

    def rows_of(self, name: str) -> RowModel | None:
        """What answers the model's rows, if something does."""
        model = self._registry.find(name)
        rows = None if model is None else model.rows
        return rows if rows is not None and rows.are_answered else None

    # Small things

    async def _discard(self, source: Source) -> None:
        if self._inspector.has_unpacked(source):
            await asyncio.to_thread(self._inspector.discard, source)
