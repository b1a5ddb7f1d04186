"""InvokeEndpoint's way to an answer, with an engine and archives that only count: no process, no socket."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from polyhost.api.http import Reply, Request
from polyhost.api.runtime import RuntimeApi
from polyhost.api.signals import Signals
from polyhost.endpoint.access import HASHED_AT_ONCE_BYTES
from polyhost.endpoint.arns import Arns
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.definitions import Container, Endpoint, Variant
from polyhost.endpoint.events import CallAnswered, Publisher
from polyhost.endpoint.measures import Measures
from polyhost.endpoint.traffic import Traffic
from polyhost.engine.errors import ModelNotFound, Unavailable
from polyhost.engine.protocol import Answer, Item, Stream, WhenDone, answer_of
from polyhost.service_errors import AccessDenied
from polyhost.testing import CountingArtifacts, CountingEngine

BUCKET = "s3://bucket/"
MULTI = Container(source=BUCKET)
SINGLE = Container(source=f"{BUCKET}a.tar.gz", is_multi_model=False)
SECOND = Container(source=f"{BUCKET}b.tar.gz", is_multi_model=False)


class Engine(CountingEngine):
    """
    Models of archives named `a` answer at once, all others some turns of the loop later.

    `gone`: how many calls from now on find that their model is not there any more. `keeps`: whether calls are kept in
    `kept` instead of being answered.
    """

    gone = 0
    keeps = False

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.kept: list[WhenDone] = []

    def invoke(self, name: str, item: Item, done: WhenDone, _: Stream | None = None) -> None:
        if self.keeps:
            self.kept.append(done)
        elif self.gone:
            self.gone -= 1
            del self.models[name]
            done(ModelNotFound(f"Model not found: {name}"))
        elif "/a.tar.gz" in self.models[name].url:
            self.counts["at once"] += 1
            done(Answer(200, {"content-type": "text/plain"}, b"at once"))
        else:
            super().invoke(name, item, done)


class House:
    """One endpoint, `mine`, of variants `v0`, `v1` … with these containers."""

    def __init__(
        self,
        *variants: tuple[Container, ...],
        authorize: Callable[[Request, str, str, Mapping[str, str]], None] | None = None,
    ) -> None:
        self.engine = Engine(10)
        self.artifacts = CountingArtifacts({"a.tar.gz": "1", "b.tar.gz": "1"})
        self.measures = Measures(emf_namespace=None)
        self.answered: list[CallAnswered] = []
        self.events = events = Publisher()
        self.measures.subscribe_to(events)
        events.subscribe((CallAnswered,), self.answered.append)
        self.cache = ModelCache(
            self.engine, self.artifacts, events,  # type: ignore[arg-type]
            ready_timeout_secs=30.0, load_timeout_secs=30.0, refresh_secs=0.0,
        )  # fmt: skip
        self.endpoints = {"mine": endpoint_of(*variants)}
        self.traffic = Traffic(self.cache, self.endpoints.get, "000000000000")
        self.api = RuntimeApi(
            self.traffic, events, authorize, own_endpoint=None, arns=Arns("0", "us-east-1"), signals=Signals(None)
        )

    def begin(self, target: str, done: Callable[[Reply], None], body: bytes = b"x") -> Callable[[], None]:
        headers = {"x-amzn-sagemaker-target-model": target} if target else {}
        request = Request("POST", "/endpoints/mine/invocations", "", headers, body)
        return self.api.answer(request, "mine", "request", done)

    async def ask(self, target: str = "", body: bytes = b"x") -> Reply:
        return await answer_of(lambda done: self.begin(target, done, body))

    async def reply_to(self, outcome: Exception) -> Reply:
        """Of a model that is there, to whose call this is what comes of the engine."""
        await self.ask("a.tar.gz")
        self.engine.keeps = True
        replies: list[Reply] = []
        self.begin("a.tar.gz", replies.append)
        self.engine.kept[0](outcome)
        (reply,) = replies
        return reply

    async def split(self, calls: int, target: str = "") -> Counter[str]:
        replies = [await self.ask(target) for _ in range(calls)]
        return Counter(dict(reply.headers)[b"x-amzn-invoked-production-variant"].decode() for reply in replies)

    @property
    def totals(self) -> tuple[int, int, int]:
        """Invocations, hits, and calls of which it is known whether they were hits."""
        totals = self.measures.snapshot().totals
        return totals.invocations, totals.hits, totals.lookups


def endpoint_of(*variants: tuple[Container, ...]) -> Endpoint:
    made = (Variant(name=f"v{number}", weight=1.0, containers=of) for number, of in enumerate(variants))
    return Endpoint(name="mine", arn="arn", variants=tuple(made))


def run(case: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(case(), 200))  # type: ignore[arg-type]


async def settled() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_a_variant_is_drawn_once_for_a_request() -> None:
    """
    Half of 4,000 calls within three standard deviations (95), whether or not a variant can answer without waiting.
    """

    async def case() -> None:
        for variants in (((SINGLE,), (SECOND,)), ((SINGLE,), (SINGLE, SECOND)), ((SECOND,), (SINGLE,), (SECOND,))):
            random.seed(1)
            share = 4000 / len(variants)
            house = House(*variants)
            split = await house.split(4000)
            assert house.engine.counts["at once"] > 1000
            assert all(abs(split[f"v{number}"] - share) < 95 for number in range(len(variants))), split

    run(case)


def test_a_slash_before_a_target_is_left_out() -> None:
    """Policies, the cache and the measures are asked with the name without it; a second slash is no name."""
    seen: list[str] = []

    def authorize(_: Request, __: str, ___: str, context: Mapping[str, str]) -> None:
        seen.append(context["sagemaker:TargetModel"])
        if context["sagemaker:TargetModel"] != "a.tar.gz":
            raise AccessDenied("no")

    async def case() -> None:
        house = House((MULTI,), authorize=authorize)
        assert [(await house.ask(target)).status for target in ("/a.tar.gz", "a.tar.gz")] == [200, 200]
        assert seen == ["a.tar.gz", "a.tar.gz"]
        assert house.engine.counts["load"] == 1
        assert set(house.measures.models("mine", "v0")) == {"(other)", "a.tar.gz"}
        assert (await house.ask("/b.tar.gz")).status == 403
        twice = await house.ask("//a.tar.gz")
        assert (twice.status, "begins with a slash" in json.loads(twice.body)["Message"]) == (400, True)

    run(case)


@pytest.mark.parametrize("body_bytes", [1, HASHED_AT_ONCE_BYTES + 1])
def test_a_request_is_authorised_once(body_bytes: int) -> None:
    """Cold or warm, hashed at once or in a thread, also where the model was gone and is loaded again."""
    asked: list[str] = []

    async def case() -> None:
        house = House((MULTI,), authorize=lambda _, __, arn, ___: asked.append(arn))
        for gone in (0, 0, 2):
            house.engine.gone = gone
            assert (await house.ask("a.tar.gz", b"x" * body_bytes)).status == 200
        assert len(asked) == 3

    run(case)


def test_a_streamed_call_is_an_action_of_its_own() -> None:
    asked: list[str] = []

    async def case() -> None:
        house = House((MULTI,), authorize=lambda _, action, __, ___: asked.append(action))
        (route,) = [route for route in house.api.routes() if route.path.endswith("-stream")]
        request = Request("POST", "/", "", {"x-amzn-sagemaker-target-model": "a.tar.gz"}, b"x")
        assert route.begin is not None
        begin = route.begin
        reply: Reply = await answer_of(lambda done: begin(request, "mine", "request", done))
        assert reply.parts is not None

    run(case)
    assert asked == ["sagemaker:InvokeEndpointWithResponseStream"]


def test_a_resident_model_is_asked_without_a_task() -> None:
    tasks: list[Any] = []

    def counting(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        tasks.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def case() -> None:
        house = House((SINGLE, MULTI), authorize=lambda *_: None)
        await house.ask("a.tar.gz")
        asyncio.get_running_loop().set_task_factory(counting)
        replies: list[Reply] = []
        for _ in range(10):
            house.begin("a.tar.gz", replies.append)
        assert [reply.status for reply in replies] == [200] * 10
        assert tasks == []

    run(case)


def test_a_model_that_has_gone_is_loaded_again() -> None:
    """By MMS's own routes, or since its worker ended while it was being unloaded. The call counts as a miss."""

    async def case() -> None:
        house = House((MULTI,))
        await house.ask("a.tar.gz")
        house.engine.gone = 1
        assert (await house.ask("a.tar.gz")).body == b"at once"
        assert house.engine.counts["load"] == 2
        assert house.totals == (2, 0, 2)
        assert (await house.ask("a.tar.gz")).status == 200
        assert house.totals == (3, 1, 3)

    run(case)


