"""The endpoint half's tallies as Prometheus's metric families, under SageMaker's names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from polyhost.endpoint.measures.histogram import Histogram
from polyhost.endpoint.measures.tallies import Gauges, ModelTally, VariantTally

_VARIANT = ("endpoint", "variant")
_MODEL = (*_VARIANT, "model")
# The upper bounds that are exposed. A histogram has more of them.
EXPOSED_SECS = (*(float(f"{step}e{decade}") for decade in range(-4, 2) for step in ("1", "2.5", "5")), 100.0)

_COUNTERS: tuple[tuple[str, str, Callable[[VariantTally], int]], ...] = (
    ("invocations", "Requests to the endpoint.", lambda tally: tally.invocations),
    ("invocation_4xx_errors", "Requests answered 4xx.", lambda tally: tally.errors_4xx),
    ("invocation_5xx_errors", "Requests answered 5xx, by the model or by the server.", lambda tally: tally.errors_5xx),
    ("model_cache_lookups", "Requests that looked for their model in memory.", lambda tally: tally.lookups),
    ("model_cache_hits", "Requests that found it there.", lambda tally: tally.hits),
    ("model_evictions", "Models unloaded to make room.", lambda tally: tally.evictions),
    ("shadow_same_answers", "A shadow's answers that clients had got, too.", lambda tally: tally.shadow_same),
    ("shadow_different_answers", "A shadow's answers that differ.", lambda tally: tally.shadow_different),
    ("shadow_dropped_requests", "Copies that a shadow was too busy for.", lambda tally: tally.shadow_dropped),
    ("captured_requests", "Requests that data capture has written.", lambda tally: tally.captured),
    ("capture_dropped_requests", "Requests that data capture has lost.", lambda tally: tally.capture_dropped),
)
_DURATIONS: tuple[tuple[str, str, Callable[[VariantTally], Histogram]], ...] = (
    ("model_latency", "From asking the model to its answer.", lambda tally: tally.model_latency),
    ("overhead_latency", "The rest of a request's time.", lambda tally: tally.overhead_latency),
    ("model_loading_wait_time", "A request's wait for its model.", lambda tally: tally.loading_wait),
    ("model_downloading_time", "Fetching a model's archive.", lambda tally: tally.downloading),
    ("model_loading_time", "Loading a model.", lambda tally: tally.loading),
    ("model_unloading_time", "Unloading a model.", lambda tally: tally.unloading),
)
_MODEL_COUNTERS: tuple[tuple[str, str, Callable[[ModelTally], int]], ...] = (
    ("invocations", "Requests for the model.", lambda tally: tally.invocations),
    ("errors", "Requests for it answered 4xx or 5xx.", lambda tally: tally.errors),
    ("cache_hits", "Requests that found it in memory.", lambda tally: tally.hits),
    ("loads", "Times it was loaded.", lambda tally: tally.loads),
    ("evictions", "Times it was unloaded to make room.", lambda tally: tally.evictions),
)


def families(variants: Collection[VariantTally], gauges: Gauges) -> Iterator[Metric]:
    yield from _of_variants(variants)
    yield from _of_gauges(gauges)
    yield from _of_models(variants)


def _of_variants(variants: Collection[VariantTally]) -> Iterator[Metric]:
    for name, words, count_of in _COUNTERS:
        counter = CounterMetricFamily(f"polyhost_{name}", words, labels=_VARIANT)
        for tally in variants:
            counter.add_metric((tally.endpoint, tally.name), count_of(tally))
        yield counter
    for name, words, histogram_of in _DURATIONS:
        durations = HistogramMetricFamily(f"polyhost_{name}_seconds", words, labels=_VARIANT)
        for tally in variants:
            histogram = histogram_of(tally)
            durations.add_metric((tally.endpoint, tally.name), _buckets(histogram), histogram.total_secs)
        yield durations


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [(str(bound), histogram.count_to(bound)) for bound in EXPOSED_SECS]
    return [*bounds, ("+Inf", histogram.count)]


def _of_gauges(gauges: Gauges) -> Iterator[Metric]:
    loaded = GaugeMetricFamily("polyhost_loaded_model_count", "Models in memory.", labels=_VARIANT)
    for names, count in gauges.loaded_models.items():
        loaded.add_metric(names, count)
    yield loaded
    for name, words, ratio in (
        ("memory", "Of the budget of memory.", gauges.memory_utilization),
        ("disk", "Of the budget of disk.", gauges.disk_utilization),
        ("cpu", "Of one core: two busy cores are 2.", gauges.cpu_utilization),
    ):
        yield GaugeMetricFamily(f"polyhost_{name}_utilization_ratio", words, value=ratio)
    backlog = GaugeMetricFamily(
        "polyhost_approximate_backlog_size", "Asynchronous calls that wait or are under way.", labels=["endpoint"]
    )
    for endpoint, count in gauges.backlogs.items():
        backlog.add_metric([endpoint], count)
    yield backlog
    throttled = CounterMetricFamily(
        "polyhost_throttled_requests", "Requests refused by their caller's rate limit.", labels=["caller"]
    )
    for caller, count in gauges.throttled.items():
        throttled.add_metric([caller], count)
    yield throttled


def _of_models(variants: Collection[VariantTally]) -> Iterator[Metric]:
    models = [
        ((variant.endpoint, variant.name, _label(target)), tally)
        for variant in variants
        for target, tally in variant.models.items()
        if tally is not variant.other or tally != ModelTally()
    ]
    for name, words, count_of in _MODEL_COUNTERS:
        counter = CounterMetricFamily(f"polyhost_per_model_{name}", words, labels=_MODEL)
        for labels, tally in models:
            counter.add_metric(labels, count_of(tally))
        yield counter
    latency = SummaryMetricFamily("polyhost_per_model_latency_seconds", "Of the model's answers.", labels=_MODEL)
    for labels, tally in models:
        latency.add_metric(labels, tally.answered, tally.answered_secs)
    yield latency


def _label(target: str) -> str:
    """A name of a file need not be text; a label must."""
    return target.encode("utf-8", "backslashreplace").decode()
