"""The workers all together, without an engine."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvloop
from conftest import ROOT
from polyhost.engine.native import trims as module
from polyhost.engine.native import workforce as workforces
from polyhost.engine.native.hardening import Hardening
from polyhost.engine.native.messages import Done, Load, Trim
from polyhost.engine.native.pool import End, Environment, Worker
from polyhost.engine.native.workforce import Workforce
from support.adopting import adopting
from support.obedient import write_obedient

MIB = 1024**2
PATH = os.pathsep.join(str(ROOT / folder) for folder in ("container", "handlers", "tests"))


async def trims(folder: Path) -> tuple[list[int], list[int]]:
    """
    How many orders five that ask at once for a trim cause, then five more; and the bytes in use after each.

    The kernel counts the memory of processes in each CPU for itself: what it says is right to some hundred kilobytes.
    """
    orders = itertools.count(1)
    workforce = Workforce(
        environ={**os.environ, "PYTHONPATH": PATH}, numbers=orders, shared_count=1, hardening=None,
        max_response_bytes=1_000_000, has_readers=False,
    )  # fmt: skip
    await workforce.start()
    try:
        worker = await workforce.shared(Environment(), 1)
        load = Load(
            next(orders), 1, "model", str(folder), "polyhost_handlers.sklearn_handler:handle", 1,
            has_code=False, is_alone=False, max_response_bytes=1_000_000,
        )  # fmt: skip
        assert isinstance(await worker.order(load, 120), Done)
        counts, used_bytes = [next(orders)], [workforce.used_bytes()]
        for _ in range(2):
            loose = [worker for worker, heap in workforce.heaps().items() if heap.loose_bytes > MIB]
            await asyncio.gather(*(workforce.trims.wait_for(loose) for _ in range(5 if loose else 0)))
            counts.append(next(orders))
            used_bytes.append(workforce.used_bytes())
    finally:
        await workforce.stop()
    return [later - earlier - 1 for earlier, later in itertools.pairwise(counts)], used_bytes


def test_those_who_need_room_at_once_share_one_trim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where nothing has happened since, there is none."""
    monkeypatch.setattr(module, "_WAIT_SECS", 120.0)
    with adopting():
        counts, (before, after, later) = uvloop.run(trims(write_obedient(tmp_path / "model", passing_bytes=30 * MIB)))
    assert counts == [1, 0]
    assert before > 30 * MIB
    assert after < 10 * MIB
    assert abs(later - after) < MIB


def test_other_servers_of_the_tests_outlive_an_engine_in_their_process(tmp_path: Path) -> None:
    """They are children of this process, and marked, as what a worker has left would be."""
    code = "import polyhost.processes; print(polyhost.processes.mark_server() > 0, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"True\n"
        with adopting():
            uvloop.run(trims(write_obedient(tmp_path / "model", passing_bytes=30 * MIB)))
        assert server.poll() is None
        server.stdin.close()


@pytest.fixture
def imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are there sooner."""
    monkeypatch.setattr(workforces, "_FRAMEWORKS", ())
    monkeypatch.setattr(workforces, "_HANDLERS", ())


async def started(hardening: Any = None) -> Workforce:
    workforce = Workforce(
        environ={**os.environ, "PYTHONPATH": PATH}, numbers=itertools.count(1), shared_count=1, hardening=hardening,
        max_response_bytes=1_000_000, has_readers=False,
    )  # fmt: skip
    await workforce.start()
    return workforce


async def end(*workers: Worker) -> None:
    """A loop with a connection that is open cannot be closed."""
    for worker in workers:
        worker.kill(End.STOPPING)
        await worker.gone()


async def stop_beside_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    workforce = await started()
    await workforce.prepare(Environment())
    (shared,), (template,) = workforce._workers, workforce._templates.values()
    assert template.pid is not None
    os.kill(template.pid, signal.SIGSTOP)
    forking = asyncio.create_task(workforce.dedicated(Environment(), 1, Path("/"), has_code=True))
    await asyncio.sleep(0)
    gone = shared.gone

    async def gone_after_the_fork() -> int:
        if template.pid is not None:
            os.kill(template.pid, signal.SIGCONT)
        await asyncio.wait([forking])
        return await gone()

    monkeypatch.setattr(shared, "gone", gone_after_the_fork)
    await workforce.stop()
    left = [*workforce._workers]
    await end(*left)
    assert left == []
    assert isinstance(forking.exception(), OSError)


@pytest.mark.usefixtures("imports_nothing")
def test_a_stop_ends_what_is_being_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a load, which is no task of the workforce's."""
    with adopting():
        uvloop.run(asyncio.wait_for(stop_beside_a_fork(monkeypatch), 120))


async def stop_while_confining(monkeypatch: pytest.MonkeyPatch) -> None:
    confining: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()

    async def confine(_: Workforce, worker: Worker, *__: object) -> None:
        confining.set_result(worker)
        await asyncio.Event().wait()

    monkeypatch.setattr(Workforce, "_confine", confine)
    workforce = await started(SimpleNamespace())
    worker = await confining
    await workforce.stop()
    has_ended = worker._gone.done()
    await end(worker)
    assert has_ended


@pytest.mark.usefixtures("imports_nothing")
def test_a_stop_ends_what_is_being_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    with adopting():
        uvloop.run(asyncio.wait_for(stop_while_confining(monkeypatch), 120))


class Stopping:
    """In place of a hardening: a worker is stopped by a signal when it is to be confined."""

    def __init__(self, folder: Path, pids: Callable[[], Collection[int]]) -> None:
        self._folder = folder
        self._pids = pids

    def new_temp(self) -> Path:
        return self._folder

    def order(self, number: int, *_: Any) -> Trim:
        for pid in self._pids():
            os.kill(pid, signal.SIGSTOP)
        return Trim(number)


async def stopped_while_confined(folder: Path) -> None:
    stopping = Stopping(folder, lambda: workforce._orphans._pids)
    workforce = Workforce(
        environ={**os.environ, "PYTHONPATH": PATH}, numbers=itertools.count(1), shared_count=1,
        hardening=cast("Hardening", stopping), max_response_bytes=1_000_000, has_readers=False,
    )  # fmt: skip
    try:
        with pytest.raises(OSError, match=r"the worker was not confined within 0\.1 s"):
            await asyncio.wait_for(workforce.dedicated(Environment(), 1, folder, has_code=True), 240)
    finally:
        for pid in workforce._orphans._pids:
            os.kill(pid, signal.SIGKILL)
        await workforce.stop()


@pytest.mark.usefixtures("imports_nothing")
def test_a_worker_that_does_not_answer_while_it_is_confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads waited for it for ever: no one looked after it yet."""
    monkeypatch.setattr(workforces, "_CONFINE_TIMEOUT_SECS", 0.1)
    with adopting():
        uvloop.run(stopped_while_confined(tmp_path / "temp"))
