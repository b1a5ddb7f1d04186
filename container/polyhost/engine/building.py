"""
Named Python environments that models need and that are missing: each is built once, one at a time, beside the traffic.

A process of its own does it, niced, as `polyhost env build` does: an environment is put in its place when it is whole.
One that could not be built is not tried again for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from polyhost.engine.errors import EngineError, EnvironmentBuilding, EnvironmentMissing
from polyhost.environment import system_environ
from polyhost.tasks import Tasks

logger = logging.getLogger("polyhost.engine")

# PyTorch with CUDA is 3 GB to download.
_TIMEOUT_SECS = 1800.0
_REMEMBERED_SECS = 600.0
_NICENESS = 10
# When those are to ask again who are told of a build: uv takes seconds, pip minutes.
_AGAIN_SECS = 15
_TAIL_BYTES, _MOST_REASON_CHARS = 4000, 300
# Where packages come from, and through what.
_OF_INSTALLERS = re.compile(r"(UV|PIP)_[A-Z_]+|(https?|all|no)_proxy|(HTTPS?|ALL|NO)_PROXY|NETRC|XDG_[A-Z_]+")


class _Failure(NamedTuple):
    reason: str
    until: float


class EnvironmentBuilder:
    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str],
        *,
        timeout_secs: float = _TIMEOUT_SECS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`environ`: the server's whole one, of which a build gets what installers know."""
        self._folder = folder
        told = {name: value for name, value in environ.items() if _OF_INSTALLERS.fullmatch(name)}
        self._environ = {**system_environ(environ), **told}
        self._timeout_secs = timeout_secs
        self._now = now
        self._tasks = Tasks()
        self._builds: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._turn = asyncio.Lock()

    def builds(self, name: str) -> bool:
        """Whether a model that could do without this environment is to wait for it: not where it could not be built."""
        return self._failure_of(name) is None

    def refusal(self, missing: EnvironmentMissing) -> EngineError:
        """What a request is told that needs the environment, which is being built from now on."""
        name = missing.name
        failure = self._failure_of(name)
        if failure is not None:
            minutes = max(1, round((failure.until - self._now()) / 60))
            return EngineError(
                f"Unable to load model: the environment {name} is needed and could not be built: {failure.reason} It "
                f"is tried again after {minutes} min; or run polyhost env build {name}."
            )
        if name not in self._builds:
            logger.info("building the environment %s beside the traffic: %s", name, missing.message)
            self._builds[name] = self._tasks.start(self._build(name))
        return EnvironmentBuilding(
            f"The environment {name}, which the model needs, is being built. Ask again.",
            self._builds[name],
            _AGAIN_SECS,
        )

    async def stop(self) -> None:
        await self._tasks.stop()

    def _failure_of(self, name: str) -> _Failure | None:
        failure = self._failures.get(name)
        return failure if failure is not None and failure.until > self._now() else None

    async def _build(self, name: str) -> None:
        try:
            async with self._turn:
                began = self._now()
                reason = await self._run(name)
        finally:
            del self._builds[name]
        if not reason:
            logger.info("the environment %s is built, after %.0f s", name, self._now() - began)
            return
        self._failures[name] = _Failure(reason, self._now() + _REMEMBERED_SECS)
        logger.error("the environment %s could not be built: %s", name, reason)

    async def _run(self, name: str) -> str:
        """Why it could not be built, "" where it is."""
        command = ["-m", "polyhost.environments.beside", str(os.getpid()), name, str(self._folder)]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, env=self._environ, start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            return f"{error}."
        try:
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
            tail = await asyncio.wait_for(_tail_of(process), self._timeout_secs)
            return _reason_in(tail) if await process.wait() else ""
        except asyncio.TimeoutError:
            return f"it was not built within {self._timeout_secs:g} s."
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _tail_of(process: asyncio.subprocess.Process) -> bytes:
    """The last of what it prints until it ends."""
    assert process.stdout is not None
    tail = b""
    while data := await process.stdout.read(_TAIL_BYTES):
        tail = (tail + data)[-_TAIL_BYTES:]
    return tail


def _reason_in(tail: bytes) -> str:
    lines = [line.strip() for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][-_MOST_REASON_CHARS:] if lines else "its process ended without a word."
