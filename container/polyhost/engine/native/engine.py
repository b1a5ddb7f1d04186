"""
The native engine: all models' state, on one event loop, changed between two awaits.

A model has copies; a copy lives in a worker. Copies of our own handlers on archives of data share long-lived
workers; whatever brings code has workers of its own. A request goes to the copy with the least to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from polyhost.engine.errors import (
    BadRequest,
    Conflict,
    EngineError,
    ModelNotFound,
    OutOfMemory,
    PredictionFailed,
    Unavailable,
)
from polyhost.engine.native.messages import Answered, Done, Failed, Load, Predict, Trim, Unload
from polyhost.engine.native.pool import (
    Template,
    Worker,
    WorkerLost,
    ignore_result,
    interpreter_of,
    resident_bytes,
)
from polyhost.engine.protocol import Answer, Item, Registration
from polyhost.engine.source import Inspector, Source
from polyhost.memory import fits, mib

logger = logging.getLogger("polyhost.engine")

# MMS's job_queue_size: how many requests may wait for one model.
JOB_QUEUE_SIZE = 100
# A model that has ended this many workers is refused until it is loaded again.
MAX_DEATHS = 3
_TICK_SECS = 0.05
# What a forked worker takes for itself, before its model.
_DEDICATED_BYTES = 5 * 1024**2
_UNLOADED = "its model was unloaded"
_STOPPING = "the server stops"
_EXPECTED_ENDS = (_UNLOADED, _STOPPING)
_MODULES = (
    "numpy",
    "scipy.sparse",
    "xgboost",
    "sklearn.compose",
    "sklearn.linear_model",
    "joblib",
    "onnxruntime",
    "mxnet",
    "mms.service",
    "mms.metrics.metrics_store",
    "polyhost_handlers.xgboost_handler",
    "polyhost_handlers.sklearn_handler",
    "polyhost_handlers.linear_learner_handler",
    "polyhost_handlers.onnx_handler",
    "polyhost_handlers.mxnet_handler",
    "polyhost_handlers.script_handler",
    "polyhost_handlers.auto",
)


@dataclass(eq=False)
class Copy:
    """One loaded instance of a model. `worker` is None while it is being loaded, again too."""

    number: int
    worker: Worker | None = None
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    grown_bytes: int = 0
    loading: asyncio.Task[Worker] | None = None


@dataclass(eq=False)
class Model:
    key: int
    name: str
    source: Source
    registration: Registration
    timeout_secs: float
    is_dedicated: bool
    copies: list[Copy] = field(default_factory=list)
    in_flight: int = 0
    deaths: int = 0
    max_workers: int = 0
    batch: list[tuple[Item, asyncio.Future[Answer]]] = field(default_factory=list)
    batch_timer: asyncio.TimerHandle | None = None


class NativeEngine:
    def __init__(
        self,
        *,
        inspector: Inspector,
        environ: Mapping[str, str],
        shared_workers: int,
        workers_per_model: int = 1,
        response_timeout_secs: float = 60.0,
        isolation: str = "auto",
        budget_bytes: int,
    ) -> None:
        self._inspector = inspector
        self._environ = dict(environ)
        self._shared_count = shared_workers
        self._workers_per_model = workers_per_model
        self._timeout_secs = response_timeout_secs
        self._isolation = isolation
        self._budget_bytes = budget_bytes
        self._reserved_bytes = 0
        self._models: dict[str, Model] = {}
        self._templates: dict[str, Template] = {}
        self._shared: dict[str, list[Worker]] = {}
        self._workers: set[Worker] = set()
        self._shared_starting: dict[str, asyncio.Lock] = {}
        self._numbers = itertools.count(1)
        self._worker_ids = itertools.count(9000)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_metrics: Callable[[str, list[str]], None] = lambda _name, _metrics: None

    # Start and stop

    async def start(self) -> None:
        self._template_of("")
        self._keep(asyncio.create_task(self._warm_up()))
        self._keep(asyncio.create_task(self._watch()))

    async def _warm_up(self) -> None:
        for _ in range(self._shared_count):
            await self._add_shared_worker("")

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        workers = list(self._workers)
        for worker in workers:
            worker.kill(_STOPPING)
        await asyncio.gather(*(worker.gone for worker in workers))
        for template in self._templates.values():
            await template.stop()

    # The verbs

    async def load(self, registration: Registration) -> str:
        """Load a model; the status text. Nothing is registered after an error."""
        try:
            return await self._load(registration)
        except EngineError as error:
            logger.warning("model %s: %d: %s", registration.name, error.status, error.message)
            raise

    async def _load(self, registration: Registration) -> str:
        source = await asyncio.to_thread(self._inspector.inspect, registration.url, registration.handler)
        name = (
            registration.name or source.manifest_name or registration.url.rstrip("/").rpartition("/")[2].split(".")[0]
        )
        if name in self._models:
            raise Conflict(f"Model {name} is already registered.")
        model = Model(
            key=next(self._numbers),
            name=name,
            source=source,
            registration=registration,
            timeout_secs=registration.response_timeout_secs or self._timeout_secs,
            is_dedicated=self._isolation == "process" or (source.has_code and self._isolation != "shared"),
        )
        self._models[name] = model
        workers = registration.initial_workers
        if workers is None:
            workers = self._workers_per_model
        if workers == 0:
            return f'Model "{name}" registered'
        loading = asyncio.create_task(self._load_copies(model, workers))
        if not registration.is_synchronous:
            self._keep(loading)
            return "Processing worker updates..."
        await asyncio.shield(loading)
        return "Workers scaled"

    async def _load_copies(self, model: Model, count: int) -> None:
        try:
            await self._scale(model, count)
        except BaseException:
            self._forget(model)
            raise

    async def unload(self, name: str) -> None:
        """Returns when the memory has been given back."""
        model = self._get(name)
        self._forget(model)
        await asyncio.gather(*(self._remove_copy(model, copy) for copy in model.copies))

    async def scale(self, name: str, minimum: int, maximum: int | None, is_synchronous: bool) -> str:
        model = self._get(name)
        if maximum is not None and maximum < minimum:
            raise BadRequest("max_worker cannot be less than min_worker.")
        model.max_workers = maximum if maximum is not None else minimum
        if is_synchronous:
            await self._scale(model, minimum)
            return "Workers scaled"
        self._keep(asyncio.create_task(self._scale(model, minimum)))
        return "Processing worker updates..."

    async def invoke(self, name: str, item: Item) -> Answer:
        model = self._models.get(name)
        if model is None:
            raise ModelNotFound(f"Model not found: {name}")
        if not model.copies or model.in_flight >= JOB_QUEUE_SIZE * len(model.copies):
            raise Unavailable(
                f"No worker is available to serve request for model: {name}. Consider increasing job queue size.",
            )
        model.in_flight += 1
        try:
            if model.registration.batch_size > 1:
                return await self._join_batch(model, item)
            (answer,) = await self._predict(model, [item])
            return answer
        finally:
            model.in_flight -= 1

    def names(self) -> list[str]:
        return sorted(self._models)

    def url_of(self, name: str) -> str:
        return self._models[name].registration.url

    async def describe(self, name: str) -> dict[str, Any]:
        model = self._get(name)
        wanted = len(model.copies)
        described = {
            "modelName": name,
            "modelVersion": model.source.version,
            "modelUrl": model.registration.url,
            "engine": model.source.engine,
            "runtime": "python",
            "minWorkers": wanted,
            "maxWorkers": max(wanted, model.max_workers),
            "batchSize": model.registration.batch_size,
            "maxBatchDelay": model.registration.max_batch_delay_ms,
            "loadedAtStartup": False,
            "workers": [self._describe_copy(model, copy) for copy in model.copies],
        }
        return {key: value for key, value in described.items() if value is not None}

    def _describe_copy(self, model: Model, copy: Copy) -> dict[str, Any]:
        memory = copy.grown_bytes
        if model.is_dedicated and copy.worker is not None:
            memory = resident_bytes(copy.worker.pid)
        return {
            "id": str(copy.number),
            "startTime": copy.started.strftime("%Y-%m-%dT%H:%M:%S.") + f"{copy.started.microsecond // 1000:03d}Z",
            "status": "READY",  # MMS says so from when a worker is started
            "gpu": False,
            "memoryUsage": memory,
        }

    # Copies

    async def _scale(self, model: Model, count: int) -> None:
        while len(model.copies) > count:
            copy = model.copies.pop()
            await self._remove_copy(model, copy)
        missing = count - len(model.copies)
        added = [Copy(next(self._worker_ids)) for _ in range(missing)]
        model.copies.extend(added)
        try:
            await asyncio.gather(*(self._worker_of(model, copy) for copy in added))
        except BaseException:
            for copy in added:
                if copy in model.copies:
                    model.copies.remove(copy)
                await self._remove_copy(model, copy)
            raise

    async def _worker_of(self, model: Model, copy: Copy) -> Worker:
        """The copy's worker, with the model loaded in it; ten callers wait for one load."""
        if copy.worker is not None:
            return copy.worker
        if copy.loading is None:
            copy.loading = asyncio.create_task(self._load_copy(model, copy))
            copy.loading.add_done_callback(lambda _: setattr(copy, "loading", None))
        return await asyncio.shield(copy.loading)

    async def _load_copy(self, model: Model, copy: Copy) -> Worker:
        need = self._cost_bytes(model)
        await self._admit(need)
        self._reserved_bytes += need
        try:
            return await self._load_admitted(model, copy)
        finally:
            self._reserved_bytes -= need

    async def _admit(self, need_bytes: int) -> None:
        """Raises OutOfMemory when a load does not fit now, freed memory given back first."""
        if self._fits(need_bytes):
            return
        await asyncio.gather(*(self._trim(worker) for worker in self._all_shared()), return_exceptions=True)
        if not self._fits(need_bytes):
            raise OutOfMemory(
                f"the model needs about {mib(need_bytes)}, models use {mib(self._used_bytes())} "
                f"of {mib(self._budget_bytes)}: unload some, or give more with --memory-budget",
            )

    async def _trim(self, worker: Worker) -> None:
        await worker.order(Trim(next(self._numbers)), self._timeout_secs)
        worker.free_bytes = 0

    def _cost_bytes(self, model: Model) -> int:
        """What a model takes: its archive's bytes, times what all that are loaded take for each of theirs."""
        if model.is_dedicated:
            return model.source.artifact_bytes + _DEDICATED_BYTES
        shared = self._all_shared()
        artifact_bytes = sum(worker.artifact_bytes for worker in shared)
        used = sum(worker.models_bytes for worker in shared)
        return int(model.source.artifact_bytes * max(1.0, used / artifact_bytes if artifact_bytes else 1.0))

    def _fits(self, need_bytes: int) -> bool:
        is_alone = not self._reserved_bytes and not any(worker.models for worker in self._workers)
        return fits(need_bytes, self._budget_bytes, self._used_bytes(), self._reserved_bytes, is_alone=is_alone)

    def _used_bytes(self) -> int:
        return sum(worker.models_bytes for worker in self._workers)

    def _all_shared(self) -> list[Worker]:
        return [worker for workers in self._shared.values() for worker in workers]

    async def _load_admitted(self, model: Model, copy: Copy) -> Worker:
        worker = await self._find_worker(model)
        order = Load(
            next(self._numbers), model.key, model.name, str(model.source.path), model.source.handler,
            model.registration.batch_size, worker.is_dedicated,
        )  # fmt: skip
        try:
            reply = await worker.order(order, timeout_secs=model.timeout_secs)
        except WorkerLost as lost:
            raise self._lost_while_loading(model, worker, lost) from lost
        if isinstance(reply, Failed):
            if worker.is_dedicated:
                await self._end(worker)
            kind = OutOfMemory if reply.status == OutOfMemory.status else EngineError
            raise kind(reply.message)
        assert isinstance(reply, Done)
        worker.models.add(model.key)
        worker.artifact_bytes += model.source.artifact_bytes
        worker.free_bytes = max(0, worker.free_bytes - self._cost_bytes(model))
        copy.worker = worker
        copy.grown_bytes = reply.grown_bytes
        copy.started = datetime.now(timezone.utc)
        return worker

    def _lost_while_loading(self, model: Model, worker: Worker, lost: WorkerLost) -> EngineError:
        if not lost.was_running and not worker.is_dedicated:
            return Unavailable(f"The worker that was to load model {model.name} ended: ask again.")
        if worker.end_reason.startswith("it did not answer"):
            return EngineError(f"Model {model.name} was not loaded within {model.timeout_secs:g} s.")
        return EngineError(f"The worker of model {model.name} ended while it loaded the model: {lost}.")

    async def _remove_copy(self, model: Model, copy: Copy) -> None:
        if copy.loading is not None:
            copy.loading.cancel()
        worker, copy.worker = copy.worker, None
        if worker is None or not worker.is_alive:
            return
        worker.models.discard(model.key)
        if worker.is_dedicated:
            await self._end(worker)
            return
        cost = self._cost_bytes(model)
        with contextlib.suppress(WorkerLost):
            await worker.order(Unload(next(self._numbers), model.key), timeout_secs=self._timeout_secs)
            worker.artifact_bytes -= model.source.artifact_bytes
            worker.free_bytes += cost

    async def _end(self, worker: Worker) -> None:
        """End a dedicated worker and wait until its process is gone: DELETE answers only then."""
        worker.kill(_UNLOADED)
        await worker.gone

    # Predicting

    async def _predict(self, model: Model, items: list[Item]) -> list[Answer]:
        if model.deaths >= MAX_DEATHS:
            raise EngineError(
                f"Model {model.name} has ended its worker {model.deaths} times and is refused: "
                "unload it, mend it, load it again.",
            )
        copy = min(model.copies, key=lambda one: one.worker.load if one.worker else 0)
        has_retried = False
        while True:
            worker = copy.worker or await self._worker_of(model, copy)
            try:
                reply = await worker.order(Predict(next(self._numbers), model.key, items), model.timeout_secs)
            except WorkerLost as lost:
                if lost.was_running:
                    self._blame(model, worker, lost, has_retried)
                    has_retried = True
                continue
            if isinstance(reply, Failed):
                kind = OutOfMemory if reply.status == OutOfMemory.status else PredictionFailed
                raise kind(reply.message, reply.status)
            assert isinstance(reply, Answered)
            if reply.metrics:
                self._on_metrics(model.name, reply.metrics)
            return reply.answers

    def _blame(self, model: Model, worker: Worker, lost: WorkerLost, has_retried: bool) -> None:
        """The request that was running when its worker ended is tried once more, the model alone; then no more."""
        if worker.end_reason.startswith("it did not answer"):
            text = f"Model {model.name} did not answer within {model.timeout_secs:g} s: its worker was ended."
            raise EngineError(text)
        model.deaths += 1
        model.is_dedicated = True
        if has_retried:
            raise EngineError(f"The worker of model {model.name} ended while it answered this request: {lost}.")

    async def _join_batch(self, model: Model, item: Item) -> Answer:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        model.batch.append((item, answer))
        if len(model.batch) >= model.registration.batch_size:
            self._send_batch(model)
        elif model.batch_timer is None:
            delay = model.registration.max_batch_delay_ms / 1000
            model.batch_timer = loop.call_later(delay, self._send_batch, model)
        return await answer

    def _send_batch(self, model: Model) -> None:
        if model.batch_timer is not None:
            model.batch_timer.cancel()
            model.batch_timer = None
        batch, model.batch = model.batch, []
        if batch:
            self._keep(asyncio.create_task(self._predict_batch(model, batch)))

    async def _predict_batch(self, model: Model, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._predict(model, [item for item, _ in batch])
        except EngineError as error:
            for _, waiting in batch:
                if not waiting.done():
                    waiting.set_exception(error)
            return
        for (_, waiting), answer in zip(batch, answers, strict=True):
            if not waiting.done():
                waiting.set_result(answer)

    # Workers

    async def _find_worker(self, model: Model) -> Worker:
        environment = model.source.environment
        if model.is_dedicated:
            return await self._fork(environment, is_dedicated=True)
        shared = self._shared.setdefault(environment, [])
        while len(shared) < (self._shared_count if not environment else 1):
            await self._add_shared_worker(environment)
        free = [worker for worker in shared if model.key not in worker.models] or shared
        return min(free, key=lambda worker: len(worker.models))

    async def _add_shared_worker(self, environment: str) -> None:
        async with self._shared_starting.setdefault(environment, asyncio.Lock()):
            shared = self._shared.setdefault(environment, [])
            if len(shared) < (self._shared_count if not environment else 1):
                shared.append(await self._fork(environment, is_dedicated=False))

    async def _fork(self, environment: str, *, is_dedicated: bool) -> Worker:
        template = self._template_of(environment)
        worker = await template.fork(lambda pid: Worker(pid, environment, is_dedicated, self._worker_lost))
        self._workers.add(worker)
        return worker

    def _template_of(self, environment: str) -> Template:
        if environment not in self._templates:
            python = interpreter_of(environment, self._environ) or interpreter_of("", self._environ)
            assert python is not None
            self._templates[environment] = Template(environment, python, _MODULES, self._environ)
        return self._templates[environment]

    def _worker_lost(self, worker: Worker) -> None:
        self._workers.discard(worker)
        shared = self._shared.get(worker.environment, [])
        if worker in shared:
            shared.remove(worker)
        orphans = []
        for model in self._models.values():
            for copy in model.copies:
                if copy.worker is worker:
                    copy.worker = None
                    orphans.append((model, copy))
        if worker.end_reason not in _EXPECTED_ENDS:
            logger.warning("worker %d ended: %s", worker.pid, worker.end_reason or "by itself, or it was killed")
        if orphans and not worker.is_dedicated:
            self._keep(asyncio.create_task(self._load_again(orphans)))

    async def _load_again(self, orphans: list[tuple[Model, Copy]]) -> None:
        """In the background; a request for one of them loads it first."""
        for model, copy in orphans:
            if self._models.get(model.name) is model and copy in model.copies:
                try:
                    await self._worker_of(model, copy)
                except EngineError as error:
                    logger.warning("model %s was not loaded again: %s", model.name, error.message)

    async def _watch(self) -> None:
        """Ends workers whose call takes longer than its model allows."""
        while True:
            await asyncio.sleep(_TICK_SECS)
            now = time.monotonic()
            for worker in list(self._workers):
                if worker.sent and now - worker.sent[0].started > worker.sent[0].timeout_secs:
                    worker.kill(f"it did not answer within {worker.sent[0].timeout_secs:g} s")

    # Small things

    def _get(self, name: str) -> Model:
        if name not in self._models:
            raise ModelNotFound(f"Model not found: {name}")
        return self._models[name]

    def _forget(self, model: Model) -> None:
        if self._models.get(model.name) is model:
            del self._models[model.name]

    def _keep(self, task: asyncio.Task[Any]) -> None:
        """Tasks are held weakly by asyncio: without this one could vanish while it runs."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(ignore_result)
