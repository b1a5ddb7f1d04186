"""The model cache against an engine and archives that only count: no process, no sleep."""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest
from polyhost.artifacts import Artifact, Listed
from polyhost.endpoint import refresher
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.calls import CallContext
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.events import CACHE_EVENTS, CacheEvent, LookFailed, Publisher, SwapFailed, log
from polyhost.endpoint.measures import Measures
from polyhost.endpoint.shelf import Shelf, ShelfClosed
from polyhost.engine.errors import EngineError, NoProcess
from polyhost.engine.protocol import Answer, Item, Registration, answer_of
from polyhost.service_errors import (
    ArtifactMissing,
    DiskFull,
    ModelNotReady,
    ServiceUnavailable,
    StoreFailed,
    ValidationError,
)
from polyhost.testing import CountingArtifacts, CountingEngine
from polyhost_handlers.script_trial import Blame, Fault
from support.lru import lru_hits, zipf_trace

SUBMIT_DIRECTORY = "SAGEMAKER_SUBMIT_DIRECTORY"
MULTI = Container(source="s3://bucket/models/")
ITEM = Item("request", {}, "", b"")


class Case:
    """A cache of `capacity` models over archives of these names."""

    def __init__(
        self, capacity: int, names: list[str], *, artifacts: CountingArtifacts | None = None, **timeouts: float
    ) -> None:
        self.engine = CountingEngine(capacity)
        self.artifacts = artifacts or CountingArtifacts(dict.fromkeys(names, "1"))
        settings = {"ready_timeout_secs": 30.0, "load_timeout_secs": 30.0, "refresh_secs": 0.0, **timeouts}
        self.measures = Measures(emf_namespace=None)
        self.events = Publisher()
        self.measures.subscribe_to(self.events)
        self.cache = ModelCache(self.engine, self.artifacts, self.events, **settings)  # type: ignore[arg-type]

    @property
    def shelf(self) -> Shelf:
        return self.cache.shelf(MULTI, "endpoint", "AllTraffic")

    async def invoke(self, target: str, shelf: Shelf | None = None) -> str:
        """The version that answered."""
        context = CallContext()
        answer: Answer = await answer_of(
            lambda done: self.cache.invoke(shelf or self.shelf, target, ITEM, context, done), context.leave
        )
        return answer.body.decode().rpartition("@")[2]

    @property
    def resident(self) -> list[str]:
        return sorted(url.url.rpartition("/")[2].partition("@")[0] for url in self.engine.models.values())


def run(case: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(case(), 200))


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_ten_callers_of_a_cold_model_wait_for_one_download_and_one_load() -> None:
    """And all are answered."""

    async def case() -> None:
        c = Case(3, ["a"])
        assert await asyncio.gather(*(c.invoke("a") for _ in range(10))) == ["1"] * 10
        assert (c.artifacts.counts["get"], c.engine.counts["load"]) == (1, 1)

    run(case)


def test_a_model_gets_its_time_to_answer_and_another_one_to_load() -> None:
    async def case() -> None:
        c = Case(3, ["a"], response_timeout_secs=60.0, load_timeout_secs=360.0)
        await c.invoke("a")
        (registration,) = c.engine.models.values()
        assert (registration.response_timeout_secs, registration.load_timeout_secs) == (60.0, 360.0)

    run(case)


def test_a_model_is_loaded_with_its_containers_image() -> None:
    """Which may mean a Python environment."""

    async def case() -> None:
        c = Case(3, ["a"])
        container = Container(source="s3://bucket/models/", image="sagemaker-scikit-learn:1.2-1-cpu-py3")
        await c.invoke("a", c.cache.shelf(container, "endpoint", "AllTraffic"))
        (registration,) = c.engine.models.values()
        assert registration.image == container.image

    run(case)


def test_the_least_recently_used_idle_model_goes_first() -> None:
    """Use is what counts, not the order of loading."""

    async def case() -> None:
        c = Case(3, list("abcd"))
        for target in "abcad":
            await c.invoke(target)
        assert c.resident == ["a", "c", "d"]

    run(case)


def test_a_model_in_use_is_never_evicted() -> None:
    """The next oldest goes instead."""

    async def case() -> None:
        c = Case(2, list("abc"))
        await c.invoke("a")
        await c.invoke("b")
        c.engine.answering.clear()
        busy = asyncio.create_task(c.invoke("a"))
        await settled()
        waiting = asyncio.create_task(c.invoke("c"))
        await settled()
        assert "a" in c.resident
        c.engine.answering.set()
        assert [await busy, await waiting] == ["1", "1"]

    run(case)


