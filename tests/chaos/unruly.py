"""
The script of a model that answers its own constant, and first does what no model should when a request says so.

It goes into archives as `code/inference.py`: it imports nothing of ours. A request's body is `ORDER ARGUMENT`; any
other body is an ordinary call. What takes memory, disk or processes is bounded by its argument.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

MIB = 1024**2
_kept: list[bytearray] = []


def leak(mib: str) -> None:
    _kept.append(bytearray(os.urandom(MIB)) * int(mib))


def hang(secs: str) -> None:
    time.sleep(float(secs))


def wait_for_lock(path: str) -> None:
    """Until nobody else holds it."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def leave(code: str) -> None:
    os._exit(int(code))


def crash(_: str) -> None:
    ctypes.string_at(0)


def stop(_: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def throw(text: str) -> None:
    raise ValueError(text)


def write_lines(mib: str) -> None:
    line = "y" * 1023 + "\n"
    for _ in range(int(mib) * 1024):
        sys.stdout.write(line)
    sys.stdout.flush()


def fork(count: str) -> None:
    """Children that outlive the call."""
    for _ in range(int(count)):
        if os.fork() == 0:
            _linger()


def become_daemons(count: str) -> None:
    """As daemons do it: a fork, a session of its own, another fork."""
    for _ in range(int(count)):
        middle = os.fork()
        if middle:
            os.waitpid(middle, 0)
            continue
        os.setsid()
        if os.fork() == 0:
            _linger()
        os._exit(0)


def _linger() -> None:
    """Under a name that tells it from the worker, whose fork it is. Not for ever, whoever may have forgotten it."""
    Path("/proc/self/comm").write_text("unruly-child")
    time.sleep(600)
    os._exit(0)


def daemon_and_leave(count: str) -> None:
    """The daemons hold what the process had open, its socket too, when it ends."""
    become_daemons(count)
    os._exit(3)


def fill(folder: str) -> None:
    """Until the disk is full, at most a gibibyte."""
    with open(Path(folder) / "filled", "wb") as file:
        try:
            file.writelines(bytes(MIB) for _ in range(1024))
        except OSError:
            return


def close_descriptors(_: str) -> None:
    os.closerange(0, 4096)


def ignore_signals(_: str) -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)


def answer_huge(_: str) -> None:
    """Handled in `transform_fn`: 100 MB instead of the constant."""


ORDERS = {
    one.__name__: one
    for one in (
        leak, hang, wait_for_lock, leave, crash, stop, throw, write_lines, fork, become_daemons, daemon_and_leave, fill,
        close_descriptors, ignore_signals, answer_huge,
    )
}  # fmt: skip


def model_fn(model_dir: str) -> str:
    return (Path(model_dir) / "value.txt").read_text()


def transform_fn(value: str, body: str | bytes, content_type: str, accept: str) -> tuple[str, str]:
    text = body if isinstance(body, str) else body.decode()
    order, _, argument = text.partition(" ")
    if order in ORDERS:
        ORDERS[order](argument)
    return ("y" * 100 * MIB if order == "answer_huge" else value), "text/plain"
