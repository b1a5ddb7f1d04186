"""What is counted of an endpoint: as Prometheus scrapes it, as the log tells it, as a dashboard shows it."""

from __future__ import annotations

import asyncio
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from polyhost.config import Config
from polyhost.endpoint.events import CallAnswered
from polyhost.endpoint.measures import access_log
from polyhost.endpoint.measures import measures as measures_module
from polyhost.endpoint.measures.exposition import EXPOSED_SECS
from polyhost.endpoint.measures.measures import EVENTS_KEPT, Gauges, Measures
from polyhost.endpoint_server import endpoint_half
from polyhost.limits import Limits
from polyhost.metrics import Metrics
from polyhost.plan import Plan
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def call(target: str = "a.tar.gz", status: int = 200, **changed: object) -> CallAnswered:
    usual = CallAnswered("id-1", "polyhost", "AllTraffic", target, status, 20, 10, 0.003, 0.002, True)
    return usual._replace(**changed)


@pytest.fixture
def measures() -> Measures:
    return Measures(emf_namespace=None)


def samples(measures: Measures) -> list[Sample]:
    """As Prometheus reads them."""
    metrics = Metrics()
    metrics.add(measures)
    text = asyncio.run(metrics.exposition())
    return [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]


def value(measures: Measures, name: str, **labels: str) -> float:
    """The one sample of that name whose labels have these among them."""
    (found,) = [
        sample.value
        for sample in samples(measures)
        if sample.name == f"polyhost_{name}" and labels.items() <= sample.labels.items()
    ]
    return found


def models(measures: Measures) -> dict[str, float]:
    """Invocations by model."""
    return {
        sample.labels["model"]: sample.value
        for sample in samples(measures)
        if sample.name == "polyhost_per_model_invocations_total"
    }


# Prometheus


def test_requests_and_whose_errors_they_are(measures: Measures) -> None:
    """A 424 counts as what the model has answered, every other status as itself."""
    for status, model_status in ((200, 200), (200, 200), (400, 0), (424, 400), (424, 500), (503, 0), (500, 200)):
        measures.invocation(call(status=status, model_status=model_status))

    assert value(measures, "invocations_total", endpoint="polyhost", variant="AllTraffic") == 7
    assert value(measures, "invocation_4xx_errors_total") == 2
    assert value(measures, "invocation_5xx_errors_total") == 3
    assert value(measures, "per_model_errors_total", model="a.tar.gz") == 5


def test_latency_is_the_models_and_the_rest(measures: Measures) -> None:
    """A duration counts in the class whose bound it equals; where no model was asked, all time is overhead."""
    measures.invocation(call(total_secs=0.0125, model_secs=0.01))
    measures.invocation(call(total_secs=0.5, model_secs=0.0, status=429))

    assert value(measures, "model_latency_seconds_count") == 1
    assert value(measures, "model_latency_seconds_sum") == 0.01
    assert value(measures, "model_latency_seconds_bucket", le="0.005") == 0
    assert value(measures, "model_latency_seconds_bucket", le="0.01") == 1
    assert value(measures, "overhead_latency_seconds_count") == 2
    assert value(measures, "overhead_latency_seconds_sum") == pytest.approx(0.5025)
    assert value(measures, "overhead_latency_seconds_bucket", le="0.25") == 1
    assert value(measures, "overhead_latency_seconds_bucket", le="+Inf") == 2
    assert value(measures, "per_model_latency_seconds_count", model="a.tar.gz") == 1
    assert value(measures, "per_model_latency_seconds_sum", model="a.tar.gz") == 0.01


def test_buckets_only_ever_grow_to_the_right(measures: Measures) -> None:
    """Cumulative counts over all bounds, from the shortest time to one longer than all."""
    for exponent in range(-7, 4):
        measures.invocation(call(total_secs=0.0, model_secs=10.0**exponent))

    counts = [value(measures, "model_latency_seconds_bucket", le=bound) for bound in (*map(str, EXPOSED_SECS), "+Inf")]
    assert counts == sorted(counts)
    assert (counts[0], counts[-2], counts[-1]) == (4, 10, 11)


