"""
A million models on fifty hosts, simulated: `python -m benchmarks.simulate_fleet [--models N] [--hosts N] …`.

Requests are drawn by Zipf's law. A policy says which host each one goes to; each host keeps the models that were asked
for last.

It prints, for each policy and exponent, the share of requests that find their model in memory, the load of the busiest
hosts (the 99th percentile over the mean; a miss costs 25 hits), and which share of the first 100,000 requests after a
host has died is cold.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEED = 20261126
HIT_MS, MISS_MS = 1.0, 25.0
# Requests that are looked at after a host has died.
_AFTER_DEATH = 100_000
Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Size:
    """`room`: how many models each host keeps. `requests`: that are counted, after as many that fill the caches."""

    models: int = 1_000_000
    hosts: int = 50
    room: int = 20_000
    requests: int = 2_000_000


class Ring:
    """Consistent hashing: `points` for each host, as HAProxy has 16 for each unit of weight."""

    def __init__(self, hosts: int, points: int, random: np.random.Generator) -> None:
        self.places = random.integers(0, 2**63, hosts * points)
        order = np.argsort(self.places)
        self.places = self.places[order]
        self.owners = np.repeat(np.arange(hosts), points)[order]

    def homes(self, keys: Numbers, dead: int | None = None) -> Numbers:
        places, owners = self.places, self.owners
        if dead is not None:
            places, owners = places[owners != dead], owners[owners != dead]
        return owners[np.searchsorted(places, keys) % len(owners)]


def hashed(numbers: Numbers, salt: int | Numbers = 0) -> Numbers:
    """Evenly spread over 63 bits (the finalizer of splitmix64)."""
    mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * (
        np.asarray(salt).astype(np.uint64) + np.uint64(1)
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


class Policy:
    """`hosts_of`: of models that are asked for; a host that has died gets nothing."""

    name: str

    def __init__(self, size: Size, shares: NDArray[np.float64], random: np.random.Generator) -> None:
        self.size, self.shares, self.random = size, shares, random
        self.ring = Ring(size.hosts, self.points, random)

    points = 1600

    def hosts_of(self, models: Numbers, dead: int | None) -> Numbers:
        raise NotImplementedError


class Random(Policy):
    name = "random"

    def hosts_of(self, models: Numbers, dead: int | None) -> Numbers:
        alive = [host for host in range(self.size.hosts) if host != dead]
        return self.random.choice(np.array(alive), len(models))


class Hash(Policy):
    name = "consistent hash, 1,600 points per host"

    def hosts_of(self, models: Numbers, dead: int | None) -> Numbers:
        return self.ring.homes(hashed(models), dead)


class HashOfFewPoints(Hash):
    name = "consistent hash, 16 points per host"
    points = 16


class Copies(Policy):
    """As `polyhost fleet haproxy` prints it: one more copy for each so much of a host; all hosts from so many on."""

    name = "copies by rate, one per 5 % of a host, all hosts from a quarter on"
    share_of_host = 0.05
    share_of_hosts = 0.25

    def hosts_of(self, models: Numbers, dead: int | None) -> Numbers:
        # Half of the fleet is busy: a model's share of a host is twice its share of the requests, times the hosts.
        of_a_host = self.shares[models] * self.size.hosts / 2
        copies = np.floor(of_a_host / self.share_of_host).astype(np.int64) + 1
        copy = (self.random.random(len(models)) * copies).astype(np.int64)
        homes = self.ring.homes(hashed(models, copy), dead)
        everywhere = copies >= max(2, self.share_of_hosts * self.size.hosts)
        if everywhere.any():
            alive = np.array([host for host in range(self.size.hosts) if host != dead])
            homes[everywhere] = self.random.choice(alive, int(everywhere.sum()))
        return homes


class FewerCopies(Copies):
    name = "copies by rate, one per 25 % of a host"
    share_of_host = 0.25
    share_of_hosts = 1.0


POLICIES: Sequence[type[Policy]] = (Random, HashOfFewPoints, Hash, FewerCopies, Copies)


@dataclass(frozen=True)
class Outcome:
    hit_percent: float
    p99_load: float
    cold_percent: float


class Caches:
    """What each host has in memory: the models that were asked for last."""

    def __init__(self, size: Size) -> None:
        self._room = size.room
        self._hosts: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(size.hosts)]

    def hits(self, models: Numbers, hosts: Numbers) -> NDArray[np.bool_]:
        """Which of these requests, one after the other, find their model."""
        found = np.empty(len(models), dtype=bool)
        for at, (model, host) in enumerate(zip(models.tolist(), hosts.tolist(), strict=True)):
            cache = self._hosts[host]
            if model in cache:
                cache.move_to_end(model)
                found[at] = True
                continue
            found[at] = False
            cache[model] = None
            if len(cache) > self._room:
                cache.popitem(last=False)
        return found

    def fill(self, homes: Callable[[Numbers], Numbers], models: int) -> None:
        """As after a long time: each host has the hottest of its models, the coldest of them the first to go."""
        for first in range(models - 1, -1, -_BATCH):
            some = np.arange(first, max(-1, first - _BATCH), -1)
            self.hits(some, homes(some))


_BATCH = 100_000


def simulated(policy_of: type[Policy], exponent: float, size: Size) -> Outcome:
    random = np.random.default_rng(SEED)
    weights = 1 / np.arange(1, size.models + 1) ** exponent
    shares = weights / weights.sum()
    policy = policy_of(size, shares, random)
    caches = Caches(size)
    caches.fill(lambda models: policy.hosts_of(models, None), size.models)
    bounds = shares.cumsum()

    def drawn(count: int) -> Iterator[Numbers]:
        for first in range(0, count, _BATCH):
            yield np.searchsorted(bounds, random.random(min(_BATCH, count - first))).clip(max=size.models - 1)

    for models in drawn(size.requests):
        caches.hits(models, policy.hosts_of(models, None))
    hits, load = 0, np.zeros(size.hosts)
    for models in drawn(size.requests):
        hosts = policy.hosts_of(models, None)
        found = caches.hits(models, hosts)
        hits += int(found.sum())
        load += np.bincount(hosts, np.where(found, HIT_MS, MISS_MS), size.hosts)
    cold = sum(
        int((~caches.hits(models, policy.hosts_of(models, size.hosts // 2))).sum()) for models in drawn(_AFTER_DEATH)
    )
    return Outcome(100 * hits / size.requests, float(np.percentile(load, 99) / load.mean()), 100 * cold / _AFTER_DEATH)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate_fleet", description=__doc__)
    for name, words in (
        ("models", "of which requests are drawn"), ("hosts", "that there are"), ("room", "models that a host keeps"),
        ("requests", "that are counted"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name), help=words)
    parser.add_argument("--zipf", type=float, nargs="+", default=[0.8, 1.0, 1.2], help="exponents")
    arguments = vars(parser.parse_args())
    exponents = arguments.pop("zipf")
    size = Size(**arguments)
    print(f"{size.models:,} models, {size.hosts} hosts that keep {size.room:,} each; Zipf {exponents}\n")
    print("| policy | hit % | p99 host load / mean | cold % after a death |\n| --- | --- | --- | --- |", flush=True)
    for policy in POLICIES:
        began = time.monotonic()
        outcomes = [simulated(policy, exponent, size) for exponent in exponents]
        columns = (
            " / ".join(f"{one.hit_percent:.1f}" for one in outcomes),
            " / ".join(f"{one.p99_load:.2f}" for one in outcomes),
            " / ".join(f"{one.cold_percent:.1f}" for one in outcomes),
        )
        print(f"| {policy.name} | {' | '.join(columns)} |", flush=True)
        print(f"{policy.name}: {time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
