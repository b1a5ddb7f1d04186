"""Several fronts on one port: requests per second where there are cores for them, and what is to be expected else."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.artifacts import BOOSTERS, Artifacts
from benchmarks.endpoint import EndpointServer, archives, ask, load_of
from benchmarks.load import measure

Add = Callable[[str, float], None]

FRONTS = (1, 2, 4, 8)
# Each front has as many, so that it always has something to do.
_CONNECTIONS_EACH = 16
_US = 1e6


def measurable(cores: int) -> list[int]:
    """How many fronts can be measured: wrk and the kernel's network need as many cores as the fronts do."""
    return [fronts for fronts in FRONTS if fronts <= max(2, cores // 2)]


def measure_cores(artifacts: Artifacts, repeats: int, secs: int, cores: int, add: Add) -> None:
    """
    Requests/s at an endpoint, and the CPU time of one in all processes, by the number of fronts; A B A B …

    `modelled`: what so many fronts answer where each has a core of its own, by the CPU time of a request with as many
    fronts as could be measured.
    """
    counts = measurable(cores)
    with tempfile.TemporaryDirectory(prefix="ph-bench-") as temp, contextlib.ExitStack() as running:
        folder = Path(temp)
        (folder / "models").mkdir()
        targets = archives(artifacts, folder / "models", BOOSTERS)
        servers = {}
        for fronts in counts:
            server = EndpointServer(str(folder / "models"), folder / f"state{fronts}", "--fronts", str(fronts))
            servers[fronts] = running.enter_context(server)
            ask(server, targets)
        for turn in range(-1, repeats):  # the first one warms up
            for fronts, server in servers.items():
                per_sec, microsecs = _measured(server, fronts, targets, secs)
                if turn < 0:
                    continue
                add(f"per_sec_{fronts}", per_sec)
                add(f"cpu_us_{fronts}", microsecs)
                if fronts == counts[-1]:
                    for more in FRONTS[len(counts) :]:
                        add(f"modelled_per_sec_{more}", more * _US / microsecs)


def _measured(server: EndpointServer, fronts: int, targets: list[str], secs: int) -> tuple[float, float]:
    """Requests/s, and microseconds of CPU time of one."""
    load = load_of(server.port, targets, is_signed=False)
    before = _cpu_secs(server)
    figures = measure(load, connections=_CONNECTIONS_EACH * fronts, secs=secs)
    used = _cpu_secs(server) - before
    return figures.requests_per_sec, used * _US / (figures.requests_per_sec * secs)


def _cpu_secs(server: EndpointServer) -> float:
    times = [process.cpu_times() for process in server.processes()]
    return sum(one.user + one.system for one in times)
