"""Which way models are answered: by what was compiled of them, or by their frameworks; counted for `GET /metrics`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

from polyhost_handlers.compiled.rows import Way
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

logger = logging.getLogger("polyhost.engine")


class Ways(Collector):
    """Counts as models come and go, because looking through a million of them would hold requests up."""

    def __init__(self) -> None:
        self._models: Counter[bool] = Counter()
        self._refused = 0
        # Rows that no worker was asked for.
        self.front_rows = 0

    def begin(self, title: str, way: Way, *, in_front: bool) -> None:
        self._models[way.is_compiled] += 1
        self._refused += way.has_differed
        logger.info("model %s: %s", title, in_words(way, in_front=in_front))

    def end(self, way: Way) -> None:
        self._models[way.is_compiled] -= 1

    def collect(self) -> Iterator[Metric]:
        models = GaugeMetricFamily(
            "polyhost_models", "Models by what answers: the compiled model, or its framework.", labels=["answered_by"]
        )
        for label, is_compiled in (("compiled", True), ("framework", False)):
            models.add_metric([label], self._models[is_compiled])
        yield models
        yield CounterMetricFamily("polyhost_front_rows", "Rows answered without a worker.", value=self.front_rows)
        yield CounterMetricFamily(
            "polyhost_compilations_refused", "Compiled models that differed from their framework.", value=self._refused
        )


def in_words(way: Way, *, in_front: bool) -> str:
    if not way.is_compiled:
        return f"its framework answers, because {way.why_not}"
    return "it is compiled" + (", and rows are answered in the front" if in_front else "")
