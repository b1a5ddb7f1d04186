"""
Every process that we start ends when we end.

`supervise` runs one command in a session of its own. Orphans of its tree come to us (child subreaper), so
that whatever is left when the command ends is found and killed; as PID 1 of a container we also bury
zombies. Signals are not handled, they are waited for: no code runs between two lines of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

import psutil

logger = logging.getLogger("polyhost")

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TICK_SECS = 0.25


def become_subreaper() -> None:
    """Orphaned descendants become our children instead of init's (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent_pid: int, with_signal: signal.Signals) -> None:
    """Have the kernel send us `with_signal` when our parent dies; at once if it has died already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), with_signal)


def kill_descendants(patience_secs: float = 2.0) -> None:
    """SIGTERM, then SIGKILL, until this process has no descendant left; reaps them."""
    deadline = time.monotonic() + patience_secs
    signalled: set[int] = set()
    while descendants := living_descendants(os.getpid()):
        is_late = time.monotonic() > deadline
        for process in descendants:
            if is_late or process.pid not in signalled:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL if is_late else signal.SIGTERM)
            signalled.add(process.pid)
        psutil.wait_procs(descendants, timeout=0.05)
        reap()
    reap()  # those that were dead already


def reap() -> dict[int, int]:
    """Bury dead children, adopted ones too: exit status by pid."""
    dead = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            dead[pid] = os.waitstatus_to_exitcode(status)
    return dead


def living_descendants(pid: int) -> list[psutil.Process]:
    """All descendants of a process but zombies; none for a process that is gone."""
    living: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    living.append(process)
    return living


def supervise(
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    stop_secs: float,
    on_tick: Callable[[int], bool],
    on_line: Callable[[str], str] | None = None,
) -> int | None:
    """
    Run `command` until it ends or we are told to stop; then end all that came of it.

    `on_tick(pid)` is called four times a second until it answers False; it may raise to give up. `on_line` rewrites
    each line that the command and its descendants print. After a stop signal the command has `stop_secs` to end by
    itself. Returns the command's exit code, or None if it was we who stopped it.
    """
    waited_for = {*_STOP_SIGNALS, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    become_subreaper()
    process = subprocess.Popen(
        command,
        env=dict(environ),
        start_new_session=True,
        preexec_fn=_unblock_signals,  # noqa: PLW1509 - no thread of ours runs yet
        stdout=subprocess.PIPE if on_line else None,
        stderr=subprocess.STDOUT if on_line else None,
    )
    pump = threading.Thread(target=_pump, args=(process.stdout, on_line)) if on_line else None
    if pump:
        pump.start()
    deadline: float | None = None
    is_ticking = True
    try:
        while True:
            received = signal.sigtimedwait(waited_for, _TICK_SECS)
            if received is not None and received.si_signo in _STOP_SIGNALS:
                logger.info("stopping: got %s", signal.Signals(received.si_signo).name)
                deadline = deadline or time.monotonic() + stop_secs
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
            dead = reap()
            if process.pid in dead:
                return None if deadline else dead[process.pid]
            if deadline and time.monotonic() > deadline:
                logger.warning("not stopped within %.0f s: killing", stop_secs)
                return None
            if is_ticking and not deadline:
                is_ticking = on_tick(process.pid)
    finally:
        process.returncode = process.returncode or 0  # we reap by ourselves: Popen must not wait for it again
        kill_descendants()
        if pump:
            pump.join()  # nobody is left who could print
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waited_for)


def _pump(stream: IO[bytes], on_line: Callable[[str], str]) -> None:
    with stream:
        for line in stream:
            sys.stdout.write(on_line(line.decode("utf-8", "replace").rstrip("\n")) + "\n")
            sys.stdout.flush()


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def flush_and_exit(code: int) -> None:
    """End at once, without waiting for threads of libraries."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
