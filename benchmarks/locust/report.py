"""
A load test's report: one HTML file that needs nothing else, its figures beside it as JSON, and a sentence of advice.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import html
import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.locust.figures import bucket_quantile
from benchmarks.locust.history import PERCENTILES, Client
from benchmarks.locust.watch import Look, cpu_shares, rates, waits_ms

# A third of the memory is enough if p99 is not longer by more than that: a share, and what two runs differ by anyway.
_P99_RATIO, _P99_MS = 1.25, 5.0
_COLORS = ("#1f6fb2", "#d1772c", "#3b8f5a", "#8a5aa8")
_STYLES = ("-", "--", ":")
# What is short for most and long for a few.
_LOG_PANELS = ("Latency", "Loading wait time")
_MIB = 1024**2

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Result:
    """One endpoint's. `looks` is empty and `budget_bytes` None for one that is not ours."""

    name: str
    client: Client
    looks: Sequence[Look]
    budget_bytes: int | None

    @property
    def p99_ms(self) -> float:
        """Of the second half: in the first, users come and models are fetched."""
        history = self.client.history
        found = [moment.percentiles_ms[-1] for moment in history[len(history) // 2 :]]
        known = [value for value in found if value is not None]
        return statistics.median(known) if known else self.client.percentiles_ms[-1]

    @property
    def hit_ratio(self) -> float | None:
        if not self.looks or not self.looks[-1].figures.lookups:
            return None
        return self.looks[-1].figures.hits / self.looks[-1].figures.lookups


# Series


def _latencies(result: Result) -> dict[str, Points]:
    return {
        f"p{percent.rstrip('%')}": [
            (moment.moment_secs, value)
            for moment in result.client.history
            if (value := moment.percentiles_ms[place]) is not None
        ]
        for place, percent in enumerate(PERCENTILES)
    }


_CLIENT_PANELS: tuple[tuple[str, str, Callable[[Result], Mapping[str, Points]]], ...] = (
    (
        "Throughput", "requests per second",
        lambda result: {"": [(moment.moment_secs, moment.requests_per_sec) for moment in result.client.history]},
    ),
    ("Latency", "ms, of the last ten seconds", _latencies),
    (
        "Users", "callers",
        lambda result: {"": [(moment.moment_secs, float(moment.users)) for moment in result.client.history]},
    ),
)  # fmt: skip
_SERVER_PANELS: tuple[tuple[str, str, Callable[[Result], Mapping[str, Points]]], ...] = (
    (
        "Loaded models", "in memory",
        lambda result: {"": [(look.moment_secs, float(look.figures.loaded)) for look in result.looks]},
    ),
    (
        "Loads and evictions", "per second",
        lambda result: {"loads": rates(result.looks, "loads"), "evictions": rates(result.looks, "evictions")},
    ),
    ("Loading wait time", "ms, mean of the requests that waited", lambda result: {"": waits_ms(result.looks)}),
    ("CPU", "busy cores of the server", lambda result: {"": cpu_shares(result.looks)}),
    (
        "Memory", "MiB",
        lambda result: {
            "server": [(look.moment_secs, look.pss_bytes / _MIB) for look in result.looks],
            "models": [(look.moment_secs, look.models_bytes / _MIB) for look in result.looks],
        },
    ),
)  # fmt: skip


def series(results: Sequence[Result]) -> dict[str, dict[str, Points]]:
    """By panel and by line; a panel that only a server of ours can fill is there if there is one."""
    panels = (*_CLIENT_PANELS, *(_SERVER_PANELS if any(result.looks for result in results) else ()))
    return {
        title: {
            f"{result.name}{', ' if line else ''}{line}": points
            for result in results
            for line, points in of(result).items()
        }
        for title, _, of in panels
    }


# Advice


def advice(results: Sequence[Result]) -> str:
    """Which sizing to take; of endpoints that are not ours, what the users saw."""
    failed = [result for result in results if result.client.failures]
    if failed:
        words = ", ".join(f"{result.client.failures:,} with {result.name}" for result in failed)
        return f"Take none of them yet: requests failed, {words}."
    if len(results) < 2:
        return f"p99 was {_ms(results[0].p99_ms)}; give a second endpoint to compare it with."
    if not all(result.looks for result in results):
        best = min(results, key=lambda result: result.p99_ms)
        others = ", ".join(f"{_ms(result.p99_ms)} with {result.name}" for result in results if result is not best)
        return f"{best.name} answered soonest: p99 {_ms(best.p99_ms)}, {others}. Hold it against what each costs."
    large, small = results[0], results[-1]
    hits = f"{100 * (small.hit_ratio or 0):.0f} % of its requests found their model in memory"
    if small.p99_ms <= large.p99_ms * _P99_RATIO + _P99_MS:
        return (
            f"Take {small.name} ({_mib(small.budget_bytes)}): p99 is {_ms(small.p99_ms)}, with {large.name} "
            f"({_mib(large.budget_bytes)}) {_ms(large.p99_ms)}; {hits}."
        )
    return (
        f"Take {large.name} ({_mib(large.budget_bytes)}): with {small.name} ({_mib(small.budget_bytes)}) p99 is "
        f"{_ms(small.p99_ms)} instead of {_ms(large.p99_ms)}; {hits}."
    )


# The report


def write(results: Sequence[Result], folder: Path, words: str, machine: Mapping[str, str]) -> Path:
    """`folder/report.html` and `folder/report.json`; the HTML file."""
    found = series(results)
    figures = {
        "words": words,
        "advice": advice(results),
        "machine": dict(machine),
        "summary": {result.name: summary(result) for result in results},
        "errors": {result.name: dict(result.client.errors) for result in results},
        "series": found,
        "looks": {result.name: [dataclasses.asdict(look) for look in result.looks] for result in results},
    }
    (folder / "report.json").write_text(json.dumps(figures, indent=1))
    file = folder / "report.html"
    file.write_text(page(results, found, words, machine))
    return file


def summary(result: Result) -> dict[str, str]:
    p50, p95, p99 = result.client.percentiles_ms
    users_see = {
        "requests": f"{result.client.requests:,}",
        "failed": f"{result.client.failures:,}",
        "requests per second": f"{result.client.requests_per_sec:,.1f}",
        "p50": _ms(p50),
        "p95": _ms(p95),
        "p99": _ms(p99),
        "p99, second half": _ms(result.p99_ms),
    }
    if not result.looks:
        return users_see
    first, middle, last = (result.looks[place].figures for place in (0, len(result.looks) // 2, -1))
    waits = last.waits - middle.waits
    mean_ms = (last.wait_secs - middle.wait_secs) / waits * 1000 if waits else 0.0
    buckets = {bound: count - middle.wait_buckets.get(bound, 0) for bound, count in last.wait_buckets.items()}
    return {
        **users_see,
        "memory for models": _mib(result.budget_bytes),
        "found in memory": f"{100 * (result.hit_ratio or 0):.1f} %",
        "models in memory at most": f"{max(look.figures.loaded for look in result.looks)}",
        "loads": f"{last.loads - first.loads:,}",
        "evictions": f"{last.evictions - first.evictions:,}",
        "wait for a load, second half, mean": _ms(mean_ms),
        "wait for a load, second half, p99 at most": _ms(bucket_quantile(buckets, 0.99) * 1000),
        "memory of the server at most": _mib(max(look.pss_bytes for look in result.looks)),
        "CPU, busy cores at most": f"{max((share for _, share in cpu_shares(result.looks)), default=0.0):.2f}",
    }


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22303c; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .15rem 1rem .15rem 0; text-align: right }
td:first-child, th:first-child { text-align: left } tr + tr td { border-top: 1px solid #e3e8ee }
.advice { font-size: 1.15rem; border-left: 4px solid #1f6fb2; padding-left: 1rem }
figure { margin: 1.5rem 0 } svg { width: 100%; height: auto } .small { color: #5b6875; font-size: .85rem }
"""


def page(
    results: Sequence[Result], found: Mapping[str, Mapping[str, Points]], words: str, machine: Mapping[str, str]
) -> str:
    when = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    hints = {title: hint for title, hint, _ in (*_CLIENT_PANELS, *_SERVER_PANELS)}
    names = {result.name: number for number, result in enumerate(results)}
    moments = [moment.moment_secs for result in results for moment in result.client.history]
    begin, end = min(moments), max(moments)
    pictures = "\n".join(
        f"<figure>{picture(title, hints[title], lines, names, begin, end)}</figure>" for title, lines in found.items()
    )
    missing = "" if any(result.looks for result in results) else (
        '<p class="small">The endpoints are not ours: loaded models, loads, evictions, waits, CPU and memory are in '
        "CloudWatch (LoadedModelCount, ModelCacheHit, ModelLoadingWaitTime, CPUUtilization, MemoryUtilization).</p>"
    )  # fmt: skip
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Load test</title><style>{_STYLE}</style></head><body>
<h1>Load test</h1>
<p>51 churn models, one for each state; {html.escape(words)}.</p>
<p class="advice">{html.escape(advice(results))}</p>
{_table({result.name: summary(result) for result in results})}
{missing}
{_errors(results)}
{pictures}
<p class="small">{html.escape(when)} · {html.escape(", ".join(machine.values()))} · users and servers on one machine
where the servers are ours: what Locust uses, they lack.</p>
</body></html>
"""


def _table(columns: Mapping[str, Mapping[str, str]]) -> str:
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = "".join(
        f"<tr><td>{html.escape(row)}</td>"
        + "".join(f"<td>{html.escape(column.get(row, ''))}</td>" for column in columns.values())
        + "</tr>"
        for row in next(iter(columns.values()))
    )
    return f"<table><tr><th></th>{heads}</tr>{rows}</table>"


def _errors(results: Sequence[Result]) -> str:
    """What failed requests were answered, the most frequent first."""
    lines = [
        f"<li>{html.escape(result.name)}: {count:,} × {html.escape(error[:500])}</li>"
        for result in results
        for error, count in sorted(result.client.errors.items(), key=lambda entry: -entry[1])[:10]
    ]
    return f"<h2>Failed requests</h2><ul>{''.join(lines)}</ul>" if lines else ""


def picture(
    title: str, hint: str, lines: Mapping[str, Points], names: Mapping[str, int], begin_secs: float, end_secs: float
) -> str:
    """One panel as SVG; an endpoint has a colour, its lines have styles."""
    import matplotlib as mpl  # half a second, which each worker of the tests would pay that only looks for tests
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(9, 2.6))
        axes = figure.subplots()
        drawn: dict[str, int] = {}
        for line, points in lines.items():
            name = max((name for name in names if line.startswith(name)), key=len)
            style = drawn[name] = drawn.get(name, -1) + 1
            axes.plot(
                [moment - begin_secs for moment, _ in points], [value for _, value in points], label=line,
                color=_COLORS[names[name] % len(_COLORS)], linestyle=_STYLES[style % len(_STYLES)], linewidth=1.4,
            )  # fmt: skip
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_ylabel(hint)
        axes.set_xlabel("seconds")
        if title in _LOG_PANELS:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,.0f}")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlim(0, end_secs - begin_secs)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
        out = io.StringIO()
        plain = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", bbox_inches="tight", metadata=plain)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2g} ms"


def _mib(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else f"{size_bytes / _MIB:,.1f} MiB"
