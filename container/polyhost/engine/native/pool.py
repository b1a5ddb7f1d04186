"""
Processes: the templates that fork, and a connection to each worker.

A `Worker` here is the front's end of one: what was sent to it, in order, and what waits. It knows no models'
state; who gets which worker is the engine's to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from polyhost.engine.native.framing import BrokenFrame, Deframer, frame
from polyhost.engine.native.messages import FromWorker, ToWorker

# Sent ahead to a worker that many models share, so that it never waits for us between two short calls.
WINDOW = 8


class WorkerLost(Exception):
    """The worker ended before it answered. `was_running`: whether this order was the one it had begun."""

    def __init__(self, was_running: bool, reason: str) -> None:
        super().__init__(reason)
        self.was_running = was_running


@dataclass(eq=False)
class Order:
    """A message on its way to a worker and back."""

    message: ToWorker
    reply: asyncio.Future[FromWorker]
    timeout_secs: float
    started: float = 0.0


@dataclass(eq=False)
class Worker(asyncio.Protocol):
    pid: int
    environment: str
    is_dedicated: bool
    on_lost: Callable[[Worker], None]
    models: set[int] = field(default_factory=set)
    sent: deque[Order] = field(default_factory=deque)
    waiting: deque[Order] = field(default_factory=deque)
    end_reason: str = ""
    # Estimate of the heap's room that unloaded models left; trimming gives it back to the system.
    free_bytes: int = 0
    artifact_bytes: int = 0
    transport: asyncio.Transport | None = None

    def __post_init__(self) -> None:
        self._deframer = Deframer(FromWorker)
        self._base_bytes = 0
        # Done when the process has ended and is buried: then its memory has been given back.
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_alive(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    @property
    def models_bytes(self) -> int:
        """What its models use: what the process has grown by, less what unloaded models left to the next ones."""
        return max(0, resident_bytes(self.pid) - self._base_bytes - self.free_bytes)

    @property
    def load(self) -> int:
        return len(self.sent) + len(self.waiting)

    def order(self, message: ToWorker, timeout_secs: float) -> asyncio.Future[FromWorker]:
        """Send, or queue behind what was sent. The future raises WorkerLost if the worker ends first."""
        order = Order(message, asyncio.get_running_loop().create_future(), timeout_secs)
        if not self.is_alive:
            order.reply.set_exception(WorkerLost(was_running=False, reason="the worker has ended"))
        elif len(self.sent) < WINDOW:
            self._send(order)
        else:
            self.waiting.append(order)
        return order.reply

    def _send(self, order: Order) -> None:
        assert self.transport is not None
        if not self.sent:
            order.started = time.monotonic()
        self.sent.append(order)
        self.transport.write(frame(order.message))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._base_bytes = resident_bytes(self.pid)
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self.gone.set_result(None)
        else:
            asyncio.get_running_loop().add_reader(process, self._bury, process)

    def _bury(self, process: int) -> None:
        asyncio.get_running_loop().remove_reader(process)
        os.close(process)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        self.gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        try:
            for reply in self._deframer.feed(data):
                self._answered(reply)
        except (BrokenFrame, IndexError):
            # Customer code wrote to our socket: nothing that comes from it can be trusted any more.
            self.kill("it sent what is no message")

    def _answered(self, reply: FromWorker) -> None:
        order = self.sent.popleft()
        if self.waiting:
            self._send(self.waiting.popleft())
        if self.sent:
            self.sent[0].started = time.monotonic()
        if not order.reply.done():
            order.reply.set_result(reply)

    def connection_lost(self, _: Exception | None) -> None:
        reason = self.end_reason or "it ended by itself"
        orders = [*self.sent, *self.waiting]
        running = self.sent[0] if self.sent else None
        self.sent.clear()
        self.waiting.clear()
        self.on_lost(self)
        for order in orders:
            if not order.reply.done():
                order.reply.set_exception(WorkerLost(order is running, reason))

    def kill(self, reason: str) -> None:
        self.end_reason = self.end_reason or reason
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Template:
    """The process of one Python environment that forks its workers."""

    def __init__(self, environment: str, python: str, modules: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self.environment = environment
        self._command = [python, "-m", "polyhost.engine.native.template"]
        self._modules = modules
        self._environ = dict(environ)
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._process = await asyncio.create_subprocess_exec(
            *self._command, str(theirs.fileno()), *self._modules,
            env=self._environ, pass_fds=[theirs.fileno()], start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._control = ours

    async def fork(self, worker: Callable[[int], Worker]) -> Worker:
        """A new worker, connected. Raises OSError when the template cannot fork even after a new start."""
        async with self._lock:
            try:
                return await self._fork(worker)
            except (OSError, EOFError):
                await self._restart()
                return await self._fork(worker)

    async def _fork(self, worker: Callable[[int], Worker]) -> Worker:
        if self._control is None:
            await self.start()
        assert self._control is not None
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        try:
            socket.send_fds(self._control, [b"f"], [theirs.fileno()])
            answer = await loop.sock_recv(self._control, 4)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        if len(answer) < 4:
            ours.close()
            raise EOFError("the template has ended")
        pid = int.from_bytes(answer, "little")
        ours.setblocking(False)
        _, protocol = await loop.create_unix_connection(lambda: worker(pid), sock=ours)
        return protocol

    async def _restart(self) -> None:
        await self.stop()
        await self.start()

    async def stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None


def interpreter_of(environment: str, environ: Mapping[str, str]) -> str | None:
    """The Python of an environment, None where it is not installed; "" is the server's own."""
    if not environment:
        return sys.executable
    python = environ.get(f"POLYHOST_{environment.upper()}_PYTHON") or f"{sys.prefix}/envs/{environment}/bin/python"
    return python if os.access(python, os.X_OK) else None


def resident_bytes(pid: int) -> int:
    """A process's private resident memory, bytes; 0 when it is gone."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def ignore_result(future: asyncio.Future[Any]) -> None:
    """For a reply that nobody waits for: its exception counts as seen."""
    if not future.cancelled():
        future.exception()
