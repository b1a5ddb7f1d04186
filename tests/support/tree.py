"""A server's processes as the kernel sees them: who there is, what they hold, when they are gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
from polyhost.memory import private_bytes
from polyhost.processes import living_descendants

from support.server import Server

T = TypeVar("T")


def wait_until(is_so: Callable[[], T], secs: float, what: str) -> T:
    """
    The first true answer of `is_so`, asked again and again; a failure that says `what` after `secs`.

    What never comes may take a minute to be missed; what comes late, on a machine that others use too, is not late.
    """
    deadline = time.monotonic() + secs
    while True:
        answer = is_so()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {secs:g} s: {what}"
        time.sleep(0.02)


def any_in(folder: Path, pattern: str) -> bool:
    """Whether there is such a file or folder, where others move and remove folders meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return next(folder.glob(pattern), None) is not None
    return False


def living(server: Server) -> list[psutil.Process]:
    """The server's descendants, dead ones that wait for their burial left out; the oldest first."""
    return sorted(living_descendants(server.process.pid), key=lambda process: (process.create_time(), process.pid))


def command_of(process: psutil.Process) -> list[str]:
    """Its words; none of a process that has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def javas(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if Path([*command_of(process), ""][0]).name == "java"]


def zombies_of(pid: int) -> list[psutil.Process]:
    """Descendants that have ended, and that nobody has buried yet."""
    zombies = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_ZOMBIE:
                zombies.append(process)
    return zombies


def template_of(server: Server) -> psutil.Process:
    """The process that forks the workers is there before them. Of a server with one Python environment."""
    return living(server)[0]


def workers_of(server: Server) -> list[psutil.Process]:
    return living(server)[1:]


def wait_until_gone(processes: list[psutil.Process], secs: float = 60) -> None:
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


def open_sockets(pid: int) -> set[str]:
    """The sockets that a process has, by their inodes: no two are called alike at one time."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder's own descriptor is closed already
            found.add(str(descriptor.readlink()))
    return {name for name in found if name.startswith("socket:")}


def pss_bytes(server: Server) -> int:
    """What all the server's processes use, shared pages in proportion."""
    return sum(pss_by_process(server).values())


def pss_by_process(server: Server) -> dict[int, int]:
    """
    The front's first. Without pages of files: how many of these count depends on who else on the machine has them
    open, another server of ours for example, and no model is made of them.
    """
    return {pid: private_bytes(pid) for pid in [server.process.pid, *(process.pid for process in living(server))]}
