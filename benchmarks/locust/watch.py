"""What a server says of itself while it is loaded: /metrics and its processes, every two seconds."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.locust.figures import Figures, parsed
from benchmarks.locust.processes import ChurnServer

EVERY_SECS = 2.0


@dataclass(frozen=True)
class Look:
    """`moment_secs` since 1970, as Locust writes it. `pss_bytes` of the whole server, `models_bytes` of models."""

    moment_secs: float
    figures: Figures
    models_bytes: int
    pss_bytes: int
    cpu_secs: float


@dataclass
class Watch:
    """Looks at a server from entry to exit of its block."""

    server: ChurnServer
    looks: list[Look] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:  # noqa: PYI034 - Self needs Python 3.11
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(EVERY_SECS):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            figures = parsed(self.server.get("/metrics"))
        except OSError:  # a server that is too busy to say: the next look is in two seconds
            return
        models_bytes = round(figures.memory_ratio * self.server.budget_bytes)
        look = Look(time.time(), figures, models_bytes, self.server.pss_bytes(), self.server.cpu_secs())
        self.looks.append(look)


def rates(looks: Sequence[Look], name: str) -> list[tuple[float, float]]:
    """A total's growth per second, at the end of each interval."""
    return [
        (later.moment_secs, (getattr(later.figures, name) - getattr(earlier.figures, name)) / _between(earlier, later))
        for earlier, later in itertools.pairwise(looks)
    ]


def cpu_shares(looks: Sequence[Look]) -> list[tuple[float, float]]:
    """Busy cores in each interval; a process that ended takes its time with it."""
    return [
        (later.moment_secs, max(0.0, later.cpu_secs - earlier.cpu_secs) / _between(earlier, later))
        for earlier, later in itertools.pairwise(looks)
    ]


def waits_ms(looks: Sequence[Look]) -> list[tuple[float, float]]:
    """The mean wait for a load in each interval that has any, ms."""
    found = []
    for earlier, later in itertools.pairwise(looks):
        count = later.figures.waits - earlier.figures.waits
        if count:
            secs = later.figures.wait_secs - earlier.figures.wait_secs
            found.append((later.moment_secs, secs / count * 1000))
    return found


def _between(earlier: Look, later: Look) -> float:
    return max(0.001, later.moment_secs - earlier.moment_secs)
