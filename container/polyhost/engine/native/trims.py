"""Has workers give memory back that no model needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from polyhost.engine.native.messages import Trim, Trimmed
from polyhost.engine.native.orders import WorkerLost
from polyhost.engine.native.pool import Worker
from polyhost.tasks import SingleFlights

_TIMEOUT_SECS = 60.0
# How long a load waits for it, where a worker is busy for longer.
_WAIT_SECS = 1.0


class Trims:
    def __init__(self, numbers: Iterator[int], keep: Callable[[asyncio.Task[None]], None]) -> None:
        """`numbers`: of orders."""
        self._numbers = numbers
        self._keep = keep
        self._trims: SingleFlights[Worker, None] = SingleFlights()

    async def wait_for(self, workers: Iterable[Worker]) -> None:
        """Callers that wait at the same time share one trim of a worker. Returns after a second at most."""
        await asyncio.wait([self.begin(worker) for worker in workers], timeout=_WAIT_SECS)

    def begin(self, worker: Worker) -> asyncio.Task[None]:
        """The trim of a worker that is under way, or a new one."""
        return self._trims.begin(worker, lambda: self._start(worker))

    def _start(self, worker: Worker) -> asyncio.Task[None]:
        trim = asyncio.create_task(self._trim(worker))
        self._keep(trim)
        return trim

    async def _trim(self, worker: Worker) -> None:
        worker.heap.trimming()
        try:
            reply = await worker.order(Trim(next(self._numbers)), _TIMEOUT_SECS)
        except WorkerLost:
            return
        if isinstance(reply, Trimmed):  # else a model's code has written to the worker's socket
            worker.heap.trimmed(reply.resident_bytes)