class SmallDisk(CountingArtifacts):
    """It has room for so many archives, of which those that are held stay. `thefts`: how often others are quicker."""

    def __init__(self, names: str, room: int, *, thefts: int = 0) -> None:
        super().__init__(dict.fromkeys(names, "1"))
        self.room, self.thefts = room, thefts

    async def get(self, source: str, key: str, *, asked_after: float = 0.0) -> Artifact:
        if sum(self.held.values()) >= self.room or self._is_stolen():
            self.counts["full"] += 1
            raise DiskFull("The disk is full.", missing_bytes=1)
        return await super().get(source, key, asked_after=asked_after)

    def _is_stolen(self) -> bool:
        """Only of a disk that was full before."""
        if not self.counts["full"] or not self.thefts:
            return False
        self.thefts -= 1
        return True

    def bytes_of(self, artifact: Artifact) -> int:
        return self.held[str(artifact.path)]


def test_room_on_the_disk_that_others_take_is_made_again() -> None:
    """Several loads make room at once: the first one to come back has it."""

    async def case() -> None:
        c = Case(10, [], artifacts=SmallDisk("abcdef", room=4, thefts=2))
        for target in "abcd":
            await c.invoke(target)
        assert await c.invoke("e") == "1"
        assert "e" in c.resident

    run(case)


def test_a_load_waits_for_the_disk_that_busy_models_hold() -> None:
    async def case() -> None:
        c = Case(10, [], artifacts=SmallDisk("ab", room=1))
        await c.invoke("a")
        c.engine.answering.clear()
        busy = asyncio.create_task(c.invoke("a"))
        await settled()
        waiting = asyncio.create_task(c.invoke("b"))
        await settled()
        assert not waiting.done()
        c.engine.answering.set()
        assert [await busy, await waiting] == ["1", "1"]
        assert c.resident == ["b"]

    run(case)


def test_a_load_that_will_never_have_room_on_the_disk_fails_at_once() -> None:
    """Whatever is unloaded would not be enough: nothing is, and nobody waits."""

    async def case() -> None:
        c = Case(10, [], artifacts=SmallDisk("a", room=0))
        with pytest.raises(DiskFull):
            await c.invoke("a")
        assert c.artifacts.counts["full"] == 1

    run(case)


def test_a_load_waits_for_a_busy_model_to_become_idle() -> None:
    """It neither fails nor takes the busy one's memory."""

    async def case() -> None:
        c = Case(1, list("ab"))
        await c.invoke("a")
        c.engine.answering.clear()
        busy = asyncio.create_task(c.invoke("a"))
        await settled()
        waiting = asyncio.create_task(c.invoke("b"))
        await settled()
        assert not waiting.done()
        c.engine.answering.set()
        assert [await busy, await waiting] == ["1", "1"]
        assert c.resident == ["b"]

    run(case)


def test_models_that_all_want_the_last_place_get_it_one_after_the_other() -> None:
    """Nobody waits for somebody who waits for him."""

    async def case() -> None:
        c = Case(1, [f"m{number}" for number in range(20)])
        answers = await asyncio.gather(*(c.invoke(f"m{number}") for number in range(20) for _ in range(3)))
        assert answers == ["1"] * 60

    run(case)


def test_what_can_never_fit_is_refused_at_once() -> None:
    """With its size and the budget, before anything is evicted for it."""

    async def case() -> None:
        c = Case(2, list("ab"))
        await c.invoke("a")
        c.artifacts.unpacked_bytes = 2_000_000
        with pytest.raises(ValidationError, match=r"b can never be loaded: its files have 2 MiB.* 1 MiB"):
            await c.invoke("b")
        assert c.resident == ["a"]

    run(case)


def test_a_model_that_did_not_fit_into_the_empty_server_is_not_tried_again() -> None:
    """Its size was measured; the next request hears of it without a load."""

    async def case() -> None:
        c = Case(0, ["a"])
        for _ in range(2):
            with pytest.raises(ValidationError, match="can never be loaded: there is room for 0 models"):
                await c.invoke("a")
        assert c.engine.counts["load"] == 1
        c.artifacts.versions["a"] = "2"
        c.engine.capacity = 1
        assert await c.invoke("a") == "2"

    run(case)


