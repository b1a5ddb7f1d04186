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
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

from polyhost.engine.native.framing import BrokenFrame, Deframer, Progress, frame
from polyhost.engine.native.messages import FromWorker, ToWorker

# Sent ahead to a worker, so that it never waits for us between two short calls.
WINDOW = 8
_BURY_AGAIN_SECS = 0.1
# How long a process may go on without its socket.
_CLOSED_SECS = 1.0
# What a socket may still hold of a worker that has ended, read in pieces: more than the kernel lets it hold.
_LAST_READS, _LAST_READ_BYTES = 64, 64 * 1024
# What a forked worker makes its own of the memory that it shares with its template, before its model.
DEDICATED_BYTES = 5 * 1024**2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Environment(NamedTuple):
    """What a template gives its workers: a Python environment, "" for the server's own, and further variables."""

    python: str = ""
    variables: tuple[tuple[str, str], ...] = ()


class WorkerLost(Exception):
    """
    The order was not answered. `was_running`: whether the worker had begun it when it ended.

    Otherwise it is simply to be sent again: the worker ended before its turn, or was given away to another model.
    """

    def __init__(self, was_running: bool, reason: str) -> None:
        super().__init__(reason)
        self.was_running = was_running


class Reply(Protocol):
    """Where an answer goes: what is used of a future."""

    def done(self) -> bool: ...

    def set_result(self, reply: FromWorker, /) -> None: ...

    def set_exception(self, lost: WorkerLost, /) -> None: ...


@dataclass(eq=False, slots=True)
class Order:
    """A message on its way to a worker and back."""

    message: ToWorker
    reply: Reply
    timeout_secs: float

    @property
    def model(self) -> int | None:
        """The front's number of the model it is for."""
        return getattr(self.message, "model", None)


