"""
A worker: one process, one thread, one call at a time.

It is forked from a template that has the frameworks imported, reads orders from its socket and answers them in
order. Models live in `models` by the front's number; nothing else persists between two orders. It ends when its
socket closes or its front dies; it never decides to end because a model failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from polyhost_handlers.errors import HandlerError
from polyhost_handlers.script_trial import fault_of
from polyhost_handlers.signature import Signature, bounded

from polyhost.engine.native.freezing import Freezing
from polyhost.engine.native.messages import (
    Answered,
    Confine,
    Describe,
    Described,
    Done,
    Failed,
    FromWorker,
    Keep,
    Load,
    Part,
    Predict,
    ToWorker,
    Tried,
    Trim,
    Trimmed,
    TryScript,
    Unload,
    too_long_an_answer,
    with_body,
)
from polyhost.engine.native.models import LoadedModel, PlainModel, SendPart, failure, handed_over, load_model
from polyhost.engine.native.sandbox import confine
from polyhost.engine.native.segments import Readable
from polyhost.engine.protocol import PART_BYTES
from polyhost.framing import Inbox, Progress, frame
from polyhost.memory import anonymous_bytes
from polyhost.processes import die_with_parent, mark_descendants

logger = logging.getLogger("polyhost.worker")

_QUICK_SECS = 0.001
_QUICK_BYTES = 4096
_LIBC = ctypes.CDLL(None)
# The kernel that must free memory takes a worker, never the front.
_OOM_SCORE_ADJ = "500"


def run(connection: socket.socket, progress: Progress, front_pid: int, readable: Readable | None) -> None:
    """The worker's whole life; called in the forked process. `readable`: of one that may read compiled models."""
    die_with_parent(front_pid, signal.SIGKILL)
    # What a handler starts ends with us, in whatever session it is.
    mark_descendants(os.getpid())
    # A handler that signals its group must not reach its neighbours.
    os.setpgid(0, 0)
    # Where CPUs are short the front goes first, which feeds us all.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # Ctrl-C goes to the whole terminal; the front decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    Worker(connection, progress, readable).serve()


class SocketLost(Exception):
    """A model's code has closed the socket to the front, or has read from it or written to it."""


