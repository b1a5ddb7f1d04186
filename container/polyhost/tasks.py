"""
Tasks that outlive the call that began them, and work that is done once for all who wait for it.

asyncio holds tasks weakly, and tells of an error that nobody looks at only when the task is collected. So `Tasks` holds
them until they end. `SingleFlight` and `SingleFlights` share the result of a task among all who wait for it; one who
stops waiting ends it for nobody. All of it belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

logger = logging.getLogger("polyhost")

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class FlightCancelled(Exception):
    """The work that was waited for has been cancelled. The waiter has not."""


class FlightUnderWay(Exception):
    """The work takes longer than its waiter has time. It goes on."""


class Tasks:
    """The tasks of one owner, who ends them with `stop`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_stopping = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(
        self, coroutine: Coroutine[Any, Any, T], *, expected: tuple[type[BaseException], ...] = (),
    ) -> asyncio.Task[T]:  # fmt: skip
        """
        Run it until it ends, whoever waits for it.

        An error is logged as unexpected, but for the kinds that its waiters are told.
        """
        return self.keep(asyncio.get_running_loop().create_task(coroutine), expected=expected)

    def keep(self, task: asyncio.Task[T], *, expected: tuple[type[BaseException], ...] = ()) -> asyncio.Task[T]:
        """As `start`, for a task that runs already."""
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, expected))
        if self._is_stopping:
            task.cancel()
        return task

    async def settled(self) -> None:
        """Returns when none is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        """Cancel all, and wait until they have ended. What is started afterwards is cancelled at once."""
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()
        await self.settled()

    def _ended(self, task: asyncio.Task[Any], expected: tuple[type[BaseException], ...]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, expected):
            logger.error("unexpected", exc_info=error)


class SingleFlight(Generic[T]):
    """Work of which there is one at a time. Whoever wants it begins it, or joins the one that is under way."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: asyncio.Task[T] | None = None

    @property
    def task(self) -> asyncio.Task[T] | None:
        """What is under way, for `result_of`."""
        return None if self._task is None or self._task.done() else self._task

    @property
    def is_under_way(self) -> bool:
        return self.task is not None

    def begin(self, start: Callable[[], asyncio.Task[T]]) -> asyncio.Task[T]:
        """The task that is under way, or the one that `start` starts."""
        if self._task is None or self._task.done():
            self._task = start()
            self._task.add_done_callback(self._ended)
        return self._task

    async def join(self, start: Callable[[], asyncio.Task[T]], timeout_secs: float | None = None) -> T:
        """
        The result of the task. Raises what the task raises, FlightCancelled, and FlightUnderWay after `timeout_secs`.
        """
        return await result_of(self.begin(start), timeout_secs)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def ended(self) -> None:
        """Returns when none is under way, however it ended."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def _ended(self, task: asyncio.Task[T]) -> None:
        look_at(task)
        if self._task is task:
            self._task = None


class SingleFlights(Generic[K, T]):
    """As SingleFlight, with one at a time for each key."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[T]] = {}

    def begin(self, key: K, start: Callable[[], asyncio.Task[T]]) -> asyncio.Task[T]:
        """As SingleFlight's."""
        task = self._tasks.get(key)
        if task is None or task.done():
            task = self._tasks[key] = start()
            task.add_done_callback(lambda task: self._ended(key, task))
        return task

    async def join(self, key: K, start: Callable[[], asyncio.Task[T]]) -> T:
        """As SingleFlight's."""
        return await result_of(self.begin(key, start))

    def _ended(self, key: K, task: asyncio.Task[T]) -> None:
        look_at(task)
        if self._tasks.get(key) is task:
            del self._tasks[key]


def look_at(task: asyncio.Future[Any]) -> None:
    """Its error went to those who wait for it, and perhaps nobody does: asyncio need not report it."""
    if not task.cancelled():
        task.exception()


async def result_of(task: asyncio.Task[T], timeout_secs: float | None = None) -> T:
    """
    As SingleFlight's `join`, for any task that others may wait for, too.

    Unlike awaiting the task, this does not cancel it where the waiter is cancelled.
    """
    await asyncio.wait({task}, timeout=timeout_secs)
    if not task.done():
        raise FlightUnderWay
    if task.cancelled():
        raise FlightCancelled
    return task.result()
