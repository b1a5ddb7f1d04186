"""Stopping: at once where nothing is in flight, and at once when told twice."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from polyhost import server as module
from polyhost.config import Config
from polyhost.settings_changes import SettingsChanges
from support.clock import FairClock
from support.server import Answer, Server
from support.tree import living, wait_until

from native.conftest import StartServer

SLOW = """
import os, signal, threading, time

def model_fn(model_dir):
    open("loading", "w").close()
    if os.path.exists("slow"):
        time.sleep(600)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=time.sleep, args=[600]).start()
    return model_dir

def transform_fn(model, body, content_type, accept):
    open("called", "w").close()
    time.sleep(600)
"""


def write_model(folder: Path, *, is_slow: bool) -> Path:
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "inference.py").write_text(SLOW)
    if is_slow:
        (folder / "slow").touch()
    return folder


def in_background(function: Callable[..., Answer], *arguments: str | Path) -> None:
    """A call that is not answered."""

    def run() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            function(*arguments)

    threading.Thread(target=run, daemon=True).start()


@pytest.mark.parametrize("what", ["a load", "a call"])
def test_a_second_signal_ends_at_once(start: StartServer, tmp_path: Path, what: str) -> None:
    """
    The call or load under way ends with all processes, the folder of this run is gone, the exit code says how.

    One of three servers ends within a second: see `secs_of_a_stop`.
    """
    assert any(secs_of_a_second_signal(start(), tmp_path / f"{number}", what) < 1 for number in range(3))


def secs_of_a_second_signal(server: Server, place: Path, what: str) -> float:
    folder = write_model(place / "slow", is_slow=what == "a load")
    if what == "a load":
        in_background(server.load, "slow", folder)
        wait_until((folder / "loading").exists, 60, "the load has begun")
    else:
        assert server.load("slow", folder).status == 200
        in_background(server.invoke, "slow")
        wait_until((folder / "called").exists, 60, "the call has begun")
    processes = living(server)
    server.process.send(signal.SIGTERM)
    server.process.wait_for_line("stopping: got SIGTERM")
    secs = secs_of_a_stop(server, 128 + signal.SIGTERM)
    assert not any(process.is_running() for process in processes)
    assert os.listdir(server.temp) == []
    assert "Traceback" not in server.process.log
    assert "stopped" not in server.process.log
    return secs


WITH_A_THREAD = """
import asyncio, time
from polyhost.processes import flush_and_exit
from polyhost.server import run_until_told

async def serve(at_once):
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
    return 7

flush_and_exit(run_until_told(serve))
"""


def test_a_stop_does_not_wait_for_threads() -> None:
    """One of the front's may unpack an archive for minutes."""
    command = [sys.executable, "-c", WITH_A_THREAD]
    ended = subprocess.run(command, check=False, timeout=240, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (7, "")


class ToldToStop:
    """An engine, and the server is told to stop at the moment when it has started."""

    has_ended = False

    async def start(self) -> None:
        signal.raise_signal(signal.SIGTERM)

    async def stop(self) -> None: ...


def test_a_stop_at_the_moment_when_the_start_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server forgot that it was told: there was no front yet to be stopped."""

    def serves(*_: Any) -> None:
        raise AssertionError("it serves")

    monkeypatch.setattr(module, "_engine", lambda *_: ToldToStop())
    monkeypatch.setattr(module, "_front", serves)
    config = Config.build({}, {})
    plan = module._platforms_plan(config, {"SAGEMAKER_MULTI_MODEL": "true"})
    changes = SettingsChanges(config, None)

    async def serve() -> int:
        at_once = asyncio.get_running_loop().create_future()
        return await module._serve(plan, tmp_path, at_once, lambda _: None, changes)

    assert uvloop.run(serve()) == 0


def secs_of_a_stop(server: Server, code: int = 0) -> float:
    """
    From SIGTERM to its end with this code, fair seconds.

    One of three must be quick: a machine that stops for a moment makes one slow, what waits for something is always.
    """
    clock = FairClock(server.process.pid)
    begun = clock()
    server.process.send(signal.SIGTERM)
    assert server.ends_within(60) == code
    return clock() - begun


def test_an_idle_server_stops_in_half_a_second(start: StartServer, tmp_path: Path) -> None:
    """A model that ignores SIGTERM and has a thread that never ends is loaded, and a client keeps a connection."""

    def stop_one(number: int) -> float:
        server = start()
        assert server.load("quick", write_model(tmp_path / f"quick-{number}", is_slow=False)).status == 200
        client = http.client.HTTPConnection("127.0.0.1", server.port)
        client.request("GET", "/ping")
        assert client.getresponse().read()
        processes = living(server)
        secs = secs_of_a_stop(server)
        client.close()
        assert not any(process.is_running() for process in processes)
        return secs

    assert any(stop_one(number) < 0.5 for number in range(3))


def test_a_stop_while_the_first_workers_are_started(start: StartServer) -> None:
    def stop_one() -> float:
        server = start()
        secs = secs_of_a_stop(server)
        assert os.listdir(server.temp) == []
        assert "Traceback" not in server.process.log
        return secs

    assert any(stop_one() < 0.5 for _ in range(3))


@pytest.mark.parametrize(
    ("environ", "secs"),
    [
        ({}, 8),  # docker stop kills after ten
        ({"SAGEMAKER_MULTI_MODEL": "true"}, 25),  # SageMaker kills after thirty
        ({"SAGEMAKER_MULTI_MODEL": "false"}, 25),
        ({"SAGEMAKER_MULTI_MODEL": "true", "POLYHOST_DRAIN_SECS": "3"}, 3),
    ],
)
def test_how_long_a_stop_waits(environ: dict[str, str], secs: int) -> None:
    assert Config.build({}, environ).drain_secs == secs
