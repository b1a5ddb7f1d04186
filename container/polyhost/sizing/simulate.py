"""
Traffic replayed in a cache that drops what was least recently used, by size: which requests find their model.

Arithmetic only. Requests come one after the other: what waits for a load holds nobody else up, as in the server.
"""

from __future__ import annotations

import bisect
import itertools
import random
import zlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from polyhost.sizing.fleet import Measured


@dataclass
class Replay:
    """
    What became of the requests that counted, by model.

    `hits` found it in memory, `reloads` had it loaded from disk, `firsts` fetched from the store; `refused` were for
    models that are larger than the memory. `resident` models were in memory at the end.
    """

    hits: Counter[str] = field(default_factory=Counter)
    reloads: Counter[str] = field(default_factory=Counter)
    firsts: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    resident: int = 0

    @property
    def requests(self) -> int:
        return self.hits.total() + self.loads + self.refused

    @property
    def loads(self) -> int:
        return self.reloads.total() + self.firsts.total()

    @property
    def hit_ratio(self) -> float:
        return self.hits.total() / max(1, self.requests)

    @property
    def load_ratio(self) -> float:
        return self.loads / max(1, self.requests)

    def add(self, other: Replay) -> None:
        self.hits += other.hits
        self.reloads += other.reloads
        self.firsts += other.firsts
        self.refused += other.refused
        self.resident += other.resident


def replay(trace: Sequence[str], sizes: Mapping[str, int], memory_bytes: int, *, warm_up: int = 0) -> Replay:
    """The first `warm_up` requests fill memory and disk and are not counted."""
    result = Replay()
    cache: OrderedDict[str, int] = OrderedDict()
    on_disk: set[str] = set()
    free_bytes = memory_bytes
    for number, key in enumerate(trace):
        is_counted = number >= warm_up
        if key in cache:
            cache.move_to_end(key)
            result.hits[key] += is_counted
            continue
        size = sizes[key]
        if size > memory_bytes:
            result.refused += is_counted
            continue
        while free_bytes < size:
            free_bytes += cache.popitem(last=False)[1]
        cache[key] = size
        free_bytes -= size
        (result.reloads if key in on_disk else result.firsts)[key] += is_counted
        on_disk.add(key)
    result.resident = len(cache)
    return result


def replay_on(
    hosts: int, trace: Sequence[str], sizes: Mapping[str, int], memory_bytes: int, *, warm_up: int = 0
) -> Replay:
    """On several hosts, `memory_bytes` each; every model belongs to one of them."""
    if hosts == 1:
        return replay(trace, sizes, memory_bytes, warm_up=warm_up)
    host_of = {key: zlib.crc32(key.encode("utf-8", "surrogateescape")) % hosts for key in sizes}
    shares: list[list[str]] = [[] for _ in range(hosts)]
    warm_ups = [0] * hosts
    for number, key in enumerate(trace):
        host = host_of[key]
        shares[host].append(key)
        warm_ups[host] += number < warm_up
    result = Replay()
    for share, uncounted in zip(shares, warm_ups, strict=True):
        result.add(replay(share, sizes, memory_bytes, warm_up=uncounted))
    return result


def zipf_trace(count: int, keys: Sequence[str], exponent: float, seed: int) -> list[str]:
    """
    `count` requests, the same for the same seed: the n-th most wanted is asked for in proportion to n ** -exponent.

    Who is wanted has nothing to do with the order of `keys`.
    """
    chosen = random.Random(seed)  # noqa: S311 - traffic, no secret
    shuffled = chosen.sample(keys, len(keys))
    shares = list(itertools.accumulate(rank**-exponent for rank in range(1, len(keys) + 1)))
    return chosen.choices(shuffled, cum_weights=shares, k=count)


def memory_levels(total_bytes: int, largest_bytes: int, shares: Iterable[float]) -> list[int]:
    """Amounts of memory from some to all, each enough for the largest model."""
    return sorted({max(largest_bytes, round(total_bytes * share)) for share in shares})


def latencies(replayed: Replay, measured_as: Mapping[str, Measured]) -> list[tuple[float, float]]:
    """
    Seconds, in order, and how many requests took so long: each as the measured model that its own is like.

    Models that refused every request of the sample count for nothing.
    """
    weights: defaultdict[float, float] = defaultdict(float)
    for key, count in replayed.hits.items():
        calls = measured_as[key].calls_secs
        for secs in calls:
            weights[secs] += count / len(calls)
    for key, count in replayed.reloads.items():
        weights[measured_as[key].disk_secs] += count
    for key, count in replayed.firsts.items():
        weights[measured_as[key].store_secs] += count
    return sorted((secs, weight) for secs, weight in weights.items() if weight)


def quantile(weighted: Sequence[tuple[float, float]], share: float) -> float:
    """The value that `share` (0 to 1) of the weight does not exceed; `weighted` in order, and not empty."""
    sums = list(itertools.accumulate(weight for _, weight in weighted))
    # Sums of shares are a hair more or less than they should be.
    return weighted[min(len(weighted) - 1, bisect.bisect_left(sums, share * sums[-1] * (1 - 1e-9)))][0]
