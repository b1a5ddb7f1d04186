"""
Every process that we start ends when we end.

Orphans of our tree come to us (child subreaper), so that whatever is left when its parent ends is found and
killed; as PID 1 of a container we also bury zombies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time

import psutil

_PR_SET_PDEATHSIG = 1
_MAX_FILES = 1024**2
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Orphaned descendants become our children instead of init's (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def allow_many_files() -> None:
    """Each worker and each connection takes a few descriptors: as many as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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


def has_ended(pid: int, timeout_secs: float) -> bool:
    """Wait for a process, not necessarily our child, to end. One that its parent has not buried yet has ended."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], timeout_secs)[0])
    finally:
        os.close(process)


def flush_and_exit(code: int) -> None:
    """End at once, without waiting for threads of libraries."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class CpuMeter:
    """What this process and all below it use of CPUs, between one look and the next."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}
        self._looked_at = time.monotonic()

    def cores(self) -> float:
        """1.0 is one whole core. A process that ended between two looks is not seen any more."""
        used: dict[int, float] = {}
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
        now = time.monotonic()
        spent = sum(max(0.0, secs - self._seen.get(pid, 0.0)) for pid, secs in used.items())
        elapsed, self._seen, self._looked_at = now - self._looked_at, used, now
        return spent / elapsed if elapsed > 0 else 0.0
