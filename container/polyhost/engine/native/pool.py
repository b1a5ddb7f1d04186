"""
Processes: the templates that fork, and a connection to each worker.

A `Worker` here is the front's end of one: what was sent to it, in order, and what waits. It knows no models'
state; who gets which worker is the engine's to decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

from polyhost.engine.native.clock import Clock
from polyhost.engine.native.heap import Heap
from polyhost.engine.native.messages import (
    MOST_COMPILED_BYTES,
    Failed,
    FromWorker,
    Load,
    Part,
    ToWorker,
    parts_of,
    too_long_an_answer,
)
from polyhost.engine.native.orders import Order, Waiting, WorkerLost
from polyhost.engine.native.segments import Channel, new_channel
from polyhost.framing import BrokenFrame, Deframer, FrameTooLong, Progress
from polyhost.memory import anonymous_bytes
from polyhost.processes import is_stopped
from polyhost.tasks import Tasks, result_of

logger = logging.getLogger("polyhost.engine")

# Sent ahead to a worker, so that it never waits for us between two short calls.
WINDOW = 8
# How long a process may go on without its socket.
_CLOSED_SECS = 1.0
# How often it is looked whether a template that does not answer was stopped.
_LOOK_SECS = 5.0
# What a socket may still hold of a worker that has ended, read in pieces: more than the kernel lets it hold.
_LAST_READS, _LAST_READ_BYTES = 64, 64 * 1024
# What a forked worker copies of the memory that it shares with its template, before it loads its model.
DEDICATED_BYTES = 5 * 1024**2
# What an answer's headers and metrics may take beside its body.
_BESIDE_A_BODY_BYTES = 1024**2


class Environment(NamedTuple):
    """What a template gives its workers: a Python environment, "" for the server's own, and further variables."""

    python: str = ""
    variables: tuple[tuple[str, str], ...] = ()
    # Whether variables that change what Python and the loader run are among them: they count for code alone.
    has_loader_variables: bool = False
    # Whether its workers import the frameworks that they need by themselves.
    is_bare: bool = False


class End(enum.Enum):
    """Why a worker ended. A sentence beside it says more to whoever reads the log; decisions read this."""

    BY_ITSELF = "its code ended it, or the system killed it"
    NO_ANSWER = "it did not answer in time"
    UNUSABLE = "it could not be used any more"
    OUTGROWN = "its model has outgrown its memory"
    UNLOADED = "its model was unloaded"
    FORGOTTEN = "its container is gone"
    STOPPING = "the server stops"

    @property
    def is_expected(self) -> bool:
        return self in (End.UNLOADED, End.FORGOTTEN, End.STOPPING)


