"""The load test's own arithmetic: what is read from Locust and /metrics, and what is advised."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.locust.figures import Figures, bucket_quantile, parsed
from benchmarks.locust.history import Client, Moment, read
from benchmarks.locust.report import Result, advice, page, series, summary
from benchmarks.locust.watch import Look, cpu_shares, rates, waits_ms

METRICS = """\
# TYPE polyhost_invocations counter
polyhost_invocations_total{endpoint="a",variant="v"} 7.0
polyhost_invocations_total{endpoint="b",variant="v"} 3.0
# TYPE polyhost_per_model_invocations counter
polyhost_per_model_invocations_total{endpoint="a",variant="v",model="m"} 7.0
# TYPE polyhost_loaded_model_count gauge
polyhost_loaded_model_count{endpoint="a",variant="v"} 5.0
# TYPE polyhost_model_loading_wait_time_seconds histogram
polyhost_model_loading_wait_time_seconds_bucket{endpoint="a",le="0.01",variant="v"} 1.0
polyhost_model_loading_wait_time_seconds_bucket{endpoint="a",le="+Inf",variant="v"} 4.0
polyhost_model_loading_wait_time_seconds_count{endpoint="a",variant="v"} 4.0
polyhost_model_loading_wait_time_seconds_sum{endpoint="a",variant="v"} 0.8
# TYPE polyhost_memory_utilization_ratio gauge
polyhost_memory_utilization_ratio 0.25
"""


def figures(**given: int) -> Figures:
    totals = dict.fromkeys(("loaded", "invocations", "errors", "lookups", "hits", "loads", "evictions", "waits"), 0)
    return Figures(**{**totals, **given}, memory_ratio=0.5, wait_secs=given.get("waits", 0) * 0.2, wait_buckets={})


def look(moment: float, cpu_secs: float = 0.0, **given: int) -> Look:
    return Look(moment, figures(**given), 1024**2, 2 * 1024**2, cpu_secs)


def result(name: str, p99_ms: float, *, failures: int = 0, budget_mib: int | None = 90, hits: int = 90) -> Result:
    """A test of two looks, in whose second half p99 was that."""
    history = [Moment(moment, 3, 10.0, 0.0, (2.0, 3.0, 900.0 if moment < 2 else p99_ms)) for moment in range(4)]
    client = Client(100, failures, 10.0, (2.0, 3.0, 900.0), {"<b>oops": failures} if failures else {}, history)
    if budget_mib is None:
        return Result(name, client, [], None)
    looks = [look(0), look(2, 1.0, loaded=5, lookups=100, hits=hits, loads=10, evictions=5, waits=10)]
    return Result(name, client, looks, budget_mib * 1024**2)


def test_metrics_are_added_up_over_endpoints_not_over_models() -> None:
    """
    What has the label `model` is counted once more elsewhere.
    """
    found = parsed(METRICS)

    assert (found.invocations, found.loaded, found.waits, found.wait_secs) == (10, 5, 4, 0.8)
    assert found.memory_ratio == 0.25
    assert found.wait_buckets == {0.01: 1, float("inf"): 4}
    assert (bucket_quantile(found.wait_buckets, 0.25), bucket_quantile({}, 0.99)) == (0.01, 0.0)


def test_totals_become_rates() -> None:
    """
    Growth over the time between two looks; waits only where somebody waited.
    """
    looks = [look(0, 1.0), look(2, 2.0, loads=10, waits=4), look(4, 2.0, loads=10, waits=4)]

    assert rates(looks, "loads") == [(2, 5.0), (4, 0.0)]
    assert cpu_shares(looks) == [(2, 0.5), (4, 0.0)]
    assert waits_ms(looks) == [(2, pytest.approx(200))]


def test_locusts_files_are_read(tmp_path: Path) -> None:
    """
    The sums of all calls; seconds in which nobody was answered have no percentiles.
    """
    head = "Timestamp,User Count,Type,Name,Requests/s,Failures/s,50%,95%,99%\n"
    (tmp_path / "locust_stats_history.csv").write_text(
        f"{head}10,0,,Aggregated,0.0,0.0,N/A,N/A,N/A\n11,5,boto3,invoke_endpoint,4,0,1,2,3\n"
        "11,5,,Aggregated,4.5,0.5,1,2,3\n"
    )
    (tmp_path / "locust_stats.csv").write_text(
        "Type,Name,Request Count,Failure Count,Requests/s,50%,95%,99%\n,Aggregated,45,1,4.5,1,2,3\n"
    )
    (tmp_path / "locust_failures.csv").write_text('Method,Name,Error,Occurrences\nboto3,i,"Oops, no",1\n')

    client = read(tmp_path)

    assert (client.requests, client.failures, client.percentiles_ms) == (45, 1, (1, 2, 3))
    assert client.errors == {"Oops, no": 1}
    assert client.history == [Moment(10, 0, 0, 0, (None, None, None)), Moment(11, 5, 4.5, 0.5, (1, 2, 3))]


@pytest.mark.parametrize(
    ("small_p99_ms", "words"),
    [
        (24, "Take a third (30.0 MiB): p99 is 24 ms, with all (90.0 MiB) 20 ms; 60 % of its requests found"),
        (60, "Take all (90.0 MiB): with a third (30.0 MiB) p99 is 60 ms instead of 20 ms; 60 % of its requests found"),
    ],
)
def test_the_smaller_is_advised_if_its_p99_is_as_good(small_p99_ms: float, words: str) -> None:
    """
    A quarter longer is; the first half, in which everything is cold, does not count.
    """
    results = [result("all", 20), result("a third", small_p99_ms, budget_mib=30, hits=60)]

    assert advice(results).startswith(words)


@pytest.fixture
def fonts() -> None:
    """Where matplotlib is used for the first time in a home, it asks a process which fonts there are."""
    importlib.import_module("matplotlib.font_manager")


@pytest.mark.usefixtures("fonts")
def test_nothing_is_advised_where_requests_failed() -> None:
    """
    Speed of wrong answers is none; the report has the errors, escaped.
    """
    results = [result("all", 20), result("a third", 10, failures=4, budget_mib=30)]

    assert advice(results) == "Take none of them yet: requests failed, 4 with a third."
    assert "4 × &lt;b&gt;oops" in page(results, series(results), "words", {"cpu": "any"})  # noqa: RUF001


@pytest.mark.usefixtures("fonts")
def test_endpoints_of_others_have_the_users_side_alone() -> None:
    """
    No panel is empty, and the report says where the rest is.
    """
    results = [result("mme-large", 30, budget_mib=None), result("mme-small", 20, budget_mib=None)]
    found = series(results)

    assert set(found) == {"Throughput", "Latency", "Users"}
    assert "memory for models" not in summary(results[0])
    assert advice(results).startswith("mme-small answered soonest: p99 20 ms, 30 ms with mme-large.")
    assert "are in CloudWatch (LoadedModelCount" in page(results, found, "w", {})
    assert advice(results[:1]) == "p99 was 30 ms; give a second endpoint to compare it with."
