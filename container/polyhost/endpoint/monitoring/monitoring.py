"""Owns the minutes' thread: what was measured goes there once a minute, and whoever reads waits for it there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from polyhost.endpoint.measures.emf import Minute
from polyhost.endpoint.monitoring import reads
from polyhost.endpoint.monitoring.minutes import Minutes

# Minutes that wait for a disk that does not answer. What comes then is lost.
_MOST_WAITING = 10
# Readers who come again and again see what was counted until a second ago.
_TAKEN_EVERY_SECS = 1.0


class Monitoring:
    def __init__(self, folder: Path, take: Callable[[], None]) -> None:
        """`folder`: where the minutes are kept. `take` has what was measured until now come to `keep`."""
        self._folder = folder
        self._take = take
        self._taken_at = float("-inf")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polyhost-metrics")
        self._waiting: set[Future[None]] = set()
        self._minutes: Minutes | None = None

    async def start(self) -> None:
        self._minutes = await asyncio.get_running_loop().run_in_executor(self._thread, Minutes, self._folder)

    async def stop(self) -> None:
        """What was brought is kept before."""
        if self._minutes is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._minutes.close)
        self._thread.shutdown(wait=False)

    def keep(self, minutes: Sequence[Minute]) -> None:
        """Does not wait."""
        if self._minutes is None or len(self._waiting) >= _MOST_WAITING:
            return
        # Transform jobs have a variant as endpoints have, under a name that no endpoint can have.
        waiting = self._thread.submit(self._minutes.add, [one for one in minutes if "/" not in one.endpoint])
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)

    async def call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """One of OPERATIONS, over all that was measured until now. Raises MonitoringError."""
        assert self._minutes is not None
        if time.monotonic() - self._taken_at >= _TAKEN_EVERY_SECS:
            self._taken_at = time.monotonic()
            self._take()
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, reads.perform, self._minutes, operation, parameters
        )
