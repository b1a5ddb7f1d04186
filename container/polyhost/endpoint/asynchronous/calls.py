"""
The asynchronous calls of this server that are not over: of each endpoint some under way, the others in their order.

A call is accepted once it is in the ledger, on the disk. It leaves the ledger when what came of it is written. One that
the server's end has interrupted is made again by the next server: its object is written whole, so it is written once
more.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from polyhost.artifacts import PayloadStore
from polyhost.endpoint.asynchronous.definitions import AsyncCall
from polyhost.endpoint.asynchronous.ledger import Ledger
from polyhost.endpoint.asynchronous.work import Work
from polyhost.endpoint.definitions import Endpoint
from polyhost.endpoint.events import Publisher
from polyhost.endpoint.hosting.state import StateFailed
from polyhost.endpoint.traffic import Traffic
from polyhost.service_errors import ServiceUnavailable
from polyhost.tasks import Tasks

logger = logging.getLogger("polyhost.endpoint")

T = TypeVar("T")

# Of all endpoints together, those under way too.
MOST_CALLS = 10_000
# So that the other half is for requests whose clients wait.
_AT_ONCE = max(1, (os.cpu_count() or 1) // 2)


@dataclass
class _Line:
    """Of one endpoint."""

    waiting: deque[AsyncCall] = field(default_factory=deque)
    under_way: int = 0


class AsyncCalls:
    """`folder`: where the ledger lies. `find`: the endpoint of a name, None where it has gone."""

    def __init__(
        self,
        traffic: Traffic,
        payloads: PayloadStore,
        events: Publisher,
        *,
        folder: Path,
        find: Callable[[str], Endpoint | None],
    ) -> None:
        self._work = Work(traffic, payloads, events, self._body_of)
        self._folder = folder
        self._find = find
        self._lines: dict[str, _Line] = {}
        self._count = 0
        self._tasks = Tasks()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polyhost-calls")
        self._ledger: Ledger | None = None

    def __repr__(self) -> str:
        return f"<AsyncCalls [{self._count} of {len(self._lines)} endpoints]>"

    async def start(self) -> None:
        """Raises StartFailed."""
        self._ledger = await self._in_thread(lambda: Ledger(self._folder))
        for call in await self._in_thread(self._ledger.unfinished):
            self._count += 1
            self._begin(call)

    async def stop(self) -> None:
        """Calls that are under way are made again by the next server."""
        await self._tasks.stop()
        if self._ledger is not None:
            await self._in_thread(self._ledger.close)
        self._thread.shutdown()

    async def accept(self, call: AsyncCall, body: bytes) -> None:
        """Returns when it will not be lost. `body`: the input that came with it. Raises ServiceUnavailable."""
        assert self._ledger is not None
        ledger = self._ledger
        if self._count >= MOST_CALLS:
            raise ServiceUnavailable(
                f"{self._count} asynchronous calls wait or are under way at this server, as many as may be: this one "
                "was not accepted. Send it again later."
            )
        self._count += 1
        try:
            await self._in_thread(lambda: ledger.add(call, body))
        except StateFailed as error:
            self._count -= 1
            raise ServiceUnavailable(
                f"The call was not accepted, because it cannot be kept ({error}). Send it again later."
            ) from error
        self._begin(call)

    def backlog(self, endpoint: str) -> int:
        """How many of its calls wait or are under way."""
        line = self._lines.get(endpoint)
        return len(line.waiting) + line.under_way if line is not None else 0

    def _begin(self, call: AsyncCall) -> None:
        """Now, or when its turn comes."""
        self._lines.setdefault(call.endpoint, _Line()).waiting.append(call)
        self._begin_more(call.endpoint)

    def _begin_more(self, endpoint: str) -> None:
        line = self._lines[endpoint]
        while line.waiting and line.under_way < self._most_at_once(endpoint):
            line.under_way += 1
            self._tasks.start(self._carry_out(line.waiting.popleft(), line))
        if not line.under_way:
            del self._lines[endpoint]

    def _most_at_once(self, endpoint: str) -> int:
        found = self._find(endpoint)
        asynchronous = found.asynchronous if found is not None else None
        return (asynchronous.most_at_once if asynchronous else None) or _AT_ONCE

    async def _carry_out(self, call: AsyncCall, line: _Line) -> None:
        try:
            await self._work.run(call)  # where the server stops, it is this that is cancelled, and the call stays
        except Exception:
            logger.exception("asynchronous call %s is made again after a restart", call.id)
        else:
            await self._forget(call)
        self._count -= 1
        line.under_way -= 1
        self._begin_more(call.endpoint)

    async def _forget(self, call: AsyncCall) -> None:
        assert self._ledger is not None
        ledger = self._ledger
        try:
            await asyncio.shield(self._in_thread(lambda: ledger.remove(call)))
        except StateFailed as error:
            logger.error("asynchronous call %s is made again after a restart: %s", call.id, error)  # noqa: TRY400

    async def _body_of(self, call: AsyncCall) -> bytes:
        assert self._ledger is not None
        ledger = self._ledger
        return await self._in_thread(lambda: ledger.body(call))

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)
