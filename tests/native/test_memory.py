"""Memory: what a model costs, and that it is given back."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xgboost
from support.clock import FairClock
from support.obedient import ANSWER, write_obedient, write_obedient_script
from support.server import Server
from support.tree import pss_by_process, pss_bytes, wait_until, workers_of

from native.conftest import HOUSE, Fleet, StartServer

MIB = 1024**2
KIB = 1024
MANY = 600


def memory_usage(server: Server, name: str) -> int:
    (worker,) = server.request("GET", f"/models/{name}").json()["workers"]
    return int(worker["memoryUsage"])


def test_a_models_memory_is_shown(fleet: Fleet, tmp_path: Path, house_folders: list[Path]) -> None:
    """Its own bytes: tens of kilobytes for a small one, those of its data for a big one, not the framework's."""
    with fleet.server.loaded("small", house_folders[0]):
        small = memory_usage(fleet.server, "small")
    with fleet.server.loaded("big", write_obedient(tmp_path / "big", ballast_bytes=50 * MIB)):
        big = memory_usage(fleet.server, "big")
    with fleet.server.loaded("script", write_obedient_script(tmp_path / "script")) as invoke:
        assert invoke(f"{ANSWER},0").status == 200
        script = memory_usage(fleet.server, "script")
    assert 10 * KIB < small < 2 * MIB
    assert 45 * MIB < big < 110 * MIB
    # A process of its own costs a few megabytes; what it shares with the one it was forked from is not its own.
    assert 1 * MIB < script < 15 * MIB


def test_a_models_memory_is_shown_after_others_have_left(fleet: Fleet, house_folders: list[Path]) -> None:
    """A load that fills the room of unloaded models shows no growth of its process; it costs something all the same."""
    names = [f"guest-{number}" for number in range(20)]
    for _ in range(2):
        for name in names:
            assert fleet.server.load(name, house_folders[0]).status == 200
        shown = [memory_usage(fleet.server, name) for name in names]
        for name in names:
            fleet.server.unload(name)
    assert all(10 * KIB < usage < 2 * MIB for usage in shown), shown


def wait_until_back(server: Server, before: int) -> None:
    """Until the PSS is within 10 % + 20 MB of what it was."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: pss_bytes(server) <= before * 1.1 + 20 * MIB, 60, "the memory is back")
    now = pss_by_process(server)
    assert sum(now.values()) <= before * 1.1 + 20 * MIB, f"{before} bytes before, now by process {now}"


def load_many(server: Server, folders: list[Path]) -> None:
    def load(number: int) -> int:
        answer = server.load(f"many-{number}", folders[number % len(folders)])
        return answer.status if server.invoke(f"many-{number}", HOUSE).status == 200 else 0

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(load, range(MANY))) == {200}


def unload_many(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        statuses = pool.map(lambda number: server.unload(f"many-{number}").status, range(MANY))
        assert set(statuses) == {200}


@pytest.fixture(scope="module")
def large_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three XGBoost models of 100 KB in memory each: many of them are more than what an idle server varies by."""
    folders = []
    for seed in range(3):
        random = np.random.default_rng(seed)
        rows = random.normal(size=(2000, 6))
        matrix = xgboost.DMatrix(rows, rows[:, 0] * rows[:, 1] + random.normal(size=len(rows)))
        folder = tmp_path_factory.mktemp("large")
        xgboost.train({"max_depth": 6, "nthread": 1}, matrix, 80).save_model(folder / "model.ubj")
        folders.append(folder)
    return folders


@pytest.mark.second_stage
def test_many_models_give_their_memory_back(start: StartServer, large_folders: list[Path]) -> None:
    """
    Unloaded and idle, the processes' PSS is back within 10 % + 20 MB. Before that, with all of them loaded, a worker
    is killed: any of its models answers within a second without being loaded again by anyone.
    """
    server = start()
    expected = {}
    for folder in large_folders:
        with server.loaded("first", folder) as invoke:
            expected[folder] = invoke(HOUSE).body
    before = pss_bytes(server)
    load_many(server, large_folders)
    assert pss_bytes(server) > before * 1.1 + 30 * MIB  # else there is nothing to give back

    clock = FairClock(server.process.pid)
    workers_of(server)[0].kill()
    for number in range(0, MANY, 23):
        begun = clock()
        answer = server.invoke(f"many-{number}", HOUSE)
        assert clock() - begun < 1
        assert (answer.status, answer.body) == (200, expected[large_folders[number % len(large_folders)]])

    unload_many(server)
    assert server.names() == []
    wait_until_back(server, before)


def test_a_big_model_gives_its_memory_back(fleet: Fleet, tmp_path: Path) -> None:
    """One of 100 MB in a shared worker, by another name each time: the memory does not pile up."""
    folder = write_obedient(tmp_path / "big", ballast_bytes=100 * MIB)
    before = pss_bytes(fleet.server)
    for number in range(5):
        with fleet.server.loaded(f"big-{number}", folder) as invoke:
            assert invoke(f"{ANSWER},0").status == 200
    wait_until_back(fleet.server, before)


def test_what_loads_took_for_a_moment_makes_room_for_others(start: StartServer, tmp_path: Path) -> None:
    """
    The heap keeps what a load has freed until it is trimmed. No load is refused for it, nor by an estimate from it.
    """
    server = start("--memory-budget", "60MiB")
    passing = write_obedient(tmp_path / "passing", passing_bytes=40 * MIB)
    big, another = (write_obedient(tmp_path / name, ballast_bytes=40 * MIB) for name in ("big", "another"))
    assert server.load("passing", passing).status == 200
    answer = server.load("big", big)
    assert answer.status == 200, answer.text
    assert server.load("another", another).status == 507
