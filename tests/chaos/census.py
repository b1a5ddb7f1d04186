"""
What a server holds of the machine: its processes by kind, descriptors, sockets, zombies, temporary files, memory.

This process is a child subreaper while it counts, so what escapes from a server comes to us and is counted, too.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from polyhost.memory import private_bytes

MIB = 1024**2
# What processes call themselves that the unruly model has started (unruly.py).
MODELS_CHILD = "unruly-child"
# A call that holds its neighbours up gets a shared worker for itself, and another one is forked: that is no leak.
_MORE_WORKERS = 2
_DESCRIPTORS_OF_A_WORKER = 6
_MORE_DESCRIPTORS = 10
_MORE_TEMP_FILES = 3
MORE_MEMORY_BYTES = 64 * MIB


@dataclass(frozen=True)
class Census:
    """`processes`: living ones by kind. `strangers`: what they run, of those that no server of ours has started."""

    processes: Mapping[str, int]
    strangers: tuple[str, ...]
    zombies: int
    descriptors: int
    sockets: int
    temp_files: int
    memory_bytes: int


@dataclass(frozen=True)
class Member:
    """A process of a server, and what it is there."""

    process: psutil.Process
    kind: str


def kind_of(command: str, is_child_of_front: bool, leads_session: bool) -> str:
    """
    What a process is, from its command line; "" for a stranger.

    A worker is a fork of its template with the same command line. A template leads a session.
    """
    if " serve" in command or "benchmarks.mms_bare" in command:
        return "front"
    if "artifacts.fetcher" in command:
        return "fetcher"
    if "native.template" in command:
        return "template" if leads_session else "worker" if is_child_of_front else ""
    if command.split(" ", 1)[0].endswith("java"):
        return "java"
    if "model_service_worker" in command or "mms_worker" in command or "polyhost-worker-python" in command:
        return "worker"
    return ""


def members(pid: int) -> list[Member]:
    """The living processes of the server whose front is `pid`, that one first."""
    found: list[Member] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        front = psutil.Process(pid)
        for process in [front, *front.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                command = " ".join(process.cmdline())
                leads_session = os.getsid(process.pid) == process.pid
                is_models = process.name() == MODELS_CHILD
                kind = "" if is_models else kind_of(command, process.ppid() == pid, leads_session)
                found.append(Member(process, kind))
    return found


def take(pid: int, temp_folders: Mapping[str, Path] | None = None) -> Census:
    """Of the server whose front is `pid`. `temp_folders`: where its temporary files lie."""
    family = members(pid)
    escaped = list(_escaped(pid))
    links = [link for member in family if member.kind in {"front", "fetcher", "template"} for link in _links(member)]
    return Census(
        processes=Counter(member.kind for member in family if member.kind),
        strangers=tuple(_words(one.process) for one in family if not one.kind) + tuple(map(_words, escaped)),
        zombies=_zombies(pid),
        descriptors=len(links),
        sockets=sum(link.startswith("socket:") for link in links),
        temp_files=sum(files_in(folder) for folder in (temp_folders or {}).values()),
        memory_bytes=sum(private_bytes(member.process.pid) for member in family),
    )


def leftovers(before: Census, after: Census, more_memory_bytes: int = MORE_MEMORY_BYTES) -> list[str]:
    """What there is more of than before, in words; nothing where the server is as it was."""
    grown = after.processes.get("worker", 0) - before.processes.get("worker", 0)
    allowed = _MORE_DESCRIPTORS + _DESCRIPTORS_OF_A_WORKER * max(0, grown)
    found = []
    for kind in sorted({*before.processes, *after.processes}):
        more = after.processes.get(kind, 0) - before.processes.get(kind, 0)
        if more > (_MORE_WORKERS if kind == "worker" else 0):
            found.append(f"{more} more of the kind {kind}")
        if more < 0 and kind != "worker":
            found.append(f"{-more} fewer of the kind {kind}")
    strangers = Counter(after.strangers) - Counter(before.strangers)
    if strangers:
        found.append(f"{sum(strangers.values())} strange processes ({', '.join(strangers)})")
    if after.zombies > before.zombies:
        found.append(f"{after.zombies} zombies")
    for what, more, limit in (
        ("descriptors", after.descriptors - before.descriptors, allowed),
        ("sockets", after.sockets - before.sockets, allowed),
        ("temporary files", after.temp_files - before.temp_files, _MORE_TEMP_FILES),
    ):
        if more > limit:
            found.append(f"{more} more {what}")
    if after.memory_bytes - before.memory_bytes > more_memory_bytes:
        found.append(f"{(after.memory_bytes - before.memory_bytes) / MIB:.0f} MiB more memory")
    return found


def end_strangers(known: set[int]) -> int:
    """Kill what has escaped from its server to us and is none of `known`; how many there were."""
    count = 0
    for process in psutil.Process().children():
        if process.pid in known:
            continue
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            count += process.status() != psutil.STATUS_ZOMBIE
            process.kill()
            os.waitpid(process.pid, 0)
    return count


def escaped_count(front_pid: int = 0) -> int:
    """How many living processes have come to us that no server holds any more."""
    return sum(1 for _ in _escaped(front_pid))


# Our own children that are no part of a server, moto for example. They are told once, before the first server starts.
own_children: set[int] = set()


def _escaped(front_pid: int) -> Iterator[psutil.Process]:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.pid != front_pid and child.pid not in own_children and child.status() != psutil.STATUS_ZOMBIE:
                yield child


def _words(process: psutil.Process) -> str:
    try:
        name = process.name()
        return name if name == MODELS_CHILD else " ".join(process.cmdline())[:80] or name
    except psutil.NoSuchProcess:
        return "ended meanwhile"


def _links(member: Member) -> Iterator[str]:
    folder = Path(f"/proc/{member.process.pid}/fd")
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                yield os.readlink(folder / name)


def _zombies(pid: int) -> int:
    count = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                count += process.status() == psutil.STATUS_ZOMBIE
    return count


def files_in(folder: Path) -> int:
    return sum(len(files) + len(folders) for _, folders, files in os.walk(folder))
