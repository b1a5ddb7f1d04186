"""Tasks that somebody keeps, and work that many wait for."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from polyhost.tasks import FlightCancelled, FlightUnderWay, SingleFlight, SingleFlights, Tasks


class Work:
    """Returns how often it was begun, once it may; raises `error` instead if there is one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()
        self.error = error

    async def do(self) -> int:
        self.begun += 1
        number = self.begun
        await self.may_end.wait()
        if self.error:
            raise self.error
        return number

    def start(self) -> asyncio.Task[int]:
        return asyncio.get_running_loop().create_task(self.do())


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(case: Callable[[], Awaitable[Any]]) -> None:
    asyncio.run(asyncio.wait_for(case(), 120))


def test_ten_who_wait_get_the_result_of_one_task() -> None:
    async def case() -> None:
        work, flight = Work(), SingleFlight[int]()
        waiting = [asyncio.create_task(flight.join(work.start)) for _ in range(10)]
        await settled()
        assert flight.is_under_way
        work.may_end.set()
        assert await asyncio.gather(*waiting) == [1] * 10
        assert not flight.is_under_way
        assert await flight.join(work.start) == 2

    run(case)


def test_one_who_leaves_ends_it_for_nobody() -> None:
    async def case() -> None:
        work, flight = Work(), SingleFlight[int]()
        leaving, staying = (asyncio.create_task(flight.join(work.start)) for _ in range(2))
        await settled()
        leaving.cancel()
        await settled()
        assert leaving.cancelled()
        work.may_end.set()
        assert await staying == 1

    run(case)


def test_who_waits_for_work_that_is_cancelled_is_told_and_not_cancelled() -> None:
    async def case() -> None:
        work, flight = Work(), SingleFlight[int]()
        waiting = asyncio.create_task(flight.join(work.start))
        await settled()
        flight.cancel()
        await flight.ended()
        with pytest.raises(FlightCancelled):
            await waiting

    run(case)


def test_a_waiter_whose_time_is_over_leaves_the_work_under_way() -> None:
    async def case() -> None:
        work, flight = Work(), SingleFlight[int]()
        with pytest.raises(FlightUnderWay):
            await flight.join(work.start, timeout_secs=0.001)
        assert flight.is_under_way
        work.may_end.set()
        assert await flight.join(work.start) == 1

    run(case)


def test_an_error_goes_to_all_who_wait_and_the_next_one_tries_again(caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody waits any more, asyncio does not report it as never retrieved."""

    async def case() -> None:
        work, flight = Work(ValueError("broken")), SingleFlight[int]()
        waiting = [asyncio.create_task(flight.join(work.start)) for _ in range(3)]
        await settled()
        work.may_end.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(error) for error in results] == ["broken"] * 3
        flight.begin(work.start)
        await flight.ended()
        await settled()
        assert work.begun == 2
        gc.collect()

    run(case)
    assert not caplog.text


def test_each_key_has_work_of_its_own_and_is_forgotten_afterwards() -> None:
    async def case() -> None:
        works, flights = {"a": Work(), "b": Work()}, SingleFlights[str, int]()
        waiting = [asyncio.create_task(flights.join(key, works[key].start)) for key in "abab"]
        await settled()
        for work in works.values():
            work.may_end.set()
        assert await asyncio.gather(*waiting) == [1] * 4
        assert not flights._tasks
        assert await flights.join("a", works["a"].start) == 2

    run(case)


def test_an_unexpected_error_is_logged_and_an_expected_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    async def case() -> None:
        tasks = Tasks()
        for error in (KeyError("told"), ValueError("unheard of")):
            work = Work(error)
            work.may_end.set()
            tasks.start(work.do(), expected=(KeyError,))
        await tasks.settled()
        assert len(tasks) == 0

    run(case)
    assert ("unheard of" in caplog.text, "told" in caplog.text) == (True, False)


def test_a_stop_cancels_what_is_under_way_and_what_comes_later() -> None:
    async def case() -> None:
        tasks, work = Tasks(), Work()
        before = tasks.start(work.do())
        await settled()
        await tasks.stop()
        after = tasks.start(work.do())
        await tasks.settled()
        assert (before.cancelled(), after.cancelled(), len(tasks)) == (True, True, 0)

    run(case)