class Worker(asyncio.Protocol):
    def __init__(
        self,
        pid: int,
        progress: Progress,
        environment: Environment,
        *,
        is_dedicated: bool,
        on_lost: Callable[[Worker], None],
    ) -> None:
        self.pid = pid
        self._progress = progress
        self.environment = environment
        self.is_dedicated = is_dedicated
        self.models: set[int] = set()
        self.sent: deque[Order] = deque()
        self.waiting: deque[Order] = deque()
        self.end_reason = ""
        self.artifact_bytes = 0
        # Estimate of the heap's room that unloaded models left; trimming gives it back to the system.
        self.free_bytes = 0
        self.needs_trim = False
        # What unloaded models left since it was trimmed last, loaded over or not.
        self.freed_bytes = 0
        # Whether it has ever been of use.
        self.has_answered = False
        self._watched: Order | None = None
        self._watched_since = 0.0
        self._own_secs = 0.0
        self._seen = (0.0, 0.0)
        # While it is open, the number is this process's and nobody else's. -1 before and after.
        self._pidfd = -1
        self._gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._on_lost = on_lost
        self._deframer = Deframer(FromWorker)
        self._transport: asyncio.Transport | None = None
        self._statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
        self._schedstat = os.open(f"/proc/{pid}/schedstat", os.O_RDONLY)
        self._base_bytes = 0
        self._measured_bytes: int | None = None

    @property
    def is_alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def load(self) -> int:
        return len(self.sent) + len(self.waiting)

    @property
    def resident_bytes(self) -> int:
        """
        Its resident memory that is no file's, bytes, what it still shares with its template too.

        Measured again after each thing it did. 0 when it is gone.
        """
        if self._measured_bytes is None or self.sent:
            try:
                _, resident, shared, *_ = os.pread(self._statm, 128, 0).split()
                self._measured_bytes = (int(resident) - int(shared)) * _PAGE_BYTES
            except (OSError, ValueError):
                self._measured_bytes = 0
        return self._measured_bytes

    @property
    def models_bytes(self) -> int:
        """What its models use: what the process has grown by, less what unloaded models left to the next ones."""
        grown = max(0, self.resident_bytes - self._base_bytes - self.free_bytes)
        return grown + DEDICATED_BYTES if self.is_dedicated else grown

    @property
    def running(self) -> Order | None:
        """What it has begun and not answered."""
        begun = self._progress.begun if self.sent else 0
        return next((order for order in self.sent if order.message.id == begun), None)

    def look(self) -> tuple[Order | None, float, float]:
        """
        What runs; since when, seconds; and how much of that is its own fault.

        Time in which it was ready to run and the machine had no CPU for it is not. To be called again and again:
        what passed before the first look at a call is not seen.
        """
        running = self.running
        now, waited_secs = time.monotonic(), self._waited_for_a_cpu_secs() if running else 0.0
        if running is not self._watched:
            self._watched, self._watched_since, self._own_secs = running, now, 0.0
        else:
            before, waited_before_secs = self._seen
            self._own_secs += max(0.0, now - before - (waited_secs - waited_before_secs))
        self._seen = (now, waited_secs)
        return running, now - self._watched_since, self._own_secs

    def _waited_for_a_cpu_secs(self) -> float:
        try:
            return int(os.pread(self._schedstat, 128, 0).split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

    def order(self, message: ToWorker, timeout_secs: float) -> asyncio.Future[FromWorker]:
        """Send, or queue behind what was sent. The future raises WorkerLost if the worker ends first."""
        reply: asyncio.Future[FromWorker] = asyncio.get_running_loop().create_future()
        if self.is_alive:
            self.send(Order(message, reply, timeout_secs))
        else:
            reply.set_exception(WorkerLost(was_running=False, reason="the worker has ended"))
        return reply

    def send(self, order: Order) -> None:
        """As `order`, to a worker that is alive."""
        if len(self.sent) < WINDOW:
            self._send(order)
        else:
            self.waiting.append(order)

    def _send(self, order: Order) -> None:
        assert self._transport is not None
        self.sent.append(order)
        self._transport.write(frame(order.message))

    def give_away_all_but(self, model: int) -> None:
        """
        Release the orders of other models, as if the worker had ended before their turn.

        Those that were sent are still carried out, and their answers dropped: that is why only calls that may be
        repeated go to a worker that models share.
        """
        others = [order for order in (*self.sent, *self.waiting) if order.model not in (None, model)]
        self.waiting = deque(order for order in self.waiting if order.model in (None, model))
        for order in others:
            if not order.reply.done():
                order.reply.set_exception(WorkerLost(was_running=False, reason="the worker became another model's own"))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._base_bytes = self.resident_bytes
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._gone.set_result(0)
            self._transport.abort()
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        """
        The process has ended. That is what counts, not its socket, which a process that it started may hold open.
        """
        self._read_the_rest()
        if self._transport is not None:
            self._transport.abort()
        self._bury()

    def _read_the_rest(self) -> None:
        """What it answered before its end is answered, however the loop orders the two events."""
        if self._transport is None or self._transport.is_closing():
            return
        descriptor = os.dup(self._transport.get_extra_info("socket").fileno())
        with socket.socket(fileno=descriptor) as connection, contextlib.suppress(BlockingIOError, ConnectionError):
            for _ in range(_LAST_READS):
                data = connection.recv(_LAST_READ_BYTES, socket.MSG_DONTWAIT)
                if not data:
                    return
                self.data_received(data)

    def _bury(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._statm)
        os.close(self._schedstat)
        self._statm = self._schedstat = -1
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what its handler had started; until now the number is its own
        os.close(self._pidfd)
        self._pidfd = -1
        status = 0
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, os.WNOHANG)
        self._bury_group()
        self._gone.set_result(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)

    def _bury_group(self) -> None:
        """As orphans they are our children."""
        try:
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        asyncio.get_running_loop().call_later(_BURY_AGAIN_SECS, self._bury_group)

    def data_received(self, data: bytes) -> None:
        try:
            for reply in self._deframer.feed(data):
                self._answered(reply)
        except (BrokenFrame, IndexError):
            # Customer code wrote to our socket: nothing that comes from it can be trusted any more.
            self.kill("it sent what is no message")

    def _answered(self, reply: FromWorker) -> None:
        if reply.id != self.sent[0].message.id:
            raise BrokenFrame("an answer to another order")
        order = self.sent.popleft()
        self.has_answered = True
        if self.waiting:
            self._send(self.waiting.popleft())
        self._measured_bytes = None
        if not order.reply.done():
            order.reply.set_result(reply)

    def connection_lost(self, _: Exception | None) -> None:
        reason = self.end_reason or "it ended by itself"
        # A process that ends closes its socket a moment before it has ended.
        asyncio.get_running_loop().call_later(_CLOSED_SECS, self._end_if_alive)
        orders = [*self.sent, *self.waiting]
        running = self.running
        self.sent.clear()
        self.waiting.clear()
        self._on_lost(self)
        for order in orders:
            if not order.reply.done():
                order.reply.set_exception(WorkerLost(order is running, reason))

    def _end_if_alive(self) -> None:
        """Code that closed the descriptors of its process has made it useless."""
        if self._pidfd >= 0:
            self.kill("its code closed the connection to the server")

    async def gone(self) -> int:
        """
        Returns when the process has ended and is buried, its memory is back: the signal that ended it, or 0.
        """
        return await asyncio.shield(self._gone)  # one who waits no longer must not end it for the others

    def kill(self, reason: str) -> None:
        self.end_reason = self.end_reason or reason
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Template:
    """The process of one environment that forks its workers."""

    def __init__(self, python: str, modules: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._command = [python, "-m", "polyhost.engine.native.template"]
        self._modules = modules
        self._environ = dict(environ)
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._is_over = False

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

    async def fork(self, worker: Callable[[int, Progress], Worker]) -> Worker:
        """
        A new worker, connected. Raises OSError when the template cannot fork even after a new start.

        The order is finished whatever becomes of the caller: an answer that nobody had read would be taken for the
        next one, and a worker's process for another's.
        """
        forking = asyncio.ensure_future(self._fork_in_turn(worker))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:
            forking.add_done_callback(_end_unwanted)
            raise

    async def _fork_in_turn(self, worker: Callable[[int, Progress], Worker]) -> Worker:
        async with self._lock:
            try:
                return await self._fork(worker)
            except (OSError, EOFError):
                await self._restart()
                return await self._fork(worker)

    async def _fork(self, worker: Callable[[int, Progress], Worker]) -> Worker:
        if self._control is None:
            await self.start()
        assert self._control is not None
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        page = Progress.new_page()
        progress = Progress(os.dup(page))
        try:
            socket.send_fds(self._control, [b"f"], [theirs.fileno(), page])
            answer = await loop.sock_recv(self._control, 4)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(page)
        if len(answer) < 4:
            ours.close()
            raise EOFError("the template has ended")
        pid = int.from_bytes(answer, "little")
        ours.setblocking(False)
        _, protocol = await loop.create_unix_connection(lambda: worker(pid, progress), sock=ours)
        return protocol

    async def _restart(self) -> None:
        await self._end()
        if self._is_over:
            raise OSError("the template has been stopped")
        await self.start()

    async def stop(self) -> None:
        self._is_over = True
        await self._end()

    async def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None


def _end_unwanted(forking: asyncio.Future[Worker]) -> None:
    if not forking.cancelled() and forking.exception() is None:
        forking.result().kill("nobody waits for it any more")


def ignore_result(future: asyncio.Future[Any]) -> None:
    """For a reply that nobody waits for: its exception counts as seen."""
    if not future.cancelled():
        future.exception()
