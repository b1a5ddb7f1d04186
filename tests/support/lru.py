"""What an exact least-recently-used cache would do, and the traffic to try it with."""

from __future__ import annotations

import bisect
import itertools
import random
from collections import OrderedDict
from collections.abc import Sequence


def lru_hits(trace: Sequence[str], capacity: int) -> int:
    """How many of a trace's models, asked for one after the other, are found in a cache of `capacity` models."""
    cache: OrderedDict[str, None] = OrderedDict()
    hits = 0
    for model in trace:
        if model in cache:
            hits += 1
            cache.move_to_end(model)
        elif capacity:
            if len(cache) == capacity:
                cache.popitem(last=False)
            cache[model] = None
    return hits


def zipf_trace(count: int, models: int, exponent: float, seed: int) -> list[str]:
    """
    `count` requests for `model_0` to `model_{models - 1}`, the same for the same seed.

    The model with number n is asked for in proportion to (n + 1) ** -exponent; 0 is all alike.
    """
    chosen = random.Random(seed)
    shares = list(itertools.accumulate((number + 1) ** -exponent for number in range(models)))
    numbers = (bisect.bisect_right(shares, chosen.random() * shares[-1]) for _ in range(count))
    return [f"model_{min(number, models - 1)}" for number in numbers]
