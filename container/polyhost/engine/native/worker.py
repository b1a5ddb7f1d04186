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
from pathlib import Path

from polyhost_handlers.errors import HandlerError

from polyhost.engine.native.framing import Progress, frame, received
from polyhost.engine.native.messages import (
    Answered,
    Done,
    Failed,
    FromWorker,
    Keep,
    Load,
    Predict,
    ToWorker,
    Trim,
    Unload,
)
from polyhost.engine.native.models import Model, PlainModel, failure, load_model

logger = logging.getLogger("polyhost.worker")

_FIRST_FREEZE = 512  # models
_QUICK_SECS = 0.001
_QUICK_BYTES = 4096
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
# The kernel that must free memory takes a worker, never the front.
_OOM_SCORE_ADJ = "500"


def run(connection: socket.socket, progress: Progress, front_pid: int) -> None:
    """The worker's whole life; called in the forked process."""
    _die_with(front_pid)
    # What a handler starts is in our group, and ends with us.
    os.setpgid(0, 0)
    # Where CPUs are short the front goes first, which feeds us all.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # Ctrl-C goes to the whole terminal; the front decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    Worker(connection, progress).serve()


def _die_with(front_pid: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != front_pid:
        os._exit(0)


class Worker:
    def __init__(self, connection: socket.socket, progress: Progress) -> None:
        self._connection = connection
        self._progress = progress
        self._models: dict[int, Model] = {}
        self._next_freeze = _FIRST_FREEZE
        # Models whose last call took next to no time, and whose calls may be repeated.
        self._quick: set[int] = set()

    def serve(self) -> None:
        """Answers to quick calls that are there at once are sent together; none waits for a call that takes time."""
        answers = bytearray()
        since = 0.0
        for order, is_next_there in received(self._connection, ToWorker):
            if answers and not self._is_quick(order):
                self._connection.sendall(answers)
                answers = bytearray()
            begin = time.perf_counter()
            if not answers:
                since = begin
            self._progress.begin(order.id)
            answers += frame(self._carry_out(order))
            self._progress.begin(0)  # a front that is late to read the answer must not take us for slow
            end = time.perf_counter()
            self._remember(order, end - begin)
            if not is_next_there or end - since > _QUICK_SECS:
                self._connection.sendall(answers)
                answers = bytearray()

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
        if isinstance(order, Keep):
            self._models = {number: model for number, model in self._models.items() if number == order.model}
        return self._trim(order)

    def _load(self, order: Load) -> FromWorker:
        before = private_bytes()
        try:
            self._models[order.model] = load_model(order)
        except SystemExit as error:
            return Failed(order.id, 500, f"Unable to load model: its code called exit({error.code}).")
        except Exception as error:
            if not isinstance(error, (MemoryError, HandlerError)):
                logger.exception("model %s: not loaded", order.name)
            gc.collect()
            return failure(error, order)
        if len(self._models) >= self._next_freeze:
            gc.freeze()  # looking through thousands of models for garbage would hold requests up
            self._next_freeze *= 2
        return Done(order.id, max(0, private_bytes() - before))

    def _unload(self, order: Unload) -> FromWorker:
        before = private_bytes()
        self._models.pop(order.model, None)
        self._quick.discard(order.model)
        return Done(order.id, private_bytes() - before)

    def _trim(self, order: Trim | Keep) -> FromWorker:
        before = private_bytes()
        gc.collect()
        _LIBC.malloc_trim(0)
        return Done(order.id, private_bytes() - before)

    def _predict(self, order: Predict) -> FromWorker:
        model = self._models[order.model]
        try:
            answers = model.predict(order.items)
        except MemoryError:
            logger.exception("out of memory")
            return Failed(order.id, 507, "Out of resources")
        except Exception:
            logger.exception("prediction failed")
            return Failed(order.id, 503, "Prediction failed")
        if isinstance(answers, tuple):
            return Failed(order.id, *answers)
        return Answered(order.id, answers, model.metrics)


def private_bytes() -> int:
    """Our own resident memory that is no file's, bytes: one line of /proc, read often."""
    with open("/proc/self/statm", "rb") as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * _PAGE_BYTES


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
