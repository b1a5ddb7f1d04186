"""Fairness: a slow neighbour costs others no more than the core that it really shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from support.clock import FairClock
from support.obedient import ANSWER, HOLD, TOIL, Gate, begun, write_obedient, write_obedient_script
from support.server import Answer
from support.traffic import Traffic, percentile
from support.tree import wait_until, wait_until_gone

from native.conftest import Fleet

# Answers that the neighbours get while a slow model is at it: each connection has then asked each model several times.
# One that waits for its slow neighbour waits for ever; the bounds leave room for a busy machine.
ANSWERS = 300
MAX_P99_SECS = 0.5
MAX_SECS = 1.5
BOTH = pytest.mark.parametrize("write", [write_obedient, write_obedient_script], ids=["shared", "dedicated"])


class Neighbours:
    """They are asked all along while something slow is held; what they waited is judged by `assert_nobody_waited`."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._spans: list[tuple[float, float]] = []

    def ask_beside(self, slow: Future[Answer], folder: Path, order: int, count: int = 1) -> None:
        """From when the slow thing is under way, for the time of so many answers: until then it must not end."""
        wait_until(lambda: slow.done() or len(begun(folder, order)) >= count, 120, "it is under way")
        begin = time.monotonic()
        self._traffic.wait_for_answers(ANSWERS)
        assert not slow.done(), slow.result().text
        self._spans.append((begin, time.monotonic()))

    def assert_nobody_waited(self) -> None:
        assert self._traffic.all_right()
        for begin, end in self._spans:
            during = self._traffic.latencies_within(begin, end)
            assert len(during) >= ANSWERS
            assert percentile(during, 0.99) < MAX_P99_SECS
            assert max(during) < MAX_SECS


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def load_slowly(fleet: Fleet, folder: Path, gate: Gate, neighbours: Neighbours, pool: ThreadPoolExecutor) -> None:
    """The gate is closed until its neighbours have been asked."""
    load = pool.submit(fleet.server.load, "slow", folder)
    neighbours.ask_beside(load, folder, HOLD)
    gate.open()
    assert load.result().status == 200, load.result().text


@BOTH
def test_a_slow_load(fleet: Fleet, tmp_path: Path, write: Callable[..., Path], pool: ThreadPoolExecutor) -> None:
    """
    A load that takes long, in a shared worker and in one of its own: loaded models do not wait for it.
    """
    folder = write(tmp_path / "slow", (HOLD, 0))
    with fleet.traffic() as traffic, Gate(folder) as gate:
        neighbours = Neighbours(traffic)
        load_slowly(fleet, folder, gate, neighbours, pool)
        assert fleet.server.unload("slow").status == 200
    neighbours.assert_nobody_waited()


def test_a_slow_load_of_code_in_a_shared_worker(
    start_fleet: Callable[..., Fleet], tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    """
    --isolation shared: a customer's code that takes long to load, and then to answer.
    """
    fleet = start_fleet("--isolation", "shared")
    folder = write_obedient_script(tmp_path / "slow", (HOLD, 0))
    with fleet.traffic() as traffic, Gate(folder) as gate:
        neighbours = Neighbours(traffic)
        load_slowly(fleet, folder, gate, neighbours, pool)
        gate.close()
        call = pool.submit(fleet.server.invoke, "slow", f"{TOIL},0")
        neighbours.ask_beside(call, folder, TOIL)
        gate.open()
        assert call.result().status == 200, call.result().text
    neighbours.assert_nobody_waited()


@BOTH
def test_a_model_that_computes_long(
    fleet: Fleet, tmp_path: Path, write: Callable[..., Path], pool: ThreadPoolExecutor
) -> None:
    """
    Two calls that take long: the first one's neighbours wait no more than the second's.
    """
    folder = write(tmp_path / "slow")
    with fleet.server.loaded("slow", folder) as invoke, fleet.traffic() as traffic, Gate(folder) as gate:
        neighbours = Neighbours(traffic)
        for count in (1, 2):
            gate.close()
            call = pool.submit(invoke, f"{TOIL},0")
            neighbours.ask_beside(call, folder, TOIL, count)
            gate.open()
            assert call.result().status == 200, call.result().text
    neighbours.assert_nobody_waited()


def test_as_many_slow_models_as_workers(fleet: Fleet, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """
    Four models that compute at once would hold every shared worker; all are answered, and nobody waits for them.
    """
    folders = [write_obedient(tmp_path / f"slow-{number}") for number in range(4)]
    for folder in folders:
        assert fleet.server.load(folder.name, folder).status == 200
    with fleet.traffic() as traffic, Gate(*folders) as gate:
        neighbours = Neighbours(traffic)
        calls = [pool.submit(fleet.server.invoke, folder.name, f"{TOIL},0") for folder in folders]
        wait_until(lambda: all(begun(folder, TOIL) for folder in folders), 120, "all are under way")
        neighbours.ask_beside(calls[0], folders[0], TOIL)
        gate.open()
        answers = [call.result() for call in calls]
    for folder in folders:
        fleet.server.unload(folder.name)
    assert [answer.status for answer in answers] == [200] * 4, [answer.text for answer in answers]
    neighbours.assert_nobody_waited()


def test_slow_models_give_back_what_they_took(fleet: Fleet, tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """
    A worker that became a slow model's own ends with that model; its neighbours answer as before.
    """
    folder = write_obedient(tmp_path / "slow")
    with fleet.server.loaded("slow", folder) as invoke, Gate(folder) as gate:
        call = pool.submit(invoke, f"{TOIL},0")
        wait_until(lambda: call.done() or begun(folder, TOIL), 60, "it is under way")
        assert fleet.answers_of_all() == fleet.answers  # some of them were in that worker
        gate.open()
        first, second = call.result(), invoke(f"{ANSWER},0")
        worker = psutil.Process(first.json()[0])
    assert (first.status, second.status) == (200, 200)
    assert first.body == second.body  # it need not be loaded again elsewhere
    wait_until_gone([worker])
    assert fleet.answers_of_all() == fleet.answers


def test_ping_under_full_load(fleet: Fleet, tmp_path: Path) -> None:
    """
    Within 100 ms with all connections busy without a pause and models coming and going.

    Of 50 pings 95 % must: on a machine that others use too, one may be unlucky.
    """
    folder = write_obedient_script(tmp_path / "guest")
    clock = fleet.clock
    with fleet.traffic(connections=16, pause_secs=0) as traffic, ThreadPoolExecutor(1) as pool:
        guests = pool.submit(come_and_go, fleet, folder, 5)
        pings = [timed_ping(fleet, clock) for _ in range(50)]
        guests.result()
    assert traffic.all_right()
    assert percentile(pings, 0.95) < 0.1, sorted(pings)[-5:]


def come_and_go(fleet: Fleet, folder: Path, times: int) -> None:
    for _ in range(times):
        with fleet.server.loaded("guest", folder):
            pass


def timed_ping(fleet: Fleet, clock: FairClock) -> float:
    begun = clock()
    assert fleet.server.request("GET", "/ping").json() == {"status": "Healthy"}
    return clock() - begun