class Worker(asyncio.Protocol):
    def __init__(
        self,
        pid: int,
        progress: Progress,
        environment: Environment,
        *,
        is_dedicated: bool,
        max_response_bytes: int,
        on_lost: Callable[[Worker], None],
        on_buried: Callable[[int], None],
        channel: Channel | None = None,
    ) -> None:
        """`on_buried`: the process has ended and is no zombie. `channel`: of one that may read compiled models."""
        self.pid = pid
        self._progress = progress
        self.environment = environment
        self.is_dedicated = is_dedicated
        self.models: set[int] = set()
        self.sent: deque[Order] = deque()
        self.waiting = Waiting()
        self.end = End.BY_ITSELF
        self.end_reason = ""
        self.heap = Heap(lambda: self.resident_bytes)
        # Whether it has ever been of use.
        self.has_answered = False
        self._clock = Clock(pid)
        # While it is open, the number is this process's and nobody else's. -1 before and after.
        self._pidfd = -1
        self._gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._on_lost = on_lost
        self._on_buried = on_buried
        self._max_response_bytes = max_response_bytes
        self._deframer = Deframer(FromWorker, self._most_bytes)
        self._transport: asyncio.Transport | None = None
        self.channel = channel
        self._statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
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
                self._measured_bytes = anonymous_bytes(os.pread(self._statm, 128, 0))
            except (OSError, ValueError):
                self._measured_bytes = 0
        return self._measured_bytes

    @property
    def models_bytes(self) -> int:
        """What its models use, of a worker of a model's own with what it no longer shares with its template."""
        return self.heap.used_bytes + (DEDICATED_BYTES if self.is_dedicated else 0)

    @property
    def running(self) -> Order | None:
        """What it has begun and not answered."""
        return self._sent_as(self._progress.at) if self.sent else None

    def _sent_as(self, number: int) -> Order | None:
        return next((order for order in self.sent if order.message.id == number), None)

    def look(self) -> tuple[Order | None, float, float]:
        """
        The order that it is at, or that it is to begin; since when, seconds; and how much of that is its own fault.

        To be called again and again: what passed before the first look at an order is not seen.
        """
        # Answers to quick calls may not be sent yet, so the order it is at is not always the first one.
        order = self.running or (self.sent[0] if self.sent else None)
        return order, *self._clock.look(order)

    def is_stopped(self) -> bool:
        """Whether a signal has stopped the process, SIGSTOP for example."""
        return is_stopped(self.pid)

    def order(self, message: ToWorker, timeout_secs: float) -> asyncio.Future[FromWorker]:
        """As `send`, to be awaited. The future raises WorkerLost if the worker ends first."""
        reply: asyncio.Future[FromWorker] = asyncio.get_running_loop().create_future()
        order = Order(message, lambda outcome: _settle(reply, outcome), timeout_secs)
        if self.is_alive:
            self.send(order)
        else:
            order.end(WorkerLost(was_running=False, reason="the worker has ended"))
        return reply

    def send(self, order: Order) -> None:
        """Send, or queue, to a worker that is alive."""
        self.waiting.add(order)
        self._send_next()

    def _send_next(self) -> None:
        while len(self.sent) < WINDOW and (order := self.waiting.next(self.sent)) is not None:
            self._send(order)

    def _send(self, order: Order) -> None:
        assert self._transport is not None
        self.sent.append(order)
        self._transport.writelines(parts_of(order.message))

    def abandon(self, order: Order) -> None:
        """Nobody waits for its answer any more: where it comes in parts, the worker makes no more of them."""
        order.is_abandoned = True
        _pass_on_abandoned(self.sent, self._progress)

    def give_away_all_but(self, model: int) -> None:
        """
        Release the orders of other models, as if the worker had ended before their turn.

        Those that were sent are still carried out, and their answers dropped: that is why only calls that may be
        repeated go to a worker that models share.
        """
        others = [order for order in (*self.sent, *self.waiting) if order.model not in (None, model)]
        self.waiting.keep(model)
        for order in others:
            order.end(WorkerLost(was_running=False, reason="the worker became another model's own"))

    def release_waiting(self) -> None:
        """Release the orders that were not sent, as if the worker had ended before their turn."""
        for order in self.waiting.taken_back():
            order.end(WorkerLost(was_running=False, reason=self.end_reason or "the worker ends"))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self.heap.begin()
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._on_buried(self.pid)
            self._gone.set_result(0)
            self._transport.abort()
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        """The process has ended. That is what counts, not its socket, which a process that it started may hold open."""
        self._read_the_rest()
        if self._transport is not None:
            self._transport.abort()
        self._bury()

    def _read_the_rest(self) -> None:
        """What it answered before its end is answered, however the loop orders the two events."""
        if self._transport is not None and not self._transport.is_closing():
            for data in _rest_of(self._transport):
                self.data_received(data)

    def _bury(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._statm)
        self._statm = -1
        if self.channel is not None:
            self.channel.close()
        self._clock.close()
        os.close(self._pidfd)
        self._pidfd = -1
        status = 0
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, os.WNOHANG)
        self._on_buried(self.pid)
        self._gone.set_result(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)

    def data_received(self, data: bytes) -> None:
        try:
            for reply in self._deframer.feed(data):
                self._answered(reply)
        except FrameTooLong as error:
            self._refuse(too_long_an_answer(error.length_bytes, self._max_response_bytes))
        except BrokenFrame:
            self._distrust("it sent what is no message")

    def _most_bytes(self) -> int:
        return _most_bytes_for(self.sent[0].message if self.sent else None, self._max_response_bytes)

    def _refuse(self, reason: str) -> None:
        """Its answer is not read, and the call not made again: it would be answered like that again."""
        if self.sent:
            order = self.sent.popleft()
            order.end(Failed(order.message.id, 500, reason))
        self._distrust(reason)

    def _distrust(self, reason: str) -> None:
        """Customer code wrote to our socket: nothing further is read from it."""
        self.kill(End.UNUSABLE, reason)
        if self._transport is not None:
            self._transport.abort()

    def _answered(self, reply: FromWorker) -> None:
        if not self.sent or reply.id != self.sent[0].message.id:
            raise BrokenFrame("an answer to another order")
        if isinstance(reply, Part):
            if (held_bytes := self.sent[0].take(reply)) > self._max_response_bytes:
                self._refuse(too_long_an_answer(held_bytes, self._max_response_bytes))
            return
        order = self.sent.popleft()
        _pass_on_abandoned(self.sent, self._progress)
        self.has_answered = True
        self._send_next()
        self._measured_bytes = None
        order.end(reply)

    def connection_lost(self, _: Exception | None) -> None:
        reason = self.end_reason or "it ended by itself"
        # A process that ends closes its socket a moment before it has ended.
        asyncio.get_running_loop().call_later(_CLOSED_SECS, self._end_if_alive)
        orders = [*self.sent, *self.waiting.taken_back()]
        begun = self._sent_as(self._progress.begun_last)
        self._progress.close()
        self._deframer = Deframer(FromWorker)  # the old one knows this worker, which nothing should keep
        self.sent.clear()
        self._on_lost(self)
        for order in orders:
            order.end(WorkerLost(order is begun, reason))

    def _end_if_alive(self) -> None:
        """Code that closed the descriptors of its process has made it useless."""
        if self._pidfd >= 0:
            self.kill(End.UNUSABLE, "its code closed the connection to the server")

    async def gone(self) -> int:
        """Returns when the process has ended and is buried, its memory is back: the signal that ended it, or 0."""
        return await asyncio.shield(self._gone)  # one who waits no longer must not end it for the others

    def kill(self, end: End, reason: str = "") -> None:
        """`reason`: a sentence for the log, where the kind of end does not say it all. The first end counts."""
        if self.end is End.BY_ITSELF:
            self.end, self.end_reason = end, reason or end.value
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def _rest_of(transport: asyncio.Transport) -> Iterator[bytes]:
    """What its socket still holds."""
    descriptor = os.dup(transport.get_extra_info("socket").fileno())
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(BlockingIOError, ConnectionError):
        for _ in range(_LAST_READS):
            data = connection.recv(_LAST_READ_BYTES, socket.MSG_DONTWAIT)
            if not data:
                return
            yield data