def test_what_the_cache_does(measures: Measures) -> None:
    """Hits, waits, loads with and without a download, unloads and evictions, by variant and by model."""
    measures.loaded("polyhost", "AllTraffic", "a.tar.gz", download_secs=0.2, load_secs=0.1)
    measures.loaded("polyhost", "AllTraffic", "b.tar.gz", download_secs=0.0, load_secs=0.1)
    measures.unloaded("polyhost", "AllTraffic", "a.tar.gz", 0.01, was_evicted=True)
    measures.unloaded("polyhost", "AllTraffic", "b.tar.gz", 0.01, was_evicted=False)
    for was_hit in (False, True, True, None):
        measures.invocation(call(was_hit=was_hit, wait_secs=0.3 if was_hit is False else 0.0))

    assert value(measures, "model_cache_lookups_total") == 3
    assert value(measures, "model_cache_hits_total") == 2
    assert value(measures, "model_loading_wait_time_seconds_sum") == 0.3
    assert value(measures, "model_downloading_time_seconds_count") == 1
    assert value(measures, "model_loading_time_seconds_count") == 2
    assert value(measures, "model_unloading_time_seconds_count") == 2
    assert value(measures, "model_evictions_total") == 1
    assert value(measures, "per_model_cache_hits_total", model="a.tar.gz") == 2
    assert value(measures, "per_model_loads_total", model="b.tar.gz") == 1
    assert value(measures, "per_model_evictions_total", model="a.tar.gz") == 1
    assert value(measures, "per_model_evictions_total", model="b.tar.gz") == 0


def test_gauges_are_asked_for_when_they_are_read(measures: Measures) -> None:
    """What is so at the scrape, not before."""
    loaded = {("polyhost", "AllTraffic"): 1}
    measures.gauges = lambda: Gauges(loaded, 0.25, 0.5, 1.75)
    loaded["polyhost", "AllTraffic"] = 121

    assert value(measures, "loaded_model_count", endpoint="polyhost", variant="AllTraffic") == 121
    assert value(measures, "memory_utilization_ratio") == 0.25
    assert value(measures, "disk_utilization_ratio") == 0.5
    assert value(measures, "cpu_utilization_ratio") == 1.75


def test_endpoints_are_apart_and_end_with_their_endpoint(measures: Measures) -> None:
    """The same target behind two endpoints is two models; a deleted endpoint has no series any more."""
    measures.invocation(call(endpoint="one"))
    measures.invocation(call(endpoint="two"))
    assert value(measures, "per_model_invocations_total", endpoint="two", model="a.tar.gz") == 1

    measures.forget_endpoint("one")

    assert {sample.labels["endpoint"] for sample in samples(measures) if "endpoint" in sample.labels} == {"two"}


def test_what_is_gone_leaves_room() -> None:
    """Models that ended with their archive or their endpoint do not count against the bound."""
    measures = Measures(emf_namespace=None, max_models=2)
    measures.invocation(call("a", endpoint="one"))
    measures.invocation(call("b", endpoint="one"))
    measures.forget_endpoint("one")
    measures.invocation(call("c"))
    measures.invocation(call("d"))
    assert models(measures) == {"c": 1, "d": 1}

    measures.forget("polyhost", "AllTraffic", "c")
    measures.invocation(call("e"))
    assert models(measures) == {"d": 1, "e": 1, "(other)": 1}


def test_endpoints_that_do_not_exist_are_one(measures: Measures) -> None:
    """A client that makes up names of endpoints and models makes nothing grow."""
    for number in range(50):
        measures.invocation(call(f"{number}", 400, endpoint=f"made-up-{number}", variant="", was_hit=None))

    assert value(measures, "invocations_total", endpoint="(unknown)") == 50
    assert models(measures) == {"(other)": 50}


def test_models_that_were_never_found_have_no_series(measures: Measures) -> None:
    """Only a target that was looked up in the cache has: the others are a client's words."""
    measures.invocation(call("real"))
    measures.invocation(call("made up", 400, was_hit=None))
    measures.invocation(call("real", 429, was_hit=None))

    assert models(measures) == {"real": 2, "(other)": 1}


@pytest.mark.parametrize("most", [1, 10, 100])
def test_series_of_models_are_bounded_and_their_sum_is_right(most: int) -> None:
    """However many models there are, over however many variants: no more series than allowed, no request lost."""
    measures = Measures(emf_namespace=None, max_models=most)
    chosen = random.Random(1)
    for _ in range(5000):
        name = f"{chosen.randrange(500)}"
        measures.invocation(call(name, variant=chosen.choice(["blue", "green"])))
        measures.loaded("polyhost", "blue", name, download_secs=0.0, load_secs=0.1)

    of_models = [sample for sample in samples(measures) if sample.name == "polyhost_per_model_invocations_total"]
    assert len([sample for sample in of_models if sample.labels["model"] != "(other)"]) <= most
    for name, total in (("invocations", 5000), ("loads", 5000), ("cache_hits", 5000)):
        found = [sample.value for sample in samples(measures) if sample.name == f"polyhost_per_model_{name}_total"]
        assert sum(found) == total
    assert sum(s.value for s in samples(measures) if s.name == "polyhost_per_model_latency_seconds_count") == 5000


def test_the_most_used_models_keep_their_series() -> None:
    """Ten favourites among thousands of strangers, each met once, are never summed with them."""
    measures = Measures(emf_namespace=None, max_models=32)
    for number in range(3000):
        measures.invocation(call(f"stranger-{number}"))
        measures.invocation(call(f"favourite-{number % 10}"))

    found = models(measures)
    assert [found[f"favourite-{number}"] for number in range(10)] == [300] * 10


