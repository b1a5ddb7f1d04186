"""What CloudWatch is told, read as CloudWatch reads it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT
from polyhost.endpoint.events import CallAnswered
from polyhost.endpoint.measures import Gauges, Measures
from polyhost.endpoint.measures import measures as measures_module
from polyhost.endpoint.measures.emf import Minute
from polyhost.log import formatter_for

UNITS = {
    "Invocations": "None", "InvocationsPerInstance": "None", "Invocation4XXErrors": "None",
    "Invocation5XXErrors": "None", "ModelCacheHit": "None",
    "LoadedModelCount": "None", "ModelLatency": "Microseconds", "OverheadLatency": "Microseconds",
    "ModelLoadingWaitTime": "Microseconds", "ModelDownloadingTime": "Microseconds",
    "ModelLoadingTime": "Microseconds", "ModelUnloadingTime": "Microseconds", "MemoryUtilization": "Percent",
    "CPUUtilization": "Percent", "DiskUtilization": "Percent",
}  # fmt: skip


class Metric:
    """A metric of a document with the statistics that CloudWatch would keep."""

    def __init__(self, target: float | dict[str, Any]) -> None:
        if not isinstance(target, dict):
            target = {"Values": [target], "Counts": [1], "Min": target, "Max": target, "Sum": target, "Count": 1}
        values, counts = target["Values"], target["Counts"]
        assert len(values) == len(counts) <= 100
        assert all(math.isfinite(number) and number >= 0 for number in values)
        assert all(isinstance(count, int) and count > 0 for count in counts)
        self.sample_count = sum(counts)
        self.sum = sum(value * count for value, count in zip(values, counts, strict=True))
        self.average = self.sum / self.sample_count
        self.minimum, self.maximum = target["Min"], target["Max"]
        self._all = sorted(value for value, count in zip(values, counts, strict=True) for _ in range(count))
        # What is said twice is the same.
        assert (target["Count"], target["Sum"]) == (self.sample_count, pytest.approx(self.sum, rel=1e-6))
        assert self.minimum <= self._all[0] + 0.001
        assert self.maximum >= self._all[-1] - 0.001

    def percentile(self, share: float) -> float:
        return float(self._all[math.ceil(share * len(self._all)) - 1])


class Document:
    """A line of the log, checked against the format's specification."""

    def __init__(self, line: str) -> None:
        assert len(line.encode()) < 256 * 1024
        root = json.loads(line)
        (directive,) = root["_aws"]["CloudWatchMetrics"]
        assert isinstance(root["_aws"]["Timestamp"], int)
        assert directive["Namespace"] == "Polyhost"
        assert directive["Dimensions"] == [["EndpointName", "VariantName"]]
        self.names = (root["EndpointName"], root["VariantName"])
        self.moment_ms = root["_aws"]["Timestamp"]
        self.metrics = {}
        for metric in directive["Metrics"]:
            assert set(metric) == {"Name", "Unit"}
            assert metric["Unit"] == UNITS[metric["Name"]]
            self.metrics[metric["Name"]] = Metric(root[metric["Name"]])

    def __getitem__(self, name: str) -> Metric:
        return self.metrics[name]


