"""A template and its workers, without a server around them."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
from conftest import ROOT
from polyhost.engine.native import pool
from polyhost.engine.native.clock import CpuTimes, own_secs
from polyhost.engine.native.messages import Answered, Done, FromWorker, Load, Part, Predict, Trim, Trimmed
from polyhost.engine.native.pool import End, Environment, NewWorker, Order, Template, Worker
from polyhost.engine.protocol import Item, Stream
from polyhost.framing import BrokenFrame, Progress
from support.adopting import adopting
from support.obedient import ANSWER, TOIL, Gate, write_obedient
from support.tree import open_sockets

PATH = os.pathsep.join(str(ROOT / folder) for folder in ("container", "handlers"))


def worker_with(made: list[Worker], lost: list[int]) -> NewWorker:
    def make(pid: int, progress: Progress, _: object) -> Worker:
        made.append(
            Worker(
                pid, progress, Environment(), is_dedicated=True,
                max_response_bytes=1_000_000, on_lost=lambda worker: lost.append(worker.pid), on_buried=lambda _: None,
            )
        )  # fmt: skip
        return made[-1]

    return make


async def cancel_a_fork(steps: int) -> None:
    """A caller that goes away after so many turns of the loop; the next one gets a worker of its own."""
    made: list[Worker] = []
    lost: list[int] = []
    template = Template(sys.executable, (), {**os.environ, "PYTHONPATH": PATH})
    first = await template.fork(worker_with(made, lost), is_reader=False)
    forking = asyncio.create_task(template.fork(worker_with(made, lost), is_reader=False))
    for _ in range(steps):
        await asyncio.sleep(0)
    forking.cancel()
    await asyncio.gather(forking, return_exceptions=True)
    second = await template.fork(worker_with(made, lost), is_reader=False)

    for number, worker in enumerate((first, second), 1):
        assert isinstance(await worker.order(Trim(number), 120), Trimmed)
    second.kill(End.FORGOTTEN, "the test is over")
    await second.gone()
    assert isinstance(await first.order(Trim(3), 120), Trimmed)
    first.kill(End.FORGOTTEN, "the test is over")
    await first.gone()
    await template.stop()
    # The worker that nobody waited for has ended, too.
    assert sorted(lost) == sorted(worker.pid for worker in made)
    assert len(made) <= 3


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
def test_a_fork_whose_caller_goes_away(steps: int) -> None:
    """Its answer was left for the next fork, which got a worker's socket with another worker's process."""
    with adopting():
        uvloop.run(cancel_a_fork(steps))


async def stop_while_forking(turns: int) -> None:
    made: list[Worker] = []
    lost: list[int] = []
    template = Template(sys.executable, (), {**os.environ, "PYTHONPATH": PATH})
    forks = [asyncio.create_task(template.fork(worker_with(made, lost), is_reader=False)) for _ in range(2)]
    for _ in range(turns):
        await asyncio.sleep(0)
    await template.stop()
    forked = await asyncio.gather(*forks, return_exceptions=True)
    for worker in forked:
        if isinstance(worker, Worker):
            worker.kill(End.STOPPING)
            await worker.gone()
        else:
            assert isinstance(worker, OSError)
            assert "the template has been stopped" in str(worker)
    assert template.pid is None
    assert sorted(lost) == sorted(worker.pid for worker in made)


@pytest.mark.parametrize("turns", [1, 2, 5, 20])
def test_a_template_that_stops_while_it_forks(turns: int) -> None:
    """The caller waited for ever: the socket was closed before the process had ended."""
    with adopting():
        uvloop.run(asyncio.wait_for(stop_while_forking(turns), 120))


def test_a_template_that_cannot_be_started_leaves_nothing_open() -> None:
    """Each try left a socket. Sockets of earlier tests may be closed meanwhile, so new ones are looked for by name."""

    async def start() -> set[str]:
        template = Template("/no/such/python", (), {})
        before = open_sockets(os.getpid())
        with pytest.raises(OSError):
            await template.fork(worker_with([], []), is_reader=False)
        await template.stop()
        return open_sockets(os.getpid()) - before

    assert uvloop.run(start()) == set()


async def fork_of_a_stopped_template() -> bool:
    """Whether it is another template that has forked the second worker, which is of use."""
    template = Template(sys.executable, (), {**os.environ, "PYTHONPATH": PATH})
    first = await template.fork(worker_with([], []), is_reader=False)
    stopped = template.pid
    assert stopped is not None
    os.kill(stopped, signal.SIGSTOP)
    second = await template.fork(worker_with([], []), is_reader=False)
    for number, worker in enumerate((first, second), 1):
        assert isinstance(await worker.order(Trim(number), 120), Trimmed)
        worker.kill(End.FORGOTTEN, "the test is over")
        await worker.gone()
    is_another = template.pid != stopped
    await template.stop()
    return is_another


def test_a_template_that_was_stopped_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model could be loaded any more, nor one whose worker had ended."""
    monkeypatch.setattr(pool, "_LOOK_SECS", 0.1)
    with adopting():
        assert uvloop.run(asyncio.wait_for(fork_of_a_stopped_template(), 240))


