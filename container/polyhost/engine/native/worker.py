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
from pathlib import Path

from polyhost_handlers.errors import HandlerError

from polyhost.engine.native.framing import frame, received
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
from polyhost.engine.native.models import Model, failure, load_model

logger = logging.getLogger("polyhost.worker")

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
# The kernel that must free memory takes a worker, never the front.
_OOM_SCORE_ADJ = "500"


def run(connection: socket.socket, front_pid: int) -> None:
    """The worker's whole life; called in the forked process."""
    _die_with(front_pid)
    # What a handler starts is in our group, and ends with us.
    os.setpgid(0, 0)
    # Ctrl-C goes to the whole terminal; the front decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    Worker(connection).serve()


def _die_with(front_pid: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != front_pid:
        os._exit(0)


class Worker:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._models: dict[int, Model] = {}

    def serve(self) -> None:
        for order in received(self._connection, ToWorker):
            # One answer at a time: what is not answered when we die was not begun, but for the first.
            self._connection.sendall(frame(self._carry_out(order)))

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
        return Done(order.id, max(0, private_bytes() - before))

    def _unload(self, order: Unload) -> FromWorker:
        before = private_bytes()
        self._models.pop(order.model, None)
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
