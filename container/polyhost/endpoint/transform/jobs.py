"""
The transform jobs that are not over: a few at work, the others waiting in the order in which they were made.

What a job came to is the ledger's, where it is kept before anybody sees it. A job that the server's end has interrupted
is begun again when the server starts: its objects are written whole, so the same ones are written once more.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from polyhost.artifacts import ObjectStore
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.definitions import Endpoint
from polyhost.endpoint.shelf import Shelf
from polyhost.endpoint.traffic import Traffic
from polyhost.endpoint.transform.definitions import COMPLETED, FAILED, STOPPED, TransformJob
from polyhost.endpoint.transform.work import JobFailed, Work
from polyhost.service_errors import EndpointError
from polyhost.tasks import Tasks
from polyhost.trees import remove_tree

logger = logging.getLogger("polyhost.endpoint")

T = TypeVar("T")

# Jobs at work at once: a long one keeps none waiting for hours.
_AT_WORK = 4
_THREADS = 4


class Ledger(Protocol):
    """Where jobs are kept."""

    async def job_begun(self, name: str) -> None: ...

    async def job_ended(self, name: str, status: str, reason: str) -> None: ...


class TransformJobs:
    """
    `folder`: for what is being read and written; it is emptied. `on_end` is called with the name of what a job's calls
    went to: what was loaded for it is not needed any more.

    Calls of all jobs together are as many as half the CPUs, so that the other half is for requests.
    """

    def __init__(
        self,
        cache: ModelCache,
        objects: ObjectStore,
        ledger: Ledger,
        *,
        folder: Path,
        account_id: str,
        on_end: Callable[[str], None],
    ) -> None:
        self._endpoints: dict[str, Endpoint] = {}
        self._traffic = Traffic(cache, self._endpoints.get, account_id)
        self._objects = objects
        self._ledger = ledger
        self._folder = folder
        self._on_end = on_end
        self._tasks = Tasks()
        self._work: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_AT_WORK)
        # A job keeps no more payloads in memory than may be answered at once.
        self._most_calls = max(1, (os.cpu_count() or 1) // 2)
        self._calls = asyncio.Semaphore(self._most_calls)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="polyhost-transform")

    def __repr__(self) -> str:
        return f"<TransformJobs [{len(self._endpoints)} at work of {len(self._work)}]>"

    async def start(self, unfinished: Iterable[TransformJob]) -> None:
        """`unfinished`: those of an earlier server, in the order in which they were made."""
        await self._in_thread(lambda: remove_tree(self._folder))
        for job in unfinished:
            self.begin(job)

    async def stop(self) -> None:
        """Jobs that are at work begin again when the server does."""
        await self._tasks.stop()
        self._threads.shutdown(cancel_futures=True)

    def begin(self, job: TransformJob) -> None:
        """Now, or when its turn comes."""
        work = self._work[job.name] = self._tasks.start(self._run(job), expected=(JobFailed,))
        self._tasks.start(self._attend(job, work))
        if job.is_stopping:
            work.cancel()

    def stop_job(self, name: str) -> None:
        """Its status follows, once nothing of it is under way."""
        if name in self._work:
            self._work[name].cancel()

    def shelves(self) -> set[Shelf]:
        """What is loaded for jobs."""
        return self._traffic.shelves()

    async def _attend(self, job: TransformJob, work: asyncio.Task[None]) -> None:
        await asyncio.wait({work})  # where the server stops, it is this that is cancelled, and nothing is kept
        del self._work[job.name]
        status, reason = _result_of(work)
        logger.info("transform job %s: %s %s", job.name, status, reason)
        await self._ledger.job_ended(job.name, status, reason)

    async def _run(self, job: TransformJob) -> None:
        """Raises JobFailed."""
        async with self._turns:
            await self._ledger.job_begun(job.name)
            folder = self._folder / job.name
            self._endpoints[job.endpoint.name] = job.endpoint
            try:
                await self._in_thread(lambda: folder.mkdir(parents=True))
                await self._deploy(job)
                await Work(
                    job, self._traffic, self._objects, folder=folder, calls=self._calls, most_calls=self._most_calls,
                    in_thread=self._in_thread,
                ).run()  # fmt: skip
            finally:
                self._forget(job.endpoint.name)
                await self._in_thread(lambda: remove_tree(folder))

    async def _deploy(self, job: TransformJob) -> None:
        """Raises JobFailed."""
        try:
            failure = await self._traffic.deploy(job.endpoint)
        except EndpointError as error:
            raise JobFailed(error.message) from error
        if failure is not None:
            raise JobFailed(failure)

    def _forget(self, endpoint: str) -> None:
        del self._endpoints[endpoint]
        self._traffic.forget_all_but(self._endpoints)
        self._on_end(endpoint)

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, action)


def _result_of(work: asyncio.Task[None]) -> tuple[str, str]:
    """A status, and the reason of a failure."""
    if work.cancelled():
        return STOPPED, ""
    error = work.exception()
    if error is None:
        return COMPLETED, ""
    return FAILED, str(error) if isinstance(error, JobFailed) else "Internal error: the server's log says why."
