"""
Who there is to work: templates by environment, the shared workers, the dedicated ones, and their memory.

The engine asks for a worker and is told when one is lost or held up; it alone knows which model is where.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polyhost_handlers.artifacts import KINDS
from polyhost_handlers.script_trial import Blame, Fault

from polyhost.engine.errors import EngineError
from polyhost.engine.native.hardening import Hardening
from polyhost.engine.native.heap import Heap
from polyhost.engine.native.messages import Confine, Failed, Tried, TryScript
from polyhost.engine.native.orders import WorkerLost
from polyhost.engine.native.orphans import Orphans
from polyhost.engine.native.placement import FRAMEWORKS_BYTES, Growth, HeapState, HeapUse, Seat, give_away, place
from polyhost.engine.native.pool import End, Environment, Template, Worker
from polyhost.engine.native.segments import Channel
from polyhost.engine.native.trims import Trims
from polyhost.engine.native.variables import template_variables
from polyhost.framing import Progress
from polyhost.interpreters import imports_of, interpreter_of, variables_of
from polyhost.memory import private_bytes
from polyhost.tasks import Tasks
from polyhost.trees import remove_tree

logger = logging.getLogger("polyhost.engine")

_TICK_SECS = 0.02
# Daemons that have ended while their worker lives are zombies until they are looked for, once a second.
_TICKS_TO_ORPHANS = 50
_IDLE_SECS = 1.0
# How long a stopped worker may leave its next order unbegun.
_STOPPED_SECS = 1.0
_CONFINE_TIMEOUT_SECS = 30.0
# Where one worker after the other ends before it was of any use, they are started ever more slowly.
_RECENT_SECS = 10.0
_FREE_RESTARTS = 3
_FIRST_DELAY_SECS = 0.1
_MAX_DELAY_SECS = 5.0
# What goes wrong in a task that is kept, and is told to those who wait for it.
_TOLD = (EngineError, WorkerLost, OSError, EOFError)
# What a template imports, for all of its workers; a bare one has our handlers alone.
_FRAMEWORKS = (
    "numpy",
    "scipy.sparse",
    "xgboost",
    "sklearn.compose",
    "sklearn.linear_model",
    "joblib",
    "onnxruntime",
    "mxnet",
)
_HANDLERS = (
    "mms.service",
    "mms.metrics.metrics_store",
    *(kind.module for kind in KINDS),
    "polyhost_handlers.auto",
)


class Workforce:
    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        numbers: Iterator[int],
        shared_count: int,
        hardening: Hardening | None,
        max_response_bytes: int,
        has_readers: bool,
        imports_late: bool = False,
    ) -> None:
        """`numbers`: of orders, the engine's too. `has_readers`: whether shared workers read compiled models."""
        self._environ = dict(environ)
        self._shared_count = shared_count
        self._hardening = hardening
        self._max_response_bytes = max_response_bytes
        self._has_readers = has_readers
        # No template before a model needs it, and a bare one for what brings code.
        self._imports_late = imports_late
        # Called when a worker has ended, its orders not yet told.
        self.on_lost: Callable[[Worker], None] = lambda _: None
        # Called when a shared worker is busy for long with the model of that number, and others wait.
        self.on_held_up: Callable[[Worker, int], None] = lambda *_: None
        self._templates: dict[Environment, Template] = {}
        self._shared: dict[Environment, list[Worker]] = {}
        self._starting: dict[Environment, asyncio.Lock] = {}
        self._ended: dict[Environment, deque[float]] = {}
        self._workers: set[Worker] = set()
        self._orphans = Orphans(lambda: any(template.is_forking for template in self._templates.values()))
        self._numbers = numbers
        self.trims = Trims(numbers, self.keep)
        self._tasks = Tasks()
        self._is_stopping = False

    async def start(self) -> None:
        self.keep(asyncio.create_task(self.prepare(Environment())))
        self.keep(asyncio.create_task(self._watch()))

    async def stop(self) -> None:
        """End every process; nothing is started any more, whatever the loss of a worker makes others wish for."""
        self._is_stopping = True
        await self._tasks.stop()
        # First: a worker that is being forked for somebody would come when the others have been counted.
        await asyncio.gather(*(template.stop() for template in self._templates.values()))
        workers = list(self._workers)
        for worker in workers:
            worker.kill(End.STOPPING)
        await asyncio.gather(*(worker.gone() for worker in workers))
        await self._orphans.end_all()

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Cancelled at the stop."""
        self._tasks.keep(task, expected=_TOLD)

    # Workers

    async def shared(self, environment: Environment, model: int) -> Worker:
        """
        The shared worker with the fewest models, one that does not hold `model` yet if there is one.

        From now on it counts as holding it, so that two copies that are loaded at once find two workers.
        """
        shared = self._shared.setdefault(environment, [])
        if not shared or not self._delay_secs(environment):
            await self.fill(environment)
        chosen = shared[place([Seat(model in worker.models, len(worker.models), worker.load) for worker in shared])]
        chosen.models.add(model)
        return chosen

    async def dedicated(self, environment: Environment, model: int, folder: Path, *, has_code: bool) -> Worker:
        wanted = environment._replace(is_bare=has_code and self._imports_late)
        worker = await self._fork(wanted, is_dedicated=True, folder=folder)
        worker.models.add(model)
        return worker

    async def try_script(self, environment: Environment, script: Path, folder: Path, secs: float) -> Fault | None:
        """What comes, in so many seconds, of importing a container's script in a worker of its own. Raises OSError."""
        worker = await self._fork(environment._replace(is_bare=self._imports_late), is_dedicated=True, folder=folder)
        try:
            reply = await worker.order(TryScript(next(self._numbers), str(folder)), secs)
        except WorkerLost as lost:
            return fault_of_lost(script.name, worker.end, str(lost), secs)
        finally:
            worker.kill(End.UNLOADED)
            await worker.gone()
        if isinstance(reply, Tried):
            return Fault(reply.fault, Blame(reply.blame)) if reply.fault else None
        logger.warning("the script %s could not be tried: %s", script.name, getattr(reply, "message", ""))
        return None

    def dedicate(self, worker: Worker) -> None:
        """A shared worker is one model's own from now on."""
        self.dismiss(worker)
        self.keep(asyncio.create_task(self.fill(worker.environment)))

    def dismiss(self, worker: Worker) -> None:
        """A shared worker gets no more models. Who needs a shared one next starts it."""
        worker.is_dedicated = True
        self._shared[worker.environment].remove(worker)

    async def forget(self, variables: tuple[tuple[str, str], ...]) -> None:
        """End the shared workers and templates with these variables; the models are unloaded."""
        for environment in [one for one in self._templates if one.variables and one.variables == variables]:
            template = self._templates.pop(environment)
            workers = self._shared.get(environment, [])
            for worker in list(workers):
                worker.kill(End.FORGOTTEN)
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

    async def _fork(self, environment: Environment, *, is_dedicated: bool, folder: Path | None = None) -> Worker:
        """`folder`: of the model that it is for."""
        if self._is_stopping:
            raise OSError(End.STOPPING.value)
        make = functools.partial(self._new_worker, environment, is_dedicated)
        worker = await self._template_of(environment).fork(make, is_reader=self._has_readers and not is_dedicated)
        if not worker.is_alive:
            raise OSError("the worker ended at once")
        if self._hardening is not None:
            try:
                await self._confine(worker, folder, self._hardening)
            except BaseException:  # nobody gets it, perhaps because its caller has gone
                worker.kill(End.FORGOTTEN)
                await worker.gone()
                raise
        self._workers.add(worker)
        return worker

    def _new_worker(
        self, environment: Environment, is_dedicated: bool, pid: int, progress: Progress, channel: Channel | None
    ) -> Worker:
        self._orphans.worker_started(pid)
        return Worker(
            pid, progress, environment, is_dedicated=is_dedicated, max_response_bytes=self._max_response_bytes,
            on_lost=self._lost, on_buried=self._orphans.worker_buried, channel=channel,
        )  # fmt: skip

    async def _confine(self, worker: Worker, folder: Path | None, hardening: Hardening) -> None:
        """Before it sees any model. Raises OSError."""
        temp = hardening.new_temp()
        self.keep(asyncio.create_task(_remove_after(worker, temp)))
        order = hardening.order(next(self._numbers), worker.environment, folder, temp, self._own_pids())
        await _confined(worker, order)

    def _own_pids(self) -> list[int]:
        return [os.getpid(), *(template.pid for template in self._templates.values() if template.pid is not None)]

    def _template_of(self, environment: Environment) -> Template:
        if environment not in self._templates:
            is_hardened = self._hardening is not None
            self._templates[environment] = _new_template(environment, self._environ, is_hardened=is_hardened)
        return self._templates[environment]

    def _lost(self, worker: Worker) -> None:
        if worker not in self._workers:  # nobody had got it yet, or its caller had gone
            return
        self._workers.discard(worker)
        if not worker.is_dedicated:
            self._shared[worker.environment].remove(worker)
            if not worker.has_answered:
                self._ended.setdefault(worker.environment, deque()).append(time.monotonic())
        self.on_lost(worker)

    async def prepare(self, environment: Environment) -> None:
        """Returns when the shared workers of an environment are there, unless they are to come with their models."""
        if not self._imports_late:
            await self.fill(environment)

    # Memory

    def idle_bytes(self) -> int:
        """What the front, the templates and workers without models use."""
        pids = [*self._own_pids(), *(worker.pid for worker in self._workers if not worker.models)]
        return sum(private_bytes(pid) for pid in pids)

    def used_bytes(self) -> int:
        """What all models use, measured."""
        return sum(worker.models_bytes for worker in self._workers)

    def growth(self) -> dict[Worker, Growth]:
        """How much each worker has grown. Workers that are loading a model are left out."""
        return {
            worker: _growth_of(worker)
            for worker in self._workers
            if worker.models and worker.is_alive and not worker.heap.is_loading
        }

    def holds_models(self) -> bool:
        return any(worker.models for worker in self._workers)

    def shared_heaps(self) -> list[HeapUse]:
        """The heaps of shared workers that hold models."""
        shared = itertools.chain.from_iterable(self._shared.values())
        return [_use_of(worker.heap) for worker in shared if worker.models]

    def heaps(self) -> dict[Worker, HeapState]:
        """The heaps of workers that could be trimmed now."""
        return {
            worker: HeapState(worker.heap.used_bytes, worker.heap.loose_bytes)
            for worker in self._workers
            if _is_free(worker)
        }

    # Looking after them

    async def _watch(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(_TICK_SECS)
            if tick % _TICKS_TO_ORPHANS == 0:
                try:
                    self._orphans.keep_ending()
                except Exception:  # workers that do not answer must be ended all the same
                    logger.exception("processes that ended workers have started could not be ended")
            for worker in list(self._workers):
                try:
                    self._look_at(worker)
                except Exception:  # the others must be looked after all the same
                    logger.exception("worker %d cannot be looked after", worker.pid)

    def _look_at(self, worker: Worker) -> None:
        order, secs, own_secs = worker.look()
        if order is None:
            if worker.heap.wants_trim and secs > _IDLE_SECS:
                self.trims.begin(worker)
        elif secs > order.timeout_secs:
            worker.kill(End.NO_ANSWER, f"it did not answer within {order.timeout_secs:g} s")
        elif order is not worker.running:
            if secs > _STOPPED_SECS and worker.is_stopped():
                worker.kill(End.UNUSABLE, "it was stopped by a signal, and others wait for it")
        else:
            behind = (other.model for other in (*worker.sent, *worker.waiting))
            if order.model is not None and give_away(order.model, own_secs, behind, is_dedicated=worker.is_dedicated):
                self.on_held_up(worker, order.model)


async def _confined(worker: Worker, order: Confine) -> None:
    """Raises OSError."""
    try:
        # Nobody looks after it yet, who would end it in time.
        reply = await asyncio.wait_for(worker.order(order, _CONFINE_TIMEOUT_SECS), _CONFINE_TIMEOUT_SECS)
    except WorkerLost as lost:
        raise OSError(f"the worker ended before it was confined: {lost}") from lost
    except asyncio.TimeoutError as error:
        worker.kill(End.NO_ANSWER)
        raise OSError(f"the worker was not confined within {_CONFINE_TIMEOUT_SECS:g} s") from error
    if isinstance(reply, Failed):
        worker.kill(End.UNUSABLE, reply.message)
        logger.error("worker %d: %s", worker.pid, reply.message)
        raise OSError(reply.message)


def _use_of(heap: Heap) -> HeapUse:
    """What has leaked says nothing of what other models take."""
    most_bytes = max(2 * heap.loaded_bytes, FRAMEWORKS_BYTES)
    used_bytes = heap.used_bytes if heap.is_loading else min(heap.used_bytes, most_bytes)
    return HeapUse(used_bytes, heap.artifact_bytes)


def _growth_of(worker: Worker) -> Growth:
    """What a shared worker makes its own of the frameworks at the first call is no model's growth."""
    frameworks_bytes = 0 if worker.is_dedicated else FRAMEWORKS_BYTES
    return Growth(worker.heap.loaded_bytes + frameworks_bytes, worker.heap.used_bytes, is_busy=worker.load > 0)


def _new_template(environment: Environment, environ: Mapping[str, str], *, is_hardened: bool) -> Template:
    """`environ`: the server's own; it comes before what the definition of a Python environment sets."""
    name = environment.python
    modules = _HANDLERS if environment.is_bare else (*imports_of(name, environ), *_FRAMEWORKS, *_HANDLERS)
    told = {**variables_of(name, environ), **environ, **template_variables(environment, is_hardened=is_hardened)}
    return Template(interpreter_of(name, environ) or sys.executable, modules, told)


def _is_free(worker: Worker) -> bool:
    """Whether a trim comes to its turn soon: a call to a worker of a model's own may take long."""
    return worker.is_alive and not (worker.is_dedicated and worker.load)


def fault_of_lost(script: str, end: End, reason: str, timeout_secs: float) -> Fault | None:
    """What the end of a process says of the script that it imported; None where the server has ended it."""
    if end.is_expected:
        return None
    if end is End.NO_ANSWER:
        return Fault(f"{script} was not imported within {timeout_secs:g} s", Blame.SCRIPT)
    return Fault(f"{script} ended its process while it was imported: {reason}", Blame.EITHER)


async def _remove_after(worker: Worker, temp: Path) -> None:
    """What a worker left in its own folder; where the server stops, the folder of its run goes as a whole."""
    await worker.gone()
    await asyncio.to_thread(remove_tree, temp)
