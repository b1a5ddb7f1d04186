"""Hosts and prices, AWS's published example first."""

from __future__ import annotations

import pytest
from polyhost.sizing.command import Traffic, report_of
from polyhost.sizing.costs import HOURS_PER_MONTH, Demand, Host, Layout, monthly, one_each, parse_host
from polyhost.sizing.fleet import Fleet, fleet_of
from polyhost.sizing.report import Report, money_words, recommendation
from polyhost.sizing.simulate import replay_on, zipf_trace

from sizing.fleets import MIB, measured, sample_of

GIB = 1024**3
NO_LOAD = Demand(None, 0.0, 0.0)
# AWS's blog of November 2019, "Save on inference costs by using Amazon SageMaker multi-model endpoints": prices of
# us-east-1 then, two instances for each endpoint.
C5_LARGE, R5_2XLARGE = "ml.c5.large=4:2:0.119", "ml.r5.2xlarge=64:8:0.706"


def fleet(count: int, size_bytes: int) -> Fleet:
    archives = {f"m{number}": size_bytes for number in range(count)}
    sample = [measured(key, size_bytes, size_bytes) for key in list(archives)[:2]]
    return fleet_of(archives, sample)


def report(models: Fleet, hosts: list[str], *, copies: int = 1, rate: float | None = None, **costs: float) -> Report:
    traffic = Traffic("Zipf", zipf_trace(8000, sorted(models.sizes), 1.0, 1), 4000, rate)
    sample = sample_of(*set(models.measured_as.values()), **costs)
    return report_of("s3://b/", models, sample, traffic, [*map(parse_host, hosts)], copies=copies, p99_ms=None)


def by_host(found: Report) -> dict[str, Layout]:
    return {layout.host.name: layout for layout in found.layouts if layout.endpoints == 1}


def test_awss_example_comes_out_as_aws_published_it() -> None:
    """1,000 models: $171,360 a month with an endpoint each, $1,017 with one multi-model endpoint."""
    found = report(fleet(1000, 40 * MIB), [C5_LARGE, R5_2XLARGE], copies=2)

    each = found.layouts[-1]
    assert (each.host.name, each.hosts, each.endpoints) == ("ml.c5.large", 2000, 1000)
    assert each.price_per_month == pytest.approx(171_360)
    one = by_host(found)["ml.r5.2xlarge"]
    assert (one.hosts, one.shards) == (2, 1)
    assert money_words(one.price_per_month) == "$1,017"
    assert found.recommended is one
    assert "Take 2 × ml.r5.2xlarge (2 hosts, each with all models): $1,017 a month" in recommendation(found)  # noqa: RUF001
    assert "An endpoint for each model would cost $171,360 a month." in recommendation(found)


def test_several_small_hosts_are_as_many_as_hold_what_is_hot() -> None:
    """Models are divided among them; one host fewer would not reach the hit ratio."""
    models = fleet(200, 50 * MIB)

    small = by_host(report(models, ["small=4:2:0.01", "large=16:8:0.5"]))["small"]

    assert small.replayed is not None
    assert small.replayed.hit_ratio >= 0.99
    assert small.hosts == small.shards > 1
    assert small.hosts * 0.8 * 4 * GIB > 0.5 * models.total_bytes
    trace = zipf_trace(8000, sorted(models.sizes), 1.0, 1)
    room_bytes = small.host.room_bytes(100 * MIB)
    assert replay_on(small.hosts - 1, trace, models.sizes, room_bytes, warm_up=4000).hit_ratio < 0.99


def test_cpus_may_need_more_hosts_than_memory_does() -> None:
    """3,000 requests/s of 2 ms are 6 busy CPUs; at 60 % of two each, 5 hosts."""
    found = report(fleet(10, MIB), ["small=4:2:0.01"], rate=3000, call_cpu_secs=0.002)

    (layout,) = by_host(found).values()
    assert (layout.hosts, layout.shards) == (5, 1)
    assert found.layouts[-1].hosts == 10  # one for each model is enough for that


def test_loads_cost_cpus_too() -> None:
    """100 requests/s, every tenth with a load of 0.6 s: 6 busy CPUs."""
    assert Demand(100, 0.0, 0.6).busy_cpus(0.1) == pytest.approx(6)
    assert Demand(None, 1.0, 1.0).busy_cpus(1.0) == 0


def test_a_host_too_small_for_the_largest_model_is_none() -> None:
    """It is left out, and a note says so; without another there is nothing to recommend."""
    found = report(fleet(10, 900 * MIB), ["tiny=1:1:0.01", "large=64:8:1"])

    assert list(by_host(found)) == ["large"]
    assert found.layouts[-1].host.name == "large"
    assert "Too small for the largest model, 900 MiB: tiny." in found.notes
    hosts = [parse_host("tiny=1:1:0.01")]
    assert one_each(hosts, models=1, copies=1, idle_bytes=0, largest_bytes=GIB, load=NO_LOAD) is None


def test_without_hosts_the_memory_is_recommended() -> None:
    """The least of the levels with 99 % of hits, and how to learn more."""
    found = report(fleet(100, MIB), [])

    assert found.enough is not None
    assert found.enough.replayed.hit_ratio >= 0.99
    assert all(mix.replayed.hit_ratio < 0.99 for mix in found.mixes if mix.memory_bytes < found.enough.memory_bytes)
    assert recommendation(found).startswith("Take ")
    assert "--host NAME=GiB:CPUS:PRICE_PER_HOUR" in recommendation(found)


def test_a_p99_may_be_what_is_wanted() -> None:
    """Loads of 100 ms are welcome where 150 ms are; then less memory will do."""
    models = fleet(100, MIB)
    traffic = Traffic("Zipf", zipf_trace(8000, sorted(models.sizes), 1.0, 1), 4000, None)
    sample = sample_of(*set(models.measured_as.values()))

    def enough(p99_ms: float | None) -> int:
        found = report_of("s3://b/", models, sample, traffic, [], copies=1, p99_ms=p99_ms)
        return 0 if found.enough is None else found.enough.memory_bytes

    assert 0 < enough(150) < enough(None)
    assert enough(0.5) == 0


def test_a_month_has_thirty_days() -> None:
    """As in AWS's example."""
    assert HOURS_PER_MONTH == 24 * 30
    assert monthly(3, 0.5) == 1080


def test_a_host_is_written_as_the_help_says() -> None:
    """Memory in GiB, a price of any precision."""
    assert parse_host("c5.large=4:2:0.085") == Host("c5.large", 4 * GIB, 2, 0.085)
    assert parse_host("free=0.5:0.25:0") == Host("free", GIB // 2, 0.25, 0)


@pytest.mark.parametrize("text", ["", "x", "x=", "x=4:2", "=4:2:1", "x=4:2:1:1", "x=a:2:1", "x=4:2:-1", "x=1.2.3:1:1"])
def test_a_host_written_otherwise_is_refused(text: str) -> None:
    """The sentence has an example."""
    with pytest.raises(ValueError, match="is not NAME=GiB:CPUS:PRICE_PER_HOUR, for example"):
        parse_host(text)


def test_a_host_without_memory_or_cpus_is_refused() -> None:
    """Nothing can be divided by it."""
    with pytest.raises(ValueError, match="has no memory or no CPU"):
        parse_host("x=4:0:1")
