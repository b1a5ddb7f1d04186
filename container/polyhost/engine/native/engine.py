"""
The native engine: all models' state, on one event loop, changed between two awaits.

A model has copies; a copy lives in a worker. Copies of our own handlers on archives of data share long-lived
workers; whatever brings code has workers of its own. A request goes to the copy with the least to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, TypeVar

from polyhost.engine.errors import (
    BadRequest,
    Conflict,
    EngineError,
    ModelNotFound,
    OutOfMemory,
    PredictionFailed,
    Unavailable,
)
from polyhost.engine.native.messages import Answered, Done, Failed, FromWorker, Keep, Load, Predict, Unload
from polyhost.engine.native.pool import DEDICATED_BYTES, Environment, Order, Worker, WorkerLost, ignore_result
from polyhost.engine.native.workforce import FORGOTTEN, STOPPING, Workforce
from polyhost.engine.protocol import Answer, Item, Registration
from polyhost.engine.source import Inspector, Source
from polyhost.memory import DEFAULT_SHARE, fits, memory_limit_bytes, mib
from polyhost.metrics import Metrics

logger = logging.getLogger("polyhost.engine")

# A model that has ended this many workers in that time is refused.
MAX_DEATHS = 3
_DEATHS_SECS = 600.0
# Of a worker that a slow model has taken for itself: where CPUs are short, quick answers go first.
_SLOW_NICENESS = 5
_FIRST_FREEZE = 512  # models
T = TypeVar("T")
_UNLOADED = "its model was unloaded"
_EXPECTED_ENDS = (_UNLOADED, STOPPING, FORGOTTEN)


@dataclass(eq=False)
class Copy:
    """One loaded instance of a model. `worker` is None while it is being loaded, again too."""

    number: int
    worker: Worker | None = None
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    grown_bytes: int = 0
    # Whether it was loaded before: whoever loses its worker need not be admitted again.
    is_admitted: bool = False
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
    # When it ended a worker, by time.monotonic().
    deaths: list[float] = field(default_factory=list)
    max_workers: int = 0
    batch: list[tuple[Item, asyncio.Future[Answer]]] = field(default_factory=list)
    batch_timer: asyncio.TimerHandle | None = None

    @property
    def environment(self) -> Environment:
        return Environment(self.source.environment, self.registration.environ)


class NativeEngine:
    def __init__(
        self,
        *,
        inspector: Inspector,
        environ: Mapping[str, str],
        shared_workers: int,
        workers_per_model: int,
        response_timeout_secs: float,
        job_queue_size: int,
        isolation: str,
        budget_bytes: int | None,
        metrics: Metrics,
    ) -> None:
        """`budget_bytes`: None for a share of what there is, less what the idle server uses."""
        self.has_ended = False
        self.on_end: Callable[[], None] = lambda: None
        self._inspector = inspector
        self._workers_per_model = workers_per_model
        self._timeout_secs = response_timeout_secs
        # How many requests may wait for each copy of a model.
        self._job_queue_size = job_queue_size
        self._isolation = isolation
        self._has_own_budget = budget_bytes is not None
        self.budget_bytes = int(memory_limit_bytes() * DEFAULT_SHARE) if budget_bytes is None else budget_bytes
        self._reserved_bytes = 0
        self._metrics = metrics
        self._models: dict[str, Model] = {}
        self._next_freeze = _FIRST_FREEZE
        self._numbers = itertools.count(1)
        self._worker_ids = itertools.count(9000)
        self._workforce = Workforce(
            environ=environ,
            numbers=self._numbers,
            shared_count=shared_workers,
            on_lost=self._worker_lost,
            on_held_up=self._give_away,
        )

    async def start(self) -> None:
        await self._workforce.start()
        if not self._has_own_budget:
            self._workforce.keep(asyncio.create_task(self._leave_room_for_the_idle_server()))

    async def _leave_room_for_the_idle_server(self) -> None:
        await self._workforce.complete()
        self.budget_bytes -= self._workforce.idle_bytes()

    async def stop(self) -> None:
        await self._workforce.stop()

    # The verbs

    async def load(self, registration: Registration) -> str:
        try:
            return await self._load(registration)
        except EngineError as error:
            logger.warning("model %s: %d: %s", registration.name, error.status, error.message)
            raise

    async def _load(self, registration: Registration) -> str:
        source = await asyncio.to_thread(
            self._inspector.inspect, registration.url, registration.handler, registration.environ
        )
        name = (
            registration.name or source.manifest_name or registration.url.rstrip("/").rpartition("/")[2].split(".")[0]
        )
        if name in self._models:
            await self._discard(source)
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
            self._workforce.keep(loading)
            return "Processing worker updates..."
        loading.add_done_callback(ignore_result)  # of a caller who is gone when it fails
        await _done(loading, name)
        if len(self._models) >= self._next_freeze:
            gc.freeze()  # looking through thousands of models for garbage would hold requests up
            self._next_freeze *= 2
        return "Workers scaled"

    async def _load_copies(self, model: Model, count: int) -> None:
        try:
            await self._scale(model, count)
        except BaseException:
            self._forget(model)
            await self._discard(model.source)
            raise

    async def unload(self, name: str) -> None:
        model = self._get(name)
        self._forget(model)
        copies, model.copies = model.copies, []
        await asyncio.gather(*(self._remove_copy(model, copy) for copy in copies))
        await self._discard(model.source)

    async def scale(self, name: str, minimum: int, maximum: int | None, is_synchronous: bool) -> str:
        model = self._get(name)
        if maximum is not None and maximum < minimum:
            raise BadRequest("max_worker cannot be less than min_worker.")
        model.max_workers = maximum if maximum is not None else minimum
        if is_synchronous:
            await self._scale(model, minimum)
            return "Workers scaled"
        self._workforce.keep(asyncio.create_task(self._scale(model, minimum)))
        return "Processing worker updates..."

    async def invoke(self, name: str, item: Item) -> Answer:
        model = self._models.get(name)
        if model is None:
            raise ModelNotFound(f"Model not found: {name}")
        if model.in_flight >= self._job_queue_size * len(model.copies):
            raise Unavailable(
                f"No worker is available to serve request for model: {name}. Consider increasing job queue size.",
            )
        model.in_flight += 1
        try:
            if model.registration.batch_size > 1:
                return await self._join_batch(model, item)
            return (await self.predict(model, [item]))[0]
        finally:
            model.in_flight -= 1

    def invoke_soon(
        self, name: str, item: Item, done: Callable[[Answer], None], failed: Callable[[EngineError], None],
    ) -> bool:  # fmt: skip
        model = self._models.get(name)
        if model is None or len(model.copies) != 1 or model.deaths or model.registration.batch_size > 1:
            return False
        worker = model.copies[0].worker
        if worker is None or not worker.is_alive or model.in_flight >= self._job_queue_size:
            return False
        model.in_flight += 1
        predict = Predict(next(self._numbers), model.key, [item])
        worker.send(Order(predict, _Soon(self, model, worker, item, done, failed), model.timeout_secs))
        return True

    def names(self) -> list[str]:
        return sorted(self._models)

    def url_of(self, name: str) -> str:
        return self._models[name].registration.url

    def used_bytes(self) -> int:
        return self._workforce.used_bytes()

    async def prepare(self, environ: tuple[tuple[str, str], ...]) -> None:
        await self._workforce.fill(Environment("", environ))

    async def forget(self, environ: tuple[tuple[str, str], ...]) -> None:
        await self._workforce.forget(environ)

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
            "loadedAtStartup": model.registration.is_startup,
            "workers": [self._describe_copy(model, copy) for copy in model.copies],
        }
        return {key: value for key, value in described.items() if value is not None}

    def _describe_copy(self, model: Model, copy: Copy) -> dict[str, Any]:
        if copy.worker is not None and copy.worker.is_dedicated:
            memory = copy.worker.models_bytes
        else:
            # A load into room that others left shows no growth: it takes its archive's bytes at least.
            memory = max(copy.grown_bytes, model.source.artifact_bytes)
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
            await self._remove_copy(model, model.copies.pop())
        added = [Copy(next(self._worker_ids)) for _ in range(count - len(model.copies))]
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
            copy.loading.add_done_callback(ignore_result)
            copy.loading.add_done_callback(lambda _: setattr(copy, "loading", None))
        return await _done(copy.loading, model.name)

    async def _load_copy(self, model: Model, copy: Copy) -> Worker:
        need = self._cost_bytes(model)
        if not copy.is_admitted:
            await self._admit(need)
        with self._reserved(need):
            while True:
                try:
                    return await self._load_admitted(model, copy)
                except WorkerLost:  # before it had begun with this one
                    await asyncio.sleep(0)  # the loop hears only now of one that died unseen

    async def _admit(self, need_bytes: int) -> None:
        """Raises OutOfMemory when a load does not fit now, freed memory given back first where that is worth it."""
        if self._fits(need_bytes):
            return
        await self._workforce.trim()
        if not self._fits(need_bytes):
            raise OutOfMemory(
                f"the model needs about {mib(need_bytes)}, models use {mib(self._workforce.used_bytes())} "
                f"of {mib(self.budget_bytes)}: unload some, or give more with --memory-budget",
            )

    @contextlib.contextmanager
    def _reserved(self, need_bytes: int) -> Iterator[None]:
        self._reserved_bytes += need_bytes
        try:
            yield
        finally:
            self._reserved_bytes -= need_bytes

    def _fits(self, need_bytes: int) -> bool:
        is_alone = not self._reserved_bytes and not self._workforce.holds_models()
        used = self._workforce.used_bytes()
        return fits(need_bytes, self.budget_bytes, used, self._reserved_bytes, is_alone=is_alone)

    def _cost_bytes(self, model: Model) -> int:
        """What a model takes: its archive's bytes, times what all that are loaded take for each of theirs."""
        if model.is_dedicated:
            return model.source.artifact_bytes + DEDICATED_BYTES
        return int(model.source.artifact_bytes * self._workforce.bytes_per_artifact_byte())

    async def _load_admitted(self, model: Model, copy: Copy) -> Worker:
        """Raises EngineError, and WorkerLost when the worker ended before this load's turn."""
        worker = await self._find_worker(model)
        order = Load(
            next(self._numbers), model.key, model.name, str(model.source.path), model.source.handler,
            model.registration.batch_size, model.source.has_code, worker.is_dedicated,
        )  # fmt: skip
        try:
            reply = await worker.order(order, timeout_secs=model.timeout_secs)
        except asyncio.CancelledError:  # the model was unloaded meanwhile
            self._workforce.keep(asyncio.create_task(self._undo_load(model, worker)))
            raise
        except WorkerLost as lost:
            if not lost.was_running:
                raise
            raise await self._lost_while_loading(model, worker, lost) from lost
        if isinstance(reply, Failed):
            worker.models.discard(model.key)
            if worker.is_dedicated:
                await self._end(worker)
            kind = OutOfMemory if reply.status == OutOfMemory.status else EngineError
            raise kind(reply.message)
        assert isinstance(reply, Done)
        worker.artifact_bytes += model.source.artifact_bytes
        worker.free_bytes = max(0, worker.free_bytes - self._cost_bytes(model))
        copy.worker = worker
        copy.is_admitted = True
        copy.grown_bytes = reply.grown_bytes
        copy.started = datetime.now(timezone.utc)
        return worker

    async def _undo_load(self, model: Model, worker: Worker) -> None:
        worker.models.discard(model.key)
        if worker.is_dedicated:
            await self._end(worker)
            return
        with contextlib.suppress(WorkerLost):
            await worker.order(Unload(next(self._numbers), model.key), timeout_secs=model.timeout_secs)
        worker.freed_bytes += self._cost_bytes(model)
        worker.needs_trim = True

    async def _find_worker(self, model: Model) -> Worker:
        try:
            if model.is_dedicated:
                return await self._workforce.dedicated(model.environment, model.key)
            return await self._workforce.shared(model.environment, model.key)
        except (OSError, EOFError) as error:
            raise OutOfMemory(f"No process can be started for model {model.name}: {error}.") from error

    async def _lost_while_loading(self, model: Model, worker: Worker, lost: WorkerLost) -> EngineError:
        if worker.end_reason.startswith("it did not answer"):
            return EngineError(f"Model {model.name} was not loaded within {model.timeout_secs:g} s.")
        if await worker.gone() == signal.SIGKILL and not worker.end_reason:
            return OutOfMemory(f"The worker of model {model.name} was killed while it loaded the model: out of memory.")
        return EngineError(f"The worker of model {model.name} ended while it loaded the model: {lost}.")

    async def _remove_copy(self, model: Model, copy: Copy) -> None:
        if copy.loading is not None:
            copy.loading.cancel()
        worker, copy.worker = copy.worker, None
        if worker is None or not worker.is_alive or any(other.worker is worker for other in model.copies):
            return
        worker.models.discard(model.key)
        cost = self._cost_bytes(model)
        is_dedicated = worker.is_dedicated  # a shared one may become another model's meanwhile
        try:
            # Behind what is asked of it still: a dedicated worker ends when that is answered.
            await worker.order(Unload(next(self._numbers), model.key), timeout_secs=model.timeout_secs)
        except WorkerLost:
            return
        if is_dedicated:
            await self._end(worker)
            return
        worker.artifact_bytes -= model.source.artifact_bytes
        worker.free_bytes += cost
        worker.freed_bytes += cost
        worker.needs_trim = True

    async def _end(self, worker: Worker) -> None:
        """End a dedicated worker and wait until its process is gone: DELETE answers only then."""
        worker.kill(_UNLOADED)
        await worker.gone()

    # Predicting

    async def predict(
        self, model: Model, items: list[Item], *, is_retry: bool = False, lost: tuple[Worker, WorkerLost] | None = None,
    ) -> list[Answer]:  # fmt: skip
        """`lost`: how a first try ended. Raises EngineError."""
        while True:
            if lost is not None and lost[1].was_running:
                self._blame(model, *lost, is_retry=is_retry)
                if len(items) > 1:
                    return [(await self.predict(model, [item], is_retry=True))[0] for item in items]
                is_retry = True
            if model.deaths:
                self._refuse_a_killer(model)
            if not model.copies:
                raise ModelNotFound(f"Model not found: {model.name}")
            copy = model.copies[0] if len(model.copies) == 1 else min(model.copies, key=_copy_load)
            worker = copy.worker or await self._worker_of(model, copy)
            try:
                reply = await worker.order(Predict(next(self._numbers), model.key, items), model.timeout_secs)
            except WorkerLost as error:
                lost = (worker, error)
                await asyncio.sleep(0)  # as above
                continue
            return self.answers_of(model, reply)

    def answers_of(self, model: Model, reply: FromWorker) -> list[Answer]:
        """Raises EngineError."""
        if isinstance(reply, Failed):
            kind = OutOfMemory if reply.status == OutOfMemory.status else PredictionFailed
            raise kind(reply.message, reply.status)
        assert isinstance(reply, Answered)
        if reply.metrics:
            self._metrics.of_handler(model.name, reply.metrics)
        return reply.answers

    def _blame(self, model: Model, worker: Worker, lost: WorkerLost, *, is_retry: bool) -> None:
        """The request that was running when its worker ended is tried once more, the model alone; then no more."""
        if worker.end_reason.startswith("it did not answer"):
            raise EngineError(
                f"Model {model.name} did not answer within {model.timeout_secs:g} s: its worker was ended.",
            )
        model.deaths.append(time.monotonic())
        model.is_dedicated = True
        if is_retry:
            raise EngineError(f"The worker of model {model.name} ended while it answered this request: {lost}.")

    def _refuse_a_killer(self, model: Model) -> None:
        since = time.monotonic() - _DEATHS_SECS
        model.deaths = [moment for moment in model.deaths if moment > since]
        if len(model.deaths) >= MAX_DEATHS:
            raise EngineError(
                f"Model {model.name} has ended its worker {len(model.deaths)} times and is refused: "
                "unload it, mend it, load it again.",
            )

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
            self._workforce.keep(asyncio.create_task(self._predict_batch(model, batch)))

    async def _predict_batch(self, model: Model, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self.predict(model, [item for item, _ in batch])
        except EngineError as error:
            for _, waiting in batch:
                if not waiting.done():
                    waiting.set_exception(error)
            return
        for (_, waiting), answer in zip(batch, answers, strict=True):
            if not waiting.done():
                waiting.set_result(answer)

    # What happens to workers

    def _worker_lost(self, worker: Worker) -> None:
        if worker.end_reason not in _EXPECTED_ENDS:
            logger.warning("worker %d ended: %s", worker.pid, worker.end_reason or "by itself, or it was killed")
        orphans = self._leave(worker)
        if orphans and not worker.is_dedicated:
            self._workforce.keep(asyncio.create_task(self._load_again(orphans)))

    def _give_away(self, worker: Worker, key: int) -> None:
        """A slow call holds its shared worker up: it becomes that model's own, the others are loaded elsewhere."""
        model = next((one for one in self._models.values() if one.key == key), None)
        if model is None:  # it is being unloaded: let it be
            return
        logger.info("model %s is slow: worker %d is its own from now on", model.name, worker.pid)
        model.is_dedicated = True
        self._workforce.dedicate(worker)
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, worker.pid, _SLOW_NICENESS)
        moved = self._leave(worker, but=model)
        worker.models &= {key}
        moved_bytes = sum(other.source.artifact_bytes for other, _ in moved)
        moved_heap_bytes = int(moved_bytes * self._workforce.bytes_per_artifact_byte())
        worker.free_bytes += moved_heap_bytes
        worker.freed_bytes += moved_heap_bytes
        worker.artifact_bytes -= moved_bytes
        worker.give_away_all_but(key)
        ignored = worker.order(Keep(next(self._numbers), key), model.timeout_secs)
        ignored.add_done_callback(ignore_result)

    def _leave(self, worker: Worker, *, but: Model | None = None) -> list[tuple[Model, Copy]]:
        """The copies that lived in a worker, which they no longer do."""
        orphans = []
        for model in self._models.values():
            for copy in model.copies:
                if copy.worker is worker and model is not but:
                    copy.worker = None
                    orphans.append((model, copy))
        return orphans

    async def _load_again(self, orphans: list[tuple[Model, Copy]]) -> None:
        """In the background; a request for one of them loads it first."""
        for model, copy in orphans:
            if self._models.get(model.name) is model and copy in model.copies:
                try:
                    await self._worker_of(model, copy)
                except EngineError as error:
                    logger.warning("model %s was not loaded again: %s", model.name, error.message)

    # Small things

    def keep(self, task: asyncio.Task[Any]) -> None:
        self._workforce.keep(task)

    def _get(self, name: str) -> Model:
        if name not in self._models:
            raise ModelNotFound(f"Model not found: {name}")
        return self._models[name]

    async def _discard(self, source: Source) -> None:
        if self._inspector.has_unpacked(source):
            await asyncio.to_thread(self._inspector.discard, source)

    def _forget(self, model: Model) -> None:
        if self._models.get(model.name) is model:
            del self._models[model.name]
            self._metrics.forget(model.name)


