"""The cache that ours is compared with is what it says."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.lru import lru_hits, zipf_trace


@pytest.mark.parametrize(
    ("trace", "capacity", "hits"),
    [
        ("", 3, 0),
        ("aaaa", 1, 3),
        ("abab", 1, 0),
        ("abab", 2, 2),
        ("abcabc", 2, 0),  # a circle one longer than the cache: the worst there is
        ("abcabc", 3, 3),
        ("abacab", 2, 2),  # the second a saves a from c, the last b has gone for it
        ("abcadabc", 3, 2),  # d sends b away, b sends c away
        ("aaaa", 0, 0),
    ],
)
def test_hits_counted_by_hand(trace: str, capacity: int, hits: int) -> None:
    """One letter is one model."""
    assert lru_hits(trace, capacity) == hits


@given(st.lists(st.sampled_from("abcdefgh"), max_size=200), st.integers(0, 9))
def test_a_hit_is_a_model_among_the_last_different_ones(trace: list[str], capacity: int) -> None:
    """LRU's other definition: fewer than `capacity` others were asked for since this one was."""
    hits = 0
    for now, model in enumerate(trace):
        before = [then for then in range(now) if trace[then] == model]
        if before and len(set(trace[before[-1] + 1 : now])) < capacity:
            hits += 1

    assert lru_hits(trace, capacity) == hits


def test_a_zipf_trace_is_repeatable_and_skewed() -> None:
    """Twice the rank, half the requests; another seed, another trace; no model that is not there."""
    trace = zipf_trace(50_000, 100, 1.0, seed=1)
    count = Counter(trace)

    assert trace == zipf_trace(50_000, 100, 1.0, seed=1)
    assert trace != zipf_trace(50_000, 100, 1.0, seed=2)
    assert len(trace) == 50_000
    assert set(count) == {f"model_{number}" for number in range(100)}
    assert count["model_0"] / count["model_1"] == pytest.approx(2, rel=0.1)
    assert count["model_0"] / count["model_9"] == pytest.approx(10, rel=0.2)


def test_without_an_exponent_all_models_are_alike() -> None:
    """The traffic against which no cache helps more than its size."""
    trace = zipf_trace(50_000, 20, 0.0, seed=3)

    assert max(Counter(trace).values()) / min(Counter(trace).values()) < 1.2
    assert lru_hits(trace, 10) / len(trace) == pytest.approx(0.5, abs=0.02)