def test_a_model_that_got_no_process_is_tried_again() -> None:
    """That says nothing of its size, so it is not refused for good."""

    async def case() -> None:
        c = Case(1, ["a"])
        load, c.engine.load = c.engine.load, no_process  # type: ignore[method-assign]
        with pytest.raises(ServiceUnavailable, match="cannot be loaded now: No process can be started"):
            await c.invoke("a")
        c.engine.load = load  # type: ignore[method-assign]
        assert await c.invoke("a") == "1"

    async def no_process(_: Registration) -> str:
        raise NoProcess("No process can be started")

    run(case)


def test_what_is_pinned_or_loaded_by_hand_stays(caplog: pytest.LogCaptureFixture) -> None:
    """If nothing else is there to evict, the request is answered 503, and the log says so."""

    async def case() -> None:
        c = Case(2, list("ab"))
        await c.engine.load(Registration(url="by hand", name="by hand"))
        await c.cache.load(c.shelf, "a", pin=True)
        with pytest.raises(ServiceUnavailable, match="cannot be loaded now"):
            await c.invoke("b")
        assert await c.invoke("a") == "1"
        assert c.engine.counts["unload"] == 0

    run(case)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("The model b cannot be loaded now: ")


def test_a_load_that_waits_evicts_what_is_unpinned_meanwhile() -> None:
    async def case() -> None:
        c = Case(2, list("abc"))
        await c.cache.load(c.shelf, "a", pin=True)
        c.engine.answering.clear()
        calls = [asyncio.create_task(c.invoke(target)) for target in "bc"]
        await settled()
        assert c.resident == ["a", "b"]
        c.cache.pin(c.shelf, "a", is_pinned=False)
        await settled()
        assert c.resident == ["b", "c"]
        c.engine.answering.set()
        assert await asyncio.gather(*calls) == ["1", "1"]

    run(case)


def test_a_load_does_not_wait_for_what_is_pinned_meanwhile() -> None:
    async def case() -> None:
        c = Case(1, list("ab"))
        c.engine.answering.clear()
        busy = asyncio.create_task(c.invoke("a"))
        await settled()
        waiting = asyncio.create_task(c.invoke("b"))
        await settled()
        c.cache.pin(c.shelf, "a", is_pinned=True)
        with pytest.raises(ServiceUnavailable, match="cannot be loaded now"):
            await waiting
        c.engine.answering.set()
        assert await busy == "1"

    run(case)


