"""
Every process that we start ends when we end.

Orphans of our tree come to us (child subreaper), so that whatever is left when its parent ends is found and
killed; as PID 1 of a container we also bury zombies.

A server marks itself, a worker marks itself further, and with that whatever they will start. So orphans tell from
which server and which worker they come.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import secrets
import select
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_MAX_FILES = 1024**2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# A little more than uvloop reads at once, 256 KiB: that would be fresh memory each time otherwise.
_LARGE_BLOCK_BYTES = 260 * 1024
_PR_SET_CHILD_SUBREAPER = 36
# The kernel has not obeyed this limit since Linux 2.4. But a process inherits it through fork, exec and setsid, and
# cannot raise it without privileges. That makes it a mark that a model's daemon does not lose.
_RLIMIT_LOCKS = 10
# A mark has the number of a server above these bits, and in them what the process is there: a worker's descendants have
# the worker's process id, which is below 2**22. The rest is above all ids, because a mark can only be lowered.
_MARK_BITS = 23
_OF_THE_SERVER = 2**_MARK_BITS - 1
BECOMES_A_WORKER = 2**22
_MOST_LOOKS_AT_MARKED, _BETWEEN_LOOKS_SECS = 100, 0.02
_MOST_LOOKS_AT_DESCENDANTS = 10


def become_subreaper() -> None:
    """Orphaned descendants become our children instead of init's (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def hide() -> None:
    """Nobody but root reads our memory or environment, not even processes of the same user: model code is such."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def allow_many_files() -> None:
    """Each worker and each connection takes a few descriptors: as many as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def give_back_large_blocks() -> None:
    """
    Have freed blocks of 260 KiB and more go back to the system: bodies and answers of clients, TLS's buffers.

    The C library does so until it has freed some, and keeps larger ones from then on: 20 uploads of 6 MB over TLS left
    370 MB in the front, and leave 20 with this.
    """
    with contextlib.suppress(AttributeError):  # not every C library has it, nor this way to keep memory
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 4 * _LARGE_BLOCK_BYTES)


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


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that it has started, from the top: none of them reacts to the end of others."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *living_descendants(pid)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


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


def mark_server() -> int:
    """
    Mark this process as a server, and all that it will start. Returns the number that tells it from other servers.

    It is 0, and nothing is marked, where somebody has set the limit already: inside a model of another server, say.
    """
    if resource.getrlimit(_RLIMIT_LOCKS)[1] != resource.RLIM_INFINITY:
        return 0
    number = secrets.randbits(38) or 1
    _set_mark(number << _MARK_BITS | _OF_THE_SERVER)
    return number


def mark_descendants(mark: int) -> None:
    """Mark this process and all that it will start. A server inside a model of another server cannot: it goes on."""
    inherited = resource.getrlimit(_RLIMIT_LOCKS)[1]
    number = 0 if inherited == resource.RLIM_INFINITY else inherited >> _MARK_BITS
    with contextlib.suppress(ValueError, OSError):
        _set_mark(number << _MARK_BITS | mark)


def _set_mark(mark: int) -> None:
    resource.setrlimit(_RLIMIT_LOCKS, (mark, mark))


def end_marked(number: int) -> int:
    """Kill all processes that a server with this number has left: how many there were. It is not running any more."""
    ended: set[int] = set()
    for _ in range(_MOST_LOOKS_AT_MARKED if number else 0):
        killed = {pid for pid in psutil.pids() if _kill_if_marked(pid, number)}
        if not killed:
            break
        ended |= killed
        time.sleep(_BETWEEN_LOOKS_SECS)  # what they have started meanwhile comes next
    return len(ended)


def _kill_if_marked(pid: int, number: int) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        process = os.pidfd_open(pid)  # from now on the id is this process's
        try:
            mark = resource.prlimit(pid, _RLIMIT_LOCKS)[1]
            if is_of_server(mark, number) and not has_ended(pid, 0):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                return True
        finally:
            os.close(process)
    return False


def is_of_server(mark: int, number: int) -> bool:
    return number > 0 and mark != resource.RLIM_INFINITY and mark >> _MARK_BITS == number


def end_orphans(workers: Collection[int], *, is_forking: bool) -> bool:
    """
    Kill the children of this process that dead workers have left, and bury those that are dead.

    `workers` are the ids of the workers that live or are not buried yet; `is_forking` says that a worker is being
    started whose id is not known yet. Returns whether to look again soon: what a killed child has started becomes
    our child when it has ended.
    """
    has_killed = False
    for pid in _children():
        mark = _mark_of(pid)
        if not is_adopted(pid, mark, workers, is_forking=is_forking):
            continue
        with contextlib.suppress(ProcessLookupError, ChildProcessError, PermissionError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0 and mark not in workers:
                os.kill(pid, signal.SIGKILL)  # it is our child and not buried: the id is its own
                has_killed = True
    return has_killed


def end_children_of_the_dead() -> None:
    """
    Kill the children of this process that come from workers which have ended.

    They became our children when their own parent ended. Unlike `end_orphans` this needs not know the workers.
    """
    for pid in _children():
        mark = _mark_of(pid)
        if mark not in (None, pid) and has_ended(mark, 0):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def is_adopted(pid: int, mark: int | None, workers: Collection[int], *, is_forking: bool) -> bool:
    """Whether a child with this mark became ours when its parent had ended, as only workers' descendants do."""
    if mark is None or pid in workers:
        return False
    return not (is_forking and mark in (pid, BECOMES_A_WORKER))


def _mark_of(pid: int) -> int | None:
    """None for a process that comes from no worker of ours, or that we may not ask."""
    with contextlib.suppress(OSError):
        return worker_of(resource.prlimit(pid, _RLIMIT_LOCKS)[1], resource.getrlimit(_RLIMIT_LOCKS)[1])
    return None


def worker_of(mark: int, own_mark: int) -> int | None:
    """What a child's mark says below our own one: None for a process that comes from no worker of ours."""
    if mark in (resource.RLIM_INFINITY, own_mark):
        return None
    number = 0 if own_mark == resource.RLIM_INFINITY else own_mark >> _MARK_BITS
    return mark - (number << _MARK_BITS) if mark >> _MARK_BITS == number else mark


def _children() -> list[int]:
    """The ids of our children. None where the kernel does not list them (it lacks CONFIG_PROC_CHILDREN)."""
    pids: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            pids += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    return pids


def living_descendants(pid: int) -> list[psutil.Process]:
    """
    All descendants of a process but zombies; none for a process that is gone.

    Where one of them ends during a look, what it has started is not seen. So it is looked until two looks agree.
    """
    seen = _look_at_descendants(pid)
    for _ in range(_MOST_LOOKS_AT_DESCENDANTS):
        before, seen = seen, _look_at_descendants(pid)
        if seen == before:
            break
    return seen


def _look_at_descendants(pid: int) -> list[psutil.Process]:
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


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process, SIGSTOP for example."""
    return state_of(pid) == b"T"


def state_of(pid: int) -> bytes:
    """As in proc(5): R is running or ready to run. Empty when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return b""
    return stat.rpartition(b") ")[2][:1]


def flush_and_exit(code: int) -> None:
    """End at once, without waiting for threads of libraries."""
    logging.shutdown()
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
