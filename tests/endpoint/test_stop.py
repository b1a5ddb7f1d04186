"""A stop while models are unpacked and loaded: as long as a client waits, and no longer."""

from __future__ import annotations

import contextlib
import io
import select
import signal
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.endpoint import EndpointServer
from support.server import Server, gone
from support.tree import any_in, living, wait_until

SLOW = b"import time\ndef model_fn(model_dir):\n    open(model_dir + '/loading', 'w').close()\n    time.sleep(600)\n"
# More entries than a machine unpacks between two looks.
MANY = 30_000
# What a stop takes that waits for nobody is a tenth of this; what it must not wait for takes far longer.
AT_ONCE_SECS = 4


def write_archive(path: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_archive(folder / "slow.tar", ("code/inference.py", SLOW))
    write_archive(folder / "large.tar", *((f"{number}", b"") for number in range(MANY - 1)))
    return folder


@pytest.fixture
def start(models: Path) -> Iterator[Callable[..., EndpointServer]]:
    servers: list[EndpointServer] = []

    def start_one(drain_secs: int = 60) -> EndpointServer:
        servers.append(EndpointServer("native", models, "--drain-secs", f"{drain_secs}"))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


def ask(server: Server, request: str, *headers: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=120)
    client.sendall("\r\n".join((f"POST {request} HTTP/1.1", "Content-Length: 0", *headers, "", "")).encode())
    return client


def invoke(server: Server, target: str) -> socket.socket:
    return ask(server, "/endpoints/polyhost/invocations", f"X-Amzn-SageMaker-Target-Model: {target}")


def under_way(send: Callable[[], socket.socket], has_begun: Callable[[], bool]) -> socket.socket:
    """The client of a request that has begun; sent again where it was over before anybody looked."""
    while True:
        client = send()
        wait_until(lambda client=client: has_begun() or is_answered(client), 120, "it has begun")
        if has_begun():
            return client
        client.close()


def is_answered(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0])


def is_unpacking(server: EndpointServer) -> bool:
    """Whether an archive's entries are being written, wherever that is."""
    return any_in(server.state, "cache/**/.unpacking-*/*")


def is_loading(server: EndpointServer) -> bool:
    return any_in(server.state, "cache/models/*/model/loading")


def stop_fetchers(server: EndpointServer) -> None:
    """What they unpack is under way until the server stops: it looks for stopped ones every five seconds."""
    for process in living(server):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("fetcher" in word for word in process.cmdline()):
                process.send_signal(signal.SIGSTOP)


def test_a_stop_during_a_load_that_a_client_waits_for(start: Callable[..., EndpointServer]) -> None:
    """It takes as long as the drain, at most."""
    server = start(2)
    with under_way(lambda: invoke(server, "slow.tar"), lambda: is_loading(server)):
        processes = living(server)
        server.process.send(signal.SIGTERM)
        assert server.ends_within(2 + AT_ONCE_SECS) == 0
    assert gone(processes)
    assert "Traceback" not in server.process.log


def test_a_stop_during_an_unpacking_that_nobody_waits_for(start: Callable[..., EndpointServer]) -> None:
    server = start()
    under_way(lambda: invoke(server, "large.tar"), lambda: is_unpacking(server)).close()
    stop_fetchers(server)
    processes = living(server)
    server.process.send(signal.SIGTERM)
    assert server.ends_within(AT_ONCE_SECS) == 0
    assert gone(processes)
    assert "Traceback" not in server.process.log


def test_a_stop_during_a_registration(start: Callable[..., EndpointServer], models: Path) -> None:
    """The container half's load goes on without its client, as with MMS, but holds no stop."""
    server = start()

    def has_begun() -> bool:
        return any_in(server.temp, "*/models/.unpacking-*")

    under_way(lambda: ask(server, f"/models?model_name=large&url={models / 'large.tar'}"), has_begun).close()
    stop_fetchers(server)
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as other:
        other.sendall(b"GET /ping HTTP/1.1\r\n\r\n")
        assert other.recv(1000).startswith(b"HTTP/1.1 200 ")  # so the server knows that the first one has gone
    assert has_begun()
    server.process.send(signal.SIGTERM)
    assert server.ends_within(AT_ONCE_SECS) == 0
    assert list(server.temp.iterdir()) == []
    assert "Traceback" not in server.process.log
