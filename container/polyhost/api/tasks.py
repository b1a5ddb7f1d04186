"""Requests that a coroutine answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from polyhost.api.http import Reply
from polyhost.tasks import Tasks


class AnsweringTasks:
    """
    What such a request changes in the server is carried out to its end, whether or not its client still waits.

    Only the server's stop ends it: what no client waits for at once, the rest after the time to drain.
    """

    def __init__(self) -> None:
        self._tasks = Tasks()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    def run(self, answering: Coroutine[Any, Any, Reply], done: Callable[[Reply], None]) -> Callable[[], None]:
        """`answering` raises nothing. Returns what to call when the client has gone."""
        task = self._tasks.start(_run(answering, done))
        return lambda: self._abandon(task)

    def run_for_client(
        self, answering: Coroutine[Any, Any, Reply], done: Callable[[Reply], None]
    ) -> Callable[[], object]:
        """As `run`, of what changes nothing in the server: it ends when its client goes."""
        return self._tasks.start(_run(answering, done)).cancel

    def _abandon(self, task: asyncio.Task[None]) -> None:
        if self._is_stopping:
            task.cancel()
        elif not task.done():
            self._abandoned.add(task)
            task.add_done_callback(self._abandoned.discard)

    def stop_soon(self) -> None:
        """The server stops: what no client waits for ends."""
        self._is_stopping = True
        for task in self._abandoned:
            task.cancel()

    async def stop(self) -> None:
        await self._tasks.stop()


async def _run(answering: Coroutine[Any, Any, Reply], done: Callable[[Reply], None]) -> None:
    done(await answering)
