"""Loads that are ready at once go on a few at a time, so that others get their turn between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import pytest
from polyhost.artifacts.integrity import Changed
from polyhost.artifacts.looks import A_TURN, Looks, Seen

_SEEN = Seen("digest", b"content")


class _AtOnce(Executor):
    """No thread: what is submitted is over when `submit` returns."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        call(*args, **kwargs)
        return Future()


def test_few_loads_go_on_in_one_turn_of_the_loop() -> None:
    async def test() -> Counter[int]:
        looks, turn, went_on = Looks(_AtOnce()), 0, Counter[int]()

        async def load() -> None:
            await looks.over(lambda: _SEEN)
            went_on[turn] += 1

        loads = [asyncio.create_task(load()) for _ in range(3 * A_TURN + 1)]
        await asyncio.sleep(0)  # all looks are over, and none was told
        loads[1].cancel()
        while not all(one.done() for one in loads):
            turn += 1
            await asyncio.sleep(0)
        assert sum(went_on.values()) == 3 * A_TURN
        assert await looks.over(lambda: _SEEN) == _SEEN  # the next one is let through as well
        return went_on

    went_on = asyncio.run(test())
    assert sorted(went_on.values()) == [1, A_TURN - 1, A_TURN, A_TURN]


def test_each_load_is_told_what_its_own_look_has_found() -> None:
    """In threads, many at a time."""

    def look(number: int) -> Seen:
        if number % 3:
            return Seen(str(number), None)
        raise Changed(str(number))

    async def test() -> None:
        with ThreadPoolExecutor(8) as threads:
            looks = Looks(threads)
            waiting = [looks.over(lambda number=number: look(number)) for number in range(300)]
            for number, one in enumerate(waiting):
                if number % 3:
                    assert await one == Seen(str(number), None)
                else:
                    with pytest.raises(Changed, match=f"^{number}$"):
                        await one

    asyncio.run(test())
