"""`polyhost size`, from its arguments to what it prints."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from polyhost.config import parse_models
from polyhost.errors import InvalidSetting
from polyhost.sizing import report as reports
from polyhost.sizing.costs import Demand, Host, Layout, cheapest, one_each, parse_host, shared
from polyhost.sizing.fleet import Fleet, fleet_of, stratified
from polyhost.sizing.printing import printed
from polyhost.sizing.report import Mix, Report, mix_of
from polyhost.sizing.sample import Sample, archives_of, measure, read_bodies
from polyhost.sizing.simulate import Replay, memory_levels, replay, replay_on, zipf_trace
from polyhost.sizing.traces import Trace, parse_trace

SHARES_OF_MEMORY = (0.05, 0.1, 0.2, 1 / 3, 0.5, 0.75, 1.0)
# Without --p99-ms: when one request in a hundred waits for a load, p99 is a load.
_WANTED_HIT_RATIO = 0.99
_ZIPF_REQUESTS = 50_000
_SEED = 20261121

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    source: str
    trace: Path | None = None
    zipf: float | None = None
    requests_per_sec: float | None = None
    hosts: Sequence[str] = ()
    copies: int = 1
    sample: int = 20
    requests: Sequence[Path] = ()
    p99_ms: float | None = None


@dataclass(frozen=True)
class Traffic:
    """`warm_up`: how many of the first requests are not counted."""

    words: str
    targets: Sequence[str]
    warm_up: int
    requests_per_sec: float | None
    notes: Sequence[str] = ()


def run(options: Options, *, as_json: bool, say: Callable[[str], None]) -> str:
    """What is printed. `say`: how it is getting on. Raises PolyhostError."""
    source = _parsed("SOURCE", parse_models, options.source)
    hosts = [_parsed("--host", parse_host, text) for text in options.hosts]
    _check(options)
    bodies = read_bodies(options.requests)
    archives = archives_of(source)
    traffic = traffic_of(options, archives)
    with tempfile.TemporaryDirectory(prefix="polyhost-size-") as folder:
        sample = measure(source, archives, stratified(archives, options.sample), bodies, Path(folder), say)
    say("replaying the traffic")
    fleet = fleet_of(archives, sample.measured)
    report = report_of(source, fleet, sample, traffic, hosts, copies=options.copies, p99_ms=options.p99_ms)
    if as_json:
        return json.dumps(reports.document(report), indent=2)
    return printed(reports.tables(report)) + "\n\n" + "\n".join(reports.sentences(report))


def _parsed(name: str, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise InvalidSetting(f"{name}: {error}.") from error


def _check(options: Options) -> None:
    """Raises InvalidSetting."""
    if options.trace is not None and options.zipf is not None:
        raise InvalidSetting("--trace and --zipf: give one of them.")
    for name, value, least in (
        ("--zipf", options.zipf, 0.0),
        ("--requests-per-sec", options.requests_per_sec, 0.0),
        ("--p99-ms", options.p99_ms, 0.0),
        ("--copies", options.copies, 1),
        ("--sample", options.sample, 1),
    ):
        if value is not None and (not math.isfinite(value) or value < least):
            raise InvalidSetting(f"{name}: {value:g} is not a number of at least {least:g}.")


def traffic_of(options: Options, archives: Mapping[str, int]) -> Traffic:
    """Raises InvalidSetting."""
    if options.trace is None:
        exponent = 1.0 if options.zipf is None else options.zipf
        # Twice: what is in memory at first is not what is there in the long run.
        targets = zipf_trace(2 * _ZIPF_REQUESTS, sorted(archives), exponent, _SEED)
        words = f"Zipf's law, exponent {exponent:g}, {_ZIPF_REQUESTS:,} requests"
        return Traffic(words, targets, _ZIPF_REQUESTS, options.requests_per_sec)
    trace = _read_trace(options.trace, archives)
    rate = trace.requests_per_sec if options.requests_per_sec is None else options.requests_per_sec
    words = f"{len(trace.targets):,} requests of {options.trace.name}"
    left_out = f"{trace.unknown:,} requests of the trace were for models that the source has not: they were left out."
    return Traffic(words, trace.targets, 0, rate, [left_out] if trace.unknown else [])


def _read_trace(file: Path, archives: Mapping[str, int]) -> Trace:
    try:
        with file.open(encoding="utf-8", errors="surrogateescape") as lines:
            return parse_trace(lines, archives)
    except OSError as error:
        raise InvalidSetting(f"--trace: {file} cannot be read ({os.strerror(error.errno or 0)}).") from error
    except ValueError as error:
        raise InvalidSetting(f"--trace: {file}: {error}.") from error


def report_of(
    source: str, fleet: Fleet, sample: Sample, traffic: Traffic, hosts: Sequence[Host], *, copies: int,
    p99_ms: float | None,
) -> Report:  # fmt: skip
    def mixed(memory_bytes: int, replayed: Replay) -> Mix:
        return mix_of(memory_bytes, replayed, fleet)

    def is_enough(replayed: Replay) -> bool:
        if replayed.refused:
            return False
        if p99_ms is None:
            return replayed.hit_ratio >= _WANTED_HIT_RATIO or not replayed.reloads
        p99_secs = mixed(0, replayed).p99_secs
        return p99_secs is not None and p99_secs * 1000 <= p99_ms

    mixes = [
        mixed(level, replay(traffic.targets, fleet.sizes, level, warm_up=traffic.warm_up))
        for level in memory_levels(fleet.total_bytes, fleet.largest_bytes, SHARES_OF_MEMORY)
    ]
    enough = next((mix for mix in mixes if is_enough(mix.replayed)), None)
    too_little = max((mix.memory_bytes for mix in mixes if not is_enough(mix.replayed)), default=0)
    layouts = _layouts(fleet, sample, traffic, hosts, copies, too_little, is_enough) if enough else []
    goal = f"p99 of {p99_ms:g} ms at most" if p99_ms is not None else "99 % of requests find their model in memory"
    return Report(
        source, traffic.words, goal, sample, fleet, mixes, enough, layouts, cheapest(layouts) if layouts else None,
        [*traffic.notes, *_notes(fleet, sample, traffic, hosts, layouts)],
    )  # fmt: skip


def _layouts(
    fleet: Fleet, sample: Sample, traffic: Traffic, hosts: Sequence[Host], copies: int, too_little_bytes: int,
    is_enough: Callable[[Replay], bool],
) -> list[Layout]:  # fmt: skip
    """One for each kind of host that can do it, the cheapest first; last an endpoint for each model."""
    load = Demand(traffic.requests_per_sec, sample.call_cpu_secs, sample.load_cpu_secs)
    found = []
    for host in hosts:
        room_bytes = max(1, host.room_bytes(sample.idle_bytes))
        layout = shared(
            host, copies=copies, idle_bytes=sample.idle_bytes, largest_bytes=fleet.largest_bytes, load=load,
            least_hosts=too_little_bytes // room_bytes,
            # Models are not divided evenly: with twice as much memory as they take, they find room.
            max_shards=2 * math.ceil(fleet.total_bytes / room_bytes) + 2,
            simulate=lambda count, each: replay_on(
                count, traffic.targets, fleet.sizes, each, warm_up=traffic.warm_up
            ),
            is_enough=is_enough,
        )  # fmt: skip
        found += [layout] if layout else []
    each = one_each(
        hosts, models=len(fleet.sizes), copies=copies, idle_bytes=sample.idle_bytes,
        largest_bytes=fleet.largest_bytes, load=load,
    )  # fmt: skip
    return [*sorted(found, key=lambda layout: layout.price_per_month), *([each] if each else [])]


def _notes(
    fleet: Fleet, sample: Sample, traffic: Traffic, hosts: Sequence[Host], layouts: Sequence[Layout]
) -> list[str]:
    notes = []
    if sample.refused:
        key, reason = next(iter(sample.refused.items()))
        notes.append(f"{len(sample.refused)} of the sample could not be loaded, for example {key}: {reason}")
    if sample.left_out:
        notes.append(f"{sample.left_out} of the sample were left out: the others fill this machine's memory.")
    silent = [one.key for one in sample.measured if not one.calls_secs]
    if silent:
        notes.append(
            f"{len(silent)} of {len(sample.measured)} models answered no request ({', '.join(silent[:3])}"
            f"{', …' if len(silent) > 3 else ''}): give one that they take by --request FILE. Latencies are without "
            "them.",
        )
    rough = [kind for kind, line in fleet.lines.items() if line.is_rough]
    if rough:
        notes.append(f"Rough, few were measured: {', '.join(rough)}. A larger --sample says more.")
    if hosts and traffic.requests_per_sec is None:
        notes.append("Without --requests-per-sec, hosts are chosen by memory alone.")
    named = {layout.host.name for layout in layouts}
    small = [host.name for host in hosts if layouts and host.name not in named]
    if small:
        notes.append(f"Too small for the largest model, {reports.size_words(fleet.largest_bytes)}: {', '.join(small)}.")
    return notes
