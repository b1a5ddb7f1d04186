"""A template and its workers, without a server around them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

import pytest
import uvloop
from conftest import ROOT
from polyhost.engine.native.framing import Progress
from polyhost.engine.native.messages import Done, Trim
from polyhost.engine.native.pool import Environment, Template, Worker
from polyhost.processes import become_subreaper

PATH = os.pathsep.join(str(ROOT / folder) for folder in ("container", "handlers"))


def worker_with(lost: list[int]) -> Callable[[int, Progress], Worker]:
    def make(pid: int, progress: Progress) -> Worker:
        return Worker(pid, progress, Environment(), is_dedicated=True, on_lost=lambda worker: lost.append(worker.pid))

    return make


async def cancel_a_fork(steps: int) -> None:
    """A caller that goes away after so many turns of the loop; the next one gets a worker of its own."""
    lost: list[int] = []
    template = Template(sys.executable, (), {**os.environ, "PYTHONPATH": PATH})
    first = await template.fork(worker_with(lost))
    forking = asyncio.create_task(template.fork(worker_with(lost)))
    for _ in range(steps):
        await asyncio.sleep(0)
    forking.cancel()
    await asyncio.gather(forking, return_exceptions=True)
    second = await template.fork(worker_with(lost))

    for number, worker in enumerate((first, second), 1):
        assert isinstance(await worker.order(Trim(number), 10), Done)
    second.kill("the test is over")
    await second.gone()
    assert isinstance(await first.order(Trim(3), 10), Done)
    first.kill("the test is over")
    await first.gone()
    await template.stop()
    assert set(lost) >= {first.pid, second.pid}
    assert len(lost) <= 3


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
def test_a_fork_whose_caller_goes_away(steps: int) -> None:
    """Its answer was left for the next fork, which got a worker's socket with another worker's process."""
    become_subreaper()
    uvloop.run(cancel_a_fork(steps))
