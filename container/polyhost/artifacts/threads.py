"""Threads for each source, so that one that hangs keeps nobody else waiting."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

# Sources whose threads are kept though nobody asks them just now. Endpoints, and so their sources, come and go.
_MOST_IDLE = 8


@dataclass(eq=False)
class _Pool:
    executor: ThreadPoolExecutor
    under_way: int = 0


class SourceThreads:
    """Submitted from one thread; the threads themselves end what is not needed any more."""

    def __init__(self, threads: int) -> None:
        """`threads`: of each source, at most."""
        self._threads = threads
        self._lock = threading.Lock()
        # The one that was asked last comes last.
        self._pools: OrderedDict[str, _Pool] = OrderedDict()

    def submit(self, source: str, action: Callable[[], object]) -> None:
        """`action` raises nothing. Raises RuntimeError where the system lets no thread be started."""
        with self._lock:
            if source not in self._pools:
                self._pools[source] = _Pool(ThreadPoolExecutor(self._threads))
            self._pools.move_to_end(source)
            pool = self._pools[source]
            pool.under_way += 1
        try:
            pool.executor.submit(self._act, pool, action)
        except RuntimeError:
            self._leave(pool)
            raise

    def _act(self, pool: _Pool, action: Callable[[], object]) -> None:
        try:
            action()
        finally:
            self._leave(pool)

    def _leave(self, pool: _Pool) -> None:
        with self._lock:
            pool.under_way -= 1
            idle = [source for source, one in self._pools.items() if not one.under_way]
            ended = [self._pools.pop(source) for source in idle[: max(0, len(idle) - _MOST_IDLE)]]
        for one in ended:
            one.executor.shutdown(wait=False)
