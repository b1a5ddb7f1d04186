"""When a server says that requests may be sent to it: /ready and systemd's notifications, from start to stop."""

from __future__ import annotations

import http.client
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from polyhost.readiness import Readiness
from support.endpoint import EndpointServer, client
from support.server import Answer, Server, free_port
from support.tree import wait_until

from endpoint.conftest import environ_for

HOUSE = "1998,2150,3,2.5,0.4,2"


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """In the place of systemd: the socket that a unit of Type=notify is given."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        yield listening


def told(manager: socket.socket) -> str:
    return manager.recv(1000).decode()


def ready(server: Server) -> Answer:
    return server.request("GET", "/ready")


def reason(server: Server) -> str:
    answer = ready(server)
    assert (answer.status, answer.json()["status"]) == (503, "Unready")
    return str(answer.json()["reason"])


def test_what_is_preloaded_answers_as_soon_as_the_server_is_ready(
    tmp_path: Path, samples_folder: Path, manager: socket.socket
) -> None:
    """What is not there is logged, and keeps no server from being ready."""
    environ = {"NOTIFY_SOCKET": manager.getsockname()}
    preload = ("--preload", "nothing.tar.gz", "--preload", "houston.tar.gz")
    server = EndpointServer("native", samples_folder, *preload, environ=environ)
    try:
        assert told(manager) == "READY=1"
        assert (ready(server).status, ready(server).json()) == (200, {"status": "Ready"})
        assert server.predict("houston.tar.gz", HOUSE)
        server.process.wait_for_line("--preload nothing.tar.gz: Failed to download model data")
        server.process.wait_for_line("target=houston.tar.gz .*loaded=hit")
    finally:
        assert server.stop() == 0, server.process.log
    assert told(manager) == "STOPPING=1"


def fill_bucket(archive: Path) -> None:
    """Of all of moto's servers in this process: they have one memory."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    s3 = client("s3", f"http://{host}:{port}")
    s3.create_bucket(Bucket="late")
    s3.upload_file(str(archive), "late", "models/houston.tar.gz")
    server.stop()


def test_a_store_that_does_not_answer_keeps_a_server_with_preloads_unready(samples_folder: Path) -> None:
    """It lives, it answers, and it is ready once the store is back."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {name: value for name, value in environ_for(url, 1).items() if name.startswith("AWS_")}
    server = EndpointServer("native", "s3://late/models/", "--preload", "houston.tar.gz", environ=environ)
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    fill_bucket(samples_folder / "houston.tar.gz")
    try:
        server.process.wait_for_line("--preload houston.tar.gz is tried again: Bucket late cannot be read now")
        assert reason(server) == "0 of 1 models of --preload are loaded."
        assert server.request("GET", "/ping").status == 200
        store.start()
        wait_until(lambda: ready(server).status == 200, 120, "it is ready")
        assert len(server.names()) == 1
    finally:
        store.stop()
        assert server.stop() == 0, server.process.log


def test_a_server_that_was_told_to_stop_is_unready_and_answers(samples_folder: Path, manager: socket.socket) -> None:
    """Each answer ends its connection. A second signal does not wait until others have seen the first."""
    environ = {"NOTIFY_SOCKET": manager.getsockname()}
    server = EndpointServer("native", samples_folder, "--unready-secs", "600", environ=environ)
    try:
        assert told(manager) == "READY=1"
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        kept.request("GET", "/ready")
        assert kept.getresponse().read() == ready(server).body
        server.process.send(signal.SIGTERM)
        assert told(manager) == "STOPPING=1"
        assert reason(server) == "The server stops."
        assert server.request("GET", "/ping").status == 200
        assert server.predict("houston.tar.gz", HOUSE)
        kept.request("GET", "/ping")
        answer = kept.getresponse()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        server.process.send(signal.SIGTERM)
        assert server.ends_within(10) == 128 + signal.SIGTERM
    finally:
        server.kill()


def test_a_server_stops_once_others_have_had_the_time_to_see_it(samples_folder: Path) -> None:
    server = EndpointServer("native", samples_folder, "--unready-secs", "1")
    try:
        since = time.monotonic()
        server.process.send(signal.SIGTERM)
        assert server.ends_within(10) == 0
        assert time.monotonic() - since >= 1
    finally:
        server.kill()


def test_the_container_half_has_it_too(samples_folder: Path) -> None:
    server = Server("native", environ={"SAGEMAKER_MULTI_MODEL": "true"})
    try:
        wait_until(lambda: ready(server).status == 200, 120, "it is ready")
        assert "/ready" not in server.request("GET", "/api-description").json()["paths"]
    finally:
        assert server.stop() == 0, server.process.log


def test_a_server_that_leaves_is_never_ready_again() -> None:
    readiness = Readiness()
    readiness.leave()
    readiness.wait("a preload")
    readiness.reached()

    assert readiness.reason == "The server stops."


def test_a_manager_that_has_gone_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    readiness = Readiness(str(tmp_path / "nobody"))
    readiness.reached()

    assert readiness.reason is None
    assert "systemd was not told READY=1: No such file or directory" in caplog.text


def test_a_socket_without_a_file() -> None:
    """Linux's abstract sockets are written with an @."""
    name = f"polyhost-tests-{id(object())}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(10)
        Readiness(f"@{name}").reached()
        assert told(listening) == "READY=1"