def test_old_fame_fades() -> None:
    """Models that were used a thousand times long ago make room for those that are used now."""
    measures = Measures(emf_namespace=None, max_models=16)
    for number in range(16_000):
        measures.invocation(call(f"old-{number % 16}"))
    for number in range(4000):
        measures.invocation(call(f"stranger-{number}"))
        measures.invocation(call(f"new-{number % 4}"))

    found = models(measures)
    assert {f"new-{number}" for number in range(4)} <= set(found)
    assert not [name for name in found if name.startswith("old")]


def test_a_forgotten_models_series_ends_and_the_sum_stays(measures: Measures) -> None:
    """When an archive is gone."""
    for target in ("a", "a", "b"):
        measures.invocation(call(target))
    measures.forget("polyhost", "AllTraffic", "a")
    measures.forget("polyhost", "AllTraffic", "never seen")

    assert models(measures) == {"b": 1, "(other)": 2}


def test_a_model_is_forgotten_where_its_archive_is_gone(measures: Measures) -> None:
    """The model of that name behind another endpoint goes on."""
    for endpoint in ("one", "two"):
        measures.invocation(call("a", endpoint=endpoint))
    measures.forget("one", "AllTraffic", "a")

    assert value(measures, "per_model_invocations_total", endpoint="one", model="(other)") == 1
    assert value(measures, "per_model_invocations_total", endpoint="two", model="a") == 1


def test_models_that_end_with_their_endpoint_bring_no_series_back(measures: Measures) -> None:
    """They are unloaded when it is gone; that is an event all the same."""
    measures.loaded("one", "AllTraffic", "a", download_secs=0.0, load_secs=0.1)
    measures.forget_endpoint("one")
    measures.unloaded("one", "AllTraffic", "a", 0.1, was_evicted=False)

    assert not [sample for sample in samples(measures) if sample.labels.get("endpoint") == "one"]
    assert [event.kind for event in measures.snapshot().events] == ["load", "unload"]


def test_a_model_called_as_the_sum_is_part_of_it(measures: Measures) -> None:
    """An archive may have any name: no sample comes twice."""
    measures.invocation(call("(other)"))
    measures.loaded("polyhost", "AllTraffic", "(other)", download_secs=0.0, load_secs=0.1)
    measures.forget("polyhost", "AllTraffic", "(other)")

    assert models(measures) == {"(other)": 1}


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\nb", "a\\", "käse/模型.tar.gz", "\x00\x1b[31m"])
def test_any_name_is_a_label(measures: Measures, name: str) -> None:
    """Prometheus reads back what the client has sent."""
    measures.invocation(call(name))

    assert models(measures) == {name: 1}


def test_a_name_that_is_no_text_does_not_break_the_page(measures: Measures) -> None:
    """A file's name is bytes."""
    measures.invocation(call("caf\udce9"))

    assert models(measures) == {"caf\\udce9": 1}


def test_every_metric_is_in_the_docs(measures: Measures) -> None:
    """docs/metrics.md names each family."""
    measures.invocation(call())
    page = (ROOT / "docs" / "metrics.md").read_text()

    for family in measures.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in page


# The access log


class Collected:
    """The lines of the access log, and what writes them."""

    def __init__(self, log_format: str) -> None:
        self.lines: list[str] = []
        self.log_call = access_log(log_format, self.lines.append)


@pytest.fixture(params=["text", "json"])
def log(request: pytest.FixtureRequest) -> Collected:
    return Collected(request.param)


@pytest.mark.parametrize("log", ["text"], indirect=True)
def test_an_access_line_tells_all_of_a_request(log: Collected) -> None:
    """In the order of the documentation."""
    log.log_call(call("a/b-1.tar.gz"))
    log.log_call(call("", 400, variant="", was_hit=None, model_secs=0.0))

    first, second = [line.split(" - ", 1)[1] for line in log.lines]
    assert first == (
        "id-1 InvokeEndpoint endpoint=polyhost variant=AllTraffic target=a/b-1.tar.gz status=200 "
        "bytes_in=20 bytes_out=10 total_ms=3.000 model_ms=2.000 loaded=hit"
    )
    assert " variant=- target=- status=400 " in second
    assert second.endswith("model_ms=0.000 loaded=-")


@pytest.mark.parametrize("log", ["json"], indirect=True)
def test_an_access_line_in_json_has_members(log: Collected) -> None:
    """Each field under its name, with the numbers as numbers."""
    log.log_call(call(was_hit=False))

    document = json.loads(log.lines[0])
    assert document.pop("time")
    assert document == {
        "level": "INFO", "logger": "polyhost.access", "message": "InvokeEndpoint", "request_id": "id-1",
        "endpoint": "polyhost", "variant": "AllTraffic", "target": "a.tar.gz", "status": 200, "bytes_in": 20,
        "bytes_out": 10, "total_ms": 3.0, "model_ms": 2.0, "loaded": "miss",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "a\n2026-01-01 00:00:00,000 [INFO ] polyhost.access - id-2 InvokeEndpoint endpoint=x",
        "a\r\nb", "a\x85b", "a\u2028b", "a\x1b[2Kb", "a\x00b", "caf\udce9", 'a" status=200 target="b', "-",
        "a status=200 bytes_in=0", '\n{"time": "2026", "_aws": {}}',
    ],
)  # fmt: skip
def test_no_name_can_forge_a_line_or_a_field(log: Collected, name: str) -> None:
    """One line a request, one of each field, nothing that moves a cursor; and the name can be read back."""
    log.log_call(call(name, 403, request_id=name, endpoint=name, variant=name))

    (line,) = log.lines
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()
    if line.startswith("{"):
        assert (json.loads(line)["target"], json.loads(line)["status"]) == (name, 403)
    else:
        quoted = re.findall(r'"(?:[^"\\]|\\.)*"', line)
        assert [json.loads(text) for text in quoted] == [name] * 4
        assert re.sub(r'"(?:[^"\\]|\\.)*"', "", line).count("status=") == 1


