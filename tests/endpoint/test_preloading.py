"""The models of --preload, when their list changes while the server runs. No process, no sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from polyhost.endpoint.preloading import Preloading

from endpoint.test_cache import Case, run, settled


class Preloaded(Case):
    """A cache of three models, and those of --preload."""

    def __init__(self, *targets: str) -> None:
        super().__init__(3, ["a", "b", "c", "d", "e"])
        self.is_made = True
        self.preloading = Preloading(self.cache, lambda: self.shelf if self.is_made else None, targets)
        self.told: list[str] = []

    async def start(self) -> None:
        await self.preloading.load_all(self.told.append)

    @property
    def pinned(self) -> list[str]:
        return sorted(target for target, model in self.shelf.models.items() if model.is_pinned)


def run_preloaded(case: Callable[[Preloaded], Awaitable[Any]]) -> None:
    run(lambda: case(Preloaded("a", "b", "a")))


def test_the_start_loads_each_once_and_tells_how_far_it_is() -> None:
    async def case(c: Preloaded) -> None:
        await c.start()
        assert (c.resident, c.pinned) == (["a", "b"], ["a", "b"])
        assert c.told == [f"{done} of 2 models of --preload are loaded." for done in (0, 1)]

    run_preloaded(case)


def test_a_new_list_loads_what_is_new_and_lets_the_rest_be_evicted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def case(c: Preloaded) -> None:
        await c.start()
        await c.preloading.change(["b", "c"])
        assert (c.resident, c.pinned) == (["a", "b", "c"], ["b", "c"])
        for target in ("d", "e"):
            await c.invoke(target)
        assert c.resident == ["b", "c", "e"]
        await c.preloading.change(["c", "b"])

    run_preloaded(case)
    assert [record.message for record in caplog.records if record.message.startswith("--preload")] == [
        "--preload has changed. New in it: 1. May be evicted again: 1."
    ]


def test_a_list_that_comes_before_the_endpoint_is_what_the_start_loads() -> None:
    async def case(c: Preloaded) -> None:
        c.is_made = False
        await c.preloading.change(["c"])
        assert c.resident == []
        c.is_made = True
        await c.start()
        assert c.pinned == ["c"]

    run_preloaded(case)


def test_what_leaves_the_list_while_it_is_loaded_is_not_kept() -> None:
    async def case(c: Preloaded) -> None:
        c.engine.loading.clear()
        starting = asyncio.create_task(c.start())
        await settled()
        assert c.engine.counts["load"] == 1
        await c.preloading.change([])
        c.engine.loading.set()
        await starting
        assert (c.resident, c.pinned) == (["a"], [])

    run_preloaded(case)


def test_a_model_that_is_not_there_is_logged_and_keeps_none_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def case(c: Preloaded) -> None:
        await c.preloading.change(["nothing", "c"])
        assert c.pinned == ["c"]

    run_preloaded(case)
    assert [record.message.partition("(")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "--preload nothing: Failed to download model data"
    ]
