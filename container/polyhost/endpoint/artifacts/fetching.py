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

from polyhost.endpoint.artifacts.transfers import (
    KINDS,
    Done,
    Failed,
    Fetch,
    Fetched,
    Found,
    List,
    Listed,
    LookUp,
    Page,
    Question,
    Settings,
    ToFront,
)
from polyhost.endpoint.errors import StoreFailed
from polyhost.engine.native.framing import BrokenFrame, Deframer, frame

logger = logging.getLogger("polyhost.endpoint")

_READ_BYTES = 64 * 1024
_STOPPING = "The server stops."
_MAX_SENT = 2
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

    def start(self) -> None:
        self._runner = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner
        self._is_stopped = True
        self._fail(self._asked.values(), _STOPPING)

    async def list(self, source: str) -> dict[str, Listed]:
        archives: dict[str, Listed] = await self._ask(List(next(self._ids), source))
        return archives

    async def look_up(self, source: str, key: str) -> Listed:
        found: Found = await self._ask(LookUp(next(self._ids), source, key))
        return found.listed

    async def fetch(
        self, source: str, key: str, listed: Listed, *, place: str, to: str, limit_bytes: int,
    ) -> Fetched:  # fmt: skip
        fetched: Fetched = await self._ask(Fetch(next(self._ids), source, key, listed, place, to, limit_bytes))
        return fetched

    async def _ask(self, question: Question) -> Any:
        """Raises the errors of `KINDS`."""
        if self._is_stopped:
            raise StoreFailed(_STOPPING)
        asked = _Asked(question, asyncio.get_running_loop().create_future())
        self._asked[question.id] = asked
        self._send(asked)
        try:
            return await asked.answer
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
        try:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "polyhost.endpoint.artifacts.fetcher", str(theirs.fileno()), str(os.getpid()),
                env=boot_environ(self._settings.environ), pass_fds=[theirs.fileno()], start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            logger.warning("the process that fetches models cannot be started: %s", error)
            ours.close()
            return False
        except BaseException:
            ours.close()  # which ends it, if it is there
            raise
        finally:
            theirs.close()
        try:
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            self._writer.write(frame(self._settings))
            for asked in self._asked.values():
                self._send(asked)
            return await self._read(reader)
        finally:
            self._process = None
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # Only now does nobody write any more where its orders are to be carried out again.
            await process.wait()

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
            asked.answer.set_exception(KINDS[answer.kind](answer.message))
        else:
            asked.answer.set_result(asked.archives if isinstance(answer, Done) else answer)

    def _fail(self, lost: Iterable[_Asked], message: str) -> None:
        for asked in lost:
            if not asked.answer.done():
                asked.answer.set_exception(StoreFailed(message))


def boot_environ(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name in _BOOT_NAMES or name.startswith(_BOOT_PREFIXES)}
