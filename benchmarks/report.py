"""What the figures mean: rows with targets, as Markdown and for the picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONTENDERS = {
    "mms": "MMS", "native": "native", "mlserver": "MLServer", "fastapi": "FastAPI",
    "fastapi2": "FastAPI, two processes",
}  # fmt: skip
_SIGNIFICANT = 3
# Of all cores, before a part begins and nothing of the benchmark runs.
BUSY_PERCENT = 10


@dataclass(frozen=True)
class Target:
    """
    What native is held to.

    `over`: `limit` is of native's median over MMS's ("mms"), over the best of all others ("others"), or of native's
    median itself ("").
    """

    limit: float
    at_least: bool
    over: str
    words: str

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Row:
    """One measure of one part. `words` may name a size of the part, e.g. `{many_models}`."""

    part: str
    measure: str
    words: str
    unit: str
    target: Target | None = None


@dataclass(frozen=True)
class Outcome:
    """A row with its figures: all of them by contender, medians made where they are shown."""

    row: Row
    words: str
    figures: Mapping[str, Sequence[float]]
    is_quick: bool

    def median(self, contender: str) -> float | None:
        return statistics.median(self.figures[contender]) if self.figures.get(contender) else None

    @property
    def ratio(self) -> float | None:
        """Native's median over MMS's."""
        native, mms = self.median("native"), self.median("mms")
        return native / mms if native is not None and mms else None

    @property
    def lead(self) -> float | None:
        """Native's median over the greatest of the others'."""
        native, others = self.median("native"), [self.median(name) for name in self.figures if name != "native"]
        greatest = max((median for median in others if median), default=None)
        return native / greatest if native is not None and greatest else None

    @property
    def is_met(self) -> bool | None:
        """None without a target or a figure."""
        if self.row.target is None:
            return None
        values = {"": self.median("native"), "mms": self.ratio, "others": self.lead}
        value = values[self.row.target.over]
        return None if value is None else self.row.target.is_met(value)


def _at_least(times: float) -> Target:
    return Target(times, at_least=True, over="mms", words=f"≥ {times:g}×")


def _at_most(share: float, words: str) -> Target:
    return Target(share, at_least=False, over="mms", words=f"≤ {words}")


def _value_at_least(value: float, words: str) -> Target:
    return Target(value, at_least=True, over="", words=f"≥ {words}")


def _value_at_most(value: float, words: str) -> Target:
    return Target(value, at_least=False, over="", words=f"≤ {words}")


# Faster than each of the others.
_FASTEST = Target(1, at_least=True, over="others", words="the fastest")


ROWS = (
    Row("throughput", "requests_per_sec", "20 XGBoost models in turn, one CSV row, 16 connections", "requests/s",
        _at_least(25)),
    Row("throughput", "segments_per_sec", "the same, head and body in two segments each", "requests/s", _at_least(10)),
    Row("throughput", "p50_ms", "its p50", "ms"),
    Row("throughput", "p99_ms", "its p99", "ms", _at_most(1 / 10, "1/10")),
    Row("throughput", "p50_one_connection_ms", "p50 at 1 connection", "ms", _at_most(0.2, "1/5")),
    Row("load", "shared_ms", "POST /models to first answer, shared worker", "ms", _at_most(1 / 200, "1/200")),
    Row("load", "dedicated_ms", "the same, own handler, process of its own", "ms", _at_most(1 / 25, "1/25")),
    Row("memory", "shared_mib", "memory of one more model, shared worker", "MiB", _at_most(1 / 4500, "1/4,500")),
    Row("memory", "dedicated_mib", "the same, own handler, process of its own", "MiB", _at_most(1 / 12, "1/12")),
    Row("memory", "idle_mib", "memory of the idle server", "MiB"),
    Row("many", "load_all_secs", "{many_models:,} models loaded one by one", "s", _value_at_most(25, "25 s")),
    Row("many", "p99_all_over_20", "warm p99 over {many_models:,} models (Zipf) as a multiple of that over 20", "×",
        _value_at_most(1.5, "1.5×")),
    Row("many", "p99_all_ms", "that p99", "ms"),
    Row("many", "memory_mib", "memory of {many_models:,} models", "MiB"),
    Row("start", "start_secs", "start of the process to first 200 on /ping", "s", _value_at_most(1, "1 s")),
    Row("start", "first_answer_secs", "start of the process to the first answer of a first model", "s"),
    Row("images", "images_per_sec_1", "ResNet-18 images, 1 worker, 8 connections", "images/s", _at_least(1)),
    Row("images", "images_per_sec_2", "the same, 2 workers", "images/s", _at_least(1)),
    Row("images", "images_per_sec_4", "the same, 4 workers", "images/s", _at_least(1)),
    Row("bodies", "bodies_per_sec", "5 MB bodies to a handler that answers their length, 4 connections", "requests/s",
        _FASTEST),
    Row("bodies", "bodies_p99_ms", "its p99", "ms"),
    Row("resident", "load_all_secs", "{resident_models:,} models loaded one by one", "s"),
    Row("resident", "memory_mib", "memory of {resident_models:,} models", "MiB"),
    Row("resident", "requests_per_sec", "requests/s over all of them (Zipf), 16 connections", "requests/s"),
    Row("resident", "p99_ms", "its p99", "ms"),
    Row("million", "load_all_secs", "{million_models:,} models loaded by four clients", "s"),
    Row("million", "memory_mib", "memory of {million_models:,} models", "MiB"),
    Row("million", "memory_per_model_kb", "memory of each", "KB"),
    Row("million", "requests_per_sec", "requests/s over {million_models:,} models (Zipf)", "requests/s"),
    Row("million", "p50_ms", "its p50", "ms"),
    Row("million", "p99_ms", "its p99", "ms"),
    Row("endpoint", "direct_per_sec", "the engine's own route, 20 models, 16 connections", "requests/s"),
    Row("endpoint", "endpoint_per_sec", "invoke_endpoint, the same models", "requests/s"),
    Row("endpoint", "endpoint_share", "that as a share of the engine's", "×", _value_at_least(0.85, "0.85×")),
    Row("endpoint", "endpoint_p50_ms", "its p50", "ms"),
    Row("endpoint", "endpoint_p99_ms", "its p99", "ms"),
    Row("endpoint", "signed_per_sec", "invoke_endpoint with SigV4", "requests/s"),
    Row("endpoint", "signed_share", "that as a share of the engine's", "×"),
    Row("endpoint", "engine_load_ms", "POST /models to first answer, in that server", "ms"),
    Row("endpoint", "cold_disk_ms", "first invoke_endpoint, archive in the disk cache", "ms",
        _value_at_most(2, "2 ms")),
    Row("endpoint", "disk_over_load_ms", "that less the engine's load", "ms"),
    Row("endpoint", "download_ms", "download of an archive from S3 (moto's server) by boto3 alone", "ms"),
    Row("endpoint", "cold_s3_ms", "first invoke_endpoint, archive in S3", "ms"),
    Row("endpoint", "s3_over_download_ms", "that less the download", "ms", _value_at_most(5, "5 ms")),
    Row("endpoint", "warm_ms", "second invoke_endpoint, on one connection", "ms"),
    Row("signed", "plain_per_sec", "invoke_endpoint, neither signed nor logged", "requests/s"),
    Row("signed", "logged_share", "with an access log, as a share of that", "×", _value_at_least(0.8, "0.8×")),
    Row("signed", "signed_share", "with SigV4, as a share of that", "×", _value_at_least(0.7, "0.7×")),
    Row("storm", "hot_p99_new_ms", "hot p99 while {storm_models:,} new archives are called, 64 at once", "ms",
        _value_at_most(15, "15 ms")),
    Row("storm", "cold_new_per_sec", "those calls", "calls/s", _value_at_least(300, "300/s")),
    Row("storm", "hot_p99_compiled_ms", "hot p99 while the same are called after a restart", "ms",
        _value_at_most(15, "15 ms")),
    Row("storm", "cold_compiled_per_sec", "those calls", "calls/s", _value_at_least(300, "300/s")),
    Row("churn", "requests_per_sec", "{churn_models:,} models of which half fit, Zipf 0.8", "requests/s"),
    Row("churn", "p99_ms", "its p99", "ms", _value_at_most(30, "30 ms")),
    Row("churn", "resident", "models in memory at its end", "models"),
    Row("cores", "per_sec_1", "invoke_endpoint, one front, 16 connections", "requests/s"),
    Row("cores", "cpu_us_1", "CPU time of a request, all processes", "µs"),
    Row("cores", "per_sec_2", "two fronts, 32 connections", "requests/s"),
    Row("cores", "cpu_us_2", "CPU time of a request, all processes", "µs"),
    Row("cores", "per_sec_4", "four fronts, 64 connections", "requests/s"),
    Row("cores", "cpu_us_4", "CPU time of a request, all processes", "µs"),
    Row("cores", "per_sec_8", "eight fronts, 128 connections", "requests/s"),
    Row("cores", "cpu_us_8", "CPU time of a request, all processes", "µs"),
    Row("cores", "modelled_per_sec_4", "four fronts with a core each, modelled", "requests/s"),
    Row("cores", "modelled_per_sec_8", "eight fronts with a core each, modelled", "requests/s"),
    Row("heavy", "trees_1_per_sec", "500 trees, one row", "requests/s", _FASTEST),
    Row("heavy", "trees_100_per_sec", "500 trees, 100 rows", "requests/s", _FASTEST),
    Row("heavy", "pipeline_per_sec", "a scikit-learn pipeline, 10 rows", "requests/s", _FASTEST),
    Row("heavy", "network_per_sec", "an ONNX network of two layers of 64, 10 rows", "requests/s", _FASTEST),
    Row("fleet", "hits_one_percent", "{fleet_models:,} models by Zipf's law, hits of one server", "%"),
    Row("fleet", "hits_below_hash", "below it: three servers behind HAProxy, a third of the memory each", "points",
        _value_at_most(0.5, "0.5")),
    Row("fleet", "hits_below_copies", "the same, hot models with copies", "points", _value_at_most(0.5, "0.5")),
    Row("fleet", "haproxy_added_p50_ms", "what HAProxy adds to p50", "ms", _value_at_most(0.5, "0.5 ms")),
    Row("fleet", "envoy_added_p50_ms", "what Envoy adds", "ms", _value_at_most(0.8, "0.8 ms")),
    Row("fleet", "faults_failed", "kill -9, restart, SIGTERM of two, at 150 requests/s: failed", "requests",
        _value_at_most(0, "0")),
    Row("fleet", "faults_p99_ms", "p99 meanwhile", "ms", _value_at_most(100, "100 ms")),
    Row("fleet", "faults_max_ms", "the longest", "ms", _value_at_most(500, "500 ms")),
    Row("fleet", "rolling_failed", "all three updated one after the other, at 150 requests/s: failed", "requests",
        _value_at_most(0, "0")),
    Row("fleet", "rolling_max_ms", "the longest", "ms"),
    Row("fleet", "hot_least_percent", "one hot model: the least that one of three servers answers", "%",
        _value_at_least(20, "20 %")),
    Row("floor", "calls_per_sec", "floor: the same call in a bare loop, one core", "calls/s"),
    Row("floor", "own_row_microsecs", "floor: 25 trees for one row of floats, our library by ctypes", "µs"),
    Row("floor", "treelite_row_microsecs", "the same by Treelite's", "µs"),
    Row("floor", "echo_per_sec", "floor: a bare ASGI echo, 16 connections", "requests/s"),
    Row("floor", "echo_p50_ms", "its p50", "ms"),
)  # fmt: skip


def outcomes_of(results: Mapping[str, Any]) -> list[Outcome]:
    """The rows for which there are figures."""
    outcomes = []
    for row in ROWS:
        part = results["parts"].get(row.part)
        figures = part["figures"].get(row.measure) if part else None
        if part and figures:
            outcomes.append(Outcome(row, row.words.format(**part["sizes"]), figures, part["quick"]))
    return outcomes


def markdown(results: Mapping[str, Any], outcomes: Sequence[Outcome]) -> str:
    shown = [name for name in CONTENDERS if any(outcome.figures.get(name) for outcome in outcomes)]
    titles = ["what", *(CONTENDERS[name] for name in shown), "native / MMS", "target", "met"]
    lines = [
        f"Measured {when_of(results)} on {machine_of(results)}.",
        "Each figure is the median of all turns, in brackets the least and the most.",
        "",
        "| " + " | ".join(titles) + " |",
        "| " + " | ".join(["---", *["---:"] * (len(shown) + 1), "---", "---"]) + " |",
    ]
    lines += [_table_line(outcome, shown) for outcome in outcomes]
    lines += ["", *(f"* {note}" for note in _notes(results)), "", f"{_versions(results)}."]
    return "\n".join(lines) + "\n"


def machine_of(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory']}, {machine['system']}"


def when_of(results: Mapping[str, Any]) -> str:
    days = sorted({part["when"][:10] for part in results["parts"].values()})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def number(value: float) -> str:
    """Three significant digits, thousands with commas, never an exponent."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{_SIGNIFICANT}g}")
    if abs(rounded) >= 100:
        return f"{rounded:,.0f}"
    decimals = 1 if abs(rounded) >= 10 else 2 if abs(rounded) >= 1 else 3
    return f"{value:.{decimals}f}" if abs(rounded) >= 0.01 else f"{value:.4f}"


