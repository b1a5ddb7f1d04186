"""
Hosts, and what they cost a month: one or several that share the models, or an endpoint of its own for each.

Arithmetic only; prices are the user's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from polyhost.memory import DEFAULT_SHARE
from polyhost.sizing.simulate import Replay

# As in AWS's own example: 30 days.
HOURS_PER_MONTH = 720
# How much of a host's CPUs may be busy on average. Beyond it, requests begin to wait for each other.
CPU_SHARE = 0.6
_GIB = 1024**3
_HOST = re.compile(r"(?P<name>[^=]+)=(?P<gib>[\d.]+):(?P<cpus>[\d.]+):(?P<price>[\d.]+)")


@dataclass(frozen=True)
class Host:
    """A kind of host that can be had."""

    name: str
    memory_bytes: int
    cpus: float
    price_per_hour: float

    def room_bytes(self, idle_bytes: int) -> int:
        """For models: a server's own default for --memory-budget."""
        return max(0, int(self.memory_bytes * DEFAULT_SHARE) - idle_bytes)


def parse_host(text: str) -> Host:
    """`NAME=GiB:CPUS:PRICE_PER_HOUR`. Raises ValueError."""
    match = _HOST.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        gib, cpus, price = float(match["gib"]), float(match["cpus"]), float(match["price"])
    except ValueError:
        raise ValueError(f"'{text}' is not NAME=GiB:CPUS:PRICE_PER_HOUR, for example c5.large=4:2:0.085") from None
    if not gib or not cpus:
        raise ValueError(f"'{text}' has no memory or no CPU")
    return Host(match["name"].strip(), int(gib * _GIB), cpus, price)


def monthly(hosts: int, price_per_hour: float) -> float:
    return hosts * price_per_hour * HOURS_PER_MONTH


@dataclass(frozen=True)
class Demand:
    """`requests_per_sec`: None where nobody said; then CPUs do not count. The costs are of one core, seconds."""

    requests_per_sec: float | None
    call_cpu_secs: float
    load_cpu_secs: float

    def busy_cpus(self, load_ratio: float) -> float:
        return (self.requests_per_sec or 0.0) * (self.call_cpu_secs + load_ratio * self.load_cpu_secs)


@dataclass(frozen=True)
class Layout:
    """
    So many hosts of one kind. `endpoints`: 1, or one for each model. `shards`: among how many hosts the models of an
    endpoint are divided; each shard is there `hosts / shards / endpoints` times.
    """

    host: Host
    hosts: int
    shards: int
    endpoints: int
    replayed: Replay | None

    @property
    def price_per_month(self) -> float:
        return monthly(self.hosts, self.host.price_per_hour)


Simulation = Callable[[int, int], Replay]
"""Traffic on that many hosts with so many bytes for models each."""


def shared(
    host: Host, *, copies: int, least_hosts: int, idle_bytes: int, largest_bytes: int, load: Demand,
    simulate: Simulation, is_enough: Callable[[Replay], bool], max_shards: int,
) -> Layout | None:  # fmt: skip
    """
    The fewest hosts of a kind that serve all models as well as it is wanted; None if none of their number does.

    `least_hosts`: below it, it need not be tried. Each model is on `copies` of them.
    """
    room_bytes = host.room_bytes(idle_bytes)
    if room_bytes < largest_bytes:
        return None
    for shards in range(max(1, least_hosts), max_shards + 1):
        replayed = simulate(shards, room_bytes)
        if is_enough(replayed):
            for_cpu = math.ceil(load.busy_cpus(replayed.load_ratio) / (host.cpus * CPU_SHARE))
            # Further copies of the same shards: the shares of traffic become smaller, what is in memory stays.
            hosts = shards * max(copies, math.ceil(for_cpu / shards))
            return Layout(host, hosts, shards, 1, replayed)
    return None


def one_each(
    hosts: Iterable[Host], *, models: int, copies: int, idle_bytes: int, largest_bytes: int, load: Demand
) -> Layout | None:
    """An endpoint for each model, on the cheapest hosts that hold the largest."""
    fitting = [host for host in hosts if host.room_bytes(idle_bytes) >= largest_bytes]
    if not fitting:
        return None
    host = min(fitting, key=lambda host: (host.price_per_hour, host.name))
    for_cpu = math.ceil(load.busy_cpus(0.0) / (host.cpus * CPU_SHARE))
    return Layout(host, max(models * copies, for_cpu), 1, models, None)


def cheapest(layouts: Sequence[Layout]) -> Layout:
    return min(layouts, key=lambda layout: (layout.price_per_month, layout.hosts, layout.host.name))
