"""
A long run under mixed traffic, which fails where something grows: `make soak MINUTES=30`.

Calls of models in memory and on disk, first calls, evictions of memory and disk, failures of every kind of request,
archives that are overwritten, endpoints that are made and deleted. Memory, descriptors and threads of each kind of
process, and temporary files, are sampled all along. After a warm-up nothing of it may have a slope.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import psutil
from polyhost.memory import private_bytes

from benchmarks.keeper import become_subreaper, kill_descendants
from benchmarks.locust.figures import Figures, parsed
from chaos import census
from chaos.models import VERSIONS, Model, fleet
from chaos.oracle import RIGHT, Call, Sample, Traffic, failures, slowest_secs
from chaos.slopes import Series, Trend, table, trend
from chaos.store import Store, failing_store
from chaos.targets import OTHER_PREFIX, PREFIX, REQUEST_SECS, Polyhost, closing

MIB = 1024**2
_HEAVY = 30
_COLD = 200
# Half of the heavy models fit into memory, and of those and the cold ones not all fit onto the disk.
_ARGUMENTS = ("--memory-budget", "100MiB", "--disk-budget", "60MiB")
# A model that leaks is ended where others need the memory. In the self-test nobody does.
_ARGUMENTS_WITH_LEAK = ("--memory-budget", "2GiB", "--disk-budget", "60MiB")
_SAMPLE_SECS = 5.0
_OVERWRITE_SECS = 7.0
_ENDPOINT_SECS = 11.0
# What no model is: its calls are refused. Such names must not be remembered either.
_UNKNOWN = 5
# The self-test's model keeps so much with each call.
_LEAK = b"leak 1"
# Calls of the model that hangs cost its timeout each.
_UNRULY_ORDERS = (b"leave 3", b"crash", b"throw no", b"write_lines 1", b"become_daemons 1", b"fork 1", b"hang 30")


@dataclass
class Mix:
    """Which call comes next. `overwritten`: by model, the version that the bucket has."""

    target: Polyhost
    leaks: bool

    def __post_init__(self) -> None:
        self.versions: dict[str, int] = defaultdict(int)
        self._cold = fleet("cold", _COLD)
        self._data = [model for model in self.target.steady if model.kind == "data"]
        self._other = [model for model in self.target.steady if model.kind == "other"]
        self._heavy = [model for model in self.target.steady if model.kind == "heavy"]

    def choose(self, rng: random.Random) -> Call:
        share = rng.random()
        if self.leaks and share < 0.1:
            return self.target.call(self.target.unruly[1], _LEAK)
        if share < 0.60:
            return self._of(rng.choice(self._data))
        if share < 0.75:
            return self._of(rng.choice(self._heavy))
        if share < 0.85:
            return self._of(rng.choice(self._cold))
        if share < 0.92:
            return self._of(rng.choice(self._other))
        return self._failing(rng)

    def _of(self, model: Model) -> Call:
        """An archive that was overwritten a moment ago may answer as before or as now."""
        version = self.versions[model.name]
        near = (version - 1, version, version + 1)
        values = {replace(model, version=one % VERSIONS).value for one in near}
        return self.target.call(model, values=values)

    def _failing(self, rng: random.Random) -> Call:
        share = rng.random()
        if share < 0.3:
            return self.target.call(Model("data", 900 + rng.randrange(_UNKNOWN)))
        if share < 0.7:
            return self.target.call(rng.choice(self._data), b"not,a,number")
        order = rng.choice(_UNRULY_ORDERS if share > 0.97 else _UNRULY_ORDERS[:-1])
        return self.target.call(self.target.unruly[0], order)


class Sampler:
    """Looks at every process of the server, again and again."""

    def __init__(self, target: Polyhost) -> None:
        self._target = target
        self._begun = time.monotonic()
        self._secs: list[float] = []
        self._rows: list[dict[tuple[str, str], float]] = []

    def look(self) -> None:
        """
        Of a kind of which there are several, memory is the sum and the rest the most that any one has.

        A worker's descriptors are its own: a sum would only tell how many workers there are.
        """
        row: dict[tuple[str, str], float] = defaultdict(float)
        for member in census.members(self._target.pid):
            kind = member.kind or "models' own processes"
            with contextlib.suppress(psutil.Error, OSError):
                of = "all workers" if kind == "worker" else f"the {kind}"
                # What a template and its workers share is divided among them: only their sum means something.
                sharers = of if kind in {"front", "fetcher"} else "template, workers and what they started"
                row["memory", sharers] += private_bytes(member.process.pid) / MIB
                row["processes", of] += 1
                for measure, value in (
                    ("descriptors", member.process.num_fds()),
                    ("threads", member.process.num_threads()),
                ):
                    row[measure, of] = max(row[measure, of], value)
        row["files", "the temporary folder"] = sum(map(census.files_in, self._target.temp_folders().values()))
        self._secs.append(time.monotonic() - self._begun)
        self._rows.append(row)

    def series(self) -> list[Series]:
        names = sorted({name for row in self._rows for name in row})
        return [
            Series(measure, of, self._secs, [row.get((measure, of), 0.0) for row in self._rows])
            for measure, of in names
        ]

    def secs(self) -> float:
        return time.monotonic() - self._begun


@contextlib.contextmanager
def again_and_again(action: Callable[[int], None], every_secs: float, problems: list[str]) -> Iterator[None]:
    """In a thread, until the block ends; what it raises is a problem, the first ones are kept."""
    over = threading.Event()

    def run() -> None:
        for number in itertools.count():
            if over.wait(every_secs):
                return
            try:
                action(number)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
                problems.append(f"{getattr(action, '__name__', 'action')}: {type(error).__name__}: {error}"[:300])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(REQUEST_SECS)


@dataclass(frozen=True)
class Outcome:
    samples: Sequence[Sample]
    trends: Sequence[Trend]
    problems: Sequence[str]
    figures: Figures

    @property
    def faults(self) -> list[str]:
        wrong = [f"{one.model} answered {one.outcome}" for one in self.samples if one.is_wrong]
        late = [f"{one.model}: {one.outcome} after {one.secs:.1f} s" for one in self.samples if one.secs > REQUEST_SECS]
        leaks = [one.sentence for one in self.trends if one.is_leak]
        idle = [] if self.figures.evictions else ["no model was evicted: the budgets are too large for this mix"]
        none_right = [] if any(one.outcome == RIGHT for one in self.samples) else ["no request was answered right"]
        return [*wrong[:5], *late[:5], *leaks, *self.problems[:5], *idle, *none_right]


def soak(store: Store, secs: float, warm_up_secs: float, seed: int, *, leaks: bool = False) -> Outcome:
    with closing(Polyhost(store, _ARGUMENTS_WITH_LEAK if leaks else _ARGUMENTS, heavy=_HEAVY)) as target:
        target.upload(_COLD)
        target.start()
        target.make_endpoint()
        mix = Mix(target, leaks)
        sampler = Sampler(target)
        problems: list[str] = []

        def overwrite(number: int) -> None:
            model = [*target.steady][number % len(target.steady)]
            version = (mix.versions[model.name] + 1) % VERSIONS
            store.put(OTHER_PREFIX if model.kind == "other" else PREFIX, replace(model, version=version))
            assert target.refresh() == 200
            mix.versions[model.name] = version

        def make_and_delete(number: int) -> None:
            name = f"short-lived-{number % 3}"
            target.make_endpoint(name)
            target.delete_endpoint(name)
            # It has ended three workers by now, and would be refused for ten minutes.
            target.unload(target.unruly[0])

        with (
            Traffic(
                target.port, mix.choose, seed=seed, timeout_secs=REQUEST_SECS, connections=3, pause_secs=0.03,
                max_secs=secs, max_requests=2_000_000,
            ) as traffic,
            again_and_again(overwrite, _OVERWRITE_SECS, problems),
            again_and_again(make_and_delete, _ENDPOINT_SECS, problems),
        ):  # fmt: skip
            every_secs = min(_SAMPLE_SECS, (secs - warm_up_secs) / 20)
            while sampler.secs() < secs:
                sampler.look()
                time.sleep(every_secs)
        trends = [trend(series, warm_up_secs) for series in sampler.series()]
        figures = parsed(target.metrics())
        target.stop()
        return Outcome(traffic.samples, trends, problems, figures)


@click.command()
@click.option("--minutes", type=float, default=30.0, show_default=True, help="How long to run.")
@click.option("--seed", type=int, default=None, help="Of the choice of calls.  [default: the time]")
@click.option("--self-test", is_flag=True, help="Let a model leak for 36 s, and fail if that is not noticed.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the table, Markdown.")
def main(minutes: float, seed: int | None, out: Path | None, *, self_test: bool) -> None:
    """Run mixed traffic for a while and fail where memory, descriptors, threads or temporary files grow."""
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    seed = int(time.time()) if seed is None else seed
    secs = 36.0 if self_test else minutes * 60
    warm_up_secs = min(300.0, secs / 4)
    click.echo(f"Seed {seed}. {secs / 60:g} minutes, of which {warm_up_secs:.0f} s are warm-up.")
    try:
        with failing_store() as store:
            census.own_children.update(child.pid for child in psutil.Process().children())
            outcome = soak(store, secs, warm_up_secs, seed, leaks=self_test)
    finally:
        kill_descendants()
    text = report(outcome, secs)
    click.echo(text)
    if out:
        out.write_text(text)
    sys.exit(verdict(outcome, self_test=self_test))


def report(outcome: Outcome, secs: float) -> str:
    samples = outcome.samples
    right = sum(one.outcome == RIGHT for one in samples)
    counts = json.dumps(dict(failures(samples).most_common()))
    head = (
        f"{len(samples):,} requests in {secs / 60:g} minutes: {right:,} right, "
        f"{sum(one.is_wrong for one in samples)} wrong, failed by status {counts}, "
        f"slowest {slowest_secs(samples):.1f} s. The server counted {outcome.figures.loads:,} loads and "
        f"{outcome.figures.evictions:,} evictions.\n"
    )
    return "\n".join([head, table(outcome.trends), "", *(f"* {fault}" for fault in outcome.faults), ""])


def verdict(outcome: Outcome, *, self_test: bool) -> int:
    """The exit code. A self-test succeeds by failing of nothing but its leak."""
    if not self_test:
        return 1 if outcome.faults else 0
    leaks = [one for one in outcome.trends if one.is_leak]
    if {one.series.measure for one in leaks} >= {"memory"}:
        click.echo("The self-test's leak was found.")
        return 0
    click.echo("The self-test's leak was not found: this run could not have failed.")
    return 1


if __name__ == "__main__":
    main()
