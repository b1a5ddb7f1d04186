"""
Deletions on the disk cache's folder, one after the other, in a thread of their own.

`Cleaner` owns FOLDER/tmp, the deletions that are under way, and the count of what could not be removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from polyhost.trees import remove_tree, tree_bytes

logger = logging.getLogger("polyhost.endpoint")


class Cleaner:
    """All but `empty` is called on the event loop."""

    def __init__(self, tmp: Path) -> None:
        self._tmp = tmp
        self._left_bytes = 0
        self._deletions: set[asyncio.Future[None]] = set()
        # For a thread that nobody waits for at the end: what it leaves is swept at the next start.
        self._actions: queue.SimpleQueue[Callable[[], None]] | None = None

    @property
    def left_bytes(self) -> int:
        """The bytes of files that could not be removed."""
        return self._left_bytes

    def empty(self) -> int:
        """Blocking. Remove what an earlier server left in tmp; the bytes that stay. Raises OSError."""
        left_bytes = bytes_left(self._tmp)
        self._tmp.mkdir(exist_ok=True)
        return left_bytes

    def count_left(self, left_bytes: int) -> None:
        """Something could not be removed."""
        self._left_bytes += left_bytes

    def remove(self, *places: Path) -> None:
        for place in places:
            self._in_thread(self._remove, place)

    def sweep(self) -> None:
        """Remove what transfers have left that were under way."""
        for left in self._leftovers():
            self._in_thread(bytes_left, left)

    async def finished(self, timeout_secs: float | None = None) -> None:
        """Wait for all deletions that have begun."""
        if self._deletions:
            await asyncio.wait(set(self._deletions), timeout=timeout_secs)

    def _remove(self, folder: Path) -> int:
        """Out of the models' folder first, so that no half of it is ever found there. Returns the bytes that stay."""
        gone = self._tmp / f"{folder.name}.gone"
        try:
            folder.rename(gone)
        except FileNotFoundError:
            return 0
        except OSError as error:
            logger.warning("%s cannot be removed: %s", folder, error.strerror)
            gone = folder
        return bytes_left(gone)

    def _leftovers(self) -> list[Path]:
        """By name, so that nothing of a server that starts is touched."""
        with contextlib.suppress(OSError):
            return list(self._tmp.iterdir())
        return []

    def _in_thread(self, action: Callable[[Path], int], path: Path) -> None:
        """`action` returns how many bytes stay."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def finish(left_bytes: int) -> None:
            self._left_bytes += left_bytes
            self._deletions.discard(done)
            done.set_result(None)

        def act() -> None:
            left_bytes = action(path)
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(finish, left_bytes)

        self._deletions.add(done)
        if self._actions is None:
            self._actions = queue.SimpleQueue()
            threading.Thread(target=_work_off, args=[self._actions], daemon=True).start()
        self._actions.put(act)


def bytes_left(path: Path) -> int:
    """Remove it; the bytes that stay."""
    return 0 if remove_tree(path) else tree_bytes(path)


def _work_off(actions: queue.SimpleQueue[Callable[[], None]]) -> None:
    while True:
        try:
            actions.get()()
        except Exception:
            logger.exception("what is not needed was not removed")
