"""Models that are slow to load, never answer or grow: what their callers and their neighbours see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from support.endpoint import EndpointServer, packed
from support.tree import wait_until

SCRIPT = """
import os, time

kept = []

def model_fn(model_dir):
    time.sleep(float(open(os.path.join(model_dir, "load-secs")).read()))
    return os.path.join(model_dir, "")

def transform_fn(model, body, content_type, accept):
    order, _, number = (body if isinstance(body, str) else body.decode()).partition(" ")
    if order == "sleep":
        time.sleep(float(number))
    if order == "leak":
        kept.append(os.urandom(1024**2) * int(number))
    if order == "hold":  # leaks, says so, and answers when it is told to
        size, folder = number.split()
        kept.append(os.urandom(1024**2) * int(size))
        open(os.path.join(folder, "begun"), "w").close()
        while not os.path.exists(os.path.join(folder, "go on")):
            time.sleep(0.01)
    return str(os.getpid()), "text/plain"
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One is slow to load, one has 40 MiB of files."""
    folder = tmp_path_factory.mktemp("misbehave")
    for name in ("slow", "leaks", "a", "b", "c", "d", "large"):
        (folder / name / "code").mkdir(parents=True)
        (folder / name / "code" / "inference.py").write_text(SCRIPT)
        (folder / name / "load-secs").write_text("4.5" if name == "slow" else "0")
        if name == "large":
            (folder / name / "data").write_bytes(bytes(40 * 1024**2))
        packed(folder / name, folder / "models" / f"{name}.tar.gz")
    return folder / "models"


StartServer = Callable[..., EndpointServer]


@pytest.fixture
def start(models: Path) -> Iterator[StartServer]:
    """Starts a server of 240 MiB for one test."""
    servers: list[EndpointServer] = []

    def start_one(*arguments: str, **environ: str) -> EndpointServer:
        servers.append(EndpointServer("native", models, "--memory-budget", "240MiB", *arguments, environ=environ))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


def evictions(server: EndpointServer) -> int:
    lines = server.request("GET", "/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("polyhost_model_evictions_total"))


def pids(server: EndpointServer, *names: str) -> dict[str, str]:
    """In which process each of them is, which is loaded where it is not."""
    return {name: server.predict(f"{name}.tar.gz", "who") for name in names}


def test_a_load_may_take_longer_than_a_call(start: StartServer) -> None:
    server = start(SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="4")
    assert server.predict("slow.tar.gz", "who")
    with pytest.raises(ClientError, match="did not answer within 4 s"):
        server.predict("slow.tar.gz", "sleep 600")


def test_a_model_that_has_grown_goes_before_its_neighbours(start: StartServer) -> None:
    """The log names it, its next request is answered by a new process, its neighbours are still in theirs."""
    server = start()
    before = pids(server, "a", "b", "c", "leaks")
    for _ in range(4):
        assert server.predict("leaks.tar.gz", "leak 60")
    assert server.predict("d.tar.gz", "who")
    after = pids(server, *before)
    assert {name for name in before if before[name] != after[name]} == {"leaks"}, server.process.log
    server.process.wait_for_line(r"worker \d+ ended: model .* has grown from \d+ MiB when it was loaded to \d+ MiB")


def test_a_busy_model_that_has_grown_answers_and_goes(start: StartServer, tmp_path: Path) -> None:
    """Requests that come meanwhile are answered by a new process; the load waits, and evicts nobody."""
    server = start()
    before = pids(server, "a", "b", "c", "leaks")
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(server.predict, "leaks.tar.gz", f"hold 200 {tmp_path}")
        wait_until((tmp_path / "begun").exists, 120, "the model has leaked")
        large = pool.submit(server.predict, "large.tar.gz", "who")
        server.process.wait_for_line(r"worker \d+ is asked nothing more, and ends when it has answered")
        assert pids(server, "leaks")["leaks"] != before["leaks"]
        (tmp_path / "go on").touch()
        assert held.result() == before["leaks"]
        assert large.result()
    assert pids(server, "a", "b", "c") == {name: before[name] for name in ("a", "b", "c")}, server.process.log
    assert evictions(server) == 0
    server.process.wait_for_line(r"worker \d+ ended: model .* has grown from \d+ MiB when it was loaded to \d+ MiB")


def test_a_model_that_is_larger_than_the_budget_is_ended_with_its_call(start: StartServer, tmp_path: Path) -> None:
    """No eviction would make room for anybody. Its caller is told why."""
    server = start()
    before = pids(server, "a", "b", "leaks")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(server.predict, "leaks.tar.gz", f"hold 260 {tmp_path}")
        wait_until((tmp_path / "begun").exists, 120, "the model has leaked")
        assert server.predict("large.tar.gz", "who")
        with pytest.raises(ClientError, match="has outgrown the memory budget at this request: its worker was ended"):
            held.result()
    after = pids(server, *before)
    assert {name for name in before if before[name] != after[name]} == {"leaks"}, server.process.log
    assert evictions(server) == 0


def test_models_that_share_a_worker_that_has_grown_are_moved(start: StartServer) -> None:
    """None of them is evicted, and none is asked in vain."""
    server = start("--isolation", "shared")
    before = pids(server, "a", "b", "c", "leaks")
    assert server.predict("leaks.tar.gz", "leak 210")
    assert server.predict("large.tar.gz", "who")
    after = pids(server, *before)
    moved = {name for name in before if before[name] == before["leaks"]}
    assert {name for name in before if before[name] != after[name]} == moved, server.process.log
    assert evictions(server) == 0
    server.process.wait_for_line(
        r"worker \d+ ended: models? .*leaks.* grown from \d+ MiB when (it was|they were) loaded to \d+ MiB"
    )
