"""
How much memory there is, how much the models use, and the guard that says "not now" before the harm.

The budget is for models. What counts against it is measured (the private pages of the workers), not summed
up from estimates; an estimate only says what a model that is about to load will add, and it alone never
refuses a model that has the server to itself.

Standard library only: handlers import this module inside workers of every Python environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# The models' share of the container's memory. The rest is for page cache and bursts of requests.
DEFAULT_SHARE = 0.8

# A worker of Multi Model Server before it has imported any framework and after: measured, rounded up.
FIRST_LOAD_BYTES = 48 * 1024**2

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_WORKER_SCRIPT = b"model_service_worker.py"
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # v2
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # v1
)


def default_budget_bytes() -> int:
    """What models may use where the operator names no budget, before what the server itself uses is taken off."""
    return int(memory_limit_bytes() * DEFAULT_SHARE)


def memory_limit_bytes(cgroup_files: Sequence[Path] | None = None) -> int:
    """The smaller of the machine's memory and the limits of the container or of a systemd unit, bytes."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    files = [*_CGROUP_LIMITS, *_own_cgroup_limits()] if cgroup_files is None else cgroup_files
    return min([machine, *(limit for path in files if (limit := _cgroup_limit(path)) is not None)])


def _own_cgroup_limits(cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Outside a container a unit's limit is not at the root: in our own cgroup (v2) and those above it."""
    with contextlib.suppress(OSError):
        for line in cgroup.read_text().splitlines():
            if line.startswith("0::/"):
                own = root / line[len("0::/") :]
                return [folder / "memory.max" for folder in (own, *own.parents) if folder.is_relative_to(root)]
    return []


def cpu_limit(root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many CPUs this container may use, at least 1; `os.cpu_count()` does not know its quota."""
    available = len(os.sched_getaffinity(0))
    quota = _cpu_quota(root)
    return available if quota is None else max(1, min(available, round(quota)))


def _cpu_quota(root: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        micros = int((root / "cpu/cpu.cfs_quota_us").read_text())
        return None if micros <= 0 else micros / int((root / "cpu/cpu.cfs_period_us").read_text())
    return None


def _cgroup_limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) > 0 else None


def private_bytes(pid: int) -> int:
    """
    The memory of a process that is no file's, pages that it shares with others counted in proportion.

    0 for a process that is gone. A worker of MMS is a fork of its parent: what both still share counts once.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(
        int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
    )


def anonymous_bytes(statm: str | bytes) -> int:
    """
    The resident memory that is no file's, bytes, of the process whose /proc/PID/statm this is.

    What it shares with its forks counts whole. It is much quicker to read than what `private_bytes` reads.
    """
    _, resident, shared, *_ = statm.split()
    return (int(resident) - int(shared)) * _PAGE_BYTES


@dataclass(frozen=True)
class Usage:
    """What the server's processes use, bytes: models in workers, and everything else."""

    workers_bytes: int
    server_bytes: int


def measure_session(session_id: int) -> Usage:
    """The usage of all processes of a session, which is how a server and its workers belong together."""
    workers = server = 0
    for pid in _pids_of_session(session_id):
        if _WORKER_SCRIPT in _command_line(pid):
            workers += private_bytes(pid)
        else:
            server += private_bytes(pid)
    return Usage(workers, server)


def _pids_of_session(session_id: int) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry)) == session_id:
                    yield int(entry)


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@dataclass(frozen=True)
class PastLoad:
    """What one load cost: the archive's bytes and what the worker grew by."""

    artifact_bytes: int
    grown_bytes: int


def estimate_bytes(artifact_bytes: int, seen: Sequence[PastLoad]) -> int:
    """
    What loading an archive of that size will add, from loads of its kind seen before.

    A part that every load of the kind pays (its framework's private pages) and a part per byte of archive.
    """
    if not seen:
        return FIRST_LOAD_BYTES + artifact_bytes
    base = min(load.grown_bytes for load in seen)
    per_byte = max((load.grown_bytes - base) / max(load.artifact_bytes, 1) for load in seen)
    # Small archives differ by noise, not by their size: no more than a byte of archive can reasonably unpack to.
    return base + int(artifact_bytes * min(max(per_byte, 1.0), 16.0))


def fits(need_bytes: int, budget_bytes: int, used_bytes: int, reserved_bytes: int, *, is_alone: bool) -> bool:
    """Whether a load may begin. A model that has the server to itself may always try."""
    return is_alone or used_bytes + reserved_bytes + need_bytes <= budget_bytes


class Guard:
    """
    Admits loads while they fit, over all workers of one server.

    The book is a folder that the server made: a lock, reservations of loads under way (a file per process),
    and what loads of each kind have cost (a file per kind).
    """

    # How many past loads of a kind are worth remembering.
    _REMEMBERED = 32

    def __init__(self, book: Path, budget_bytes: int | None) -> None:
        self._book = book
        self._budget_bytes = budget_bytes

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Guard:
        budget = environ.get("POLYHOST_MEMORY_BUDGET_BYTES")
        return cls(Path(environ["POLYHOST_MEMORY_BOOK"]), int(budget) if budget else None)

    @contextlib.contextmanager
    def admit(self, kind: str, artifact_bytes: int) -> Iterator[None]:
        """
        Run the block, which loads a model, if the model is likely to fit; learn what it cost.

        Raises MemoryError.
        """
        need = estimate_bytes(artifact_bytes, self._seen(kind))
        reservation = self._book / f"loading-{os.getpid()}"
        with self._locked():
            self._check(need)
            reservation.write_text(str(need))
        before = private_bytes(os.getpid())
        try:
            yield
        finally:
            reservation.unlink(missing_ok=True)
        self._remember(kind, PastLoad(artifact_bytes, max(0, private_bytes(os.getpid()) - before)))

    def _check(self, need_bytes: int) -> None:
        usage = measure_session(os.getsid(0))
        budget = self._budget_bytes
        if budget is None:
            budget = default_budget_bytes() - usage.server_bytes
        # A worker of MMS is two processes, unless the model is loaded before the second is forked.
        pair = [pid for pid in (os.getpid(), os.getppid()) if _WORKER_SCRIPT in _command_line(pid)]
        own = sum(private_bytes(pid) for pid in pair)
        reserved = sum(self._reservations())
        is_alone = usage.workers_bytes <= own and not reserved
        if not fits(need_bytes, budget, usage.workers_bytes, reserved, is_alone=is_alone):
            raise MemoryError(
                f"the model needs about {mib(need_bytes)}, models use {mib(usage.workers_bytes + reserved)} "
                f"of {mib(budget)}: unload some, or give more with --memory-budget",
            )

    def _reservations(self) -> Iterable[int]:
        """The reservations of loads under way. One that its dead process left behind does not count."""
        for path in self._book.glob("loading-*"):
            if not Path(f"/proc/{path.name.removeprefix('loading-')}").exists():
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(OSError, ValueError):
                yield int(path.read_text())

    def _seen(self, kind: str) -> list[PastLoad]:
        with contextlib.suppress(OSError):
            lines = (self._book / f"seen-{kind}").read_text().splitlines()
            return [PastLoad(*json.loads(line)) for line in lines[-self._REMEMBERED :]]
        return []

    def _remember(self, kind: str, load: PastLoad) -> None:
        with (self._book / f"seen-{kind}").open("a") as file:
            file.write(json.dumps([load.artifact_bytes, load.grown_bytes]) + "\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._book / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def mib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**2:.0f} MiB"
