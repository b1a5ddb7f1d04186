"""What models start and leave: it ends with their worker, however it has detached itself, and no zombie stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from polyhost.memory import cpu_limit
from polyhost.processes import BECOMES_A_WORKER, has_ended, is_adopted, is_of_server, worker_of
from support.server import Server
from support.tree import living, template_of, wait_until, wait_until_gone, zombies_of

from native.conftest import EARLY, StartServer, start_native

# A model whose requests are Python. What it starts tells its process ids in a file.
SCRIPT = """
import atexit, os, resource, signal, subprocess, sys, threading, time

def told(pid):
    with open("pids", "a") as file:
        file.write(f"{pid}\\n")

def daemon(secs=600, *, session=True, command=None):
    # The middle one tells the id: it is known when the request is answered.
    middle = os.fork()
    if middle == 0:
        if session:
            os.setsid()
        pid = os.fork()
        if pid:
            told(pid)
            os._exit(0)
        if command:
            os.execv(command[0], command)
        time.sleep(secs)
        os._exit(0)
    os.waitpid(middle, 0)

def chain(depth):
    if depth and os.fork() == 0:
        os.setsid()
        told(os.getpid())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        chain(depth - 1)
        time.sleep(600)
    elif depth:
        time.sleep(0.05)

def model_fn(model_dir):
    exec(open("load.py").read(), globals())
    return model_dir

def transform_fn(model, body, content_type, accept):
    answer = eval(body if isinstance(body, str) else body.decode(), globals())
    return str(answer), "text/plain"
"""


class Model:
    """One of these on a server: `load` is the code that it runs when it is loaded."""

    def __init__(self, server: Server, folder: Path, load: str = "") -> None:
        (folder / "code").mkdir(parents=True)
        (folder / "code" / "inference.py").write_text(SCRIPT)
        (folder / "load.py").write_text(load)
        self.server, self.folder, self.name = server, folder, folder.name

    def load(self) -> int:
        return self.server.load(self.name, self.folder).status

    def ask(self, code: str) -> Any:
        return self.server.invoke(self.name, code, "text/plain")

    def pids(self, count: int) -> list[int]:
        """Those that it has started, alive or not."""

        def told() -> list[int]:
            file = self.folder / "pids"
            return [int(line) for line in file.read_text().split()] if file.exists() else []

        wait_until(lambda: len(told()) >= count, 60, f"{count} processes have told their ids")
        return told()

    def daemons(self, count: int) -> list[psutil.Process]:
        """Those that it has started, which live."""
        return [psutil.Process(pid) for pid in self.pids(count)]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = start_native(environ=EARLY)
    yield server
    server.kill()


@pytest.fixture
def calm(server: Server) -> Iterator[Server]:
    """The server of all these tests: afterwards it has its template and its shared workers, and no zombie."""
    yield server
    wait_until(lambda: not zombies_of(server.process.pid), 60, "no zombie is left")
    wait_until(lambda: len(living(server)) == 1 + cpu_limit(), 60, "no process is left, and none is missing")


DAEMONS = {
    "in a session of its own": "daemon()",
    "in the worker's session": "daemon(session=False)",
    "another program without an environment": "daemon(command=['/usr/bin/env', '-i', '/bin/sleep', '600'])",
    "of the shell": "told(subprocess.check_output('sleep 600 >/dev/null & echo $!', shell=True, text=True).strip())",
    "in four levels that ignore SIGTERM": "chain(4)",
    "fifty": "[daemon() for _ in range(50)]",
    "that lowers its mark": "(resource.setrlimit(10, (1, 1)), daemon())",
}


@pytest.mark.parametrize(
    ("start", "end"),
    [*((start, "exit") for start in DAEMONS.values()), ("daemon()", "unload"), ("daemon()", "kill")],
    ids=[*DAEMONS, "unloaded", "killed"],
)
def test_a_daemon_ends_with_its_worker(calm: Server, tmp_path: Path, start: str, end: str) -> None:
    model = Model(calm, tmp_path / "model")
    assert model.load() == 200
    try:
        worker = int(model.ask("os.getpid()").text)
        assert model.ask(start).status == 200
        daemons = model.daemons(50 if "50" in start else 4 if "chain" in start else 1)
        assert all(daemon.is_running() for daemon in daemons)
        if end == "exit":
            calm.request("POST", f"/models/{model.name}/invoke", "os._exit(3)", Content_Type="text/plain")
        elif end == "kill":
            os.kill(worker, signal.SIGKILL)
        if end != "unload":
            assert model.ask("1 + 1").text == "2"
    finally:
        calm.unload(model.name)
    wait_until_gone(daemons)


def test_a_daemon_of_a_load_that_failed_ends(calm: Server, tmp_path: Path) -> None:
    model = Model(calm, tmp_path / "model", load="daemon(); raise ValueError('no')")
    assert model.load() != 200
    (daemon,) = model.pids(1)
    wait_until(lambda: has_ended(daemon, 0), 60, "the daemon has ended")


def test_daemons_live_and_are_buried_while_their_worker_lives(calm: Server, tmp_path: Path) -> None:
    """The model still gets the exit status of its own children, and other models' ends do not touch its daemons."""
    model, other = Model(calm, tmp_path / "model"), Model(calm, tmp_path / "other")
    assert (model.load(), other.load()) == (200, 200)
    assert model.ask("daemon()").status == 200
    assert model.ask("daemon(0)").status == 200
    living_pid, ended_pid = model.pids(2)
    lives = psutil.Process(living_pid)
    wait_until(lambda: not psutil.pid_exists(ended_pid), 60, "the one that ended is buried")
    assert model.ask("globals().update(child=subprocess.Popen(['sh', '-c', 'exit 7']))").status == 200
    assert calm.unload("other").status == 200
    assert lives.is_running()
    assert model.ask("child.wait()").text == "7"
    assert calm.unload("model").status == 200
    wait_until_gone([lives])


