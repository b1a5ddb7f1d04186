"""Looks at entries of the disk cache, in threads: whether they are unchanged, and what was compiled of them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from polyhost.artifacts.compiled import Compiled, read_expected
from polyhost.artifacts.entries import require_unchanged

# How many loads go on in one turn of the loop. Each takes it a quarter of a millisecond, which others wait for.
A_TURN = 4


class Seen(NamedTuple):
    """
    `meta_sha256`: the digest of the entry's meta file from now on. `content`: of what was compiled, None where nothing
    is known of that, and b"" where it is not what is known.
    """

    meta_sha256: str
    content: bytes | None


class Looks:
    """
    A load goes on when its look is over. Were many over at once, the loop would be held until all had gone on.

    What a thread has found is told to a load in the next turn of the loop: by way of asyncio.to_thread, a load would
    wait for two turns more, and a loop that is busy takes a millisecond for each.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        # What is over, each with who waits for it. While there is any, `_let_go_on` is to be called by the loop.
        self._over: deque[tuple[asyncio.Future[Seen], Seen | Exception]] = deque()
        self._lock = threading.Lock()

    async def at(self, folder: Path, meta_sha256: str, compiled: Compiled | None, *, may_clean: bool) -> Seen:
        """Raises Changed, as require_unchanged does."""
        return await self.over(functools.partial(_look, folder, meta_sha256, compiled, may_clean))

    def over(self, look: Callable[[], Seen]) -> asyncio.Future[Seen]:
        """What `look` finds, in a turn of the loop in which few others go on."""
        waiting: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        self._threads.submit(self._carry_out, look, waiting)
        return waiting

    def _carry_out(self, look: Callable[[], Seen], waiting: asyncio.Future[Seen]) -> None:
        """In a thread."""
        try:
            found = look()
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._end(waiting, error)
        else:
            self._end(waiting, found)

    def _end(self, waiting: asyncio.Future[Seen], found: Seen | Exception) -> None:
        with self._lock:
            self._over.append((waiting, found))
            is_first = len(self._over) == 1
        if is_first:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                waiting.get_loop().call_soon_threadsafe(self._let_go_on)

    def _let_go_on(self) -> None:
        with self._lock:
            some = [self._over.popleft() for _ in range(min(A_TURN, len(self._over)))]
            has_more = bool(self._over)
        for waiting, found in some:
            _tell(waiting, found)
        if has_more:
            asyncio.get_running_loop().call_soon(self._let_go_on)


def _tell(waiting: asyncio.Future[Seen], found: Seen | Exception) -> None:
    if waiting.done():  # whoever waited was cancelled
        return
    if isinstance(found, Exception):
        waiting.set_exception(found)
    else:
        waiting.set_result(found)


def _look(folder: Path, meta_sha256: str, compiled: Compiled | None, may_clean: bool) -> Seen:
    digest = require_unchanged(folder, meta_sha256, may_clean)
    return Seen(digest, None if compiled is None else read_expected(folder, compiled) or b"")
