"""InvokeEndpoint's way to an answer, with an engine and archives that only count: no process, no socket."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping

from polyhost.api.http import Reply, Request
from polyhost.api.runtime import RuntimeApi
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.definitions import Container, Endpoint, Variant
from polyhost.endpoint.errors import AccessDenied
from polyhost.endpoint.measures import Measures
from polyhost.endpoint.traffic import Traffic
from polyhost.engine.errors import EngineError
from polyhost.engine.protocol import Answer, Item
from polyhost.testing import CountingArtifacts, CountingEngine

BUCKET = "s3://bucket/"
MULTI = Container(source=BUCKET)
SINGLE = Container(source=f"{BUCKET}a.tar.gz", is_multi_model=False)
SECOND = Container(source=f"{BUCKET}b.tar.gz", is_multi_model=False)


class Engine(CountingEngine):
    """Models of archives named `a` are answered without a task, all others with one."""

    def invoke_soon(
        self, name: str, item: Item, done: Callable[[Answer], None], failed: Callable[[EngineError], None],
    ) -> bool:  # fmt: skip
        if "/a.tar.gz" not in self.models[name].url:
            return False
        self.counts["soon"] += 1
        done(Answer(200, {"content-type": "text/plain"}, b"soon"))
        return True


class House:
    """One endpoint, `mine`, of variants `v0`, `v1` … with these containers."""

    def __init__(
        self,
        *variants: tuple[Container, ...],
        authorize: Callable[[Request, str, Mapping[str, str]], None] | None = None,
    ) -> None:
        self.engine = Engine(10)
        artifacts = CountingArtifacts({"a.tar.gz": "1", "b.tar.gz": "1"})
        self.measures = Measures(access_log=False, emf_namespace=None)
        self.cache = ModelCache(
            self.engine, artifacts, self.measures,  # type: ignore[arg-type]
            ready_timeout_secs=30.0, load_timeout_secs=30.0, refresh_secs=0.0,
        )  # fmt: skip
        made = (Variant(name=f"v{number}", weight=1.0, containers=of) for number, of in enumerate(variants))
        endpoint = Endpoint(name="mine", arn="arn", variants=tuple(made))
        traffic = Traffic(self.cache, {"mine": endpoint}.get, "000000000000")
        self.api = RuntimeApi(traffic, self.measures, authorize, own_endpoint=None, account_id="0", region="r")

    async def ask(self, target: str = "") -> Reply:
        """As the short way does."""
        headers = {"x-amzn-sagemaker-target-model": target} if target else {}
        request = Request("POST", "/endpoints/mine/invocations", "", headers, b"x")
        replies: list[Reply] = []
        rest = self.api.answer_soon(request, "mine", "request", replies.append)
        if rest is not None:
            replies.append(await rest)
        (reply,) = replies
        return reply

    async def split(self, calls: int, target: str = "") -> Counter[str]:
        replies = [await self.ask(target) for _ in range(calls)]
        return Counter(dict(reply.headers)[b"x-amzn-invoked-production-variant"].decode() for reply in replies)


def run(case: Callable[[], object]) -> None:
    asyncio.run(case())  # type: ignore[arg-type]


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
            assert 1000 < house.engine.counts["soon"] < 3000
            assert all(abs(split[f"v{number}"] - share) < 95 for number in range(len(variants))), split

    run(case)


def test_a_slash_before_a_target_is_left_out() -> None:
    """
    Policies, the cache and the measures are asked with the name without it; a second slash is no name.
    """
    seen: list[str] = []

    def authorize(_: Request, __: str, context: Mapping[str, str]) -> None:
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
