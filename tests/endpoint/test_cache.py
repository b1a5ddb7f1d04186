"""The model cache against an engine and archives that only count: no process, no sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from polyhost.endpoint.cache import ModelCache, Shelf, ShelfClosed, Timing
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.errors import ArtifactMissing, ModelNotReady, ServiceUnavailable, ValidationError
from polyhost.endpoint.measures import Measures
from polyhost.engine.errors import EngineError
from polyhost.engine.protocol import Answer, Item, Registration
from polyhost.testing import CountingArtifacts, CountingEngine
from support.lru import lru_hits, zipf_trace

SUBMIT_DIRECTORY = "SAGEMAKER_SUBMIT_DIRECTORY"
MULTI = Container(source="s3://bucket/models/")
ITEM = Item("request", {}, "", b"")


class Case:
    """A cache of `capacity` models over archives of these names."""

    def __init__(self, capacity: int, names: list[str], **timeouts: float) -> None:
        self.engine = CountingEngine(capacity)
        self.artifacts = CountingArtifacts(dict.fromkeys(names, "1"))
        settings = {"ready_timeout_secs": 30.0, "load_timeout_secs": 30.0, "refresh_secs": 0.0, **timeouts}
        self.measures = Measures(access_log=False, emf_namespace=None)
        self.cache = ModelCache(self.engine, self.artifacts, self.measures, **settings)  # type: ignore[arg-type]

    @property
    def shelf(self) -> Shelf:
        return self.cache.shelf(MULTI, "endpoint", "AllTraffic")

    async def invoke(self, target: str, shelf: Shelf | None = None) -> str:
        """The version that answered."""
        answer: Answer = await self.cache.invoke(shelf or self.shelf, target, ITEM, Timing())
        return answer.body.decode().rpartition("@")[2]

    @property
    def resident(self) -> list[str]:
        return sorted(url.url.rpartition("/")[2].partition("@")[0] for url in self.engine.models.values())


def run(case: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(case(), 30))


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_ten_callers_of_a_cold_model_wait_for_one_download_and_one_load() -> None:
    """
    And all are answered.
    """

    async def case() -> None:
        c = Case(3, ["a"])
        assert await asyncio.gather(*(c.invoke("a") for _ in range(10))) == ["1"] * 10
        assert (c.artifacts.counts["get"], c.engine.counts["load"]) == (1, 1)

    run(case)


def test_the_least_recently_used_idle_model_goes_first() -> None:
    """
    Use is what counts, not the order of loading.
    """

    async def case() -> None:
        c = Case(3, list("abcd"))
        for target in "abcad":
            await c.invoke(target)
        assert c.resident == ["a", "c", "d"]

    run(case)


def test_a_model_in_use_is_never_evicted() -> None:
    """
    The next oldest goes instead.
    """

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


def test_a_load_waits_for_a_busy_model_to_become_idle() -> None:
    """
    It neither fails nor takes the busy one's memory.
    """

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
    """
    Nobody waits for somebody who waits for him.
    """

    async def case() -> None:
        c = Case(1, [f"m{number}" for number in range(20)])
        answers = await asyncio.gather(*(c.invoke(f"m{number}") for number in range(20) for _ in range(3)))
        assert answers == ["1"] * 60

    run(case)


def test_what_can_never_fit_is_refused_at_once() -> None:
    """
    With its size and the budget, before anything is evicted for it.
    """

    async def case() -> None:
        c = Case(2, list("ab"))
        await c.invoke("a")
        c.artifacts.unpacked_bytes = 2_000_000
        with pytest.raises(ValidationError, match=r"b can never be loaded: its files have 2 MiB.* 1 MiB"):
            await c.invoke("b")
        assert c.resident == ["a"]

    run(case)


def test_a_model_that_did_not_fit_into_the_empty_server_is_not_tried_again() -> None:
    """
    Its size was measured; the next request hears of it without a load.
    """

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


def test_what_is_pinned_or_loaded_by_hand_stays() -> None:
    """
    If nothing else is there to evict, the request is answered 503.
    """

    async def case() -> None:
        c = Case(2, list("ab"))
        await c.engine.load(Registration(url="by hand", name="by hand"))
        await c.cache.load(c.shelf, "a", pin=True)
        with pytest.raises(ServiceUnavailable, match="cannot be loaded now"):
            await c.invoke("b")
        assert await c.invoke("a") == "1"
        assert c.engine.counts["unload"] == 0

    run(case)


def test_a_failed_load_is_everyones_answer_and_leaves_nothing() -> None:
    """
    The next request tries again.
    """

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
    """
    They are the clients' choice.
    """

    async def case() -> None:
        c = Case(2, [])
        for number in range(10):
            with pytest.raises(ArtifactMissing):
                await c.invoke(f"nothing-{number}")
        assert not c.shelf.models

    run(case)


def test_a_request_that_waits_too_long_is_told_and_the_load_goes_on() -> None:
    """
    Asked again later, it is answered.
    """

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


def test_an_overwritten_archive_is_swapped_in_without_an_error() -> None:
    """
    Requests in flight keep the old version, later ones get the new; the old is unloaded when it is idle.
    """

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


def test_a_new_version_that_does_not_load_leaves_the_old_one_serving() -> None:
    """
    The log says so.
    """

    async def case() -> None:
        c = Case(3, ["a"])
        await c.invoke("a")
        c.artifacts.versions["a"] = "broken"
        await c.cache.refresh()
        await settled()
        assert await c.invoke("a") == "1"

    run(case)


def test_a_deleted_archive_stops_being_served() -> None:
    """
    A request in flight is still answered.
    """

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
    """
    From memory and disk; calls at the same time share it.
    """

    async def case() -> None:
        c = Case(3, ["a"])
        shelf = c.cache.shelf(Container(source="s3://bucket/models/", is_cached=False), "endpoint", "AllTraffic")
        assert await asyncio.gather(*(c.invoke("a", shelf) for _ in range(5))) == ["1"] * 5
        await settled()
        assert (c.resident, c.artifacts.discarded, c.engine.counts["load"]) == ([], ["a@1"], 1)

    run(case)


def test_a_model_that_was_unloaded_behind_our_back_is_loaded_again() -> None:
    """
    MMS's routes are open to whoever may use them.
    """

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
    """
    Its loads count as its own, and what one unloads the other keeps.
    """

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
    """
    Equal containers of other endpoints keep theirs.
    """

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
    """
    500 models, room for 120: with one client exactly, with 16 within two points.
    """
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
    """
    What is remembered of models is bounded by what there is.
    """

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
    """
    Neither its model nor its workers.
    """

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
    """
    It is told so, and asks its successor.
    """

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
    """
    A deleted endpoint's calls in flight are answered first.
    """

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
    """
    What the cache does not know must not be in the engine.
    """

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


def test_what_a_listing_does_not_show_is_looked_up_before_it_goes() -> None:
    """
    An archive of another name, or one that may not be read just now.
    """

    async def case() -> None:
        c = Case(3, list("ab"))
        await c.invoke("a")
        await c.invoke("b")
        c.artifacts.unlisted = {"a", "b"}
        c.artifacts.forbidden = {"b"}
        await c.cache.refresh()
        await settled()
        assert c.resident == ["a", "b"]
        assert c.artifacts.discarded == []

    run(case)


def test_loads_of_different_models_run_side_by_side() -> None:
    """
    One that takes long holds no other up.
    """

    async def case() -> None:
        c = Case(3, list("ab"))
        c.engine.loading.clear()
        both = [asyncio.create_task(c.invoke(target)) for target in "ab"]
        await settled()
        assert c.engine.counts["load"] == 2
        c.engine.loading.set()
        assert await asyncio.gather(*both) == ["1", "1"]

    run(case)