class Cloudwatch(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(formatter_for("json"))
        self.documents: list[Document] = []
        self.got_one = lambda: None

    def emit(self, record: logging.LogRecord) -> None:
        self.documents.append(Document(self.format(record)))
        self.got_one()


@pytest.fixture
def cloudwatch() -> Iterator[Cloudwatch]:
    handler = Cloudwatch()
    logger = logging.getLogger("polyhost.emf")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


@pytest.fixture
def measures() -> Measures:
    return Measures(emf_namespace="Polyhost")


def call(status: int = 200, **changed: object) -> CallAnswered:
    usual = CallAnswered("id", "polyhost", "AllTraffic", "a.tar.gz", status, 20, 10, 0.003, 0.002, True)
    return usual._replace(**changed)


def end_of_a_minute(measures: Measures) -> None:
    """The loop as the server runs and cancels it: at its end it sends what is left."""

    async def run() -> None:
        emitting = asyncio.create_task(measures.tell_every_minute())
        await asyncio.sleep(0)
        emitting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await emitting

    asyncio.run(run())


def test_counts_are_ones_and_zeros(measures: Measures, cloudwatch: Cloudwatch) -> None:
    """As SageMaker sends them: sums are counts, averages are ratios."""
    for number in range(40):
        measures.invocation(call(400 if number < 10 else 500 if number < 12 else 200, was_hit=number % 4 > 0))
    end_of_a_minute(measures)

    (document,) = cloudwatch.documents
    assert document.names == ("polyhost", "AllTraffic")
    assert (document["Invocations"].sum, document["Invocations"].sample_count) == (40, 40)
    # One server is one instance.
    assert (document["InvocationsPerInstance"].sum, document["InvocationsPerInstance"].sample_count) == (40, 40)
    assert (document["Invocation4XXErrors"].sum, document["Invocation4XXErrors"].average) == (10, 0.25)
    assert (document["Invocation5XXErrors"].sum, document["Invocation5XXErrors"].average) == (2, 0.05)
    assert (document["ModelCacheHit"].average, document["ModelCacheHit"].sample_count) == (0.75, 40)


def test_latencies_are_right_on_the_average_and_near_at_every_percentile(
    measures: Measures, cloudwatch: Cloudwatch
) -> None:
    """Thousands of them over five decades, in fewer than a hundred values."""
    chosen = random.Random(4)
    durations = sorted(chosen.lognormvariate(-6, 2) for _ in range(5000))
    for duration in durations:
        measures.invocation(call(model_secs=duration, total_secs=duration + 0.0005))
    end_of_a_minute(measures)

    latency = cloudwatch.documents[0]["ModelLatency"]
    assert latency.sample_count == 5000
    assert latency.average == pytest.approx(sum(durations) / 5000 * 1e6)
    assert latency.minimum == pytest.approx(durations[0] * 1e6, abs=0.001)
    assert latency.maximum == pytest.approx(durations[-1] * 1e6, abs=0.001)
    for share in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
        exact = durations[math.ceil(share * 5000) - 1] * 1e6
        assert latency.percentile(share) == pytest.approx(exact, rel=0.25)  # a class's width
    assert cloudwatch.documents[0]["OverheadLatency"].average == pytest.approx(500)


@pytest.mark.parametrize("secs", [0.0, 1e-9, 1e-5, 99.9, 100.0, 1e5])
def test_any_duration_has_a_class(measures: Measures, cloudwatch: Cloudwatch, secs: float) -> None:
    """Shorter than the shortest, longer than the longest."""
    measures.invocation(call(was_hit=False, wait_secs=secs))
    end_of_a_minute(measures)

    wait = cloudwatch.documents[0]["ModelLoadingWaitTime"]
    assert (wait.minimum, wait.average, wait.maximum) == pytest.approx((secs * 1e6,) * 3, abs=0.001)


def test_all_classes_together_are_few_enough(measures: Measures, cloudwatch: Cloudwatch) -> None:
    """No traffic makes more values than CloudWatch takes."""
    for tenth in range(-80, 30):
        measures.invocation(call(model_secs=10 ** (tenth / 10), total_secs=1001.0))
        measures.invocation(call(model_secs=1.07 * 10 ** (tenth / 10), total_secs=1001.0))
    end_of_a_minute(measures)

    assert cloudwatch.documents[0]["ModelLatency"].sample_count == 220


def test_the_cache_and_its_times(measures: Measures, cloudwatch: Cloudwatch) -> None:
    """All metrics of a multi-model endpoint, under their names; no download where the archive was on disk."""
    measures.gauges = lambda: Gauges({("polyhost", "AllTraffic"): 121}, 0.5, 0.25, 1.5)
    measures.invocation(call(was_hit=False, wait_secs=0.3))
    measures.loaded("polyhost", "AllTraffic", "a.tar.gz", download_secs=0.2, load_secs=0.1)
    measures.loaded("polyhost", "AllTraffic", "b.tar.gz", download_secs=0.0, load_secs=0.3)
    measures.unloaded("polyhost", "AllTraffic", "a.tar.gz", 0.01, was_evicted=True)
    end_of_a_minute(measures)

    (document,) = cloudwatch.documents
    assert set(document.metrics) == set(UNITS)
    assert document["ModelLoadingWaitTime"].sum == 300_000
    assert (document["ModelDownloadingTime"].sum, document["ModelDownloadingTime"].sample_count) == (200_000, 1)
    assert (document["ModelLoadingTime"].average, document["ModelLoadingTime"].maximum) == (200_000, 300_000)
    assert document["ModelUnloadingTime"].sum == 10_000
    assert document["LoadedModelCount"].average == 121
    assert document["MemoryUtilization"].average == 50
    assert document["DiskUtilization"].average == 25
    assert document["CPUUtilization"].average == 150


def test_each_minute_has_its_own(measures: Measures, cloudwatch: Cloudwatch) -> None:
    """What was sent is not sent again; who has nothing to say says nothing; the page for Prometheus has it all."""
    measures.invocation(call(model_secs=0.5, total_secs=0.5))
    end_of_a_minute(measures)
    end_of_a_minute(measures)
    measures.invocation(call(model_secs=0.001, total_secs=0.001))
    measures.invocation(call(model_secs=0.001, total_secs=0.001, was_hit=False))
    end_of_a_minute(measures)

    first, second = cloudwatch.documents
    assert first["ModelLatency"].average == 500_000
    assert (second["ModelLatency"].average, second["ModelLatency"].maximum) == pytest.approx((1000, 1000))
    assert (second["Invocations"].sum, second["ModelCacheHit"].average) == (2, 0.5)
    assert first.moment_ms <= second.moment_ms
    assert measures.snapshot().totals.invocations == 3


def test_a_minute_ends_by_the_clock(
    measures: Measures, cloudwatch: Cloudwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a shorter minute: the loop goes on, each document is of the period in which its requests came."""
    monkeypatch.setattr(measures_module, "_PERIOD_SECS", 0.05)

    created_ms = int(time.time() * 1000)
    while int(time.time() * 1000) == created_ms:  # the first period is told a millisecond later, however short it is
        pass

    async def two_minutes() -> None:
        emitting = asyncio.create_task(measures.tell_every_minute())
        for _ in range(2):
            got_one = asyncio.Event()
            cloudwatch.got_one = got_one.set
            measures.invocation(call())
            await got_one.wait()
        emitting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await emitting

    asyncio.run(two_minutes())

    first, second = cloudwatch.documents
    assert (first["Invocations"].sum, second["Invocations"].sum) == (1, 1)
    assert second.moment_ms > first.moment_ms


def test_every_metric_is_in_the_docs() -> None:
    """docs/metrics.md names each."""
    page = (ROOT / "docs" / "metrics.md").read_text()

    assert not [name for name in UNITS if f"| `{name}` |" not in page]


def test_every_variant_speaks_for_itself(measures: Measures, cloudwatch: Cloudwatch) -> None:
    """One that is only loaded too; endpoints that do not exist never; a deleted endpoint for the last time."""
    measures.gauges = lambda: Gauges({("quiet", "AllTraffic"): 2}, 0.5, 0.25, 1.5)
    measures.invocation(call(variant="blue"))
    measures.invocation(call(variant="green"))
    measures.invocation(call(400, endpoint="made up", variant="", was_hit=None))
    measures.invocation(call(endpoint="deleted"))
    measures.forget_endpoint("deleted")
    assert [document.names for document in cloudwatch.documents] == [("deleted", "AllTraffic")]
    end_of_a_minute(measures)

    assert sorted(document.names for document in cloudwatch.documents[1:]) == [
        ("polyhost", "blue"), ("polyhost", "green"), ("quiet", "AllTraffic"),
    ]  # fmt: skip


def test_no_metrics_for_cloudwatch_unless_asked_for(cloudwatch: Cloudwatch) -> None:
    """Without a namespace only those are told who keep the minutes."""
    measures = Measures(emf_namespace=None)
    kept: list[Minute] = []
    measures.keep = kept.extend
    measures.invocation(call())
    end_of_a_minute(measures)
    measures.invocation(call())
    measures.forget_endpoint("polyhost")

    assert [(minute.endpoint, minute.metrics["Invocations"].value["Sum"]) for minute in kept] == [("polyhost", 1)] * 2

    assert cloudwatch.documents == []


@pytest.mark.parametrize("namespace", ["AWS/SageMaker", "aws/x", "AWS/", "", ":a", "a b", "a\nb", "x" * 256])
def test_a_namespace_that_cloudwatch_refuses_is_refused(namespace: str) -> None:
    """At the start, in words."""
    with pytest.raises(ValueError, match=r"is AWS's own: choose|is not a namespace of CloudWatch: use"):
        Measures(emf_namespace=namespace)


@pytest.mark.parametrize("namespace", ["Polyhost", "/aws/sagemaker/Endpoints", "AWSome", "a.b-c_d/e#f:g"])
def test_other_namespaces_are_fine(namespace: str) -> None:
    """Also those that only look like AWS's."""
    assert Measures(emf_namespace=namespace)
