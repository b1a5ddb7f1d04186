"""What is counted and measured, for `GET /metrics` in Prometheus's exposition format."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from polyhost.engine.protocol import HandlerMetric

logger = logging.getLogger("polyhost.metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# What MMS measures by itself, of every request: to /metrics, not to the log.
_OF_EVERY_REQUEST = "PredictionTime"
# Handlers choose names, clients choose models: more series than this are not kept.
MAX_SERIES = 10_000
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


@dataclass
class _Series:
    count: int = 0
    total: float = 0.0


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class Metrics(Collector):
    """One per server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(self)
        # By name and whether it is a counter; then by model.
        self._handlers: dict[tuple[str, bool], dict[str, _Series]] = {}
        self._series_count = 0

    def add(self, collector: Collector) -> None:
        """Its metrics are in the exposition from now on."""
        self._registry.register(collector)

    def of_handler(self, model: str, metrics: Sequence[HandlerMetric]) -> None:
        """What a handler added to MMS's `context.metrics` while it answered a request."""
        for metric in metrics:
            if metric.name != _OF_EVERY_REQUEST:
                logger.info("%s", " ".join(metric.line.split()))
            series = self._series(metric, model)
            if series is not None:
                series.count += 1
                series.total += metric.value

    def _series(self, metric: HandlerMetric, model: str) -> _Series | None:
        name = f"{metric.name}_{metric.unit}" if metric.unit else metric.name
        family = "polyhost_handler_" + _NOT_IN_A_NAME.sub("_", name).lower()
        by_model = self._handlers.setdefault((family, metric.is_counter), {})
        series = by_model.get(model)
        if series is None and self._series_count < MAX_SERIES:
            series = by_model[model] = _Series()
            self._series_count += 1
        return series

    def forget(self, model: str) -> None:
        """A model was unloaded: its series end."""
        for by_model in self._handlers.values():
            if by_model.pop(model, None) is not None:
                self._series_count -= 1

    async def exposition(self) -> bytes:
        """The text of thousands of series takes longer than requests may wait: a thread writes it."""
        now = CollectorRegistry()
        now.register(_Collected(list(self._registry.collect())))
        return await asyncio.to_thread(generate_latest, now)

    def collect(self) -> Iterator[Metric]:
        words = "From handlers' context.metrics."
        for (family, is_counter), by_model in self._handlers.items():
            if is_counter:
                counter = CounterMetricFamily(family, words, labels=["model"])
                for model, series in by_model.items():
                    counter.add_metric([model], series.total)
                yield counter
            else:
                summary = SummaryMetricFamily(family, words, labels=["model"])
                for model, series in by_model.items():
                    summary.add_metric([model], series.count, series.total)
                yield summary
