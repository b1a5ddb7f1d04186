"""
The model cache over a real engine, a real disk cache and a real store, in any order of what may happen to it.

`Registry` is a plain model of it. It is driven by what the engine is asked to do, not by what the cache says of itself,
and foretells the rest: who may be evicted, which answers are right, how much is counted. `wrong` is what broke a rule.

After each step the machine waits until nothing is under way but the calls that scripts keep from ending.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from chaos.models import VERSIONS, Model, fleet, is_value
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.calls import CallContext
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.events import CACHE_EVENTS, CacheEvent, ModelLeaving, ModelUnloaded, Publisher, SwapFailed
from polyhost.endpoint.measures import Measures
from polyhost.engine.errors import EngineError
from polyhost.engine.protocol import Answer, Item
from polyhost.service_errors import ArtifactMissing, DiskFull, EndpointError, ServiceUnavailable, ValidationError
from polyhost.tasks import look_at
from support.forms import IS_LONG
from support.packing import tar
from support.stack import MIB, Lock, Stack, Store, Version, Watched, send

SCRIPTS = fleet("unruly", 2)
MODELS = {model.key: model for model in (*fleet("data", 1), *fleet("heavy", 3), *SCRIPTS)}
# Two of the heavy models fit, and all the others.
DISK_BYTES = 6 * MIB
_WHOSE = "whose.json"

KEYS = st.sampled_from(sorted(MODELS))
SCRIPT_KEYS = [model.key for model in SCRIPTS]
# At once, so that one may wait for the memory that the other holds.
SOME_SCRIPTS = st.sampled_from([SCRIPT_KEYS, SCRIPT_KEYS[:1], SCRIPT_KEYS[1:]])
# A script takes 5 MiB and a half, a heavy model 2.
BUDGETS_MIB = st.sampled_from([9, 9, 9, 18, 1024])
_PASSES = st.integers(0, 30)


class Found(BaseException):
    """A rule is broken. Hypothesis lets it pass, and tries neither again nor to find a shorter way."""


@functools.lru_cache(maxsize=64)
def archive_of(model: Model) -> bytes:
    whose = json.dumps({"kind": model.kind, "number": model.number, "version": model.version})
    return tar(*model.files().items(), (_WHOSE, whose.encode()))


def model_in(folder: Path) -> Model:
    return Model(**json.loads((folder / _WHOSE).read_text()))


@dataclass(eq=False)
class Caller:
    """One request. `lowest`: the oldest version that may answer it."""

    key: str
    item: Item
    lowest: int
    may_answer: bool
    may_be_missing: bool
    lock: Lock | None = None
    context: CallContext = field(default_factory=CallContext)
    outcomes: list[Answer | Exception] = field(default_factory=list)
    version: Version | None = None

    @property
    def is_waiting(self) -> bool:
        """For its model to be loaded."""
        task = self.context.waits_for
        return self.version is None and isinstance(task, asyncio.Task) and not task.done()

    @property
    def is_held(self) -> bool:
        return self.version is not None and self.lock is not None and not self.lock.is_open


class Registry:
    def __init__(self) -> None:
        # The newest version that the store has had of each, and the keys that it has now.
        self.written: dict[str, int] = dict.fromkeys(MODELS, 0)
        self.stored = set(MODELS)
        # Least recently used first.
        self.resident: dict[str, Version] = {}
        self.pinned: set[str] = set()
        self.callers: list[Caller] = []
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.is_tight = False
        # Those whose new version was not loaded when it was looked for last.
        self.behind: set[str] = set()
        self._loading: Counter[str] = Counter()
        self._replaced: set[str] = set()
        self._shortages = 0
        self._disk_is_full = False
        # Since the last time that no load was under way.
        self.was_disk_full = False

    # What the cache asks of the engine

    def loading(self, model: Model) -> None:
        self._loading[model.key] += 1
        if self._loading[model.key] > 1:
            self.wrong.append(f"{model.key} is loaded twice at once")

    def load_ended(self, model: Model) -> None:
        self._loading[model.key] -= 1

    def out_of_memory(self) -> None:
        self._shortages += 1

    def loaded(self, version: Version) -> None:
        key = version.model.key
        self.counts["loads"] += 1
        if self.resident.pop(key, None):
            self._replaced.add(key)
        self.resident[key] = version

    def called(self, version: Version, item: Item) -> None:
        key = version.model.key
        caller = next(caller for caller in self.callers if caller.item is item)
        caller.version = version
        if caller.key != key or self.resident.get(key) is not version:
            self.wrong.append(f"a request for {caller.key} went to {version}")
            return
        self.resident[key] = self.resident.pop(key)

    def unloaded(self, version: Version) -> None:
        self.counts["unloads"] += 1
        if version.calls or self.resident.get(version.model.key) is version:
            self.wrong.append(f"{version} was unloaded while requests go to it")

    # What the cache says

    def on_event(self, event: CacheEvent) -> None:
        if isinstance(event, ModelLeaving):
            if event.is_evicted:
                self._evicted(event.target)
            if event.target in self._replaced:
                self._replaced.discard(event.target)  # the older version leaves, the newer one is there
            else:
                self.resident.pop(event.target, None)
        if isinstance(event, SwapFailed):
            self.behind.add(event.target)
        if isinstance(event, ModelUnloaded):
            self.counts["evictions said"] += event.was_evicted

    def disk_full(self) -> None:
        """What is evicted before the event loop goes on makes room on the disk: not always the oldest."""
        self._disk_is_full = self.was_disk_full = True
        asyncio.get_running_loop().call_soon(setattr, self, "_disk_is_full", False)

    def _evicted(self, key: str) -> None:
        self.counts["evictions"] += 1
        victim, candidates = self.resident.get(key), [one for one in self.resident if self.may_go(one)]
        if victim is None or key not in candidates:
            self.wrong.append(f"{key} was evicted, is pinned, in use or not there: {candidates}")
        elif not self._disk_is_full:
            if key != candidates[0]:
                self.wrong.append(f"{key} was evicted, {candidates[0]} was used less recently")
            if not self._shortages:
                self.wrong.append(f"{key} was evicted, and memory was not short")
            self._shortages -= 1

    def may_go(self, key: str) -> bool:
        is_wanted = any(caller.key == key and caller.is_waiting for caller in self.callers)
        return key not in self.pinned and not self.resident[key].calls and not is_wanted

    # Who calls

    def caller(self, key: str, item: Item, lock: Lock | None) -> Caller:
        version = self.resident.get(key)
        is_there = version is not None or key in self.stored
        lowest = version.model.version if version else self.written[key]
        # Whoever comes while others wait joins their load, which may have fetched what is overwritten or deleted now.
        joined = [one for one in self.callers if one.key == key and one.is_waiting and one.may_answer]
        lowest = min([lowest, *(one.lowest for one in joined)])
        caller = Caller(key, item, lowest, is_there or bool(joined), not is_there, lock)
        self.callers.append(caller)
        return caller

    def judge(self) -> None:
        """Those that are answered; those that have left need no answer."""
        for caller in self.callers:
            if len(caller.outcomes) > 1:
                self.wrong.append(f"{caller.key} was answered more than once: {caller.outcomes}")
            elif caller.outcomes and not self.is_right(caller, caller.outcomes[0]):
                self.wrong.append(f"{caller} was answered {caller.outcomes[0]}")
        self.callers = [one for one in self.callers if not one.outcomes and (one.version or one.is_waiting)]

    def is_right(self, caller: Caller, outcome: Answer | Exception) -> bool:
        match outcome:
            case Answer(status=200, body=body):
                model = MODELS[caller.key]
                versions = range(caller.lowest, self.written[caller.key] + 1)
                values = frozenset(Model(model.kind, model.number, version).value for version in versions)
                return caller.may_answer and is_value(body, values)
            case ArtifactMissing():
                return caller.may_be_missing
            case DiskFull():  # what others hold cannot be evicted
                return bool(self.pinned or self.is_tight)
            case ServiceUnavailable(message=message):
                return bool(self.pinned) and "cannot be loaded now" in message
            case EngineError(message=message):  # killed again and again while it answered
                return caller.version is not None and caller.version.kills > 1 and "ended" in message
        return False


class CacheMachine(RuleBasedStateMachine):  # noqa: PLR0904 - its rules are Hypothesis's
    """
    `stack` and `new_store` are set by whoever runs it; `fail` is how a broken rule is told.

    No rule has a precondition: what is resident or pinned depends on who was faster, and Hypothesis must find the same
    rules after the same steps. A rule that finds nothing to do does nothing.
    """

    stack: ClassVar[Stack]
    new_store: ClassVar[Callable[[str], Store]]
    fail: ClassVar[type[BaseException]] = AssertionError
    _numbers: ClassVar[Iterable[int]] = itertools.count(1)

    @initialize(budget_mib=BUDGETS_MIB)
    def start(self, budget_mib: int) -> None:
        number = next(iter(self._numbers))
        self.folder = self.stack.folder / f"example-{number}"
        self.folder.mkdir()
        self.registry = Registry()
        self.watched = Watched(self.stack.engine, self.registry, model_in)
        self.stack.artifacts.on_full = self.registry.disk_full
        self.store = type(self).new_store(f"models-{number}")
        for model in MODELS.values():
            self.store.write(model.key, archive_of(model))
        self.measures = Measures(emf_namespace=None)
        self.locks: list[Lock] = []
        self.run(self.make())
        self.squeeze(budget_mib)

    async def make(self) -> None:
        await self.stack.sweep()
        events = Publisher()
        self.measures.subscribe_to(events)
        events.subscribe(CACHE_EVENTS, self.registry.on_event)
        self.cache = ModelCache(
            self.watched, self.stack.artifacts, events,  # type: ignore[arg-type]
            ready_timeout_secs=60.0, load_timeout_secs=60.0, refresh_secs=0.0,
        )  # fmt: skip
        self.shelf = self.cache.shelf(Container(source=self.store.source), "endpoint", "AllTraffic")

    def run(self, work: Coroutine[Any, Any, Any] | None = None, patience_secs: float = 20.0) -> Any:
        """
        Returns when nothing is under way any more; the result or the exception of `work`.

        `patience_secs`: how long `work` may wait for what is nothing of the cache's, the engine's or the store's.
        """

        async def at_rest() -> Any:
            task = asyncio.ensure_future(work or asyncio.sleep(0))
            task.add_done_callback(look_at)
            await asyncio.sleep(0)
            await self.stack.rest(self.watched, self.may_go_on)
            await asyncio.wait({task}, timeout=patience_secs)
            await self.stack.rest(self.watched, self.may_go_on)
            self.say(task.done(), f"{task} waits, and nothing is under way")
            return task.exception() or task.result()

        result = self.stack.run(at_rest())
        is_told = not isinstance(result, Exception) or isinstance(result, (EndpointError, EngineError))
        self.say(is_told, f"the cache has raised {result!r}")
        self.registry.judge()
        return result

    def may_go_on(self, what: object) -> bool:
        """Calls that are held, and those behind them in the same process."""
        callers = self.registry.callers
        held = {caller.version for caller in callers if caller.is_held}
        return any(caller.version in held for caller in callers if caller.item is what)

    def say(self, is_right: object, what: str) -> None:
        if not is_right:
            raise type(self).fail(what)

    # Requests

    def begin(self, key: str, lock: Lock | None = None) -> Caller:
        headers = {"content-type": "text/csv"}
        item = Item(f"request-{next(iter(self._numbers))}", headers, "", lock.order if lock else MODELS[key].row)
        caller = self.registry.caller(key, item, lock)
        self.cache.invoke(self.shelf, key, item, caller.context, caller.outcomes.append)
        return caller

    async def begin_all(self, keys: Iterable[str], lock: Lock | None = None) -> list[Caller]:
        return [self.begin(key, lock) for key in keys]

    @rule(key=KEYS)
    def call(self, key: str) -> None:
        self.run(self.begin_all([key]))

    @rule(keys=st.lists(KEYS, min_size=2, max_size=6))
    def call_together(self, keys: list[str]) -> None:
        self.registry.is_tight = True
        self.run(self.begin_all(keys))

    @rule(keys=SOME_SCRIPTS)
    def call_and_hold(self, keys: list[str]) -> None:
        lock = Lock(self.folder / f"lock-{len(self.locks)}")
        self.locks.append(lock)
        self.registry.is_tight = True
        self.run(self.begin_all(keys, lock))

    @rule()
    def let_go(self) -> None:
        if all(lock.is_open for lock in self.locks):
            return
        for lock in self.locks:
            lock.open()
        self.run()

    @rule(key=KEYS, passes=_PASSES)
    def call_and_leave(self, key: str, passes: int) -> None:
        """The client goes: at once, while its model is fetched or loaded, or while it answers."""

        async def leave() -> None:
            caller = self.begin(key)
            for _ in range(passes):
                await asyncio.sleep(0.0005)
            caller.context.leave()

        self.run(leave())

    # What operators do

    @rule(keys=st.lists(KEYS, min_size=1, max_size=4, unique=True), pin=st.booleans())
    def load(self, keys: list[str], pin: bool) -> None:
        """One after the other; where calls are held, only what is there, as the others might wait for those."""
        registry = self.registry
        for key in keys if not registry.callers else [one for one in keys if one in registry.resident]:
            wanted = registry.caller(key, Item(f"load-{key}", {}, "", b""), None)
            registry.callers.remove(wanted)
            error = self.run(self.cache.load(self.shelf, key))
            self.say(error is None or registry.is_right(wanted, error), f"{key} was not loaded: {error!r}")
            if error is None and pin:
                registry.pinned.add(key)
                self.cache.pin(self.shelf, key, is_pinned=True)
                self.run()

    @rule(key=KEYS)
    def unload(self, key: str) -> None:
        is_there = key in self.registry.resident
        self.registry.pinned.discard(key)
        error = self.run(self.cache.unload(self.shelf, key))
        self.say(isinstance(error, ValidationError) == (not is_there), f"unloading {key}: {error}")

    @rule()
    def unpin(self) -> None:
        if not self.registry.pinned:
            return
        for key in [*self.registry.pinned]:
            self.cache.pin(self.shelf, key, is_pinned=False)
        self.registry.pinned.clear()
        self.run()

    @rule(mib=BUDGETS_MIB)
    def squeeze(self, mib: int) -> None:
        """Full memory: what is there stays until something else is loaded."""
        self.stack.engine._admission.budget_bytes = mib * MIB

    # What happens to archives

    @rule(key=KEYS)
    def overwrite(self, key: str) -> None:
        """Or write what was deleted."""
        registry = self.registry
        if registry.written[key] == VERSIONS:
            return
        registry.written[key] += 1
        registry.stored.add(key)
        for caller in registry.callers:
            caller.may_answer = caller.may_answer or caller.key == key
        model = MODELS[key]
        self.store.write(key, archive_of(Model(model.kind, model.number, registry.written[key])))
        self.run(self.look())

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        registry = self.registry
        if key not in registry.stored:
            return
        registry.stored.discard(key)
        for caller in registry.callers:
            caller.may_be_missing = caller.may_be_missing or caller.key == key
        self.store.delete(key)
        is_loading = key in self.shelf.models and self.shelf.models[key].loading.is_under_way
        if not is_loading:
            registry.pinned.discard(key)
        self.run(self.look())
        self.say(is_loading or key not in registry.resident, f"{key} was deleted, and is still served")

    async def look(self) -> None:
        self.registry.behind.clear()
        await self.stack.artifacts.list(self.store.source)
        await self.cache.refresh()

    # What happens to processes

    @rule(key=KEYS)
    def kill(self, key: str) -> None:
        worker = self.worker_of(key)
        if worker is None:
            return
        for version in self.watched.versions.values():
            version.kills += bool(version.calls) and self.watched.worker_of(version.name) is worker
        send(worker, signal.SIGKILL)
        self.run(worker.gone(), patience_secs=60.0)

    @rule(key=KEYS, goes_on=st.booleans())
    def stop_its_process(self, key: str, goes_on: bool) -> None:
        """
        A call is sent to it meanwhile. A process that does not go on is ended, and the call made again.

        One that has begun something would be waited for until its time is over.
        """
        worker = self.worker_of(key)
        if worker is None or worker.load:
            return

        async def stop() -> None:
            send(worker, signal.SIGSTOP)
            self.begin(key)
            for _ in range(5):
                await asyncio.sleep(0.001)
            if goes_on or not IS_LONG:
                send(worker, signal.SIGCONT)

        self.run(stop())
        if worker.is_alive:  # what the front has answered itself was not waited for
            send(worker, signal.SIGCONT)

    def worker_of(self, key: str) -> Any:
        version = self.registry.resident.get(key)
        worker = self.watched.worker_of(version.name) if version else None
        return worker if worker is not None and worker.is_alive else None

    # What always holds at rest

    @invariant()
    def no_rule_is_broken(self) -> None:
        if hasattr(self, "shelf"):
            self.check()

    def check(self) -> None:
        registry, versions = self.registry, self.watched.versions
        if not registry.callers:
            registry.is_tight = False
        self.say(not registry.wrong, "\n".join(registry.wrong))
        self.check_what_is_where()
        self.check_what_is_in_flight()
        totals = self.measures.snapshot().totals
        counted = (totals.loads, totals.unloads, totals.evictions)
        happened = tuple(registry.counts[name] for name in ("loads", "unloads", "evictions"))
        self.say(counted == happened, f"{counted} loads, unloads and evictions are counted, there were {happened}")
        self.say(len(versions) == happened[0] - happened[1], "the engine holds what was loaded and not unloaded")

    def check_what_is_where(self) -> None:
        registry, versions = self.registry, self.watched.versions
        order = [model.target for model in self.cache._residents.models]
        self.say(order == [*registry.resident], f"{order} should be {[*registry.resident]}")
        self.say(sorted(versions) == self.stack.engine.names(), "the engine holds others than were loaded")
        left = [one for one in versions.values() if registry.resident.get(one.model.key) is not one and not one.calls]
        self.say(not left, f"{left} are in the engine, and no request goes to them")
        stale = [
            one
            for key, one in registry.resident.items()
            if one.model.version < registry.written[key] and key in registry.stored and not self.may_be_stale(key)
        ]
        self.say(not stale, f"{stale} were overwritten")

    def may_be_stale(self, key: str) -> bool:
        """Where its new version did not load, until it is looked for again, or waits for room."""
        return self.shelf.models[key].loading.is_under_way or key in self.registry.behind

    def check_what_is_in_flight(self) -> None:
        registry = self.registry
        blocked = [model for model in self.shelf.models.values() if model.loading.is_under_way]
        holds = self.stack.artifacts.holds
        # A load that waits for memory holds its archive, one that waits for the disk has none.
        registry.was_disk_full &= bool(blocked)
        least = len(self.watched.versions) + (0 if registry.was_disk_full else len(blocked))
        is_right = least <= holds <= len(self.watched.versions) + len(blocked)
        self.say(is_right, f"archives are held {holds} times")
        in_use = [key for key, one in registry.resident.items() if one.calls and key not in registry.pinned]
        leaving = len(self.watched.versions) > len(registry.resident)
        may_wait = (in_use or leaving) and not any(map(registry.may_go, registry.resident))
        self.say(not blocked or may_wait, f"{[model.target for model in blocked]} wait, and there is room")
        for model in self.shelf.models.values():
            waiting = sum(caller.key == model.target and caller.is_waiting for caller in registry.callers)
            self.say(model.waiting == waiting, f"{model.waiting} wait for {model.target}, there are {waiting}")
            self.say(not waiting or model.loading.is_under_way, f"{waiting} wait for {model.target}, nobody loads it")
            version = registry.resident.get(model.target)
            users = model.loaded.users if model.loaded else 0
            self.say(users == (version.calls if version else 0), f"{model.target} has {users} users")
        for name, version in self.watched.versions.items():
            in_flight = self.stack.engine._registry.get(name).in_flight
            self.say(in_flight == version.calls, f"{in_flight} calls of {version} are in flight in the engine")

    def teardown(self) -> None:
        """All that is left can end and go, and leaves nothing behind."""
        if not hasattr(self, "shelf"):
            return
        try:
            for lock in self.locks:
                lock.open()
            self.run()
            self.check()
            self.say(not self.registry.callers, f"{self.registry.callers} are not answered")
            for key in [*self.registry.resident]:
                self.run(self.cache.unload(self.shelf, key))
            self.registry.pinned.clear()
            self.check()
            left = (self.stack.engine.names(), self.stack.artifacts.holds, len(self.cache._tasks))
            self.say(left == ([], 0, 0), f"{left} are left")
        finally:
            self.stack.run(self.cache.stop())
