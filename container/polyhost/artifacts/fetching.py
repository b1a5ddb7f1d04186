"""
The front's end of the fetcher: starts it, asks it, and starts it again when it has ended.

What was asked and not answered is asked again, once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polyhost.artifacts.transfers import (
    Cancel,
    Content,
    CopyObject,
    Done,
    Failed,
    Fetch,
    Fetched,
    Found,
    List,
    Listed,
    ListObjects,
    LookUp,
    Page,
    Payload,
    PutObject,
    Question,
    ReadObject,
    ReadPayload,
    Settings,
    ToFront,
    Unpack,
    WriteObject,
    WritePayload,
)
from polyhost.framing import BrokenFrame, Deframer, frame
from polyhost.processes import is_stopped
from polyhost.service_errors import StoreFailed

logger = logging.getLogger("polyhost.endpoint")

_READ_BYTES = 64 * 1024
_STOPPING = "The server stops."
_MAX_SENT = 2
# How often it is looked whether the fetcher was stopped.
_LOOK_SECS = 5.0
_FIRST_DELAY_SECS = 0.1
_MAX_DELAY_SECS = 5.0
# What Python and the loader need to start; the rest, secrets among it, follows over the socket.
_BOOT_NAMES = ("PATH", "LD_LIBRARY_PATH", "LANG", "TZ", "POLYHOST_LOG_FORMAT")
_BOOT_PREFIXES = ("PYTHON", "LC_")


@dataclass(eq=False, slots=True)
class _Asked:
    question: Question
    answer: asyncio.Future[Any]
    sent: int = 0
    archives: dict[str, Listed] = field(default_factory=dict)


class Fetcher:
    def __init__(self, settings: Settings, on_restart: Callable[[], None] | None = None) -> None:
        self._settings = settings
        self._on_restart = on_restart
        self._ids = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._runner: asyncio.Task[None] | None = None
        self._is_stopped = False

    @property
    def pid(self) -> int | None:
        """None while it is being started."""
        return self._process.pid if self._process else None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where its coroutines run. There is none before the start."""
        assert self._runner is not None
        return self._runner.get_loop()

    def start(self) -> None:
        self._runner = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner
        self._is_stopped = True
        self._fail(self._asked.values(), _STOPPING)

    async def list(self, source: str, after: str, most: int) -> tuple[dict[str, Listed], bool]:
        """The first `most` archives whose names come after `after`, and whether there are more behind them."""
        listed: tuple[dict[str, Listed], bool] = await self._ask(List(next(self._ids), source, after, most))
        return listed

    async def look_up(self, source: str, key: str, known: Listed | None = None) -> Listed:
        found: Found = await self._ask(LookUp(next(self._ids), source, key, known))
        return found.listed

    async def fetch(
        self, source: str, key: str, listed: Listed, *, place: str, to: str, limit_bytes: int,
    ) -> Fetched:  # fmt: skip
        fetched: Fetched = await self._ask(Fetch(next(self._ids), source, key, listed, place, to, limit_bytes))
        return fetched

    async def read_object(self, source: str, key: str, known: str) -> Content | None:
        """None where it is still of the version `known`. Raises ArtifactMissing, StoreFailed."""
        content: Content = await self._ask(ReadObject(next(self._ids), source, key, known))
        return None if content.version == known else content

    async def write_object(self, source: str, key: str, body: bytes, expected: str) -> str:
        """
        The new version. Raises ArtifactChanged where it was not `expected`, and StoreFailed.

        Asked again after the end of a fetcher, it may find what it has written itself.
        """
        content: Content = await self._ask(WriteObject(next(self._ids), source, key, body, expected))
        return content.version

    async def unpack(self, archive: str, to: str) -> None:
        """Into the new folder `to`. Raises ArtifactUnusable, DiskFull, StoreFailed."""
        await self._ask(Unpack(next(self._ids), archive, to))

    async def list_objects(self, source: str, prefix: str, most: int) -> dict[str, Listed]:
        """By their keys. Raises ArtifactMissing, ValidationError, StoreFailed."""
        objects: tuple[dict[str, Listed], bool] = await self._ask(ListObjects(next(self._ids), source, prefix, most))
        return objects[0]

    async def copy_object(self, source: str, key: str, to: str) -> None:
        """Raises ArtifactMissing, DiskFull, StoreFailed."""
        await self._ask(CopyObject(next(self._ids), source, key, to))

    async def put_object(self, file: str, source: str, key: str, kms_key: str) -> None:
        """Raises ArtifactMissing, StoreFailed."""
        await self._ask(PutObject(next(self._ids), source, key, file, kms_key))

    async def read_payload(self, source: str, key: str, most_bytes: int) -> Payload:
        """Raises ArtifactMissing, StoreFailed, ValidationError where it has more bytes."""
        payload: Payload = await self._ask(ReadPayload(next(self._ids), source, key, most_bytes))
        return payload

    async def write_payload(self, source: str, key: str, body: bytes, content_type: str, kms_key: str) -> None:
        """Raises ArtifactMissing, StoreFailed."""
        await self._ask(WritePayload(next(self._ids), source, key, body, content_type, kms_key))

    async def _ask(self, question: Question) -> Any:
        """Raises the errors of `transfers.KINDS`."""
        if self._is_stopped:
            raise StoreFailed(_STOPPING)
        asked = _Asked(question, asyncio.get_running_loop().create_future())
        self._asked[question.id] = asked
        self._send(asked)
        try:
            return await asked.answer
        except asyncio.CancelledError:
            if self._writer is not None and asked.sent:
                self._writer.write(frame(Cancel(question.id)))
            raise
        finally:
            self._asked.pop(question.id, None)

    def _send(self, asked: _Asked) -> None:
        if self._writer is not None and not asked.answer.done():  # else it is sent when the fetcher is there
            asked.sent += 1
            asked.archives = {}
            self._writer.write(frame(asked.question))

    async def _keep_running(self) -> None:
        useless = 0
        while True:
            was_of_use = await self._run_once()
            useless = 0 if was_of_use else useless + 1
            logger.warning("the process that fetches models has ended; it is started again")
            if self._on_restart is not None:
                self._on_restart()
            lost = [asked for asked in self._asked.values() if asked.sent >= _MAX_SENT]
            self._fail(lost, "The process that fetches models has ended twice over this. Ask again later.")
            await asyncio.sleep(min(_MAX_DELAY_SECS, _FIRST_DELAY_SECS * 2.0**useless) if useless else 0)

    async def _run_once(self) -> bool:
        """The life of one process. Returns whether it has answered anything."""
        ours, theirs = socket.socketpair()
        watch: asyncio.Task[None] | None = None
        try:
            self._process = process = await self._started(theirs)
        except OSError as error:
            logger.warning("the process that fetches models cannot be started: %s", error)
            ours.close()
            return False
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            watch = asyncio.create_task(_end_if_stopped(process))
            self._writer.write(frame(self._settings))
            for asked in self._asked.values():
                self._send(asked)
            return await self._read(reader)
        finally:
            if watch is not None:
                watch.cancel()
            self._process = None
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # Only now does nobody write any more where its orders are to be carried out again.
            await _ended(process)

    async def _started(self, connection: socket.socket) -> asyncio.subprocess.Process:
        """Leaves no process when it is cancelled. Raises OSError."""
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                sys.executable, "-m", "polyhost.artifacts.fetcher", str(connection.fileno()), str(os.getpid()),
                env=boot_environ(self._settings.environ), pass_fds=[connection.fileno()], start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
            ),
        )  # fmt: skip
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                process = await starting
                process.kill()
                await process.wait()
            raise

    async def _read(self, reader: asyncio.StreamReader) -> bool:
        deframer, has_answered = Deframer(ToFront), False
        with contextlib.suppress(ConnectionError, BrokenFrame):
            while data := await reader.read(_READ_BYTES):
                has_answered = True
                for answer in deframer.feed(data):
                    self._take(answer)
        return has_answered

    def _take(self, answer: ToFront) -> None:
        asked = self._asked.get(answer.id)
        if asked is None or asked.answer.done():  # whoever asked waits no longer
            return
        if isinstance(answer, Page):
            asked.archives.update(answer.archives)
        elif isinstance(answer, Failed):
            asked.answer.set_exception(answer.error)
        else:
            asked.answer.set_result((asked.archives, answer.has_more) if isinstance(answer, Done) else answer)

    def _fail(self, lost: Iterable[_Asked], message: str) -> None:
        for asked in lost:
            if not asked.answer.done():
                asked.answer.set_exception(StoreFailed(message))


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Returns when it has ended, also where a stop cancels who waits for it."""
    ending = asyncio.ensure_future(process.wait())
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await ending
        raise


async def _end_if_stopped(process: asyncio.subprocess.Process) -> None:
    """One that a signal has stopped (SIGSTOP) would neither answer nor end."""
    while True:
        await asyncio.sleep(_LOOK_SECS)
        if is_stopped(process.pid):
            process.kill()
            return


def boot_environ(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name in _BOOT_NAMES or name.startswith(_BOOT_PREFIXES)}