def test_nothing_is_loaded_again_for_a_client_that_has_left() -> None:
    async def case() -> None:
        house = House((MULTI,))
        await house.ask("a.tar.gz")
        house.engine.keeps = True
        house.begin("a.tar.gz", lambda _: None)()
        (done,) = house.engine.kept
        done(ModelNotFound("Model not found: a"))
        await settled()
        assert house.engine.counts["load"] == 1

    run(case)


def test_a_client_that_leaves_during_the_load_is_not_answered_for() -> None:
    """The load goes on, for those who ask next; the model is not asked, and no call is counted."""

    async def case() -> None:
        house = House((MULTI,))
        house.artifacts.fetching.clear()
        replies: list[Reply] = []
        leave = house.begin("a.tar.gz", replies.append)
        await settled()
        leave()
        house.artifacts.fetching.set()
        await settled()
        assert (replies, house.engine.counts["load"], house.engine.counts["at once"]) == ([], 1, 0)
        assert house.totals == (0, 0, 0)
        (shelf,) = house.cache.shelves()
        assert shelf.models["a.tar.gz"].is_idle

    run(case)


def test_a_call_that_a_model_has_begun_counts_without_its_client() -> None:
    """The model is in use until it has answered."""

    async def case() -> None:
        house = House((MULTI,))
        await house.ask("a.tar.gz")
        house.engine.keeps = True
        house.begin("a.tar.gz", lambda _: None)()
        (shelf,) = house.cache.shelves()
        assert not shelf.models["a.tar.gz"].is_idle
        house.engine.kept[0](Answer(200, {}, b""))
        assert shelf.models["a.tar.gz"].is_idle
        assert house.totals == (2, 1, 2)

    run(case)


