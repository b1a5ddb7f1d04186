"""Memory of a tree of processes, shared pages counted once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def pss_bytes(processes: Iterable[psutil.Process]) -> int:
    """
    The sum of the processes' proportional set sizes.

    A page that n processes share counts as 1/n in each. Processes that end meanwhile count nothing.
    """
    return sum(_pss_bytes_of(process.pid) for process in processes)


def _pss_bytes_of(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
