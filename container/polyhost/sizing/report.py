"""What `polyhost size` says: figures as JSON, as tables, and the sentence on which hosts to take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyhost.sizing.costs import Layout
from polyhost.sizing.fleet import Fleet, Measured
from polyhost.sizing.sample import Sample
from polyhost.sizing.simulate import Replay, latencies, quantile

SHARES = (0.5, 0.9, 0.99)
_TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Mix:
    """Traffic with so much memory for models. `latency_secs`: p50, p90, p99; None if no model answered."""

    memory_bytes: int
    replayed: Replay
    latency_secs: tuple[float, ...] | None

    @property
    def p99_secs(self) -> float | None:
        return self.latency_secs[-1] if self.latency_secs else None


def mix_of(memory_bytes: int, replayed: Replay, fleet: Fleet) -> Mix:
    weighted = latencies(replayed, fleet.measured_as)
    answered = any(one.calls_secs for one in fleet.measured_as.values())
    quantiles = tuple(quantile(weighted, share) for share in SHARES) if answered and weighted else None
    return Mix(memory_bytes, replayed, quantiles)


@dataclass(frozen=True)
class Report:
    """`goal`: what was asked of the recommended, in words. `enough`: the least of `mixes` that reaches it."""

    source: str
    traffic: str
    goal: str
    sample: Sample
    fleet: Fleet
    mixes: Sequence[Mix]
    enough: Mix | None
    layouts: Sequence[Layout]
    recommended: Layout | None
    notes: Sequence[str]


@dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


# In words


def size_words(size_bytes: float) -> str:
    for unit, limit in (("KiB", 1024**2), ("MiB", 1024**3), ("GiB", 1024**4)):
        if size_bytes < limit:
            return _three_digits(size_bytes / (limit / 1024)) + " " + unit
    return _three_digits(size_bytes / 1024**4) + " TiB"


def ms_words(secs: float | None) -> str:
    return "?" if secs is None else _three_digits(secs * 1000) + " ms"


def money_words(amount: float) -> str:
    return f"${amount:,.2f}" if amount < 10 else f"${amount:,.0f}"


def percent_words(ratio: float) -> str:
    """Never 100 % of what is not all."""
    return f"{int(ratio * 1000) / 10:g} %"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def layout_words(layout: Layout) -> str:
    if layout.endpoints > 1:
        return "an endpoint for each model"
    if layout.hosts == 1:
        return "one host"
    if layout.shards == 1:
        return f"{layout.hosts} hosts, each with all models"
    copies = layout.hosts // layout.shards
    return f"{layout.hosts} hosts, models divided among {layout.shards}" if copies > 1 else f"{layout.hosts} hosts"


# Tables


def tables(report: Report) -> list[Table]:
    found = [_models_table(report), _mix_table(report)]
    return [*found, _costs_table(report)] if report.layouts else found


def _models_table(report: Report) -> Table:
    fleet = report.fleet
    rows = []
    for kind, line in fleet.lines.items():
        keys = [key for key, one in fleet.measured_as.items() if one.kind == kind]
        measured = list({fleet.measured_as[key].key: fleet.measured_as[key] for key in keys}.values())
        rows.append((
            kind + (" (rough)" if line.is_rough else ""),
            f"{len(keys):,}",
            f"{line.count}",
            size_words(statistics.fmean(fleet.archives[key] for key in keys)),
            size_words(statistics.fmean(fleet.sizes[key] for key in keys)),
            f"{fleet.per_gib(kind):,}",
            ms_words(_median(measured, lambda one: [one.store_secs])),
            ms_words(_median(measured, lambda one: [one.disk_secs])),
            ms_words(_median(measured, lambda one: one.calls_secs)),
        ))  # fmt: skip
    head = ("kind", "models", "measured", "archive", "memory each", "per GiB", "first call", "from disk", "in memory")
    return Table("Models", head, rows)


def _median(measured: Sequence[Measured], values_of: Callable[[Measured], Sequence[float]]) -> float | None:
    values = [value for one in measured for value in values_of(one)]
    return statistics.median(values) if values else None


def _mix_table(report: Report) -> Table:
    total = report.fleet.total_bytes
    rows = [
        (
            size_words(mix.memory_bytes) + (" *" if mix is report.enough else ""),
            percent_words(min(1.0, mix.memory_bytes / total)),
            f"{mix.replayed.resident:,}",
            percent_words(mix.replayed.hit_ratio),
            f"{mix.replayed.load_ratio * 1000:.3g}",
            *(map(ms_words, mix.latency_secs or (None,) * len(SHARES))),
        )
        for mix in report.mixes
    ]
    head = ("memory for models", "of all", "in memory", "found there", "loads per 1,000", "p50", "p90", "p99")
    return Table(f"Hot and cold: {report.traffic}", head, rows)


def _costs_table(report: Report) -> Table:
    rows = [
        (
            ("* " if layout is report.recommended else "") + layout_words(layout),
            f"{layout.hosts:,} {_TIMES} {layout.host.name}",
            percent_words(1.0 if layout.replayed is None else layout.replayed.hit_ratio),
            money_words(layout.price_per_month),
        )
        for layout in report.layouts
    ]
    return Table(f"Hosts: {report.goal}", ("layout", "hosts", "found in memory", "a month"), rows)


# Sentences


def sentences(report: Report) -> list[str]:
    return [fits(report), recommendation(report), *report.notes]


def fits(report: Report) -> str:
    fleet = report.fleet
    return (
        f"{fleet.per_gib():,} models fit into a GiB; all {len(fleet.sizes):,} need {size_words(fleet.total_bytes)}. "
        f"An idle server uses {size_words(report.sample.idle_bytes)}."
    )


def recommendation(report: Report) -> str:
    if report.recommended is not None:
        return _recommended_hosts(report, report.recommended)
    if report.layouts or report.enough is None:
        return f"No amount of memory that was tried reaches the goal: {report.goal}."
    mix = report.enough
    return (
        f"Take {size_words(mix.memory_bytes)} for models (--memory-budget): {percent_words(mix.replayed.hit_ratio)} of "
        f"requests find their model in memory{_p99_words(mix)}. "
        "Give --host NAME=GiB:CPUS:PRICE_PER_HOUR to compare what hosts cost."
    )


def _p99_words(mix: Mix) -> str:
    return "" if mix.p99_secs is None else f", p99 {ms_words(mix.p99_secs)}"


def _recommended_hosts(report: Report, layout: Layout) -> str:
    ratio = 1.0 if layout.replayed is None else layout.replayed.hit_ratio
    price = money_words(layout.price_per_month)
    words = (
        f"Take {layout.hosts:,} {_TIMES} {layout.host.name} ({layout_words(layout)}): {price} a month, "
        f"{percent_words(ratio)} of requests find their model in memory."
    )
    others = [other for other in report.layouts if other.endpoints > 1 and other is not layout]
    if others:
        price = money_words(others[0].price_per_month)
        words += f" An endpoint for each model would cost {price} a month."
    return words


# JSON


def document(report: Report) -> dict[str, Any]:
    fleet, sample = report.fleet, report.sample
    return {
        "source": report.source,
        "models": len(fleet.sizes),
        "memory_bytes": fleet.total_bytes,
        "models_per_gib": fleet.per_gib(),
        "idle_bytes": sample.idle_bytes,
        "call_cpu_ms": sample.call_cpu_secs * 1000,
        "load_cpu_ms": sample.load_cpu_secs * 1000,
        "kinds": {
            kind: {
                "measured": line.count,
                "base_bytes": line.base_bytes,
                "bytes_per_archive_byte": line.per_byte,
                "models_per_gib": fleet.per_gib(kind),
                "is_rough": line.is_rough,
            }
            for kind, line in fleet.lines.items()
        },
        "measured": [_measured_document(one) for one in sample.measured],
        "refused": dict(sample.refused),
        "traffic": report.traffic,
        "goal": report.goal,
        "mixes": [_mix_document(mix) for mix in report.mixes],
        "layouts": [_layout_document(layout) for layout in report.layouts],
        "recommended": None if report.recommended is None else _layout_document(report.recommended),
        "words": sentences(report),
    }


def _measured_document(one: Measured) -> Mapping[str, Any]:
    return {
        "model": one.key,
        "kind": one.kind,
        "archive_bytes": one.archive_bytes,
        "grown_bytes": one.grown_bytes,
        "is_first": one.is_first,
        "first_call_ms": one.store_secs * 1000,
        "from_disk_ms": one.disk_secs * 1000,
        "in_memory_ms": [secs * 1000 for secs in one.calls_secs],
    }


def _mix_document(mix: Mix) -> Mapping[str, Any]:
    p50, p90, p99 = mix.latency_secs or (None, None, None)
    return {
        "memory_bytes": mix.memory_bytes,
        "models_in_memory": mix.replayed.resident,
        "hit_ratio": mix.replayed.hit_ratio,
        "loads_per_request": mix.replayed.load_ratio,
        "p50_ms": None if p50 is None else p50 * 1000,
        "p90_ms": None if p90 is None else p90 * 1000,
        "p99_ms": None if p99 is None else p99 * 1000,
    }


def _layout_document(layout: Layout) -> Mapping[str, Any]:
    return {
        "layout": layout_words(layout),
        "host": layout.host.name,
        "hosts": layout.hosts,
        "shards": layout.shards,
        "endpoints": layout.endpoints,
        "hit_ratio": 1.0 if layout.replayed is None else layout.replayed.hit_ratio,
        "price_per_month": layout.price_per_month,
    }