class _Soon:
    """The reply to a prediction that no task waits for: in the place of a future."""

    __slots__ = ("_done", "_engine", "_failed", "_is_over", "_item", "_model", "_worker")

    def __init__(
        self,
        engine: NativeEngine,
        model: Model,
        worker: Worker,
        item: Item,
        done: Callable[[Answer], None],
        failed: Callable[[EngineError], None],
    ) -> None:
        self._engine = engine
        self._model = model
        self._worker = worker
        self._item = item
        self._done = done
        self._failed = failed
        self._is_over = False

    def done(self) -> bool:
        return self._is_over

    def set_result(self, reply: FromWorker) -> None:
        self._is_over = True
        self._model.in_flight -= 1
        try:
            answer = self._engine.answers_of(self._model, reply)[0]
        except EngineError as error:
            self._failed(error)
        else:
            self._done(answer)

    def set_exception(self, lost: WorkerLost) -> None:
        self._is_over = True
        self._engine.keep(asyncio.get_running_loop().create_task(self._ask_again(lost)))

    async def _ask_again(self, lost: WorkerLost) -> None:
        try:
            (answer,) = await self._engine.predict(self._model, [self._item], lost=(self._worker, lost))
        except EngineError as error:
            self._failed(error)
        else:
            self._done(answer)
        finally:
            self._model.in_flight -= 1


async def _done(loading: asyncio.Task[T], name: str) -> T:
    """The result of a load that others may wait for too. Raises ModelNotFound if the model was unloaded meanwhile."""
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        if loading.cancelled():
            raise ModelNotFound(f"Model not found: {name}: it was unloaded while it was loading.") from None
        raise


def _copy_load(copy: Copy) -> int:
    return copy.worker.load if copy.worker else 0