def test_a_failed_load_is_everyones_answer_and_leaves_nothing() -> None:
    """The next request tries again."""

    async def case() -> None:
        c = Case(2, ["broken"])
        answers = await asyncio.gather(*(c.invoke("broken") for _ in range(3)), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["it is broken"] * 3
        with pytest.raises(EngineError):
            await c.invoke("broken")
        assert c.engine.counts["load"] == 2
        assert not c.shelf.models
        assert c.artifacts.held.total() == 0

    run(case)


def test_names_that_do_not_exist_are_not_remembered() -> None:
    """They are the clients' choice."""

    async def case() -> None:
        c = Case(2, [])
        for number in range(10):
            with pytest.raises(ArtifactMissing):
                await c.invoke(f"nothing-{number}")
        assert not c.shelf.models

    run(case)


def test_a_request_that_waits_too_long_is_told_and_the_load_goes_on() -> None:
    """Asked again later, it is answered."""

    async def case() -> None:
        c = Case(2, ["a"], ready_timeout_secs=0.01)
        c.engine.loading.clear()
        with pytest.raises(ModelNotReady, match="a is not ready"):
            await c.invoke("a")
        c.engine.loading.set()
        await settled()
        assert await c.invoke("a") == "1"
        assert c.engine.counts["load"] == 1

    run(case)


def test_a_client_that_leaves_does_not_hold_its_model_and_its_call_goes_on() -> None:
    """The worker has the call, so the model is in use until that has been answered, and no longer."""

    async def case() -> None:
        c = Case(1, ["a", "b"])
        c.engine.answering.clear()
        leaving = asyncio.create_task(c.invoke("a"))
        await settled()
        leaving.cancel()
        other = asyncio.create_task(c.invoke("b"))
        await settled()
        assert c.resident == ["a"]
        c.engine.answering.set()
        assert await other == "1"
        assert c.resident == ["b"]

    run(case)


def test_a_stop_gives_up_the_loads_that_nobody_waits_for() -> None:
    """At once where the client had left, and as soon as it leaves; what a client waits for is loaded."""

    async def case() -> None:
        c = Case(3, ["left", "leaving", "waited"])
        c.engine.loading.clear()
        left, leaving, waiting = (asyncio.create_task(c.invoke(name)) for name in ("left", "leaving", "waited"))
        await settled()
        loads = {model.target: model.loading for model in c.shelf.models.values()}
        left.cancel()
        await settled()
        assert all(load.is_under_way for load in loads.values())
        c.cache.stop_soon()
        await settled()
        assert [load.is_under_way for load in loads.values()] == [False, True, True]
        leaving.cancel()
        await settled()
        assert [load.is_under_way for load in loads.values()] == [False, False, True]
        c.engine.loading.set()
        assert await waiting == "1"
        assert c.resident == ["waited"]

    run(case)


def test_an_overwritten_archive_is_swapped_in_without_an_error() -> None:
    """Requests in flight keep the old version, later ones get the new; the old is unloaded when it is idle."""

    async def case() -> None:
        c = Case(3, ["a"])
        await c.invoke("a")
        c.engine.answering.clear()
        before = asyncio.create_task(c.invoke("a"))
        await settled()
        c.artifacts.versions["a"] = "2"
        await c.cache.refresh()
        await settled()
        after = asyncio.create_task(c.invoke("a"))
        await settled()
        assert c.resident == ["a", "a"]
        c.engine.answering.set()
        assert [await before, await after] == ["1", "2"]
        await settled()
        assert c.resident == ["a"]
        assert c.artifacts.discarded == ["a@1"]

    run(case)


@pytest.mark.parametrize("becomes", ["overwritten", "deleted"])
@pytest.mark.parametrize("was_there", [False, True])
def test_what_changes_while_a_load_has_its_archive_is_seen_when_the_load_is_over(becomes: str, was_there: bool) -> None:
    """A load may wait long for memory, with the archive that it found. It was taken for the newest, whatever came."""

    async def case() -> None:
        c = Case(3, ["a"])
        if was_there:
            await c.invoke("a")
            c.artifacts.versions["a"] = "2"
        c.engine.loading.clear()
        if was_there:
            await c.cache.refresh()
        loading = asyncio.create_task(c.cache.load(c.shelf, "a"))
        await settled()
        assert c.engine.counts["load"] == 1 + was_there
        if becomes == "deleted":
            del c.artifacts.versions["a"]
        else:
            c.artifacts.versions["a"] = "3"
        for _ in range(3):  # however often somebody asks, it is looked at once more
            await c.cache.refresh()
        looks = c.artifacts.counts["look_up"]
        c.engine.loading.set()
        await loading
        await settled()
        assert c.artifacts.counts["look_up"] == looks + 1
        assert c.resident == ([] if becomes == "deleted" else ["a"])
        if becomes == "overwritten":
            assert await c.invoke("a") == "3"

    run(case)


class Moments(Case):
    """Its models are looked at when they are used and a minute has passed since their last look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, models: list[str]) -> None:
        self._secs = time.perf_counter()
        monkeypatch.setattr(time, "perf_counter", lambda: self._secs)
        monkeypatch.setattr(refresher, "_LOOKS_A_SEC", math.inf)
        super().__init__(len(models) + 1, models, refresh_secs=60.0)

    def pass_secs(self, secs: float) -> None:
        self._secs += secs

    @property
    def looks(self) -> int:
        return self.artifacts.counts["look_up"]


def test_what_is_used_is_looked_at_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one request for each model, and by none for a model that nobody uses; nothing is listed."""

    async def case() -> None:
        c = Moments(monkeypatch, list("ab"))
        await c.invoke("a")
        await c.invoke("b")
        c.pass_secs(59)
        await c.invoke("a")
        await settled()
        assert c.looks == 0
        c.pass_secs(2)
        await asyncio.gather(*(c.invoke("a") for _ in range(10)))
        await settled()
        assert c.looks == 1
        c.pass_secs(61)
        await settled()
        assert c.looks == 1
        await c.invoke("b")
        await settled()
        assert (c.looks, c.artifacts.counts["list"]) == (2, 0)

    run(case)


def test_a_request_is_answered_by_what_is_there_and_a_later_one_by_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was deleted is missing from then on."""

    async def case() -> None:
        c = Moments(monkeypatch, list("ab"))
        await c.invoke("a")
        await c.invoke("b")
        c.artifacts.versions["a"] = "2"
        del c.artifacts.versions["b"]
        c.pass_secs(61)
        assert [await c.invoke("a"), await c.invoke("b")] == ["1", "1"]
        await settled()
        assert await c.invoke("a") == "2"
        with pytest.raises(ArtifactMissing):
            await c.invoke("b")

    run(case)


def test_a_store_that_does_not_answer_is_asked_again_a_minute_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The models that are there answer; it is said once, for all models of the container."""

    async def case() -> None:
        c = Moments(monkeypatch, list("ab"))
        before = [await c.invoke("a"), await c.invoke("b")]
        failures: list[LookFailed] = []
        c.events.subscribe((LookFailed,), failures.append)
        look_up, c.artifacts.look_up = c.artifacts.look_up, failing  # type: ignore[method-assign]
        for _ in range(2):
            c.pass_secs(61)
            assert [await c.invoke("a"), await c.invoke("b")] == before
            await settled()
        assert [failure.shelf for failure in failures] == [c.shelf]
        c.artifacts.look_up = look_up  # type: ignore[method-assign]
        c.artifacts.versions["a"] = "2"
        c.pass_secs(61)
        await c.invoke("a")
        await settled()
        assert await c.invoke("a") == "2"

    run(case)


async def failing(_: str, __: str) -> Listed:
    raise StoreFailed("It does not answer.")


def test_looks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many models are used in the same moment: so many at once, and so many a second."""
    pauses: list[float] = []

    async def case() -> None:
        c = Moments(monkeypatch, [f"{number}" for number in range(40)])
        monkeypatch.setattr(refresher, "_LOOKS_A_SEC", 50)
        for number in range(40):
            await c.invoke(f"{number}")
        may_answer, asked = asyncio.Event(), 0
        look_up, sleep = c.artifacts.look_up, asyncio.sleep

        async def waiting(source: str, key: str) -> Listed:
            nonlocal asked
            asked += 1
            await may_answer.wait()
            return await look_up(source, key)

        async def noted(secs: float) -> None:
            if secs:
                pauses.append(secs)
            await sleep(0)

        c.artifacts.look_up = waiting  # type: ignore[method-assign]
        monkeypatch.setattr(asyncio, "sleep", noted)
        c.pass_secs(61)
        for number in range(40):
            await c.invoke(f"{number}")
        await settled()
        assert asked == 16
        may_answer.set()
        for _ in range(5):
            await settled()
        assert (asked, c.looks) == (40, 40)

    run(case)
    assert pauses == [1 / 50] * 40


def test_a_new_version_that_does_not_load_leaves_the_old_one_serving() -> None:
    """The log says so."""

    async def case() -> None:
        c = Case(3, ["a"])
        await c.invoke("a")
        c.artifacts.versions["a"] = "broken"
        await c.cache.refresh()
        await settled()
        assert await c.invoke("a") == "1"

    run(case)


def test_a_deleted_archive_stops_being_served() -> None:
    """A request in flight is still answered."""

    async def case() -> None:
        c = Case(3, ["a"])
        await c.invoke("a")
        c.engine.answering.clear()
        last = asyncio.create_task(c.invoke("a"))
        await settled()
        del c.artifacts.versions["a"]
        await c.cache.refresh()
        c.engine.answering.set()
        assert await last == "1"
        with pytest.raises(ArtifactMissing):
            await c.invoke("a")
        assert c.resident == []

    run(case)


def test_without_caching_a_model_goes_after_its_call() -> None:
    """From memory and disk; calls at the same time share it."""

    async def case() -> None:
        c = Case(3, ["a"])
        shelf = c.cache.shelf(Container(source="s3://bucket/models/", is_cached=False), "endpoint", "AllTraffic")
        assert await asyncio.gather(*(c.invoke("a", shelf) for _ in range(5))) == ["1"] * 5
        await settled()
        assert (c.resident, c.artifacts.discarded, c.engine.counts["load"]) == ([], ["a@1"], 1)

    run(case)


def test_a_model_that_was_unloaded_behind_our_back_is_loaded_again() -> None:
    """MMS's routes are open to whoever may use them."""

    async def case() -> None:
        c = Case(3, ["a"])
        await c.invoke("a")
        c.engine.models.clear()
        assert await c.invoke("a") == "1"
        await settled()
        assert c.resident == ["a"]
        assert c.artifacts.held.total() == 1

    run(case)


def test_endpoints_of_equal_containers_are_each_for_itself() -> None:
    """Its loads count as its own, and what one unloads the other keeps."""

    async def case() -> None:
        c = Case(5, ["a"])
        other = c.cache.shelf(MULTI, "other", "AllTraffic")
        assert [await c.invoke("a"), await c.invoke("a", other)] == ["1", "1"]
        assert c.engine.counts["load"] == 2
        assert [c.measures.models(name, "AllTraffic")["a"].loads for name in ("endpoint", "other")] == [1, 1]
        await c.cache.unload(c.shelf, "a")
        assert (c.shelf.models["a"].loaded, other.models["a"].loaded is None) == (None, False)

    run(case)


def test_an_update_keeps_many_models_and_makes_others_anew() -> None:
    """
    A single model, and one with code of its own, may be other archives by now; every new endpoint asks its store again.
    """

    async def case() -> None:
        c = Case(9, ["a.tar.gz", "code.tar.gz"])
        single = Container(source="s3://bucket/models/a.tar.gz", is_multi_model=False)
        code = Container(source="s3://bucket/models/", environ=((SUBMIT_DIRECTORY, "s3://bucket/code.tar.gz"),))
        in_archive = Container(source="s3://bucket/models/", environ=((SUBMIT_DIRECTORY, "/opt/ml/model/code"),))
        for container, is_kept in ((MULTI, True), (in_archive, True), (single, False), (code, False)):
            first, second = (c.cache.shelf(container, "endpoint", "AllTraffic", since) for since in (1.0, 2.0))
            assert (first is second) == is_kept
            assert await c.cache.prepared(second) is None
            await c.invoke("a.tar.gz", second)
            assert min(c.artifacts.asked_after.values()) >= first.made_at > 0
            c.artifacts.asked_after.clear()

    run(case)


def test_why_a_container_cannot_be_served() -> None:
    """
    Its only archive is missing, or does not load; its code is missing. What clients name is looked for when they do.
    """

    async def case() -> None:
        c = Case(9, ["broken.tar.gz"])

        async def failure(container: Container) -> str:
            return str(await c.cache.prepared(c.cache.shelf(container, "endpoint", "AllTraffic")))

        single = Container(source="s3://bucket/models/none.tar.gz", is_multi_model=False)
        assert await failure(single) == "Failed to download model data(bucket: s3://bucket/models/, key: none.tar.gz)."
        assert await failure(replace(single, source="s3://bucket/broken.tar.gz")) == "it is broken"
        code = Container(source="s3://bucket/models/", environ=((SUBMIT_DIRECTORY, "s3://bucket/none.tar.gz"),))
        assert "key: none.tar.gz" in await failure(code)
        assert await failure(MULTI) == "None"

    run(case)


def test_containers_that_are_gone_take_their_models_with_them() -> None:
    """Equal containers of other endpoints keep theirs."""

    async def case() -> None:
        c = Case(5, list("ab"))
        other = Container(source="s3://bucket/models/", environ=(("A", "1"),))
        await c.invoke("a")
        await c.invoke("b", c.cache.shelf(other, "other", "AllTraffic"))
        c.cache.keep_only({c.shelf})
        await settled()
        assert c.resident == ["a"]
        assert c.engine.counts["forget"] == 1

    run(case)


@pytest.mark.parametrize("clients", [1, 16])
def test_zipf_traffic_hits_as_an_exact_lru_cache_does(clients: int) -> None:
    """500 models, room for 120: with one client exactly, with 16 within two points."""
    trace = zipf_trace(10_000, 500, 1.0, seed=1)

    async def case() -> None:
        c = Case(120, [f"{target}" for target in set(trace)])
        hits = 0
        requests = iter(trace)

        async def client() -> None:
            nonlocal hits
            for target in requests:
                model = c.shelf.models.get(target)
                hits += model is not None and model.loaded is not None
                assert await c.invoke(target) == "1"

        await asyncio.gather(*(client() for _ in range(clients)))
        exact = lru_hits(trace, 120)
        assert abs(hits - exact) <= (0 if clients == 1 else 0.02 * len(trace))

    run(case)


def test_a_deleted_archive_is_forgotten_also_when_it_was_evicted() -> None:
    """What is remembered of models is bounded by what there is."""

    async def case() -> None:
        c = Case(1, list("ab"))
        await c.invoke("a")
        await c.invoke("b")
        assert set(c.shelf.models) == {"a", "b"}
        c.artifacts.versions.clear()
        await c.cache.refresh()
        await settled()
        assert not c.shelf.models
        assert c.resident == []

    run(case)


def test_an_endpoint_that_goes_while_it_is_prepared_leaves_nothing() -> None:
    """Neither its model nor its workers."""

    async def case() -> None:
        c = Case(5, ["a.tar.gz"])
        c.engine.loading.clear()
        single = Container(source="s3://bucket/models/a.tar.gz", is_multi_model=False)
        c.cache.shelf(single, "single", "AllTraffic")
        await settled()
        c.cache.keep_only(set())
        c.engine.loading.set()
        await settled()
        assert c.resident == []
        assert c.artifacts.held.total() == 0
        assert c.engine.counts["forget"] == 1

    run(case)


def test_a_request_for_an_endpoint_that_has_gone_loads_nothing() -> None:
    """It is told so, and asks its successor."""

    async def case() -> None:
        c = Case(5, list("ab"))
        shelf = c.shelf
        await c.invoke("a", shelf)
        c.cache.keep_only(set())
        await settled()
        with pytest.raises(ShelfClosed):
            await c.invoke("b", shelf)
        assert c.resident == []

    run(case)


def test_workers_are_given_up_only_when_their_last_request_is_answered() -> None:
    """A deleted endpoint's calls in flight are answered first."""

    async def case() -> None:
        c = Case(5, ["a"])
        await c.invoke("a")
        c.engine.answering.clear()
        last = asyncio.create_task(c.invoke("a"))
        await settled()
        c.cache.keep_only(set())
        await settled()
        assert c.engine.counts["forget"] == 0
        c.engine.answering.set()
        assert await last == "1"
        await settled()
        assert (c.engine.counts["forget"], c.resident) == (1, [])

    run(case)


def test_an_eviction_goes_on_when_who_wanted_the_room_is_gone() -> None:
    """What the cache does not know must not be in the engine."""

    async def case() -> None:
        c = Case(1, list("ab"))
        await c.invoke("a")
        c.engine.unloading.clear()
        wanted = asyncio.create_task(c.invoke("b"))
        await settled()
        c.shelf.models["b"].loading.cancel()
        await settled()
        c.engine.unloading.set()
        await settled()
        assert wanted.done()
        assert c.resident == []
        assert c.artifacts.held.total() == 0

    run(case)


def test_what_may_not_be_read_just_now_stays() -> None:

    async def case() -> None:
        c = Case(3, list("ab"))
        await c.invoke("a")
        await c.invoke("b")
        c.artifacts.forbidden = {"b"}
        await c.cache.refresh()
        await settled()
        assert c.resident == ["a", "b"]
        assert c.artifacts.discarded == []

    run(case)


def test_loads_of_different_models_run_side_by_side() -> None:
    """One that takes long holds no other up."""

    async def case() -> None:
        c = Case(3, list("ab"))
        c.engine.loading.clear()
        both = [asyncio.create_task(c.invoke(target)) for target in "ab"]
        await settled()
        assert c.engine.counts["load"] == 2
        c.engine.loading.set()
        assert await asyncio.gather(*both) == ["1", "1"]

    run(case)


def test_a_load_waits_for_a_version_that_only_its_last_user_keeps() -> None:
    """It was unloaded while it answered: the room that it gives free is waited for, not refused."""

    async def case() -> None:
        c = Case(1, list("ab"))
        await c.invoke("a")
        c.engine.answering.clear()
        busy = asyncio.create_task(c.invoke("a"))
        await settled()
        await c.cache.unload(c.shelf, "a")
        waiting = asyncio.create_task(c.invoke("b"))
        await settled()
        assert not waiting.done()
        c.engine.answering.set()
        # A model that can never fit is refused for good; this one only had to wait.
        assert [await asyncio.gather(busy, return_exceptions=True), await waiting] == [["1"], "1"]
        assert c.resident == ["b"]

    run(case)


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        (["1"], "1"),
        (["2"], "2"),
        (["2", "3"], "3"),
        (["2", "1"], "1"),
        ([None], ArtifactMissing),
        ([None, "2"], "2"),
        (["forbidden"], "1"),
    ],
)
def test_a_load_that_waits_goes_on_with_what_a_look_finds(found: list[str | None], answer: str | type) -> None:
    """What the store has by then is what callers are answered by, those who came before and after the look."""

    async def case() -> None:
        c = Case(1, list("ab"))
        await c.invoke("a")
        c.engine.answering.clear()
        busy = asyncio.create_task(c.invoke("a"))
        await settled()
        callers = [asyncio.create_task(c.invoke("b"))]
        await settled()
        for version in found:
            c.artifacts.forbidden = {"b"} if version == "forbidden" else set()
            if version is None:
                del c.artifacts.versions["b"]
            elif version != "forbidden":
                c.artifacts.versions["b"] = version
            await c.cache.refresh()
            await settled()
            c.artifacts.forbidden = set()
        callers.append(asyncio.create_task(c.invoke("b")))
        await settled()
        c.engine.answering.set()
        assert await busy == "1"
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        if isinstance(answer, str):
            assert outcomes[-1] == answer
            assert c.resident == ["b"]
        else:
            assert [type(outcome) for outcome in outcomes] == [answer] * 2
            assert c.resident == ["a"]

    run(case)


