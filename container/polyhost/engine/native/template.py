"""
The template: a process that imports the frameworks and forks workers, and does nothing else.

    python -m polyhost.engine.native.template FD MODULE…

It never loads, predicts or opens a session: a fork after an OpenMP region hangs in the child. For each order on
its socket, which carries the worker's end of a socket pair and its page of progress, it forks twice: the worker's
parent ends at once, so that the worker becomes a child of the front (a subreaper) and outlives the template.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import socket
import sys
import time

from polyhost.engine.native import worker
from polyhost.engine.native.framing import Progress
from polyhost.log import configure

_PR_SET_PDEATHSIG = 1
logger = logging.getLogger("polyhost.template")


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    front_pid = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure(os.environ.get("POLYHOST_LOG_FORMAT", "text"))
    for module in sys.argv[2:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    while True:
        order, descriptors, _, _ = socket.recv_fds(control, 16, 2)
        if not order:
            return
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)  # programs that a model starts must not hold a worker's socket
        connection = socket.socket(fileno=descriptors[0])
        pid = _fork_worker(connection, descriptors[1], control, front_pid)
        connection.close()
        os.close(descriptors[1])
        control.sendall(pid.to_bytes(4, "little"))


def _fork_worker(connection: socket.socket, page: int, control: socket.socket, front_pid: int) -> int:
    """The worker's process id, told through a pipe by the parent that it outlives."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            os.write(writer, pid.to_bytes(4, "little"))
            os._exit(0)
        os.close(reader)
        os.close(writer)
        control.close()
        _run_worker(connection, page, parent, front_pid)
    os.close(writer)
    os.waitpid(middle, 0)
    pid = int.from_bytes(os.read(reader, 4), "little")
    os.close(reader)
    return pid


def _run_worker(connection: socket.socket, page: int, parent: int, front_pid: int) -> None:
    code = 1
    try:
        # Only when the parent between us has ended, an instant from now, are we the front's.
        while os.getppid() == parent:
            time.sleep(0.0001)
        worker.run(connection, Progress(page), front_pid)
        code = 0
    except (BrokenPipeError, ConnectionError):
        code = 0
    except BaseException:
        logger.exception("the worker failed")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
