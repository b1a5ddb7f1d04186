"""Workers that a signal has stopped (SIGSTOP): nobody waits for them for long."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from support.clock import FairClock
from support.forms import by_form
from support.obedient import TOIL, begun, write_obedient
from support.server import Answer
from support.tree import wait_until, wait_until_gone, workers_of

from native.conftest import Fleet, StartServer

STOPS_ITSELF = """
import os, signal

def model_fn(model_dir):
    return model_dir

def transform_fn(model, body, content_type, accept):
    if body in ("stop", b"stop"):
        os.kill(os.getpid(), signal.SIGSTOP)
    return str(os.getpid()), "text/plain"
"""


def test_workers_that_were_stopped_while_idle_are_replaced(start_fleet: Callable[..., Fleet]) -> None:
    """Each answer is the right one, long before the calls' time has passed."""
    fleet = start_fleet()
    stopped = workers_of(fleet.server)
    for worker in stopped:
        worker.send_signal(signal.SIGSTOP)
    assert fleet.answers_of_all() == fleet.answers
    wait_until_gone(stopped)
    fleet.server.process.wait_for_line("it was stopped by a signal")


def test_a_model_that_stops_itself_is_ended_with_its_call(start: StartServer, tmp_path: Path) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "inference.py").write_text(STOPS_ITSELF)
    server = start()
    assert server.load("stops", tmp_path / "model", response_timeout=5).status == 200
    before = server.invoke("stops").text
    clock = FairClock(server.process.pid)
    begun = clock()
    answer = server.invoke("stops", "stop")
    assert answer.status == 500
    assert "did not answer within 5 s" in answer.message
    assert clock() - begun < 15
    assert server.invoke("stops").text != before


def load_busy(fleet: Fleet, folder: Path) -> Answer:
    return fleet.server.load("busy", write_obedient(folder, at_load=(TOIL, 0)), response_timeout=10)


def invoke_busy(fleet: Fleet, folder: Path) -> Answer:
    assert fleet.server.load("busy", write_obedient(folder), response_timeout=10).status == 200
    return fleet.server.invoke("busy", f"{TOIL},0")


@pytest.mark.parametrize("begin", [load_busy, pytest.param(invoke_busy, marks=pytest.mark.second_stage)])
def test_a_busy_worker_that_is_stopped_keeps_none_of_its_models(
    start: StartServer, house_folders: list[Path], tmp_path: Path, begin: Callable[[Fleet, Path], Answer]
) -> None:
    """It is at a call or a load of one model while all its others are called all the time: only that one waits."""
    fleet = Fleet(start(), house_folders)
    fleet.load(by_form(short=100, long=1000))
    with fleet.traffic() as traffic, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(begin, fleet, tmp_path / "busy")
        (pid,) = wait_until(lambda: begun(tmp_path / "busy", TOIL), 60, "it has begun")
        worker = psutil.Process(pid)
        worker.send_signal(signal.SIGSTOP)
        answers = fleet.answers_of_all()
        answer = busy.result()
        traffic.wait_for_answers(len(answers))
    assert answers == fleet.answers
    assert traffic.all_right()
    assert answer.status == 500
    assert "busy" in answer.message
    assert "within 10 s" in answer.message
    wait_until_gone([worker])
    assert fleet.answers_of_all() == fleet.answers
