"""What a server's /metrics say, added up over its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

_WAIT = "polyhost_model_loading_wait_time_seconds"


@dataclass(frozen=True)
class Figures:
    """One answer of /metrics: totals since the start, but for what is of now. `wait_buckets`: counts by bound."""

    loaded: int
    memory_ratio: float
    invocations: int
    errors: int
    lookups: int
    hits: int
    loads: int
    evictions: int
    waits: int
    wait_secs: float
    wait_buckets: Mapping[float, int]


def parsed(text: str) -> Figures:
    sums: dict[str, float] = {}
    buckets: dict[float, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{_WAIT}_bucket":
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0) + int(sample.value)
            elif "model" not in sample.labels:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value

    def total(name: str) -> int:
        return int(sums.get(name, 0))

    return Figures(
        loaded=total("polyhost_loaded_model_count"),
        memory_ratio=sums.get("polyhost_memory_utilization_ratio", 0.0),
        invocations=total("polyhost_invocations_total"),
        errors=total("polyhost_invocation_4xx_errors_total") + total("polyhost_invocation_5xx_errors_total"),
        lookups=total("polyhost_model_cache_lookups_total"),
        hits=total("polyhost_model_cache_hits_total"),
        loads=total("polyhost_model_loading_time_seconds_count"),
        evictions=total("polyhost_model_evictions_total"),
        waits=total(f"{_WAIT}_count"),
        wait_secs=sums.get(f"{_WAIT}_sum", 0.0),
        wait_buckets=buckets,
    )


def bucket_quantile(buckets: Mapping[float, int], share: float) -> float:
    """The bound that `share` of all do not exceed, seconds; 0 where there are none."""
    total = max(buckets.values(), default=0)
    if not total:
        return 0.0
    return next(bound for bound in sorted(buckets) if buckets[bound] >= share * total)
