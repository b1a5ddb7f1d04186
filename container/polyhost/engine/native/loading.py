"""How copies of models come into workers and leave them; what becomes of them when a worker is lost or given away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
from collections.abc import Iterator
from datetime import datetime, timezone

from polyhost_handlers.compiled.rows import PlainRows, Way

from polyhost.engine.errors import EngineError, NoProcess, OutOfMemory
from polyhost.engine.loads import loaded
from polyhost.engine.native.admission import Admission
from polyhost.engine.native.kept_rows import KeptRows
from polyhost.engine.native.messages import Done, Failed, Keep, Load, Trimmed, Unload
from polyhost.engine.native.orders import WorkerLost
from polyhost.engine.native.pool import End, Worker
from polyhost.engine.native.registry import Copy, Model, Registry
from polyhost.engine.native.retiring import Retiring
from polyhost.engine.native.workforce import Workforce

logger = logging.getLogger("polyhost.engine")

# A worker that a slow model has taken for itself runs at this niceness, so that quick answers go first.
_SLOW_NICENESS = 5


class Loader:
    def __init__(
        self,
        registry: Registry,
        workforce: Workforce,
        admission: Admission,
        kept_rows: KeptRows,
        retiring: Retiring,
        *,
        numbers: Iterator[int],
        max_response_bytes: int,
    ) -> None:
        """`numbers`: of orders."""
        self._registry = registry
        self._workforce = workforce
        self._admission = admission
        self._kept_rows = kept_rows
        self._numbers = numbers
        self._max_response_bytes = max_response_bytes
        self._worker_ids = itertools.count(9000)
        workforce.on_lost = self._worker_lost
        workforce.on_held_up = self._give_away
        retiring.on_homeless = self._load_again_soon

    async def scale(self, model: Model, count: int) -> None:
        while len(model.copies) > count:
            await self.remove_copy(model, model.copies.pop())
        if not count:
            self._registry.forget_rows(model)
        added = [Copy(next(self._worker_ids)) for _ in range(count - len(model.copies))]
        model.copies.extend(added)
        try:
            if added and self._kept_rows.wants(model):  # the others may need no load
                await self.load(model, added[0])
            if model.rows is None:
                await asyncio.gather(*(self.load(model, copy) for copy in added))
        except BaseException:
            for copy in added:
                if copy in model.copies:
                    model.copies.remove(copy)
                await self.remove_copy(model, copy)
            raise

    def add_unloaded(self, model: Model, count: int) -> None:
        """Copies that are loaded when they are asked."""
        model.copies = [Copy(next(self._worker_ids), is_admitted=True) for _ in range(count)]

    async def load(self, model: Model, copy: Copy) -> None:
        """
        Have the copy in a worker; ten callers wait for one load.

        A model that can be compiled, and has not been, is compiled instead: then the front has it, and no worker.
        """
        if copy.worker is None:
            loading = copy.loading.begin(lambda: asyncio.create_task(self._load_copy(model, copy)))
            await loaded(loading, model.name)

    async def _load_copy(self, model: Model, copy: Copy) -> None:
        if not copy.is_admitted:
            await self._admission.admit(lambda: self._admission.need_bytes(model))
        with self._admission.reserved(model):
            while True:
                try:
                    hands_over = self._kept_rows.wants(model)
                    rows = await self._load_admitted(model, copy, hands_over=hands_over)
                    if rows is not None and self._kept_rows.keep(model, rows):
                        self._registry.goes(model, Way(is_compiled=True))
                    elif rows is not None:
                        await self._load_admitted(model, copy, hands_over=False)
                except WorkerLost:  # before it had begun with this one
                    await asyncio.sleep(0)  # the loop hears only now of one that died unseen
                else:
                    return

    async def _load_admitted(self, model: Model, copy: Copy, *, hands_over: bool) -> PlainRows | None:
        """
        What the worker has compiled and handed over; None where it keeps the model.

        Raises EngineError, and WorkerLost when the worker ended before this load's turn.
        """
        worker = await self._find_worker(model)
        order = Load(
            next(self._numbers), model.key, model.name, str(model.source.path), model.source.handler,
            model.registration.batch_size, model.source.has_code, worker.is_dedicated, self._max_response_bytes,
            hands_over, self._registry.lend_rows(model, copy, worker),
        )  # fmt: skip
        # What it reads of the front's memory counts there.
        copy.held_bytes = 0 if order.compiled else model.source.artifact_bytes
        worker.heap.loading(copy.held_bytes)
        try:
            reply = await worker.order(order, timeout_secs=model.load_timeout_secs)
        except asyncio.CancelledError:  # the model was unloaded meanwhile
            self._workforce.keep(asyncio.create_task(self._undo_load(model, copy, worker)))
            raise
        except WorkerLost as lost:
            worker.heap.failed(copy.held_bytes)
            if not lost.was_running:
                raise
            raise await self._lost_while_loading(model, worker, lost) from lost
        if isinstance(reply, Failed):
            self._registry.give_back_rows(copy, worker)
            raise await self._failed_to_load(model, copy, worker, reply)
        assert isinstance(reply, Done)
        copy.is_admitted = True
        if reply.rows is not None:
            await self._handed_over(model, copy, worker)
            return reply.rows
        copy.worker = worker
        # A load into room that others left shows no growth: it takes its archive's bytes at least.
        copy.grown_bytes = max(reply.grown_bytes, copy.held_bytes)
        worker.heap.loaded(self._admission.share_bytes(copy.held_bytes), copy.grown_bytes)
        if reply.way is not None:
            self._registry.goes(model, reply.way)
        copy.started = datetime.now(timezone.utc)
        return None

    async def _handed_over(self, model: Model, copy: Copy, worker: Worker) -> None:
        """The worker has compiled the model, and does not have it."""
        worker.models.discard(model.key)
        worker.heap.failed(copy.held_bytes)
        if worker.is_dedicated:  # that took long, and others were sent elsewhere: it has nothing to do any more
            model.is_dedicated = False
            await self._end(worker)

    async def _failed_to_load(self, model: Model, copy: Copy, worker: Worker, reply: Failed) -> EngineError:
        worker.models.discard(model.key)
        worker.heap.failed(copy.held_bytes)
        if worker.is_dedicated:
            await self._end(worker)
        kind = OutOfMemory if reply.status == OutOfMemory.status else EngineError
        return kind(reply.message)

    async def _undo_load(self, model: Model, copy: Copy, worker: Worker) -> None:
        worker.models.discard(model.key)
        if worker.is_dedicated:
            await self._end(worker)
            return
        with contextlib.suppress(WorkerLost):
            await worker.order(Unload(next(self._numbers), model.key), timeout_secs=model.timeout_secs)
            self._registry.give_back_rows(copy, worker)
        worker.heap.failed(copy.held_bytes)

    async def _find_worker(self, model: Model) -> Worker:
        try:
            if model.is_dedicated:
                source = model.source
                return await self._workforce.dedicated(
                    model.environment, model.key, source.path, has_code=source.has_code
                )
            return await self._workforce.shared(model.environment, model.key)
        except (OSError, EOFError) as error:
            raise NoProcess(f"No process can be started for model {model.title}: {error}.") from error

    async def _lost_while_loading(self, model: Model, worker: Worker, lost: WorkerLost) -> EngineError:
        if worker.end is End.NO_ANSWER:
            return EngineError(f"Model {model.title} was not loaded within {model.load_timeout_secs:g} s.")
        if await worker.gone() == signal.SIGKILL and worker.end is End.BY_ITSELF:
            return OutOfMemory(
                f"The worker of model {model.title} was killed while it loaded the model: out of memory."
            )
        return EngineError(f"The worker of model {model.title} ended while it loaded the model: {lost}.")

    async def remove_copy(self, model: Model, copy: Copy) -> None:
        copy.loading.cancel()
        worker, copy.worker = copy.worker, None
        if worker is None or not worker.is_alive or any(other.worker is worker for other in model.copies):
            return
        share_bytes = self._admission.share_bytes(copy.held_bytes)
        worker.models.discard(model.key)
        is_dedicated = worker.is_dedicated  # a shared one may become another model's meanwhile
        try:
            # Behind what is asked of it still: a dedicated worker ends when that is answered.
            await worker.order(Unload(next(self._numbers), model.key), timeout_secs=model.timeout_secs)
        except WorkerLost:
            return
        if is_dedicated:
            await self._end(worker)
            return
        self._registry.give_back_rows(copy, worker)
        worker.heap.unloaded(copy.held_bytes, share_bytes, copy.grown_bytes)

    async def _end(self, worker: Worker) -> None:
        """End a dedicated worker and wait until its process is gone: DELETE answers only then."""
        worker.kill(End.UNLOADED)
        await self._return_loans(worker)

    async def _return_loans(self, worker: Worker) -> None:
        await worker.gone()
        self._registry.give_back_all_rows(worker)

    # What happens to workers

    def _worker_lost(self, worker: Worker) -> None:
        if not worker.end.is_expected:
            logger.warning("worker %d ended: %s", worker.pid, worker.end_reason or "by itself, or it was killed")
        self._workforce.keep(asyncio.create_task(self._return_loans(worker)))
        orphans = self._registry.leave(worker)
        if not worker.is_dedicated:
            self._load_again_soon(orphans)

    def _give_away(self, worker: Worker, key: int) -> None:
        """A slow call holds its shared worker up: it becomes that model's own, the others are loaded elsewhere."""
        model = self._registry.of_key(key)
        if model is None:  # it is being unloaded: let it be
            return
        logger.info("model %s is slow: worker %d is its own from now on", model.title, worker.pid)
        model.is_dedicated = True
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, worker.pid, _SLOW_NICENESS)
        moved = self._registry.leave(worker, but=model)
        worker.models &= {key}
        moved_bytes = sum(copy.held_bytes for _, copy in moved)
        grown_bytes = sum(copy.grown_bytes for _, copy in moved)
        worker.heap.moved(moved_bytes, self._admission.share_bytes(moved_bytes), grown_bytes)
        self._workforce.dedicate(worker)
        worker.give_away_all_but(key)
        self._workforce.keep(asyncio.create_task(self._have_the_others_dropped(worker, model)))

    async def _have_the_others_dropped(self, worker: Worker, model: Model) -> None:
        """Keep, which ends with a trim."""
        kept = model.rows
        with contextlib.suppress(WorkerLost):
            reply = await worker.order(Keep(next(self._numbers), model.key), model.timeout_secs)
            if isinstance(reply, Trimmed):  # else a model's code has written to the worker's socket
                self._registry.give_back_all_rows(worker, but=kept)
                worker.heap.trimmed(reply.resident_bytes)

    def _load_again_soon(self, orphans: list[tuple[Model, Copy]]) -> None:
        if orphans:
            self._workforce.keep(asyncio.create_task(self._load_again(orphans)))

    async def _load_again(self, orphans: list[tuple[Model, Copy]]) -> None:
        """In the background; a request for one of them loads it first."""
        for model, copy in orphans:
            if model.rows is not None:  # until something else than a row is asked
                continue
            if self._registry.has(model) and copy in model.copies:
                try:
                    await self.load(model, copy)
                except EngineError as error:
                    logger.warning("model %s was not loaded again: %s", model.title, error.message)