def test_a_new_version_that_the_disk_cannot_read_leaves_the_old_one_in_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The subscribers are told why, as for any other failure of a swap."""
    failed: list[SwapFailed] = []

    async def case() -> None:
        c = Case(1, ["a"])
        c.events.subscribe((SwapFailed,), failed.append)
        await c.invoke("a")
        c.artifacts.versions["a"] = "2"
        error = OSError(errno.EIO, "Input/output error")
        monkeypatch.setattr(c.artifacts, "get", AsyncMock(side_effect=error))
        await c.cache.refresh()
        await settled()
        assert [event.error for event in failed] == [error]
        assert await c.invoke("a") == "1"

    run(case)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_happens_is_told_to_all_who_subscribed(caplog: pytest.LogCaptureFixture) -> None:
    """In order; and one whose code fails keeps nobody else from hearing of it, nor the cache from going on."""
    caplog.set_level("INFO")
    seen: list[tuple[str, str]] = []

    def fail(_: CacheEvent) -> None:
        raise RuntimeError("a subscriber's mistake")

    async def case() -> None:
        c = Case(1, list("ab"))
        for subscriber in (fail, log, lambda event: seen.append((type(event).__name__, getattr(event, "target", "")))):
            c.events.subscribe(CACHE_EVENTS, subscriber)
        await c.invoke("a")
        await c.invoke("b")
        c.engine.capacity = 2
        c.artifacts.versions["b"] = "broken"
        await c.cache.refresh()
        await settled()
        c.artifacts.versions["b"] = "2"
        await c.cache.refresh()
        await settled()
        del c.artifacts.versions["b"]
        await c.cache.refresh()
        await settled()

    run(case)
    assert seen == [
        ("ModelLoaded", "a"),
        ("ModelLeaving", "a"),
        ("ModelUnloaded", "a"),
        ("ModelLoaded", "b"),
        ("ArchiveOverwritten", "b"),
        ("SwapFailed", "b"),
        ("ArchiveOverwritten", "b"),
        ("ModelLeaving", "b"),
        ("ModelSwapped", "b"),
        ("ModelLoaded", "b"),
        ("ModelUnloaded", "b"),
        ("ModelLeaving", "b"),
        ("ArchiveDeleted", "b"),
        ("ModelUnloaded", "b"),
    ]
    assert [record.getMessage() for record in caplog.records if "mistake" not in str(record.exc_info)] == [
        "s3://bucket/models/: b was overwritten",
        "b: the new version was not loaded, the old one stays: it is broken",
        "s3://bucket/models/: b was overwritten",
        "s3://bucket/models/: b was deleted",
    ]


SCRIPT_FAULT = Fault("serve.py cannot be imported", Blame.SCRIPT)
MODULE_FAULT = Fault("serve.py wants a module", Blame.EITHER)
FILE_FAULT = Fault("serve.py wants a file", Blame.MODEL)


@pytest.mark.parametrize(
    ("faults", "names", "failed", "tries"),
    [
        ([None], ["a"], "", 1),
        ([SCRIPT_FAULT], ["a"], "serve.py cannot be imported", 1),
        ([MODULE_FAULT, None], ["a"], "", 2),
        ([MODULE_FAULT, MODULE_FAULT], ["a"], "serve.py wants a module", 2),
        ([FILE_FAULT, None], ["a"], "", 2),
        ([FILE_FAULT, MODULE_FAULT], ["a"], "serve.py wants a module", 2),
        ([MODULE_FAULT], [], "serve.py wants a module", 1),
        ([FILE_FAULT], [], "", 1),
    ],
)
def test_a_containers_script_is_tried_beside_a_model(
    tmp_path: Path, faults: list[Fault | None], names: list[str], failed: str, tries: int
) -> None:
    """Where a model may bring what the script wants: in the smallest one's folder, which is then given back."""
    (tmp_path / "inference.py").write_text("")
    scripted = replace(MULTI, environ=((SUBMIT_DIRECTORY, str(tmp_path)),))

    async def case() -> None:
        c = Case(2, names)
        c.engine.faults = iter(faults)
        failure = await c.cache.prepared(c.cache.shelf(scripted, "endpoint", "AllTraffic"))
        assert str(failure or "") == (f"The container's script cannot serve: {failed}." if failed else "")
        assert c.engine.counts["try script"] == tries
        assert not any(c.artifacts.held.values())

    run(case)
