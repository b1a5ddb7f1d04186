"""Ends what dead workers have started and left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from polyhost.processes import end_orphans

_LOOK_SECS = 0.02
# A stop does not wait for one that is stuck in the kernel: it ends when it can.
_MOST_LOOKS = 50


class Orphans:
    def __init__(self, is_forking: Callable[[], bool]) -> None:
        """`is_forking`: whether there may be a worker whose process id is not known yet."""
        self._is_forking = is_forking
        # The process ids of workers that are not buried yet, also of those that nobody waits for any more.
        self._pids: set[int] = set()
        self._looks_again = False

    def worker_started(self, pid: int) -> None:
        self._pids.add(pid)

    def worker_buried(self, pid: int) -> None:
        self._pids.discard(pid)
        self.keep_ending()

    def keep_ending(self) -> None:
        """Level by level: the children of what was killed come to us next."""
        if self._end() and not self._looks_again:
            self._looks_again = True
            asyncio.get_running_loop().call_later(_LOOK_SECS, self._end_more)

    async def end_all(self) -> None:
        """When no worker is left."""
        for _ in range(_MOST_LOOKS):
            if not self._end():
                break
            await asyncio.sleep(_LOOK_SECS)

    def _end_more(self) -> None:
        self._looks_again = False
        self.keep_ending()

    def _end(self) -> bool:
        """Whether there may be more of them."""
        return end_orphans(self._pids, is_forking=self._is_forking())
