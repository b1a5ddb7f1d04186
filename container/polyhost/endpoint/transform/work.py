"""One transform job at work: its objects one after the other, their payloads side by side, the answers in order."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from polyhost.artifacts import ObjectStore
from polyhost.endpoint.calls import CallContext
from polyhost.endpoint.traffic import Lane, Traffic
from polyhost.endpoint.transform.definitions import TransformJob
from polyhost.endpoint.transform.filters import BadRecord
from polyhost.endpoint.transform.names import BadManifest, Object, inputs_below, inputs_of_manifest, split_url
from polyhost.endpoint.transform.records import Batch, batches, output, payload
from polyhost.engine.protocol import Answer, Item, answer_of
from polyhost.service_errors import EndpointError, ModelError, ModelNotReady, ServiceUnavailable

logger = logging.getLogger("polyhost.endpoint")

T = TypeVar("T")

_MIB = 1024**2
_MOST_OBJECTS = 100_000
_MOST_MANIFEST_BYTES = 16 * _MIB
_FIRST_DELAY_SECS, _MOST_DELAY_SECS = 0.5, 10.0


class InThread(Protocol):
    """Runs what blocks."""

    def __call__(self, action: Callable[[], T]) -> Awaitable[T]: ...


class JobFailed(Exception):
    """The text is the FailureReason."""


class Work:
    """
    `calls`: what the calls of all jobs share, so that they leave room for requests; `most_calls` at once.

    `folder`: an empty one, for the object that is read and what is written of it.
    """

    def __init__(
        self,
        job: TransformJob,
        traffic: Traffic,
        objects: ObjectStore,
        *,
        folder: Path,
        calls: asyncio.Semaphore,
        most_calls: int,
        in_thread: InThread,
    ) -> None:
        self._job = job
        self._traffic = traffic
        self._objects = objects
        self._input = folder / "input"
        self._output = folder / "output"
        self._calls = calls
        self._in_thread = in_thread
        self._numbers = itertools.count(1)
        self._window = min(job.max_concurrent, most_calls)

    async def run(self) -> None:
        """Objects that fail keep no other from being transformed. Raises JobFailed."""
        inputs = await self._inputs()
        failures = []
        for number, one in enumerate(inputs, 1):
            try:
                records = await self._transform(one)
            except (EndpointError, BadRecord, OSError) as error:
                failures.append(f"{one.url}: {_sentence(error)}")
                logger.warning("transform job %s: %s", self._job.name, failures[-1])
            else:
                counted = (self._job.name, number, len(inputs), one.url, records)
                logger.info("transform job %s: %d of %d, %s has %d records", *counted)
        if failures:
            more = f" {len(failures)} of {len(inputs)} objects have failed." if len(inputs) > 1 else ""
            raise JobFailed(failures[0] + more)

    async def _inputs(self) -> list[Object]:
        """Raises JobFailed."""
        job = self._job
        try:
            inputs = await (self._listed_by_manifest() if job.is_manifest else self._listed(job.source))
        except (EndpointError, BadManifest, OSError) as error:
            raise JobFailed(f"{job.source}: {_sentence(error)}") from error
        if not inputs:
            raise JobFailed(
                f'No objects found under S3 URL "{job.source}" given in input data source. Please ensure that the '
                "bucket exists, that objects exist under that prefix, and that the server's credentials may list it."
            )
        return inputs

    async def _listed(self, url: str) -> list[Object]:
        source, prefix = split_url(url)
        found = await self._objects.list_objects(source, prefix, _MOST_OBJECTS)
        return inputs_below(url, found, self._job.output)

    async def _listed_by_manifest(self) -> list[Object]:
        source, key = split_url(self._job.source)
        await self._objects.copy_object(source, key, str(self._input))
        return inputs_of_manifest(await self._in_thread(functools.partial(_read_small, self._input)))

    async def _transform(self, one: Object) -> int:
        """Its number of records. Raises EndpointError, BadRecord, OSError."""
        await self._objects.copy_object(one.source, one.key, str(self._input))
        file = await self._in_thread(functools.partial(_new_file, self._output))
        try:
            records = await self._answer_all(file)
        finally:
            await self._in_thread(file.close)
        source, prefix = split_url(self._job.output)
        await self._objects.put_object(str(self._output), source, prefix + one.output, self._job.kms_key)
        return records

    async def _answer_all(self, file: BinaryIO) -> int:
        lane = self._traffic.lane(self._job.endpoint.name, "", "")
        remaining = batches(self._input, self._job)
        under_way: deque[asyncio.Task[bytes]] = deque()
        records = 0
        try:
            while batch := await self._in_thread(functools.partial(_next, remaining)):
                records += len(batch)
                if len(under_way) == self._window:
                    await self._write(file, under_way)
                under_way.append(asyncio.create_task(self._answer(lane, batch)))
            while under_way:
                await self._write(file, under_way)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        return records

    async def _write(self, file: BinaryIO, under_way: deque[asyncio.Task[bytes]]) -> None:
        """What comes first is written first."""
        written = await under_way[0]
        under_way.popleft()
        await self._in_thread(functools.partial(file.write, written))

    async def _answer(self, lane: Lane, batch: Batch) -> bytes:
        """What is written for a batch. Raises EndpointError, BadRecord."""
        body = await self._in_thread(functools.partial(payload, batch, self._job))
        answer = await self._asked_again(lane, body)
        return await self._in_thread(functools.partial(output, batch, answer.body, self._job))

    async def _asked_again(self, lane: Lane, body: bytes) -> Answer:
        """As often as the job's InvocationsMaxRetries says. Raises EndpointError."""
        for attempt in itertools.count():
            try:
                async with self._calls:
                    return await self._ask(lane, body)
            except EndpointError as error:
                if attempt >= self._job.retries or not may_pass(error):
                    raise
            await asyncio.sleep(min(_MOST_DELAY_SECS, _FIRST_DELAY_SECS * 2**attempt))
        raise AssertionError("unreachable")

    async def _ask(self, lane: Lane, body: bytes) -> Answer:
        job = self._job
        fields = {"content-type": job.content_type, "accept": job.accept}
        headers = {name: value for name, value in fields.items() if value}
        item = Item(f"{job.name}-{next(self._numbers)}", headers, "", body)
        context = CallContext(max_answer_bytes=None)
        return await answer_of(lambda done: self._traffic.invoke(lane, "", item, context, done), leave=context.leave)


def may_pass(error: EndpointError) -> bool:
    """Whether the same call may be answered a little later."""
    if isinstance(error, ModelError):
        return error.original_status >= 500
    return isinstance(error, (ModelNotReady, ServiceUnavailable))


def _sentence(error: Exception) -> str:
    return error.message if isinstance(error, EndpointError) else f"{error}."


def _next(remaining: Iterator[Batch]) -> Batch:
    return next(remaining, ())


def _new_file(path: Path) -> BinaryIO:
    return path.open("wb")


def _read_small(file: Path) -> bytes:
    with file.open("rb") as stream:
        content = stream.read(_MOST_MANIFEST_BYTES + 1)
    if len(content) > _MOST_MANIFEST_BYTES:
        raise BadManifest(f"it has more than {_MOST_MANIFEST_BYTES} bytes")
    return content
