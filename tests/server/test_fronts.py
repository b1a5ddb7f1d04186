"""Several fronts: answers are those of one, whichever is asked, and a front's end costs its connections alone."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from conftest import MODELS
from polyhost_handlers.compiled.library import library
from support.endpoint import EndpointServer, packed
from support.server import Answer, Server, free_port, gone
from support.tree import command_of, wait_until, zombies_of
from test_serve import HOUSE, MULTI_MODEL, start_in_vain
from test_tls import make_certificate

compiled = pytest.mark.skipif(library is None, reason="the library in C was not built: there was no compiler")

# So many connections of a client are spread over all fronts: once in four million times one of three gets none.
CONNECTIONS = 40
CSV = {"Content-Type": "text/csv"}


def fronts_of(server: Server) -> list[psutil.Process]:
    """Those beside the server's own process."""
    return [process for process in server.descendants() if "polyhost.fronts.front" in command_of(process)]


class Client:
    """One connection that is kept open, and with it one front."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._connection.connect()

    def ask(self, method: str, target: str, body: str = "", headers: Mapping[str, str] = CSV) -> Answer:
        self._connection.request(method, target, body.encode(), dict(headers))
        response = self._connection.getresponse()
        return Answer(response.status, tuple(response.getheaders()), response.read())

    def begin(self, method: str, target: str, body: str, headers: Mapping[str, str] = CSV) -> None:
        self._connection.request(method, target, body.encode(), dict(headers))

    def finish(self) -> int:
        response = self._connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def clients(port: int, count: int = CONNECTIONS) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        all_of_them = [Client(port) for _ in range(count)]
        for client in all_of_them:
            stack.callback(client.close)
        yield all_of_them


@contextlib.contextmanager
def started(*arguments: str, environ: Mapping[str, str] = MULTI_MODEL) -> Iterator[Server]:
    server = Server("native", arguments, environ)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module", params=[2, 4])
def several(request: pytest.FixtureRequest) -> Iterator[Server]:
    with started("--fronts", str(request.param)) as server:
        yield server
        assert server.stop() == 0, server.process.log


def processes_in(answers: list[Answer], field: str = "x-request-id") -> set[str]:
    """By what the ids that a process gives to requests begin with."""
    return {answer.fields[field].rpartition("-")[0] for answer in answers}


# The same answers


@compiled
def test_rows_are_answered_by_every_front(several: Server, samples_folder: Path) -> None:
    with several.loaded("houston", samples_folder / "houston") as invoke, clients(several.port, 80) as many:
        expected = invoke(HOUSE)
        answers = [client.ask("POST", "/models/houston/invoke", HOUSE) for _ in range(3) for client in many]
        without_id = {"x-request-id"}
        assert {(answer.status, answer.body) for answer in answers} == {(200, expected.body)}
        assert {
            tuple((name, value) for name, value in answer.headers if name not in without_id) for answer in answers
        } == {tuple((name, value) for name, value in expected.headers if name not in without_id)}
        assert len(processes_in(answers)) == len(fronts_of(several)) + 1


@compiled
def test_no_front_answers_by_a_model_that_was_unloaded(several: Server, samples_folder: Path) -> None:
    """From the moment on in which the client is told so; and another of its name, at the same place, is that other."""
    bodies: dict[str, bytes] = {}
    with clients(several.port) as many:
        for turn in range(6):
            sample = ("houston", "boston")[turn % 2]
            with several.loaded("house", samples_folder / sample):
                answers = [client.ask("POST", "/models/house/invoke", HOUSE) for _ in range(2) for client in many]
                (body,) = {answer.body for answer in answers}
                assert bodies.setdefault(sample, body) == body
            assert {client.ask("POST", "/models/house/invoke", HOUSE).status for client in many} == {404}
    assert len(set(bodies.values())) == 2


@compiled
@pytest.mark.parametrize(
    ("target", "body", "headers"),
    [
        ("/models/houston/invoke", "1998,x", CSV),
        ("/models/houston/invoke", HOUSE, {"Content-Type": "image/png"}),
        ("/models/houston/invoke", HOUSE, {**CSV, "Accept": "a/b"}),
        ("/models/houston/invoke", f"{HOUSE}\n{HOUSE}", CSV),
        ("/models/houston/invoke?a=b", HOUSE, CSV),
        ("/predictions/houston/and/more", HOUSE, CSV),
        ("/houston/predict", HOUSE, {**CSV, "Accept": "text/csv"}),
        ("/models/%68ouston/invoke", HOUSE, CSV),
    ],
)
def test_what_is_no_plain_row_is_answered_alike(
    target: str, body: str, headers: dict[str, str], several: Server, samples_folder: Path
) -> None:
    with several.loaded("houston", samples_folder / "houston"), clients(several.port, 12) as many:
        answers = [client.ask("POST", target, body, headers) for _ in range(2) for client in many]
    assert len({(answer.status, answer.body, answer.fields["content-type"]) for answer in answers}) == 1


def test_a_body_that_is_too_large_is_refused_by_every_front(several: Server) -> None:
    with clients(several.port, 12) as many:
        answers = []
        for client in many:
            client.begin("POST", "/models/any/invoke", "", {"Content-Length": str(10**9)})
            answers.append(client.finish())
    assert set(answers) == {413}


# Fronts that end


def test_a_killed_front_costs_its_connections_alone(several: Server, samples_folder: Path) -> None:
    """Another takes its place, nothing of it is left, and whoever comes meanwhile is answered."""
    with several.loaded("noop", MODELS / "noop-v1.0"), clients(several.port) as many:
        fronts = fronts_of(several)
        descriptors = psutil.Process(several.process.pid).num_fds()
        for client in many:
            client.begin("POST", "/models/noop/invoke", "x")
        fronts[0].kill()
        statuses = []
        for client in many:
            with contextlib.suppress(ConnectionError, http.client.HTTPException):
                statuses.append(client.finish())
        with clients(several.port) as others:
            assert {client.ask("POST", "/models/noop/invoke", "x").status for client in others} == {200}
        several.process.wait_for_line(r"front \d+ has ended \(killed by signal 9\)")
        wait_until(lambda: len(fronts_of(several)) == len(fronts), 60, "there are as many fronts as before")

        assert set(statuses) == {200}
        assert 0 < len(statuses) <= len(many)
        assert fronts[0] not in fronts_of(several)
        wait_until(lambda: not zombies_of(several.process.pid), 60, "no zombie is left")
    with clients(several.port) as others:  # the new one answers, too
        assert {client.ask("GET", "/ping").status for client in others} == {200}
    wait_until(lambda: psutil.Process(several.process.pid).num_fds() <= descriptors, 60, "no descriptor is left of it")


def test_all_end_with_the_server() -> None:
    with started("--fronts", "3") as server:
        processes = server.descendants()
        assert len(fronts_of(server)) == 2
        os.kill(server.process.pid, signal.SIGKILL)

        assert server.ends_within(15) != 0
        assert gone(processes)


def test_a_stop_answers_what_is_in_flight() -> None:
    """Of every front; then all end, and nobody is let in any more."""
    with started("--fronts", "3") as server:
        assert server.load("sleeps", MODELS / "sleeps").status == 200
        processes = server.descendants()
        with clients(server.port, 12) as many:
            for client in many:
                client.begin("POST", "/models/sleeps/invoke", "0.1")
            with clients(server.port) as others:  # once these are answered, each front has read what came before
                assert {client.ask("GET", "/ping").status for client in others} == {200}
            server.process.send(signal.SIGTERM)
            assert {client.finish() for client in many} == {200}
        assert server.ends_within(20) == 0
        assert gone(processes)


def test_fronts_do_not_stop_one_by_one_at_ctrl_c() -> None:
    """The server alone is to be told."""
    with started("--fronts", "2") as server:
        (front,) = fronts_of(server)
        front.send_signal(signal.SIGINT)
        with clients(server.port) as many:
            assert {client.ask("GET", "/ping").status for client in many} == {200}
        assert fronts_of(server) == [front]
        assert server.stop() == 0


# One port


@pytest.mark.parametrize("fronts", ["1", "3"])
def test_a_second_server_on_the_port_fails(fronts: str, several: Server) -> None:
    result = start_in_vain("--port", str(several.port), "--fronts", fronts)

    assert result.returncode == 4
    assert f"cannot listen on 127.0.0.1:{several.port}" in result.stderr


def test_of_two_servers_that_start_together_one_fails() -> None:
    """Also where both have found the port free."""
    port = free_port()
    environ = {**os.environ, **MULTI_MODEL}
    command = [sys.executable, "-m", "polyhost", "serve", "--port", str(port), "--fronts", "2"]
    both = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    try:
        wait_until(lambda: any(one.poll() is not None for one in both), 120, "one of them has ended")
        loser, winner = sorted(both, key=lambda one: one.poll() is None)
        assert loser.returncode == 4
        assert winner.poll() is None
        wait_until(lambda: is_let_in(port), 60, "it serves")
    finally:
        for one in both:
            one.terminate()
            one.communicate(timeout=120)


def test_connections_are_limited_over_all_fronts() -> None:
    with started("--fronts", "3", "--max-connections", "10") as server:
        with clients(server.port, 10) as many:
            assert {client.ask("GET", "/ping").status for client in many} == {200}
            with contextlib.closing(Client(server.port)) as one_more:
                assert one_more.ask("GET", "/ping").status == 503
        wait_until(lambda: is_let_in(server.port), 60, "there is room again")


def test_tls_is_spoken_by_every_front(tmp_path: Path) -> None:
    pair = make_certificate(tmp_path / "pair")
    context = ssl.create_default_context(cafile=pair / "cert.pem")
    with started("--fronts", "3", "--tls-cert", str(pair / "cert.pem"), "--tls-key", str(pair / "key.pem")) as server:
        for _ in range(20):
            with (
                socket.create_connection(("127.0.0.1", server.port), timeout=120) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as client,
            ):
                client.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(15) == b"HTTP/1.1 200 OK"
        assert server.stop() == 0


# Behind an endpoint


def pack_models(samples: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("houston", "boston"):
        packed(samples / name, folder / f"{name}.tar.gz")
    return folder


@pytest.fixture
def endpoint(samples_folder: Path, tmp_path: Path) -> Iterator[Callable[..., EndpointServer]]:
    models = pack_models(samples_folder, tmp_path / "models")
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> EndpointServer:
            server = EndpointServer("native", models, "--fronts", "3", *arguments)
            stack.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="module")
def steady_endpoint(samples_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointServer]:
    """For tests that leave it as it was."""
    models = pack_models(samples_folder, tmp_path_factory.mktemp("steady") / "models")
    server = EndpointServer("native", models, "--fronts", "3")
    yield server
    server.kill()


def invoke(client: Client, target: str, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.ask(
        "POST", "/endpoints/polyhost/invocations", HOUSE, {**CSV, "X-Amzn-SageMaker-Target-Model": target, **named}
    )


@compiled
def test_each_front_counts_and_logs_what_it_answers(endpoint: Callable[..., EndpointServer]) -> None:
    server = endpoint("--server-name", "here")
    with clients(server.port) as many:
        answers = [invoke(client, "houston.tar.gz") for _ in range(5) for client in many]
        metrics = {client.ask("GET", "/metrics").text for client in many}
    ids = {answer.fields["x-amzn-requestid"] for answer in answers}

    assert {answer.status for answer in answers} == {200}
    assert len(processes_in(answers, "x-amzn-requestid")) == 3
    assert {(answer.fields["x-polyhost-server"], answer.fields["x-polyhost-loaded"]) for answer in answers[1:]} == {
        ("here", "hit")
    }
    for text in metrics:
        assert numbers_in(text).items() >= {
            "polyhost_invocations_total": 200, "polyhost_model_latency_seconds_count": 200,
            "polyhost_overhead_latency_seconds_count": 200, "polyhost_per_model_invocations_total": 200,
            "polyhost_per_model_cache_hits_total": 199, "polyhost_per_model_latency_seconds_count": 200,
            "polyhost_per_model_loads_total": 1,
        }.items()  # fmt: skip
    assert len(ids) == 200
    wait_until(lambda: logged_by(server) == ids, 60, "all are logged")


@compiled
def test_what_a_killed_front_has_counted_is_kept(endpoint: Callable[..., EndpointServer]) -> None:
    server = endpoint()
    with clients(server.port) as many:
        for client in many:
            invoke(client, "houston.tar.gz")
            invoke(client, "houston.tar.gz")
        for front in fronts_of(server):
            front.kill()
        wait_until(lambda: server.process.log.count("has ended (killed by signal 9)") == 2, 60, "both are buried")
    assert numbers_in(server.request("GET", "/metrics").text)["polyhost_per_model_invocations_total"] == 80


@compiled
def test_no_front_answers_by_an_archive_that_was_overwritten(
    endpoint: Callable[..., EndpointServer], samples_folder: Path, tmp_path: Path
) -> None:
    """From the moment on in which the new one is said to be loaded; nor by one that was deleted."""
    server = endpoint("--refresh-secs", "0")
    target = tmp_path / "models" / "houston.tar.gz"
    with clients(server.port) as many:
        bodies = [{invoke(client, "houston.tar.gz").body for _ in range(2) for client in many}]
        for loads, sample in enumerate(("boston", "houston"), 2):
            shutil.copy(packed(samples_folder / sample, tmp_path / "new.tar.gz"), target)
            assert server.request("POST", "/refresh").status == 200
            wait_until(lambda: loads_of(server) == loads, 60, "it is loaded")  # noqa: B023 - it is called at once
            bodies.append({invoke(client, "houston.tar.gz").body for _ in range(2) for client in many})
        target.unlink()
        assert server.request("POST", "/refresh").status == 200
        assert {invoke(client, "houston.tar.gz").status for client in many} == {400}
    assert [len(each) for each in bodies] == [1, 1, 1]
    assert bodies[0] == bodies[2] != bodies[1]


@compiled
def test_no_front_answers_for_an_endpoint_that_was_deleted(endpoint: Callable[..., EndpointServer]) -> None:
    server = endpoint()
    server.deploy("mine", "", Mode="MultiModel")
    path, headers = "/endpoints/mine/invocations", {**CSV, "X-Amzn-SageMaker-Target-Model": "houston.tar.gz"}
    with clients(server.port) as many:
        assert {client.ask("POST", path, HOUSE, headers).status for _ in range(2) for client in many} == {200}
        server.client("sagemaker").delete_endpoint(EndpointName="mine")
        assert {client.ask("POST", path, HOUSE, headers).status for client in many} == {400}


@compiled
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Host": "elsewhere.example"}, 403),
        ({"X_Amzn_SageMaker_Target_Variant": "none"}, 400),
        ({"X_Amzn_SageMaker_Custom_Attributes": "a" * 1025}, 400),
        ({"X_Amzn_SageMaker_Enable_Explanations": "true"}, 400),
    ],
)
def test_a_row_for_a_leased_model_is_refused_as_ever(
    headers: dict[str, str], status: int, steady_endpoint: EndpointServer
) -> None:
    server = steady_endpoint
    with clients(server.port) as many:
        assert {invoke(client, "houston.tar.gz").status for _ in range(2) for client in many} == {200}
        assert {invoke(client, "houston.tar.gz", **headers).status for client in many} == {status}


def logged_by(server: Server) -> set[str]:
    line = r"polyhost.access - (\S+) InvokeEndpoint .* target=houston.tar.gz status=200 bytes_in=21 .* loaded=\w+$"
    return set(re.findall(line, server.process.log, re.MULTILINE))


def numbers_in(exposition: str) -> dict[str, int]:
    """Of an endpoint with one model: what was counted."""
    counts = re.findall(r"^(polyhost_\w+_(?:total|count))\{.* (\S+)$", exposition, re.MULTILINE)
    return {name: int(float(value)) for name, value in counts}


def loads_of(server: Server) -> int:
    return numbers_in(server.request("GET", "/metrics").text)["polyhost_per_model_loads_total"]


def is_let_in(port: int) -> bool:
    with contextlib.suppress(OSError), contextlib.closing(Client(port)) as client:
        return client.ask("GET", "/ping").status == 200
    return False