def test_a_pipeline_ends_where_its_client_has_left() -> None:
    async def case() -> None:
        house = House((SINGLE, SINGLE))
        await house.ask()
        house.engine.keeps = True
        house.begin("", lambda _: None)()
        (first,) = house.engine.kept
        first(Answer(200, {}, b""))
        await settled()
        assert len(house.engine.kept) == 1

    run(case)


def test_each_answer_is_one_event() -> None:
    """It says whether the model was in memory, and how long the request has waited for it."""

    async def case() -> None:
        house = House((MULTI,))
        for target in ("a.tar.gz", "a.tar.gz", "none.tar.gz", ""):
            await house.ask(target)
        assert [(call.target, call.status, call.was_hit) for call in house.answered] == [
            ("a.tar.gz", 200, False), ("a.tar.gz", 200, True), ("none.tar.gz", 400, None), ("", 400, None),
        ]  # fmt: skip
        cold, warm, *_ = house.answered
        assert cold.total_secs > cold.wait_secs > 0
        assert warm.wait_secs == 0

    run(case)


def test_what_a_subscriber_makes_of_an_answer_does_not_change_it() -> None:
    def fail(_: CallAnswered) -> None:
        raise RuntimeError("a subscriber's mistake")

    async def case() -> None:
        house = House((MULTI,))
        house.events.subscribe((CallAnswered,), fail)
        assert (await house.ask("a.tar.gz")).status == 200
        assert house.totals == (1, 0, 1)

    run(case)


def test_a_model_that_was_not_asked_is_neither_hit_nor_missed() -> None:
    """The container before it in the pipeline had failed."""

    async def case() -> None:
        house = House((SINGLE, MULTI))
        await house.ask("b.tar.gz")
        assert house.totals == (1, 0, 1)
        house.engine.keeps = True
        replies: list[Reply] = []
        house.begin("b.tar.gz", replies.append)
        house.engine.kept[0](Answer(500, {}, b"no"))
        assert [reply.status for reply in replies] == [424]
        assert house.totals == (2, 0, 1)

    run(case)


def test_a_request_that_finds_no_place_may_be_sent_elsewhere() -> None:
    """The model was not asked, so it is no error of the model's: 503, and when to ask again."""

    async def case() -> None:
        reply = await House((MULTI,)).reply_to(Unavailable("No worker is available to serve request for model: a."))
        assert reply.status == 503
        assert (b"x-amzn-errortype", b"ServiceUnavailable") in reply.headers
        assert reply.own_headers.endswith(b"\r\nretry-after: 1\r\n")
        assert json.loads(reply.body)["Message"] == (
            "The model cannot be asked now: No worker is available to serve request for model: a. Ask again later."
        )

    run(case)


@pytest.mark.parametrize(("update", "status"), [(endpoint_of((SECOND,)), 200), (None, 400)])
def test_who_waits_for_a_container_that_an_update_takes_away_goes_to_the_next(
    update: Endpoint | None, status: int
) -> None:
    """Where the endpoint was deleted there is none."""

    async def case() -> None:
        house = House((SINGLE,))
        house.artifacts.fetching.clear()
        waiting = asyncio.create_task(house.ask())
        await settled()
        house.traffic.forget_all_but(())
        del house.endpoints["mine"]
        if update:
            house.endpoints["mine"] = update
            house.traffic.route("mine")
        house.cache.keep_only(house.traffic.shelves())
        house.artifacts.fetching.set()
        assert (await waiting).status == status
        assert house.engine.counts["at once"] == 0

    run(case)


def test_a_fault_of_the_server_s_is_told_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        reply = await House((MULTI,)).reply_to(RuntimeError("a secret"))
        assert reply.status == 500
        assert json.loads(reply.body)["Message"] == "Internal error: the server's log has request request."

    run(case)
    assert "a secret" in caplog.text