def test_a_template_that_is_killed_leaves_no_zombie(calm: Server, tmp_path: Path) -> None:
    model = Model(calm, tmp_path / "model")
    template = template_of(calm)
    template.kill()
    assert model.load() == 200
    assert model.ask("1").text == "1"
    assert calm.unload("model").status == 200
    wait_until_gone([template])


def test_daemons_end_with_the_server(start: StartServer, tmp_path: Path) -> None:
    server = start()
    model = Model(server, tmp_path / "model")
    assert model.load() == 200
    assert model.ask("[daemon(), chain(3)]").status == 200
    daemons = model.daemons(4)
    server.process.send(signal.SIGTERM)
    assert server.ends_within(5) == 0
    wait_until_gone(daemons)  # the server has told them to: it does not wait for one that is stuck in the kernel


def test_daemons_of_a_killed_server_end_when_the_next_one_starts(start: StartServer, tmp_path: Path) -> None:
    """Nothing but its next start can end them: nobody else knows them. Those of a server that runs stay."""
    (tmp_path / "tmp").mkdir()
    killed, running = (start(environ={"TMPDIR": str(tmp_path / "tmp")}) for _ in range(2))
    model, neighbour = Model(killed, tmp_path / "model"), Model(running, tmp_path / "neighbour")
    assert (model.load(), neighbour.load()) == (200, 200)
    assert model.ask("[daemon(), daemon(command=['/usr/bin/env', '-i', '/bin/sleep', '600']), chain(2)]").status == 200
    assert neighbour.ask("daemon()").status == 200
    daemons, neighbours = model.daemons(4), neighbour.daemons(1)
    killed.process.send(signal.SIGKILL)
    assert has_ended(killed.process.pid, 60)
    assert all(daemon.status() != psutil.STATUS_ZOMBIE for daemon in daemons)
    next_one = start(environ={"TMPDIR": str(tmp_path / "tmp")})
    wait_until_gone(daemons)
    next_one.process.wait_for_line(r"\d+ processes were left by a server that was killed; they are ended")
    assert neighbours[0].is_running()


SERVER, OTHER_SERVER = 5 << 23, 6 << 23
OF_THE_SERVER = 2**23 - 1


@pytest.mark.parametrize(
    ("mark", "own_mark", "worker"),
    [
        (-1, SERVER | OF_THE_SERVER, None),  # it has removed the mark
        (SERVER | OF_THE_SERVER, SERVER | OF_THE_SERVER, None),  # a template
        (SERVER | 77, SERVER | OF_THE_SERVER, 77),
        (1, SERVER | OF_THE_SERVER, 1),  # it has lowered the mark: of no worker
        (77, -1, 77),  # a server that is not marked
        (-1, -1, None),
        (SERVER | 77, SERVER | 50, 77),  # a server inside a model of another one
    ],
)
def test_which_worker_a_mark_tells(mark: int, own_mark: int, worker: int | None) -> None:
    assert worker_of(mark, own_mark) == worker


@pytest.mark.parametrize(
    ("mark", "number", "is_its"),
    [
        (SERVER | 77, 5, True),
        (SERVER | OF_THE_SERVER, 5, True),
        (OTHER_SERVER | 77, 5, False),
        (77, 5, False),
        (77, 0, False),  # a server that was not marked has left nothing that could be known
        (-1, 5, False),
        (-1, 0, False),
    ],
)
def test_whose_process_it_is(mark: int, number: int, *, is_its: bool) -> None:
    assert is_of_server(mark, number) is is_its


@pytest.mark.parametrize(
    ("pid", "mark", "is_forking", "adopted"),
    [
        (50, None, False, False),  # it is none of a worker's: the process that fetches, a template
        (7, 7, False, False),  # a worker
        (50, 7, False, True),  # of a living worker
        (50, 8, False, True),  # of a dead one
        (9, 9, True, False),  # a worker whose id is on its way to us
        (9, 9, False, True),  # one that was never told of, because its template was killed
        (9, BECOMES_A_WORKER, True, False),
        (9, BECOMES_A_WORKER, False, True),
        (50, 8, True, True),
    ],
)
def test_which_children_are_adopted(pid: int, mark: int | None, is_forking: bool, adopted: bool) -> None:
    assert is_adopted(pid, mark, {7}, is_forking=is_forking) is adopted
