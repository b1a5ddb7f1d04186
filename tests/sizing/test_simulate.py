"""Traffic in a cache, against examples done by hand and an exact cache of the tests' own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhost.sizing.simulate import Replay, latencies, memory_levels, quantile, replay, replay_on, zipf_trace
from support import lru

from sizing.fleets import measured

SIZES = {"a": 10, "b": 10, "c": 10, "large": 25}


def counts(result: Replay) -> tuple[int, int, int, int]:
    return result.hits.total(), result.reloads.total(), result.firsts.total(), result.refused


def test_what_was_least_recently_used_goes() -> None:
    """Memory for two: c takes b's place, for a was used since; b takes c's."""
    result = replay(["a", "b", "a", "c", "a", "b"], SIZES, 20)

    assert dict(result.hits) == {"a": 2}
    assert dict(result.firsts) == {"a": 1, "b": 1, "c": 1}
    assert dict(result.reloads) == {"b": 1}
    assert result.resident == 2
    assert (result.requests, result.hit_ratio, result.load_ratio) == (6, 2 / 6, 4 / 6)


def test_a_large_model_takes_the_place_of_several() -> None:
    """As many go as make room, the oldest first; the last that came stays where it can."""
    result = replay(["a", "b", "c", "large", "c", "b"], SIZES, 35)

    assert dict(result.hits) == {"c": 1}
    assert dict(result.reloads) == {"b": 1}


def test_a_model_larger_than_the_memory_is_refused_and_evicts_nobody() -> None:
    """It never loads, and what is loaded stays."""
    assert counts(replay(["a", "b", "large", "a", "b"], SIZES, 24)) == (2, 0, 2, 1)


def test_requests_of_the_warm_up_fill_the_cache_and_are_not_counted() -> None:
    """The same traffic twice: the second time nothing is fetched from the store."""
    trace = ["a", "b", "c"]

    assert counts(replay(trace * 2, SIZES, 30, warm_up=3)) == (3, 0, 0, 0)
    assert counts(replay(trace * 2, SIZES, 20, warm_up=3)) == (0, 3, 0, 0)


@given(st.integers(1, 30), st.integers(1, 40), st.floats(0, 2), st.integers(0, 5))
def test_with_models_of_one_size_it_is_an_exact_cache(capacity: int, models: int, exponent: float, seed: int) -> None:
    """As many hits as the tests' own least-recently-used cache has."""
    trace = lru.zipf_trace(400, models, exponent, seed)

    result = replay(trace, dict.fromkeys(trace, 7), 7 * capacity)

    assert result.hits.total() == lru.lru_hits(trace, capacity)
    assert len(result.firsts) == result.firsts.total() == len(set(trace))


def test_a_zipf_trace_is_the_same_for_a_seed_and_as_skewed_as_it_is_told() -> None:
    """With exponent 1 and ten models the most wanted has 1 / 2.93 of all requests; with 0 all are alike."""
    keys = [f"m{number}" for number in range(10)]
    trace = zipf_trace(20_000, keys, 1.0, seed=3)

    assert trace == zipf_trace(20_000, keys, 1.0, seed=3)
    shares = sorted((trace.count(key) / 20_000 for key in keys), reverse=True)
    assert shares[0] == pytest.approx(1 / 2.929, rel=0.05)
    assert shares[9] == pytest.approx(0.1 / 2.929, rel=0.15)
    even = zipf_trace(20_000, keys, 0.0, seed=3)
    assert all(even.count(key) == pytest.approx(2000, rel=0.1) for key in keys)


def test_on_several_hosts_each_model_has_one() -> None:
    """Every request is counted once; with memory for its share of models on each host, nothing is loaded twice."""
    keys = [f"m{number}" for number in range(40)]
    trace = zipf_trace(2000, keys, 0.5, seed=1)
    sizes = dict.fromkeys(keys, 10)

    large, small = (replay_on(4, trace, sizes, each) for each in (400, 20))

    assert large.requests == small.requests == 2000
    assert large.reloads.total() == 0
    assert small.resident == 8
    assert small.hit_ratio < large.hit_ratio


def test_the_warm_up_is_divided_as_the_trace_is() -> None:
    """The same requests are left out, whichever host has them."""
    keys = [f"m{number}" for number in range(8)]

    result = replay_on(3, keys * 2, dict.fromkeys(keys, 1), 8, warm_up=8)

    assert counts(result) == (8, 0, 0, 0)


def test_latencies_are_those_of_the_measured_models() -> None:
    """Nine hits over two measured calls, one load from disk: p50 is a hit, p99 the load."""
    one = measured("a", 10, 10, calls_secs=[0.001, 0.003], disk_secs=0.2, store_secs=0.9)
    result = Replay()
    result.hits["a"], result.reloads["a"] = 9, 1

    weighted = latencies(result, {"a": one})

    assert weighted == [(0.001, 4.5), (0.003, 4.5), (0.2, 1)]
    assert [quantile(weighted, share) for share in (0.45, 0.5, 0.9, 0.91, 0.99)] == [0.001, 0.003, 0.003, 0.2, 0.2]


def test_levels_of_memory_hold_the_largest_model() -> None:
    """Those below it are one."""
    assert memory_levels(100, 30, (0.1, 0.2, 0.5, 1.0)) == [30, 50, 100]
