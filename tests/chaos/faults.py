"""
The faults: each has a name, what is done, and what Polyhost is held to.

All of them are held to this: no wrong answer, no request beyond its timeout, every model answers again within
`recovers_within_secs`, nothing is left behind, and a server that is started again on the same state has its endpoints
and answers right. `spares_neighbours` promises more: no request to another model fails.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import psutil

from chaos import raw
from chaos.census import MORE_MEMORY_BYTES
from chaos.models import Model, is_value
from chaos.oracle import RIGHT, Call, Sample, ask_once
from chaos.store import Store
from chaos.targets import MODEL_TIMEOUT_SECS, PREFIX, REQUEST_SECS, Polyhost, Target

# The first of the cold models that are for these faults alone.
COLD_TO_CHANGE, COLD_TO_FILL = 0, 10
_PAUSED_SECS = 3.0
_STORE_FAULT_SECS = 3.0
_SWAPPED_WITHIN_SECS = 60.0


@dataclass
class Scene:
    """What a fault works on. `samples`: of its own calls. `problems`: what it has seen that must not be."""

    target: Target
    rng: random.Random
    store: Store | None = None
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    # Models whose archives the fault has changed, with the constants that they may answer then.
    values: dict[str, frozenset[int]] = field(default_factory=dict)

    def order(self, text: str, unruly: int = 0) -> Sample:
        """Have the unruly model do something."""
        sample = self.target.ask(self.target.unruly[unruly], text.encode())
        self.samples.append(sample)
        return sample

    def call(self) -> Call:
        """To a model of data."""
        return self.target.call(self.target.steady[0])

    def send(self, kind: str, number: signal.Signals, most: int = 1000) -> list[psutil.Process]:
        victims = self.target.processes(kind)
        if not victims:
            self.problems.append(f"there was no {kind} to send {number.name}")
        self.rng.shuffle(victims)
        for victim in victims[:most]:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.send_signal(number)
        return victims[:most]

    @contextlib.contextmanager
    def paused(self, kind: str) -> Iterator[None]:
        victims = self.send(kind, signal.SIGSTOP)
        try:
            yield
        finally:
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.send_signal(signal.SIGCONT)

    def expect(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            self.problems.append(otherwise)

    @property
    def polyhost(self) -> Polyhost:
        assert isinstance(self.target, Polyhost)
        return self.target


@dataclass(frozen=True)
class Setting:
    """What a server is started with. `disk_mib`: its cache lies on a file system of that size."""

    arguments: tuple[str, ...] = ()
    heavy: int = 0
    disk_mib: int = 0


PLAIN = Setting()
LITTLE_MEMORY = Setting(("--memory-budget", "60MiB"), heavy=30)
LITTLE_DISK = Setting(("--disk-budget", "24MiB", "--memory-budget", "60MiB"), heavy=30)
FULL_DISK = Setting(("--disk-budget", "1GiB", "--memory-budget", "60MiB"), heavy=30, disk_mib=48)


@dataclass(frozen=True)
class Fault:
    """
    `more_memory_bytes`: what the server may take afterwards besides what it took.

    `asks_cold`: one call in ten is the first one of a model that the bucket has. `is_short`: also in the short form.
    `on_mms`: the real MMS has such a thing.
    """

    name: str
    inject: Callable[[Scene], None]
    recovers_within_secs: float = 10
    spares_neighbours: bool = True
    asks_cold: bool = False
    is_short: bool = False
    on_mms: bool = False
    setting: Setting = PLAIN
    more_memory_bytes: int = MORE_MEMORY_BYTES


# Processes


def kill_front(scene: Scene) -> None:
    """On MMS: Java. Who watches over servers starts another one."""
    if isinstance(scene.target, Polyhost):
        scene.target.stop(signal.SIGKILL)
    else:
        scene.send("java", signal.SIGKILL)
        scene.target.stop()
    scene.target.start()


def kill_front_with_daemons(scene: Scene) -> None:
    """What models have started in sessions of their own. The next start finds and ends it."""
    scene.order("become_daemons 5")
    kill_front(scene)


def killing(kind: str) -> Callable[[Scene], None]:
    def kill(scene: Scene) -> None:
        scene.send(kind, signal.SIGKILL)

    return kill


def kill_template(scene: Scene) -> None:
    """It is started again when somebody needs a process."""
    scene.send("template", signal.SIGKILL)
    scene.target.unload(scene.target.unruly[0])


def kill_all_but_front(scene: Scene) -> None:
    for kind in ("fetcher", "template", "worker"):
        scene.send(kind, signal.SIGKILL)


def stop_worker(scene: Scene) -> None:
    """For good: nobody continues it. On MMS, the two processes of one model."""
    if isinstance(scene.target, Polyhost):
        scene.send("worker", signal.SIGSTOP, most=1)
        return
    name = scene.target.steady[0].name
    for process in scene.target.processes("worker"):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in process.cmdline():
                process.send_signal(signal.SIGSTOP)


def pausing(kind: str) -> Callable[[Scene], None]:
    def pause(scene: Scene) -> None:
        with scene.paused(kind):
            time.sleep(_PAUSED_SECS)

    return pause


# Models


def ordering(*orders: str) -> Callable[[Scene], None]:
    def give(scene: Scene) -> None:
        for order in orders:
            scene.order(order)

    return give


def hang(scene: Scene) -> None:
    sample = scene.order("hang 600")
    limit = scene.target.model_timeout_secs + 10
    scene.expect(sample.secs < limit, f"the call that hangs was answered after {sample.secs:.1f} s, not {limit:.0f}")


def ordering_then_unloading(order: str) -> Callable[[Scene], None]:
    """What a model has started may stay as long as the model, and no longer."""

    def give(scene: Scene) -> None:
        scene.order(order)
        status = scene.target.unload(scene.target.unruly[0])
        scene.expect(status == 200, f"the unload was answered {status}")

    return give


def answer_huge(scene: Scene) -> None:
    """Refused with a status, and none of it reaches the client."""
    sample = scene.target.ask(scene.target.unruly[0], b"answer_huge")
    scene.expect(not sample.is_wrong, "an answer of 100 MB was passed on")
    if not sample.is_wrong:
        scene.samples.append(sample)


def leave_again_and_again(scene: Scene) -> None:
    """Until the model is refused. Unloaded, and so loaded again, it may answer."""
    for _ in range(4):
        sample = scene.order("leave 3")
        scene.expect(sample.outcome != RIGHT, "a call that ended its worker was answered")
    scene.target.unload(scene.target.unruly[0])


def fill_disk(scene: Scene) -> None:
    """Its own file system is full then, and first calls of other models fail until there is room again."""
    filled = scene.polyhost.cache
    scene.order(f"fill {filled}")
    scene.expect((filled / "filled").exists(), "the model has not filled the disk")
    for number in range(3):
        scene.samples.append(scene.target.ask(Model("cold", COLD_TO_FILL + number)))
    (filled / "filled").unlink(missing_ok=True)


# Budgets


def go_round(scene: Scene) -> None:
    """Every model in turn, so that each makes another one go."""
    for _ in range(2):
        for model in scene.target.steady:
            sample = scene.target.ask(model)
            scene.samples.append(sample)
            scene.expect(sample.outcome == RIGHT, f"{model.name}: {sample.outcome} {sample.text}")


# The store


def store_fails(kind: str, number: int = 0) -> Callable[[Scene], None]:
    def fail(scene: Scene) -> None:
        assert scene.store is not None
        met = scene.store.met
        with scene.store.failing(kind, number):
            time.sleep(_STORE_FAULT_SECS)
        scene.expect(scene.store.met > met, "no request to the store has met the fault")

    return fail


def change_while_it_is_fetched(scene: Scene) -> None:
    """Between a look at the archive and its fetch; what comes is either whole, and all of it of one version."""
    store = scene.store
    assert store is not None
    for number in range(5):
        model = Model("cold", COLD_TO_CHANGE + number)
        changed = replace(model, version=1)
        store.on_get = lambda _, changed=changed: _change_once(store, changed)  # type: ignore[misc]
        try:
            sample = _asked(scene.target, scene.target.call(model, values=(model.value, changed.value)))
        finally:
            store.on_get = lambda _: None
        scene.samples.append(sample)
        scene.expect(sample.outcome == RIGHT, f"{model.name}: {sample.outcome} {sample.text}")


def _change_once(store: Store, changed: Model) -> None:
    store.on_get = lambda _: None
    store.put(PREFIX, changed)


def overwrite(scene: Scene) -> None:
    """Archives that are being called: after a refresh the new ones take over, and no call fails or is mixed up."""
    store = scene.store
    assert store is not None
    chosen = [model for model in scene.target.steady if model.kind == "data"][:4]
    changed = [replace(model, version=1) for model in chosen]
    scene.values.update({old.name: frozenset({old.value, new.value}) for old, new in zip(chosen, changed, strict=True)})
    for versions in (changed, chosen):
        for model in versions:
            store.put(PREFIX, model)
        scene.expect(scene.polyhost.refresh() == 200, "POST /refresh was not answered 200")
        for model in versions:
            scene.expect(_answers_soon(scene.target, model), f"{model.name} answers as before its refresh")


def _answers_soon(target: Target, model: Model) -> bool:
    deadline = time.monotonic() + _SWAPPED_WITHIN_SECS
    while time.monotonic() < deadline:
        if target.ask(model).outcome == RIGHT:
            return True
        time.sleep(0.05)
    return False


# Clients


def vanish(scene: Scene) -> None:
    """With a request that is whole, with half a body, and with half a header."""
    data = raw.request_of(scene.call())
    for cut in (len(data), len(data) - 2, len(data) // 2, 9):
        for _ in range(15):
            raw.vanish(scene.target.port, data[:cut])
    call = scene.target.call(scene.target.unruly[0], b"hang 1")
    raw.vanish(scene.target.port, raw.request_of(call))


def dribble(scene: Scene) -> None:
    raw.dribble(scene.target.port, raw.request_of(scene.call()), connections=60, secs=3)


def pipeline(scene: Scene) -> None:
    """Twenty requests in one segment: twenty answers, in their order."""
    calls = [scene.target.call(model) for model in scene.target.steady if model.kind == "data"][:10] * 2
    answers = raw.exchange(scene.target.port, b"".join(map(raw.request_of, calls)), len(calls), secs=60)
    scene.expect(len(answers) == len(calls), f"{len(answers)} answers to {len(calls)} requests in one segment")
    for call, (status, body) in zip(calls, answers, strict=False):
        outcome = RIGHT if is_value(body, call.values) else f"WRONG {body[:40]!r}" if status == 200 else str(status)
        scene.samples.append(Sample(call.model, outcome, time.monotonic(), 0.0))


def lie(scene: Scene) -> None:
    """About lengths: none of these may be answered 200 twice, nor with another model's constant."""
    call = scene.call()
    wrong = ("-3", "3x", "99999999999999999999", "0x3", "3, 4")
    lies = [raw.request_of(call, length=length) for length in wrong]
    lies += [raw.request_of(call, "Content-Length: 7"), raw.request_of(call, "Transfer-Encoding: chunked")]
    lies.append(raw.request_of(call) + b"POST /nothing")
    for data in lies:
        answers = raw.exchange(scene.target.port, data, secs=2)
        good = [body for status, body in answers if status == 200]
        scene.expect(len(good) <= 1, f"{len(good)} answers to {data[:120]!r}")
        scene.expect(all(is_value(body, call.values) for body in good), f"a wrong answer to {data[:120]!r}")
    for length in ("100", "6000000"):
        raw.vanish(scene.target.port, raw.request_of(call, length=length))


