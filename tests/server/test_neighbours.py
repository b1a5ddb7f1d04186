"""A server goes on as it was while models of it hang, load or go, and while it has a neighbour."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest
from conftest import MODELS
from support.server import Server, free_port, gone, request
from support.tree import javas

MULTI_MODEL = {"SAGEMAKER_MULTI_MODEL": "true"}


def works_in(process: psutil.Process, folder: Path) -> bool:
    """Whether a process lives and has this working directory; one that has ended meanwhile has none."""
    try:
        return process.cwd() == str(folder)
    except psutil.Error:
        return False


@pytest.mark.parametrize("engine", ["mms"])
def test_mms_itself_is_reached_from_this_machine_alone(server: Server) -> None:
    """
    Who could speak to it would pass our front: it listens on loopback, on a port of the range that it may use.
    """
    (java,) = javas(server.descendants())
    (listening,) = (one.laddr for one in java.net_connections("inet") if one.status == psutil.CONN_LISTEN)

    assert listening.ip in ("127.0.0.1", "::ffff:127.0.0.1")
    assert listening.port != server.port
    assert listening.port <= 32766
    with server.loaded("a-clients-name", MODELS / "noop-v1.0"):
        names = [model["modelName"] for model in request(listening.port, "GET", "/models").json()["models"]]
    assert names
    assert all(re.fullmatch(r"m\d+", name) for name in names)  # it knows no client's names


def test_a_model_is_unloaded_while_its_handler_hangs(server: Server) -> None:
    """
    DELETE answers when the processes are gone, also those that compute.
    """
    # A load has the time of a response, too.
    assert server.load("sleeps", MODELS / "sleeps", response_timeout=10).status == 200
    workers = [process for process in server.descendants() if works_in(process, MODELS / "sleeps")]
    assert workers
    assert server.invoke("sleeps", "60").status == 500

    assert server.unload("sleeps").status == 200
    assert gone(workers)


def test_a_model_is_unloaded_while_it_loads(server: Server, tmp_path: Path) -> None:
    """
    Nothing of it stays, whatever was already there, and the name is free.
    """
    (tmp_path / "service.py").write_text("import time\ndef handle(data, context): time.sleep(3); return ['x']\n")
    assert server.load("slow", tmp_path, handler="service:handle", synchronous=False).status == 202
    assert server.unload("slow").status == 200

    assert server.request("GET", "/models/slow").status == 404
    assert gone([process for process in server.descendants() if works_in(process, tmp_path)])
    with server.loaded("slow", MODELS / "noop-v1.0") as invoke:
        assert invoke().text == "OK"


def test_two_servers_run_on_one_machine_and_any_port(server: Server, engine: str) -> None:
    """
    The toolkit refuses a second MMS on the machine; ours may have neighbours, on any port.

    MMS keeps a port in a signed 16-bit number: it gets one of its own. The kernel gives clients those below 61,000.
    """
    with server.loaded("noop", MODELS / "noop-v1.0") as invoke:
        other = Server(engine, environ=MULTI_MODEL, port=free_port(61_000, 65_000))
        try:
            assert other.load("noop", MODELS / "noop-v1.0").status == 200
            assert other.invoke("noop").text == invoke().text == "OK"
        finally:
            assert other.stop() == 0
        assert invoke().text == "OK"