async def answers_held_back(worker: Worker, folder: Path) -> bool:
    """Whether the worker has been seen computing while the answer to a quick call before that was not sent yet."""
    numbers = itertools.count(1)

    def call(row: str) -> tuple[int, asyncio.Future[FromWorker]]:
        number = next(numbers)
        item = Item("request", {"content-type": "text/csv"}, "", row.encode())
        return number, worker.order(Predict(number, 1, [item]), 600)

    load = Load(
        next(numbers), 1, "model", str(folder), "polyhost_handlers.sklearn_handler:handle", 1,
        has_code=False, is_alone=False, max_response_bytes=1_000_000,
    )  # fmt: skip
    assert isinstance(await worker.order(load, 120), Done)
    with Gate(folder) as gate:
        for _ in range(1000):
            # Where it took long, as on a busy machine, the answer to the next is not held back.
            assert isinstance(await call(f"{ANSWER},0")[1], Answered)
            gate.close()
            os.kill(worker.pid, signal.SIGSTOP)
            quick, (computing, answer) = call(f"{ANSWER},0"), call(f"{TOIL},0")
            os.kill(worker.pid, signal.SIGCONT)
            while worker.running is None or worker.running.message.id != computing:  # noqa: ASYNC110 - a page of memory tells
                await asyncio.sleep(0.001)
            order, first = worker.look()[0], worker.sent[0].message.id
            assert order is not None
            assert order.message.id == computing
            gate.open()
            await answer
            if first == quick[0]:
                return True
    return False


async def with_a_worker(use: Callable[[Worker], Coroutine[Any, Any, bool]]) -> bool:
    template = Template(sys.executable, (), {**os.environ, "PYTHONPATH": os.pathsep.join((PATH, str(ROOT / "tests")))})
    worker = await template.fork(worker_with([], []), is_reader=False)
    try:
        return await use(worker)
    finally:
        worker.kill(End.FORGOTTEN)
        await worker.gone()
        await template.stop()


def test_the_clock_is_that_of_the_call_that_a_worker_is_at(tmp_path: Path) -> None:
    """Not of one whose answer waits to be sent: its limit may be an hour, and the call behind it hung for ever."""
    folder = write_obedient(tmp_path / "model")
    with adopting():
        assert uvloop.run(with_a_worker(lambda worker: answers_held_back(worker, folder)))


@pytest.mark.parametrize(
    ("ran_secs", "waited_secs", "is_ready", "own"),
    [
        (1.0, 0.0, True, 1.0),  # it computes
        (0.0, 0.0, False, 1.0),  # it sleeps, or waits for a disk
        (0.2, 0.8, False, 0.2),  # it waited for a CPU, then it had one
        (0.0, 0.0, True, 0.0),  # it has waited all the time, which the kernel counts only when it is over
        (0.3, 0.1, True, 0.3),
        (0.0, 3.0, True, 0.0),  # of a wait that began before
        (1.1, 0.0, True, 1.0),
    ],
)
def test_waiting_for_a_cpu_is_nobodys_own_fault(
    ran_secs: float, waited_secs: float, own: float, *, is_ready: bool
) -> None:
    before = CpuTimes(5.0, 7.0)
    now = CpuTimes(5.0 + ran_secs, 7.0 + waited_secs)
    assert own_secs(1.0, before, now, is_ready=lambda: is_ready) == pytest.approx(own)


def test_a_part_that_nobody_has_asked_for_is_no_message() -> None:
    with pytest.raises(BrokenFrame, match="not streamed"):
        Order(Trim(1), lambda _: None, 1.0).take(Part(1, "text/plain", b"1"))


def test_parts_count_for_more_than_their_bytes() -> None:
    """So that a model that yields single letters fills no memory either."""
    taken: list[bytes] = []
    order = Order(Trim(1), lambda _: None, 1.0, Stream(lambda _, part: taken.append(part)))

    assert [order.take(Part(1, "text/plain", part)) for part in (b"a", b"bc")] == [129, 259]
    order.end(Trimmed(1, 0))
    order.take(Part(1, "text/plain", b"too late"))
    assert taken == [b"a", b"bc"]


def test_a_worker_is_told_of_an_abandoned_order_when_it_comes_to_it() -> None:
    progress = Progress(Progress.new_page())
    first, second = (Order(Trim(number), lambda _: None, 1.0) for number in (1, 2))
    second.is_abandoned = True

    pool._pass_on_abandoned([first, second], progress)
    assert progress.abandoned == 0
    pool._pass_on_abandoned([second], progress)

    assert (progress.abandoned, progress.at, progress.begun_last) == (2, 0, 0)
    progress.close()