def flood_with_headers(scene: Scene) -> None:
    """Few large ones, many small ones, and a request line without end: refused."""
    call = scene.call()
    for fields in (["X-Large: " + "y" * 1_000_000], [f"X-{number}: y" for number in range(20_000)]):
        answers = raw.exchange(scene.target.port, raw.request_of(call, *fields), secs=5)
        statuses = [status for status, _ in answers]
        scene.expect(200 not in statuses, f"a megabyte of header fields was answered {statuses}")
    raw.exchange(scene.target.port, b"GET /" + b"y" * 1_000_000, secs=2)


def ask_to_upgrade(scene: Scene) -> None:
    """As `curl --http2` and Java's client do, which then speak HTTP/1.1 on."""
    call = scene.call()
    fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    answers = raw.exchange(scene.target.port, raw.request_of(call, *fields))
    scene.expect(_are(answers, call), f"a request that offers HTTP/2 was answered {answers!r}"[:200])


def expect_continue(scene: Scene) -> None:
    call = scene.call()
    begun = time.monotonic()
    answers = raw.exchange(scene.target.port, raw.request_of(call, "Expect: 100-continue"))
    scene.expect(_are(answers, call), f"a request with Expect was answered {answers!r}"[:200])
    scene.expect(time.monotonic() - begun < 10, "a request with Expect waited for more than 10 s")


