"""A server's processes as the kernel sees them: who there is, what they hold, when they are gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
from polyhost.memory import private_bytes

from support.server import Server

T = TypeVar("T")


def wait_until(is_so: Callable[[], T], secs: float, what: str) -> T:
    """The first true answer of `is_so`, asked again and again; a failure that says `what` after `secs`."""
    deadline = time.monotonic() + secs
    while True:
        answer = is_so()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {secs:g} s: {what}"
        time.sleep(0.02)


def living(server: Server) -> list[psutil.Process]:
    """The server's descendants, dead ones that wait for their burial left out; the oldest first."""
    processes = []
    for process in server.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                processes.append(process)
    return sorted(processes, key=lambda process: (process.create_time(), process.pid))


def template_of(server: Server) -> psutil.Process:
    """The process that forks the workers is there before them. Of a server with one Python environment."""
    return living(server)[0]


def workers_of(server: Server) -> list[psutil.Process]:
    return living(server)[1:]


def wait_until_gone(processes: list[psutil.Process], secs: float = 10) -> None:
    """Dead and waiting for a burial that only init can give counts as gone."""
    psutil.wait_procs(processes, timeout=secs)
    left = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(process)
    assert left == []


def open_files(pid: int) -> int:
    """How many descriptors a process has."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def pss_bytes(server: Server) -> int:
    """What all the server's processes use, shared pages in proportion."""
    return sum(pss_by_process(server).values())


def pss_by_process(server: Server) -> dict[int, int]:
    """
    The front's first. Without pages of files: how many of these count depends on who else on the machine has them
    open, another server of ours for example, and no model is made of them.
    """
    return {pid: private_bytes(pid) for pid in [server.process.pid, *(process.pid for process in living(server))]}
