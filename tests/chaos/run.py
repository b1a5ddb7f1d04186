"""Runs faults, one after the other, and judges each."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from support.clock import FairClock

from chaos import census
from chaos.faults import Fault, Scene, Setting
from chaos.models import Model
from chaos.oracle import RIGHT, Call, Sample, Traffic, failures, slowest_secs
from chaos.store import Store
from chaos.targets import REQUEST_SECS, Polyhost, ServerFailed, StockMms, Target

# A model is cold once. The first ones are for faults that name them, and each fault that asks cold ones has its own.
_COLD_FOR_FAULTS = 20
_COLD_A_FAULT = 60
_COLD_SHARE = 0.05
# Right answers before a fault, and after it.
_ANSWERS = 60
_ANSWERS_WITHIN_SECS = 30
LEFTOVERS_GONE_WITHIN_SECS = 30.0


@dataclass(frozen=True)
class Result:
    """
    One fault on one server. `failed`: how many by status. `problems`: what it is held to and did not do; on MMS, which
    is held to nothing, they are told all the same. `skipped`: why it was not tried.
    """

    fault: str
    target: str
    requests: int = 0
    wrong: int = 0
    failed: Counter[str] | None = None
    slowest_secs: float = 0.0
    recovery_secs: float | None = None
    leftovers: tuple[str, ...] = ()
    restart: str = ""
    problems: tuple[str, ...] = ()
    skipped: str = ""


class Runner:
    """Tries faults on Polyhost and on MMS; one server at a time, kept from one fault to the next."""

    def __init__(
        self, store: Store, seed: int, max_secs: float, say: Callable[[Result], None],
        leftovers_secs: float = LEFTOVERS_GONE_WITHIN_SECS,
    ) -> None:  # fmt: skip
        """
        `max_secs`: when they are over no further fault is tried.

        `leftovers_secs`: how long what a fault has left may take to go.
        """
        self._deadline = time.monotonic() + max_secs
        self._store = store
        self._seed = seed
        self._say = say
        self._leftovers_secs = leftovers_secs
        self._is_uploaded = False
        self._cold: Iterator[Model] = iter(())

    def on_polyhost(self, faults: Sequence[Fault]) -> list[Result]:
        results = []
        cold = _COLD_FOR_FAULTS + _COLD_A_FAULT * sum(fault.asks_cold for fault in faults)
        self._cold = itertools.cycle(Model("cold", number) for number in range(_COLD_FOR_FAULTS, cold))
        for setting in dict.fromkeys(fault.setting for fault in faults):
            group = [fault for fault in faults if fault.setting == setting]
            try:
                with self._polyhost(setting, cold) as target:
                    results += [self._try(fault, target) for fault in group]
            except Skipped as skipped:
                results += [Result(fault.name, Polyhost.title, skipped=str(skipped)) for fault in group]
        return results

    def on_mms(self, faults: Sequence[Fault]) -> list[Result]:
        target = StockMms()
        with contextlib.closing(target):
            target.start()
            return [self._try(fault, target) for fault in faults if fault.on_mms]

    @contextlib.contextmanager
    def _polyhost(self, setting: Setting, cold: int) -> Iterator[Polyhost]:
        arguments = setting.arguments
        with contextlib.ExitStack() as stack:
            target = Polyhost(self._store, arguments, heavy=setting.heavy)
            stack.callback(target.close)
            if setting.disk_mib:
                stack.enter_context(file_system(target.cache, setting.disk_mib))
            target.upload(0 if self._is_uploaded else cold)
            self._is_uploaded = True
            target.start()
            target.make_endpoint()
            yield target

    def _try(self, fault: Fault, target: Target) -> Result:
        if time.monotonic() > self._deadline:
            return Result(fault.name, target.title, skipped="the time is over (--max-secs)")
        if target.what_is_not_right():
            self._renew(target)  # what is wrong was told of the fault before
        try:
            result = self._tried(fault, target)
        except (ServerFailed, OSError) as failed:
            result = Result(fault.name, target.title, problems=(f"{type(failed).__name__}: {failed}",))
            self._renew(target)
        self._say(result)
        return result

    def _renew(self, target: Target) -> None:
        with contextlib.suppress(ServerFailed):
            target.stop(signal.SIGKILL)
        census.end_strangers(census.own_children)
        target.start()

    def _tried(self, fault: Fault, target: Target) -> Result:
        rng = random.Random(f"{self._seed} {fault.name}")
        scene = Scene(target, rng, self._store)
        if trouble := target.what_is_not_right():
            raise ServerFailed(f"before the fault: {trouble}")
        target.open_what_stays_open()
        before = target.census()
        with Traffic(
            target.port, self._chooser(fault, scene), seed=rng.randrange(2**32), timeout_secs=REQUEST_SECS,
        ) as traffic:  # fmt: skip
            traffic.wait_for_right(_ANSWERS, _ANSWERS_WITHIN_SECS)
            fault.inject(scene)
            recovery_secs = _recovery_secs(target, max(fault.recovers_within_secs, target.patience_secs))
            traffic.wait_for_right(_ANSWERS, _ANSWERS_WITHIN_SECS)
        left = _wait_until_gone(target, before, fault.more_memory_bytes, self._leftovers_secs)
        restart, more = self._restarted(target, before, rng)
        samples = [*traffic.samples, *scene.samples]
        result = Result(
            fault.name, target.title, len(samples), sum(one.is_wrong for one in samples), failures(samples),
            slowest_secs(samples), recovery_secs, (*left, *more), restart, tuple(scene.problems),
        )  # fmt: skip
        problems = judged(fault, result, traffic.samples, [*samples])
        return replace(result, problems=(*result.problems, *problems))

    def _chooser(self, fault: Fault, scene: Scene) -> Callable[[random.Random], Call]:
        def choose(rng: random.Random) -> Call:
            if fault.asks_cold and rng.random() < _COLD_SHARE:
                return scene.target.call(next(self._cold))
            model = rng.choice(scene.target.steady)
            return scene.target.call(model, values=scene.values.get(model.name, ()))

        return choose

    def _restarted(self, target: Target, before: census.Census, rng: random.Random) -> tuple[str, list[str]]:
        """Stop or kill it, start it again on the same state; how that went, and what the first one left behind."""
        if isinstance(target, StockMms):
            return "has no state", []
        number = rng.choice([signal.SIGTERM, signal.SIGKILL])
        begun = time.monotonic()
        try:
            target.stop(number)
        except ServerFailed as failed:
            target.start()
            return f"{number.name}: {failed}", []
        secs = time.monotonic() - begun
        # Of a killed server it is the next start that ends what models have started.
        is_stopped = number is signal.SIGTERM
        left = _outlived(number) if is_stopped else []
        target.start()
        left += [] if is_stopped else _outlived(number, target.pid)
        if not target.has_endpoints():
            return f"{number.name}: endpoints are missing", left
        if trouble := target.what_is_not_right():
            return f"{number.name}: {trouble}", left
        after = target.census()
        if after.temp_files > before.temp_files:
            left.append(f"{after.temp_files - before.temp_files} temporary files after {number.name} and a start")
        return f"right, stopped in {secs:.1f} s" if number is signal.SIGTERM else "right", left


class Skipped(Exception):
    """A fault cannot be made here; the sentence says why."""


@contextlib.contextmanager
def file_system(folder: Path, mib: int) -> Iterator[None]:
    """One of this size, in memory, at this folder."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "chaos", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"no file system of {mib} MiB can be mounted here: {done.stderr.strip()[:100]}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def judged(fault: Fault, result: Result, traffic: Sequence[Sample], samples: Sequence[Sample]) -> list[str]:
    """What is not as it is promised, a sentence each."""
    found = [f"{one.model} answered {one.outcome}" for one in samples if one.is_wrong][:3]
    late = [one for one in samples if one.outcome == "timeout" or one.secs > REQUEST_SECS]
    found += [f"{one.model} was not answered within {REQUEST_SECS} s" for one in late[:3]]
    if result.recovery_secs is None:
        found.append(f"not every model answers right within {fault.recovers_within_secs:g} s")
    harmed = [one for one in traffic if one.outcome != RIGHT and not one.model.startswith("cold")]
    if fault.spares_neighbours and harmed:
        first = harmed[0]
        found.append(
            f"{len(harmed)} requests to other models failed: {first.model}: {first.outcome} {first.text[:200]}"
        )
    if not any(one.outcome == RIGHT for one in traffic):
        found.append("no request was answered right, before or after the fault")
    found += [f"left behind: {words}" for words in result.leftovers]
    if result.restart and not result.restart.startswith(("right", "has no state")):
        found.append(f"after a restart: {result.restart}")
    return found


def _recovery_secs(target: Target, within_secs: float) -> float | None:
    """
    How long it takes until every model answers right; None where that is not within so many seconds.

    What the server waits for a core, on a machine that has others to serve, is not held against it.
    """
    clock = FairClock(target.pid)
    begun, fair_begun = time.monotonic(), clock()
    while clock() - fair_begun < within_secs:
        if target.answers_ping() and not target.what_is_not_right():
            return time.monotonic() - begun
        time.sleep(0.05)
    return None


def _wait_until_gone(target: Target, before: census.Census, more_memory_bytes: int, secs: float) -> list[str]:
    deadline = time.monotonic() + secs
    while True:
        left = census.leftovers(before, target.census(), more_memory_bytes)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _outlived(number: int, front_pid: int = 0, secs: float = 10.0) -> list[str]:
    """
    In words, how many processes of a server that has ended stay. They are ended.

    One that was killed is there until it had a core for its end.

    `front_pid`: of the server that was started since.
    """
    deadline = time.monotonic() + secs
    while (count := census.escaped_count(front_pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    census.end_strangers({*census.own_children, front_pid})
    return [f"{count} processes after {signal.Signals(number).name}"] if count else []