@pytest.mark.parametrize(("setting", "lines"), [("on", 1), ("off", 0)])
def test_an_access_log_is_written_where_one_is_wanted(tmp_path: Path, setting: str, lines: int) -> None:
    config = Config(access_log=setting, models=f"{tmp_path}/", state_dir=tmp_path / "state")
    limits = Limits.of_platform(config, {"SAGEMAKER_MULTI_MODEL": "true"})
    engine: Any = None  # nobody is asked
    written: list[str] = []
    half = endpoint_half(Plan(config=config, environ={}, limits=limits), {}, engine, Metrics(), written.append)

    half.events.publish(call())

    assert len(written) == lines
    assert half.measures.snapshot().totals.invocations == 1


# The dashboard


def test_a_snapshot_has_totals_and_the_last_minute(measures: Measures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Second by second; what is older than a minute is in the totals only."""
    for moment in (100.0, 159.9, 160.0, 160.9):
        monkeypatch.setattr(measures_module.time, "monotonic", lambda moment=moment: moment)
        for number in range(10):
            measures.invocation(call(status=200 if number else 500, total_secs=0.1, was_hit=number > 4))

    snapshot = measures.snapshot()

    assert (snapshot.totals.invocations, snapshot.totals.errors, snapshot.totals.hits) == (40, 4, 20)
    assert (snapshot.minute.requests, snapshot.minute.errors, snapshot.minute.hit_ratio) == (30, 3, 0.5)
    assert len(snapshot.seconds) == 60
    assert [second.requests for second in snapshot.seconds[-2:]] == [10, 20]
    assert sum(second.requests for second in snapshot.seconds) == 30
    assert snapshot.seconds[0].hit_ratio is None


def test_a_snapshots_percentiles_are_those_of_the_requests(measures: Measures) -> None:
    """Within a class, which is a quarter wide at most, of what sorting all of them gives."""
    chosen = random.Random(2)
    durations = sorted(chosen.lognormvariate(-5, 1) for _ in range(2000))
    for duration in durations:
        measures.invocation(call(total_secs=duration))

    minute = measures.snapshot().minute
    assert minute.p50_secs == pytest.approx(durations[999], rel=0.25)
    assert minute.p90_secs == pytest.approx(durations[1799], rel=0.25)
    assert minute.p99_secs == pytest.approx(durations[1979], rel=0.25)


def test_the_last_events_are_kept_in_their_order(measures: Measures) -> None:
    """What came, what went and why."""
    for number in range(EVENTS_KEPT):
        measures.loaded("polyhost", "AllTraffic", f"{number}", download_secs=0.5, load_secs=0.25)
    measures.unloaded("polyhost", "AllTraffic", "0", 0.01, was_evicted=True)
    measures.unloaded("polyhost", "AllTraffic", "1", 0.01, was_evicted=False)
    measures.swapped("polyhost", "AllTraffic", "2", 0.1)

    snapshot = measures.snapshot()
    assert len(snapshot.events) == EVENTS_KEPT
    assert (snapshot.events[0].target, snapshot.events[0].kind, snapshot.events[0].ms) == ("3", "load", 750)
    assert [(event.kind, event.target) for event in snapshot.events[-3:]] == [
        ("evict", "0"), ("unload", "1"), ("swap", "2"),
    ]  # fmt: skip
    assert (snapshot.totals.loads, snapshot.totals.unloads, snapshot.totals.evictions) == (EVENTS_KEPT, 2, 1)
