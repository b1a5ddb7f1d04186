"""
The template: a process that imports the frameworks and forks workers, and does nothing else.

    python -m polyhost.engine.native.template FD MODULE…

It never loads, predicts or opens a session: a fork after an OpenMP region hangs in the child. For each order on
its socket, which carries what the worker needs from its beginning, it forks twice: the worker's parent ends at once,
so that the worker becomes a child of the front (a subreaper) and outlives the template.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

from polyhost.engine.native import worker
from polyhost.engine.native.segments import Readable
from polyhost.framing import Progress
from polyhost.log import configure
from polyhost.processes import BECOMES_A_WORKER, die_with_parent, mark_descendants

logger = logging.getLogger("polyhost.template")


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    front_pid = os.getppid()
    die_with_parent(front_pid, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure(os.environ.get("POLYHOST_LOG_FORMAT", "text"))
    gc.disable()  # imports make much and drop little: looking through it takes a tenth of their time
    for module in sys.argv[2:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.freeze()
    gc.enable()
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, 16, 3)
        if not order:
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # programs that a model starts must not hold a worker's socket
        pid = _fork_worker(descriptors, control, front_pid)
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(pid.to_bytes(4, "little"))


def _fork_worker(descriptors: Sequence[int], control: socket.socket, front_pid: int) -> int:
    """
    The worker's process id, told through a pipe by the parent that it outlives.

    `descriptors`: its socket, its page of progress, and of a worker that reads compiled models what passes them.
    """
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        mark_descendants(BECOMES_A_WORKER)
        parent = os.getpid()
        pid = os.fork()
        if pid:
            os.write(writer, pid.to_bytes(4, "little"))
            os._exit(0)
        os.close(reader)
        os.close(writer)
        control.close()
        _run_worker(descriptors, parent, front_pid)
    os.close(writer)
    os.waitpid(middle, 0)
    pid = int.from_bytes(os.read(reader, 4), "little")
    os.close(reader)
    return pid


def _run_worker(descriptors: Sequence[int], parent: int, front_pid: int) -> None:
    code = 1
    try:
        # Only when the parent between us has ended, an instant from now, are we the front's.
        while os.getppid() == parent:
            time.sleep(0.0001)
        connection, page, *channel = descriptors
        readable = Readable(socket.socket(fileno=channel[0])) if channel else None
        worker.run(socket.socket(fileno=connection), Progress(page), front_pid, readable)
        code = 0
    except (BrokenPipeError, ConnectionError):
        code = 0
    except worker.SocketLost as lost:
        logger.error("worker %d: a model's code has closed its socket, or used it: %s", os.getpid(), lost)  # noqa: TRY400
    except BaseException:
        logger.exception("the worker failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
