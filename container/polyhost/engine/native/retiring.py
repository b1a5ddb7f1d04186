"""Ends workers whose models have outgrown their memory. The models are loaded elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping

from polyhost.engine.native.messages import Trim
from polyhost.engine.native.orders import WorkerLost
from polyhost.engine.native.placement import Growth, Manner
from polyhost.engine.native.pool import End, Worker
from polyhost.engine.native.registry import Copy, Model, Registry
from polyhost.engine.native.workforce import Workforce
from polyhost.memory import mib

logger = logging.getLogger("polyhost.engine")

_TIMEOUT_SECS = 60.0
# How long a load waits for it, where a worker has calls that take longer.
_WAIT_SECS = 10.0
# How many models of a worker the log names.
_NAMED = 5


class Retiring:
    def __init__(self, registry: Registry, workforce: Workforce, *, numbers: Iterator[int]) -> None:
        """`numbers`: of orders."""
        self._registry = registry
        self._workforce = workforce
        self._numbers = numbers
        # Called with models of a shared worker, which have none now.
        self.on_homeless: Callable[[list[tuple[Model, Copy]]], None] = lambda _: None
        self._under_way: dict[Worker, asyncio.Task[None]] = {}

    async def wait_for(self, workers: Mapping[Worker, Manner], growth: Mapping[Worker, Growth]) -> None:
        """Returns when their memory is back, after ten seconds at most."""
        ends = [self._begin(worker, manner, growth[worker]) for worker, manner in workers.items()]
        await asyncio.wait(ends, timeout=_WAIT_SECS)

    def _begin(self, worker: Worker, manner: Manner, growth: Growth) -> asyncio.Task[None]:
        """From now on nothing new is asked of it. Loads that need its memory at the same time wait for one end."""
        if manner is Manner.AT_ONCE:
            worker.kill(End.OUTGROWN, self._sentence(worker, growth))
        ending = self._under_way.get(worker)
        if ending is None:
            self._leave(worker)
            if manner is Manner.AFTER_ITS_CALLS and worker.load:
                logger.warning("worker %d is asked nothing more, and ends when it has answered", worker.pid)
            ending = self._under_way[worker] = asyncio.create_task(self._end(worker, self._sentence(worker, growth)))
            ending.add_done_callback(lambda _: self._under_way.pop(worker))
            self._workforce.keep(ending)
        return ending

    def _leave(self, worker: Worker) -> None:
        homeless = self._registry.leave(worker)
        if not worker.is_dedicated:
            self._workforce.dismiss(worker)
            self.on_homeless(homeless)
        worker.release_waiting()

    async def _end(self, worker: Worker, sentence: str) -> None:
        with contextlib.suppress(WorkerLost):  # a trim is answered behind all that the worker was sent
            await worker.order(Trim(next(self._numbers)), _TIMEOUT_SECS)
        worker.kill(End.OUTGROWN, sentence)
        await worker.gone()

    def _sentence(self, worker: Worker, growth: Growth) -> str:
        models = self._registry.of_keys(worker.models)
        names = ", ".join(model.title for model in itertools.islice(models, _NAMED))
        many = len(models) > 1
        more = f" and {len(models) - _NAMED} more" if len(models) > _NAMED else ""
        return (
            f"{'models' if many else 'model'} {names}{more} {'have' if many else 'has'} grown from "
            f"{mib(growth.loaded_bytes)} when {'they were' if many else 'it was'} loaded to {mib(growth.now_bytes)}, "
            f"and others need the memory: {'they are' if many else 'it is'} loaded again"
        )