class Worker:
    def __init__(self, connection: socket.socket, progress: Progress, readable: Readable | None = None) -> None:
        self._connection = connection
        self._inbox = Inbox(connection, ToWorker)
        self._readable = readable
        self._progress = progress
        self._models: dict[int, LoadedModel] = {}
        self._max_response_bytes = 0  # the server's: each load says it
        self._freezing = Freezing()
        # Models whose last call took next to no time, and whose calls may be repeated.
        self._quick: set[int] = set()

    def serve(self) -> None:
        """
        Answers to quick calls that have come together are sent together. No answer waits for a call that takes time.

        Raises SocketLost.
        """
        answers = bytearray()
        since = 0.0
        for order in self._orders():
            if answers and not self._is_quick(order):
                self._send(answers)
                answers = bytearray()
            begin = time.perf_counter()
            if not answers:
                since = begin
            self._progress.begin(order.id)
            answer = frame(self._carry_out(order))
            answers = answers + answer if answers else answer  # a large one is not copied
            self._progress.end()  # a front that is late to read the answer must not take us for slow
            end = time.perf_counter()
            self._remember(order, end - begin)
            if end - since > _QUICK_SECS or not self._inbox.has_next:
                self._send(answers)
                answers = bytearray()

    def _orders(self) -> Iterator[ToWorker]:
        try:
            for order in self._inbox:
                yield self._with_body(order) if isinstance(order, Predict) and order.body_bytes else order
        except ConnectionError:
            raise
        except (OSError, MemoryError, msgspec.MsgspecError) as error:
            raise SocketLost(error) from error

    def _with_body(self, order: Predict) -> Predict:
        """In an array of bytes: what MMS's contract gives to a handler is no copy then."""
        body = bytearray(order.body_bytes)
        self._inbox.read_into(body)
        return with_body(order, body)

    def _send(self, answers: bytearray) -> None:
        try:
            self._connection.sendall(answers)
        except ConnectionError:
            raise
        except OSError as error:
            raise SocketLost(error) from error

    def _is_quick(self, order: ToWorker) -> bool:
        return isinstance(order, Predict) and order.model in self._quick and len(order.items[0].body) <= _QUICK_BYTES

    def _remember(self, order: ToWorker, secs: float) -> None:
        if not isinstance(order, Predict):
            return
        if secs > _QUICK_SECS:
            self._quick.discard(order.model)
        elif order.model not in self._quick and isinstance(self._models[order.model], PlainModel):
            self._quick.add(order.model)

    def _carry_out(self, order: ToWorker) -> FromWorker:
        if isinstance(order, Predict):
            return self._predict(order)
        if isinstance(order, Load):
            return self._load(order)
        if isinstance(order, Unload):
            return self._unload(order)
        if isinstance(order, Describe):
            return self._describe(order)
        if isinstance(order, Confine):
            return _confine(order)
        if isinstance(order, TryScript):
            return _try_script(order)
        if isinstance(order, Keep):
            self._models = {number: model for number, model in self._models.items() if number == order.model}
        return self._trim(order)

    def _load(self, order: Load) -> FromWorker:
        before = private_bytes()
        try:
            model = load_model(order, self._readable)
            rows = handed_over(model) if order.hands_over else None
            self._max_response_bytes = order.max_response_bytes
        except SystemExit as error:
            return Failed(order.id, 500, f"Unable to load model: its code called exit({error.code}).")
        except Exception as error:
            if not isinstance(error, (MemoryError, HandlerError)):
                logger.exception("model %s: not loaded", order.name)
            gc.collect()
            return failure(error, order)
        if rows is not None:
            return Done(order.id, 0, rows)
        self._models[order.model] = model
        self._freezing.freeze_if_many(len(self._models))
        return Done(order.id, max(0, private_bytes() - before), way=model.way())

    def _unload(self, order: Unload) -> FromWorker:
        before = private_bytes()
        self._models.pop(order.model, None)
        self._quick.discard(order.model)
        return Done(order.id, private_bytes() - before)

    def _describe(self, order: Describe) -> FromWorker:
        try:
            return Described(order.id, bounded(self._models[order.model].signature()))
        except MemoryError:
            return Failed(order.id, 507, "Out of resources")
        except Exception:
            logger.exception("a model could not be described")
            return Described(order.id, Signature())

    def _trim(self, order: Trim | Keep) -> FromWorker:
        gc.collect()
        _LIBC.malloc_trim(0)
        return Trimmed(order.id, private_bytes())

    def _predict(self, order: Predict) -> FromWorker:
        model = self._models[order.model]
        try:
            answers = model.predict(order.items, self._sender(order))
        except MemoryError:
            logger.exception("out of memory")
            return Failed(order.id, 507, "Out of resources")
        except Exception:
            logger.exception("prediction failed")
            return Failed(order.id, 503, "Prediction failed")
        if isinstance(answers, tuple):
            return Failed(order.id, *answers)
        longest_bytes = max((len(answer.body) for answer in answers), default=0)
        if longest_bytes > self._max_response_bytes:
            return Failed(order.id, 500, too_long_an_answer(longest_bytes, self._max_response_bytes))
        return Answered(order.id, answers, model.metrics)

    def _sender(self, order: Predict) -> SendPart | None:
        """What sends the parts of its answer, where it is streamed. It raises HandlerError."""
        if not order.items[0].is_streamed or len(order.items) > 1:
            return None
        sent_bytes = 0

        def send_part(content_type: str, body: bytes) -> None:
            nonlocal sent_bytes
            sent_bytes += len(body) + PART_BYTES
            if self._progress.abandoned == order.id:
                raise HandlerError("Nobody waits for the rest of the answer.")
            if sent_bytes > self._max_response_bytes:
                raise HandlerError(too_long_an_answer(sent_bytes, self._max_response_bytes))
            if body:
                self._send(frame(Part(order.id, content_type, body)))

        return send_part


def _confine(order: Confine) -> FromWorker:
    try:
        confine(order)
    except OSError as error:
        return Failed(order.id, 500, f"it cannot be confined: {error}")
    return Done(order.id, 0)


def _try_script(order: TryScript) -> FromWorker:
    try:
        fault = fault_of(Path(order.path), os.environ)
    except Exception as error:
        logger.exception("the container's script could not be tried")
        return failure(error, order)
    return Tried(order.id) if fault is None else Tried(order.id, fault.message, fault.blame.value)


def private_bytes() -> int:
    """Our own resident memory that is no file's, bytes: one line of /proc, read often. 0 where it cannot be read."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return anonymous_bytes(file.read())
    except OSError:  # a model's code has used up the descriptors
        return 0
