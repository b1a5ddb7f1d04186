"""
Who there is to work: templates by environment, the shared workers, the dedicated ones, and their memory.

The engine asks for a worker and is told when one is lost or held up; it alone knows which model is where.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from polyhost.engine.native.messages import Trim
from polyhost.engine.native.pool import Environment, Template, Worker, WorkerLost, ignore_result
from polyhost.engine.source import interpreter_of
from polyhost.memory import private_bytes

logger = logging.getLogger("polyhost.engine")

_TICK_SECS = 0.02
# A call that takes longer holds its worker up, if others wait there.
SLOW_CALL_SECS = 0.05
_IDLE_SECS = 1.0
_TRIM_TIMEOUT_SECS = 60.0
_WORTH_A_TRIM = 0.05
# Where one worker after the other ends before it was of any use, they are started ever more slowly.
_RECENT_SECS = 10.0
_FREE_RESTARTS = 3
_FIRST_DELAY_SECS = 0.1
_MAX_DELAY_SECS = 5.0
STOPPING = "the server stops"
FORGOTTEN = "its container is gone"
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
    "polyhost_handlers.knn_handler",
    "polyhost_handlers.onnx_handler",
    "polyhost_handlers.mxnet_handler",
    "polyhost_handlers.script_handler",
    "polyhost_handlers.auto",
)


class Workforce:
    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        numbers: Iterator[int],
        shared_count: int,
        on_lost: Callable[[Worker], None],
        on_held_up: Callable[[Worker, int], None],
    ) -> None:
        """
        `numbers`: of orders, the engine's too.

        `on_lost`: a worker has ended, its orders not yet told. `on_held_up`: a shared worker is busy for long with
        the model of that number, and others wait.
        """
        self._environ = dict(environ)
        self._shared_count = shared_count
        self._on_lost = on_lost
        self._on_held_up = on_held_up
        self._templates: dict[Environment, Template] = {}
        self._shared: dict[Environment, list[Worker]] = {}
        self._starting: dict[Environment, asyncio.Lock] = {}
        self._ended: dict[Environment, deque[float]] = {}
        self._workers: set[Worker] = set()
        self._numbers = numbers
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_stopping = False

    async def start(self) -> None:
        self._template_of(Environment())
        self.keep(asyncio.create_task(self.fill(Environment())))
        self.keep(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """End every process; nothing is started any more, whatever the loss of a worker makes others wish for."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        workers = list(self._workers)
        for worker in workers:
            worker.kill(STOPPING)
        await asyncio.gather(*(worker.gone() for worker in workers))
        for template in self._templates.values():
            await template.stop()

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Tasks are held weakly by asyncio: without this one could vanish while it runs. Cancelled at the stop."""
        if self._is_stopping:
            task.cancel()
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(ignore_result)

    # Workers

    async def shared(self, environment: Environment, model: int) -> Worker:
        """
        The shared worker with the fewest models, one that does not hold `model` yet if there is one.

        From now on it counts as holding it, so that two copies that are loaded at once find two workers.
        """
        shared = self._shared.setdefault(environment, [])
        if not shared or not self._delay_secs(environment):
            await self.fill(environment)
        free = [worker for worker in shared if model not in worker.models] or shared
        chosen = min(free, key=lambda worker: len(worker.models) + worker.load)
        chosen.models.add(model)
        return chosen

    async def dedicated(self, environment: Environment, model: int) -> Worker:
        worker = await self._fork(environment, is_dedicated=True)
        worker.models.add(model)
        return worker

    def dedicate(self, worker: Worker) -> None:
        """A shared worker is one model's own from now on."""
        worker.is_dedicated = True
        self._shared[worker.environment].remove(worker)
        self.keep(asyncio.create_task(self.fill(worker.environment)))

    async def forget(self, variables: tuple[tuple[str, str], ...]) -> None:
        """End the shared workers and templates with these variables; the models are unloaded."""
        for environment in [one for one in self._templates if one.variables and one.variables == variables]:
            template = self._templates.pop(environment)
            workers = self._shared.get(environment, [])
            for worker in list(workers):
                worker.kill(FORGOTTEN)
            await asyncio.gather(*(worker.gone() for worker in list(workers)))
            await template.stop()

    async def fill(self, environment: Environment) -> None:
        """Have as many shared workers as there should be."""
        shared = self._shared.setdefault(environment, [])
        while len(shared) < self._shared_count:
            async with self._starting.setdefault(environment, asyncio.Lock()):
                if len(shared) < self._shared_count:
                    await asyncio.sleep(self._delay_secs(environment))
                    shared.append(await self._fork(environment, is_dedicated=False))

    def _delay_secs(self, environment: Environment) -> float:
        ended = self._ended.setdefault(environment, deque())
        while ended and time.monotonic() - ended[0] > _RECENT_SECS:
            ended.popleft()
        too_many = len(ended) - _FREE_RESTARTS
        return 0.0 if too_many <= 0 else min(_MAX_DELAY_SECS, _FIRST_DELAY_SECS * 2.0**too_many)

    async def _fork(self, environment: Environment, *, is_dedicated: bool) -> Worker:
        if self._is_stopping:
            raise OSError(STOPPING)
        worker = await self._template_of(environment).fork(
            lambda pid, progress: Worker(pid, progress, environment, is_dedicated=is_dedicated, on_lost=self._lost),
        )
        if not worker.is_alive:
            raise OSError("the worker ended at once")
        self._workers.add(worker)
        return worker

    def _template_of(self, environment: Environment) -> Template:
        if environment not in self._templates:
            environ = {**self._environ, **dict(environment.variables)}
            python = interpreter_of(environment.python, environ) or sys.executable
            self._templates[environment] = Template(python, _MODULES, environ)
        return self._templates[environment]

    def _lost(self, worker: Worker) -> None:
        if worker not in self._workers:  # nobody had got it yet, or its caller had gone
            return
        self._workers.discard(worker)
        if not worker.is_dedicated:
            self._shared[worker.environment].remove(worker)
            if not worker.has_answered:
                self._ended.setdefault(worker.environment, deque()).append(time.monotonic())
        self._on_lost(worker)

    async def complete(self) -> None:
        """Returns when the shared workers of the server's own environment are there."""
        await self.fill(Environment())

    # Memory

    def idle_bytes(self) -> int:
        """What the front, the templates and workers without models use."""
        pids = [os.getpid(), *(worker.pid for worker in self._workers if not worker.models)]
        pids += [template.pid for template in self._templates.values() if template.pid is not None]
        return sum(private_bytes(pid) for pid in pids)

    def used_bytes(self) -> int:
        """What all models use, measured."""
        return sum(worker.models_bytes for worker in self._workers)

    def holds_models(self) -> bool:
        return any(worker.models for worker in self._workers)

    def bytes_per_artifact_byte(self) -> float:
        """What the models in shared workers take for each byte of their archives, at least 1."""
        shared = list(self._all_shared())
        artifact_bytes = sum(worker.artifact_bytes for worker in shared)
        return max(1.0, sum(worker.models_bytes for worker in shared) / artifact_bytes if artifact_bytes else 1.0)

    async def trim(self) -> None:
        """
        Have freed memory given back to the system, now.

        It takes longer the larger a heap is: where next to nothing was freed, what is known of it is good enough.
        """
        worth_it = [one for one in self._all_shared() if one.freed_bytes > one.models_bytes * _WORTH_A_TRIM]
        await asyncio.gather(*(self._trim(worker) for worker in worth_it), return_exceptions=True)

    async def _trim(self, worker: Worker) -> None:
        worker.needs_trim = False
        await worker.order(Trim(next(self._numbers)), _TRIM_TIMEOUT_SECS)
        worker.free_bytes = 0
        worker.freed_bytes = 0

    def _all_shared(self) -> Iterator[Worker]:
        return itertools.chain.from_iterable(self._shared.values())

    # Looking after them

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECS)
            for worker in list(self._workers):
                try:
                    self._look_at(worker)
                except Exception:  # the others must be looked after all the same
                    logger.exception("worker %d cannot be looked after", worker.pid)

    def _look_at(self, worker: Worker) -> None:
        running, secs, own_secs = worker.look()
        if running is None:
            if worker.needs_trim and secs > _IDLE_SECS:
                self.keep(asyncio.create_task(self._trim_quietly(worker)))
        elif secs > running.timeout_secs:
            worker.kill(f"it did not answer within {running.timeout_secs:g} s")
        elif own_secs > SLOW_CALL_SECS and not worker.is_dedicated:
            behind = (order for order in (*worker.sent, *worker.waiting) if order.model != running.model)
            if running.model is not None and any(behind):
                self._on_held_up(worker, running.model)

    async def _trim_quietly(self, worker: Worker) -> None:
        try:
            await self._trim(worker)
        except WorkerLost:
            return