def _are(answers: list[tuple[int, bytes]], call: Call) -> bool:
    return [(status, is_value(body, call.values)) for status, body in answers] == [(200, True)]


def _asked(target: Target, call: Call) -> Sample:
    return ask_once(target.port, call, REQUEST_SECS)


# The control plane


def make_endpoints(scene: Scene) -> None:
    """A third one is made and deleted while the two others are called."""
    scene.polyhost.make_endpoint("third")
    scene.polyhost.delete_endpoint("third")
    scene.expect(scene.polyhost.has_endpoints(), "an endpoint is missing")


FAULTS = (
    Fault("kill -9: front (started again)", kill_front, 20, spares_neighbours=False, is_short=True, on_mms=True),
    Fault("kill -9: front, models have daemons", kill_front_with_daemons, 20, spares_neighbours=False, on_mms=True),
    # Workers of a template that has ended share its frameworks with no worker of the next one.
    Fault("kill -9: template", kill_template, more_memory_bytes=4 * MORE_MEMORY_BYTES),
    Fault("kill -9: all workers", killing("worker"), is_short=True, on_mms=True),
    Fault("kill -9: fetcher", killing("fetcher"), asks_cold=True),
    Fault("kill -9: all but the front", kill_all_but_front, asks_cold=True, more_memory_bytes=2 * MORE_MEMORY_BYTES),
    Fault("SIGSTOP: a worker, for good", stop_worker, 2 * MODEL_TIMEOUT_SECS + 5, spares_neighbours=False, on_mms=True),
    Fault("SIGSTOP: template, 3 s", pausing("template")),
    Fault("SIGSTOP: fetcher, 3 s", pausing("fetcher"), asks_cold=True),
    Fault("SIGSTOP: front, 3 s", pausing("front"), spares_neighbours=False),
    Fault("model hangs", hang, on_mms=True),
    Fault("model leaves (_exit)", ordering("leave 3"), is_short=True, on_mms=True),
    Fault("model leaves until it is refused", leave_again_and_again, on_mms=True),
    Fault("model crashes (SIGSEGV)", ordering("crash"), on_mms=True),
    Fault("model raises", ordering("throw no"), on_mms=True),
    Fault("model stops itself (SIGSTOP)", ordering("stop"), 2 * MODEL_TIMEOUT_SECS + 5, on_mms=True),
    Fault("model prints 100 MB", ordering("write_lines 100"), on_mms=True),
    Fault("model forks, is unloaded", ordering_then_unloading("fork 20"), on_mms=True),
    Fault("model starts daemons, is unloaded", ordering_then_unloading("become_daemons 5"), on_mms=True),
    Fault("model starts daemons and leaves", ordering("daemon_and_leave 3"), on_mms=True),
    Fault("model closes its descriptors", ordering("close_descriptors"), on_mms=True),
    Fault("model ignores signals and hangs", ordering("ignore_signals", "hang 600"), on_mms=True),
    Fault("model answers 100 MB", answer_huge, on_mms=True),
    Fault("clients vanish", vanish, is_short=True, on_mms=True),
    Fault("clients dribble", dribble, on_mms=True),
    Fault("clients pipeline", pipeline, is_short=True, on_mms=True),
    Fault("clients lie about lengths", lie, on_mms=True),
    Fault("clients send headers without end", flood_with_headers, on_mms=True),
    Fault("clients offer HTTP/2", ask_to_upgrade, on_mms=True),
    Fault("clients expect 100-continue", expect_continue, on_mms=True),
    Fault("S3 slow (2 KB/s)", store_fails("slow", 2_000), asks_cold=True),
    Fault("S3 hangs", store_fails("hang"), asks_cold=True),
    Fault("S3 answers 503", store_fails("status", 503), asks_cold=True),
    Fault("S3 resets", store_fails("reset", 700), asks_cold=True),
    Fault("S3 cuts off", store_fails("cut", 700), asks_cold=True, is_short=True),
    Fault("S3 gives too short a length", store_fails("short", 300), asks_cold=True),
    Fault("S3 flips a bit", store_fails("corrupt", 400), asks_cold=True),
    Fault("S3 sends garbage", store_fails("garbage"), asks_cold=True),
    Fault("S3: changed while it is fetched", change_while_it_is_fetched),
    Fault("S3: overwritten, then refreshed", overwrite),
    Fault("endpoints made and deleted", make_endpoints),
    Fault("memory budget reached", go_round, setting=LITTLE_MEMORY),
    Fault("model leaks beyond the budget", ordering("leak 40", "leak 40", "leak 40"), setting=LITTLE_MEMORY),
    Fault("disk budget reached", go_round, setting=LITTLE_DISK),
    Fault("disk full", go_round, setting=FULL_DISK),
    Fault("model fills the disk", fill_disk, setting=FULL_DISK, spares_neighbours=False),
)


# What is broken by what is not mended yet: words of the problem, and why. A run tells of them and does not fail.
# Whoever mends one takes its line out; a run says which did not occur.
KNOWN: dict[str, str] = {}


# Faults of the suite's own, for its self-test: each must be found, in these words.


def mix_archives_up(scene: Scene) -> None:
    """One model's archive under another one's name."""
    store = scene.store
    assert store is not None
    model, another = scene.target.steady[:2]
    for data in (another, model):
        store.copy(PREFIX, model, data.archive())
        scene.polyhost.refresh()
        time.sleep(2)


def leave_front_stopped(scene: Scene) -> None:
    scene.send("front", signal.SIGSTOP)


SABOTAGES = (
    (Fault("self-test: archives mixed up", mix_archives_up), "answered WRONG"),
    (Fault("self-test: a process that stays", ordering("become_daemons 1")), "left behind: 1 strange processes"),
    (Fault("self-test: front stopped for good", leave_front_stopped, 3), "not every model answers right within 3 s"),
)
