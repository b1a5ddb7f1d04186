"""
CloudWatch's Embedded Metric Format: a line of the JSON log that CloudWatch takes metrics from.

A metric with many values in a minute is an object `{"Values": …, "Counts": …}`. AWS's page of the format knows only
numbers and arrays of at most 100; the object is what AWS's own OpenTelemetry exporter and its library metrique write,
and the only form that tells how often a value occurred. Its arrays have the same limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from polyhost.endpoint.measures.histogram import Observed
from polyhost.endpoint.measures.tallies import Gauges, VariantTally
from polyhost.log import METRICS_MEMBER, Structured

_NAMESPACE = re.compile(r"[A-Za-z0-9._/#:-]{1,255}")
_MICROSECONDS = 1_000_000


class Datum(NamedTuple):
    """One metric of one minute."""

    unit: str
    value: float | dict[str, Any]


class Minute(NamedTuple):
    """What a variant's metrics were from `began_secs` on, which need not be a whole minute."""

    endpoint: str
    variant: str
    began_secs: float
    metrics: Mapping[str, Datum]


def parse_namespace(text: str) -> str:
    """A namespace that a customer may write into. Raises ValueError."""
    if not _NAMESPACE.fullmatch(text) or text.startswith(":"):
        raise ValueError(f"'{text}' is not a namespace of CloudWatch: use up to 255 letters, digits and . - _ / # :")
    if text.upper().startswith("AWS/"):
        raise ValueError(
            f"'{text}' is AWS's own: choose a namespace that does not begin with AWS/, for example Polyhost"
        )
    return text


def take_metrics(tally: VariantTally, gauges: Gauges) -> dict[str, Datum]:
    """What is to be said of a variant since the last time, under AWS's names; nothing if nothing was and is."""
    counts = tally.take_counts()
    metrics = {}
    if counts.invocations:
        metrics["Invocations"] = of_answers(counts.invocations, 0)
        # Each request counts as one through the number of instances: there is one, this server.
        metrics["InvocationsPerInstance"] = of_answers(counts.invocations, 0)
        metrics["Invocation4XXErrors"] = of_answers(counts.errors_4xx, counts.invocations - counts.errors_4xx)
        metrics["Invocation5XXErrors"] = of_answers(counts.errors_5xx, counts.invocations - counts.errors_5xx)
    if counts.lookups:
        metrics["ModelCacheHit"] = of_answers(counts.hits, counts.lookups - counts.hits)
    for name, histogram in (
        ("ModelLatency", tally.model_latency),
        ("OverheadLatency", tally.overhead_latency),
        ("ModelLoadingWaitTime", tally.loading_wait),
        ("ModelDownloadingTime", tally.downloading),
        ("ModelLoadingTime", tally.loading),
        ("ModelUnloadingTime", tally.unloading),
    ):
        observed = histogram.take()
        if observed.counts:
            metrics[name] = of_durations(observed)
    loaded = gauges.loaded_models.get((tally.endpoint, tally.name))
    if loaded is not None:
        metrics["LoadedModelCount"] = Datum("None", loaded)
    if metrics:
        metrics["MemoryUtilization"] = of_ratio(gauges.memory_utilization)
        metrics["CPUUtilization"] = of_ratio(gauges.cpu_utilization)
        metrics["DiskUtilization"] = of_ratio(gauges.disk_utilization)
    return metrics


def of_durations(observed: Observed) -> Datum:
    values = [round(value * _MICROSECONDS, 3) for value in observed.values]
    return Datum(
        "Microseconds",
        {
            "Values": values,
            "Counts": list(observed.counts),
            "Min": round(observed.lowest * _MICROSECONDS, 3),
            "Max": round(observed.highest * _MICROSECONDS, 3),
            "Sum": round(observed.total * _MICROSECONDS, 3),
            "Count": observed.times,
        },
    )


def of_answers(yes: int, no: int) -> Datum:
    """1 for each of `yes` and 0 for each of `no`: the average is the share, the sum is `yes`."""
    both = [(value, count) for value, count in ((0, no), (1, yes)) if count]
    return Datum(
        "None",
        {
            "Values": [value for value, _ in both],
            "Counts": [count for _, count in both],
            "Min": both[0][0],
            "Max": both[-1][0],
            "Sum": yes,
            "Count": yes + no,
        },
    )


def of_ratio(ratio: float) -> Datum:
    return Datum("Percent", round(ratio * 100, 3))


class Document(Structured):
    """One minute of one variant. Its text is no document: CloudWatch reads the JSON form of the log only."""

    def __init__(self, namespace: str, minute: Minute) -> None:
        self._namespace = namespace
        self._minute = minute

    def __str__(self) -> str:
        return f"metrics of {self._minute.endpoint} {self._minute.variant}"

    def members(self) -> dict[str, Any]:
        directive = {
            "Namespace": self._namespace,
            "Dimensions": [["EndpointName", "VariantName"]],
            "Metrics": [{"Name": name, "Unit": datum.unit} for name, datum in self._minute.metrics.items()],
        }
        return {
            "message": str(self),
            METRICS_MEMBER: {"Timestamp": int(self._minute.began_secs * 1000), "CloudWatchMetrics": [directive]},
            "EndpointName": self._minute.endpoint,
            "VariantName": self._minute.variant,
            **{name: datum.value for name, datum in self._minute.metrics.items()},
        }