def _most_bytes_for(message: ToWorker | None, max_response_bytes: int) -> int:
    """How long the next message may be: an answer for each item of the batch, or a compiled model."""
    if isinstance(message, Load) and message.hands_over:
        return MOST_COMPILED_BYTES + _BESIDE_A_BODY_BYTES
    items = len(getattr(message, "items", ()))
    return max_response_bytes * max(1, items) + _BESIDE_A_BODY_BYTES


def _pass_on_abandoned(sent: Sequence[Order], progress: Progress) -> None:
    """The worker is told of one order at a time: of that which it is at."""
    if sent and sent[0].is_abandoned:
        progress.abandon(sent[0].message.id)


# A process id, its progress, and what passes segments: the front's end of a worker.
NewWorker = Callable[[int, Progress, "Channel | None"], Worker]


class Template:
    """The process of one environment that forks its workers."""

    def __init__(self, python: str, modules: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self._command = [python, "-m", "polyhost.engine.native.template"]
        self._modules = modules
        self._environ = dict(environ)
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._tasks = Tasks()
        self._is_over = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_forking(self) -> bool:
        """Whether there may be a worker whose process id has not been told yet."""
        return self._lock.locked()

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, str(theirs.fileno()), *self._modules,
                env=self._environ, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours

    async def fork(self, worker: NewWorker, *, is_reader: bool) -> Worker:
        """
        A new worker, connected; `is_reader`: with a channel for segments.

        Raises OSError when the template cannot fork even after a new start.

        The order is finished whatever becomes of the caller: an answer that nobody had read would be taken for the
        next one, and a worker's process for another's.
        """
        forking = self._tasks.start(self._fork_in_turn(worker, is_reader=is_reader), expected=(OSError, EOFError))
        try:
            return await result_of(forking)
        except asyncio.CancelledError:
            self._tasks.start(_end_unwanted(forking), expected=(OSError, EOFError))
            raise

    async def _fork_in_turn(self, worker: NewWorker, *, is_reader: bool) -> Worker:
        async with self._lock:
            try:
                return await self._fork(worker, is_reader=is_reader)
            except (OSError, EOFError):
                await self._restart()
                return await self._fork(worker, is_reader=is_reader)

    async def _fork(self, worker: NewWorker, *, is_reader: bool) -> Worker:
        if self._control is None:
            await self.start()
        self._raise_if_over()
        assert self._control is not None
        loop = asyncio.get_running_loop()
        pairs = [socket.socketpair(), *([new_channel()] if is_reader else [])]
        ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        page = Progress.new_page()
        progress = Progress(os.dup(page))
        try:
            socket.send_fds(self._control, [b"f"], [theirs[0].fileno(), page, *(one.fileno() for one in theirs[1:])])
            answer = await self._answer(self._control)
            if len(answer) < 4:
                raise EOFError("the template has ended")
        except BaseException:
            _close(ours)
            raise
        finally:
            _close(theirs)
            os.close(page)
        pid = int.from_bytes(answer, "little")
        ours[0].setblocking(False)
        passing = Channel(ours[1]) if is_reader else None
        _, protocol = await loop.create_unix_connection(lambda: worker(pid, progress, passing), sock=ours[0])
        if self._is_over:
            protocol.kill(End.STOPPING)
            await protocol.gone()
        self._raise_if_over()
        return protocol

    async def _answer(self, control: socket.socket) -> bytes:
        """Its first one may be late: it imports frameworks before. Raises EOFError where it was stopped by a signal."""
        receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(control, 4))
        try:
            while not receiving.done():
                await asyncio.wait([receiving], timeout=_LOOK_SECS)
                if not receiving.done() and self.pid is not None and is_stopped(self.pid):
                    logger.warning("the template was stopped by a signal; it is started again")
                    raise EOFError("the template was stopped by a signal")
            return receiving.result()
        finally:
            receiving.cancel()

    async def _restart(self) -> None:
        await self._end()
        self._raise_if_over()
        await self.start()

    def _raise_if_over(self) -> None:
        if self._is_over:
            raise OSError("the template has been stopped")

    async def stop(self) -> None:
        """Returns when it has ended, and every worker that it forked for a caller who does not have it."""
        self._is_over = True
        self._kill()  # a fork that is under way sees the end of its socket
        await self._tasks.settled()
        await self._end()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._kill()
            await self._process.wait()
            self._process = None


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


async def _end_unwanted(forking: asyncio.Task[Worker]) -> None:
    worker = await forking
    worker.kill(End.FORGOTTEN, "nobody waits for it any more")
    await worker.gone()


def _settle(reply: asyncio.Future[FromWorker], outcome: FromWorker | WorkerLost) -> None:
    if reply.done():  # whoever waited for it was cancelled
        return
    if isinstance(outcome, WorkerLost):
        reply.set_exception(outcome)
    else:
        reply.set_result(outcome)