def ratio_words(ratio: float) -> str:
    """`9.1×`, or `1/640` when native needs less."""
    return f"{number(ratio)}×" if ratio >= 0.995 else f"1/{number(1 / ratio)}"


def _table_line(outcome: Outcome, shown: Sequence[str]) -> str:
    target = outcome.row.target
    cells = [
        outcome.words,
        *(_cell(outcome, name) for name in shown),
        ratio_words(outcome.ratio) if outcome.ratio else "",
        target.words if target else "",
        {None: "", True: "yes", False: "**no**"}[outcome.is_met],
    ]
    return "| " + " | ".join(cells) + " |"


def _cell(outcome: Outcome, name: str) -> str:
    figures = outcome.figures.get(name)
    if not figures:
        return ""
    median = f"{number(statistics.median(figures))} {outcome.row.unit}"
    return f"{median} ({number(min(figures))}–{number(max(figures))})" if len(figures) > 1 else median


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = [
        "MMS keeps two processes per model, about 95 MB: thousands of models are measured with native only.",
    ]
    parts = results["parts"]
    if len({part["revision"] for part in parts.values()}) > 1:
        measured_at = ", ".join(f"{name} at {part['revision']}" for name, part in parts.items())
        notes.append(f"Not all of one revision: {measured_at}.")
    if quick := [name for name, part in parts.items() if part["quick"]]:
        notes.append(f"A quick run (fewer models and turns, not for show): {', '.join(quick)}.")
    if busy := [name for name, part in parts.items() if part["busy_before_percent"] > BUSY_PERCENT]:
        notes.append(f"The machine was doing something else when these began: {', '.join(busy)}.")
    notes += [f"Failed, its figures are not whole: {name}." for name, part in parts.items() if part["failed"]]
    notes += dict.fromkeys(note for part in parts.values() for note in part["notes"])
    return notes


def _versions(results: Mapping[str, Any]) -> str:
    versions = {"Python": results["machine"]["python"], **results["versions"]}
    return ", ".join(f"{name} {version}" for name, version in versions.items())
