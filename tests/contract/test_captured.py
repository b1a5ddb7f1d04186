"""What a real MMS was seen to answer, asked again: of MMS alone, and of our server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MODELS, Servers
from polyhost.mms_command import COMMAND_FOLDER
from support.exchanges import Exchange, comparable, expected, form_body, read_exchanges
from support.server import Answer, Process, free_port, request

CAPTURED = Path(__file__).parent / "exchanges"
SPLIT_PORTS = read_exchanges(CAPTURED / "split-ports.txt")
ONE_PORT = read_exchanges(CAPTURED / "one-port.txt")
# On one port there is no management port to lack /ping, nor an inference port to lack /models.
OF_TWO_PORTS = ("http://inference/models", "http://management/ping")
# What MMS says in its API description at each of two addresses.
DESCRIBED = {
    "inference": {
        "OPTIONS /", "GET /api-description", "GET /ping", "POST /invocations", "POST /{model_name}/predict",
        "POST /predictions/{model_name}", "OPTIONS /predictions/{model_name}", "POST /models/{model_name}/invoke",
    },
    "management": {
        "OPTIONS /", "GET /models", "POST /models", "GET /models/{model_name}", "PUT /models/{model_name}",
        "DELETE /models/{model_name}",
    },
}  # fmt: skip
# What MMS does not have, or does not tell.
OURS = {"inference": {"GET /execution-parameters"}, "management": {"GET /api-description"}}
# Of the Open Inference Protocol, which MMS does not speak.
PROTOCOL = re.compile(r"[A-Z]+ /v2(/|$)")


def ask(port: int, exchange: Exchange, target: str) -> Answer:
    body: bytes | str | None = exchange.sent_body
    headers = dict(exchange.sent_headers)
    if exchange.form:
        body, headers["Content-Type"] = form_body(exchange.form)
    elif body is not None:
        headers.setdefault("Content-Type", "application/x-www-form-urlencoded")  # as curl does
    return request(port, exchange.method, target, body, headers)


SETTLE_SECS = 60


def tells_of_models(exchange: Exchange) -> bool:
    """The list of models, or one of them: read only, so it can be asked again."""
    return exchange.method == "GET" and re.match(r"/models(/[^/]*)?$", exchange.target.partition("?")[0]) is not None


def ask_when_settled(port: int, exchange: Exchange, url_of_m507: str, replace: dict[str, str]) -> dict[str, object]:
    """
    What a call tells of models, when MMS has settled after failed loads and scaled workers.

    A model whose load failed leaves the list a moment after the answer, and so does a worker that was scaled away from
    its model's description. The capture shows a model that stayed after a 507, without a worker. MMS keeps it or
    forgets it, by a race of its own, and our server never keeps it: then the test puts it into that state.
    """
    deadline = time.monotonic() + SETTLE_SECS
    while True:
        seen = comparable(ask(port, exchange, exchange.target), replace=replace)
        if seen == expected(exchange) or time.monotonic() > deadline:
            return seen
        time.sleep(0.05)
        if '"m507"' in exchange.body and request(port, "GET", "/models/m507").status == 404:
            body = json.dumps({"model_name": "m507", "url": url_of_m507, "initial_workers": 0})
            request(port, "POST", "/models", body, {"Content-Type": "application/json"})


def described(ports: dict[str, int]) -> dict[str, set[str]]:
    """The operations that each of two addresses says it has."""
    documents = {host: json.loads(request(port, "OPTIONS", "/").body) for host, port in ports.items()}
    return {
        host: {operation for operation in operations_of(document) if not PROTOCOL.match(operation)}
        for host, document in documents.items()
    }


def operations_of(document: dict[str, Any]) -> set[str]:
    return {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}


def test_the_captures_are_complete() -> None:
    """
    Every pair of the capture is read, with its body as long as its head says.
    """
    assert (len(SPLIT_PORTS), len(ONE_PORT)) == (57, 23)
    for exchange in SPLIT_PORTS + ONE_PORT:
        # Where something was masked in the capture, its length is not the original.
        if not any(mark in exchange.body for mark in ("<", "SITE_PACKAGES", "/opt/ml/")):
            assert exchange.headers["content-length"] == str(len(exchange.body)), exchange.curl


# The reference itself: MMS started by its own command, two ports, no toolkit and nothing of ours.
MMS = str(Path(sys.executable).with_name("multi-model-server"))


@pytest.fixture
def mms_alone(servers: Servers, tmp_path: Path) -> Iterator[dict[str, int]]:
    servers.stop()
    with on_two_ports(MMS, str(MODELS), tmp_path, ["Model server started"]) as ports:
        yield ports


@pytest.fixture(scope="module")
def mms_of_any_model(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    servers.stop()
    with on_two_ports(MMS, "/", tmp_path_factory.mktemp("mms"), ["Model server started"]) as ports:
        yield ports


@contextlib.contextmanager
def on_two_ports(command: str, store: str, folder: Path, ready: list[str]) -> Iterator[dict[str, int]]:
    """A server started and stopped by a command as MMS's is, without the toolkit."""
    ports = {"inference": free_port(), "management": free_port()}
    config = folder / "config.properties"
    config.write_text("".join(f"{name}_address=http://127.0.0.1:{port}\n" for name, port in ports.items()))
    # Its sockets lie in TEMP, and a Unix socket's path is short.
    with tempfile.TemporaryDirectory(prefix="mms-") as temp:
        # Java's optimising compiler takes a third of a start's CPU time.
        java = {"JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"}
        environ = {**os.environ, **java, "TEMP": temp, "TMPDIR": temp, "POLYHOST_PYTHON": sys.executable}
        process = Process(
            [command, "--start", "--foreground", "--model-store", store, "--mms-config", str(config)],
            environ,
            cwd=folder,
        )
        try:
            for line in ready:
                process.wait_for_line(line.format(**ports))
            yield ports
        finally:
            subprocess.run([command, "--stop"], env=environ, check=True, stdout=subprocess.DEVNULL)
            process.kill_tree()


def test_mms_alone_answers_as_captured(mms_alone: dict[str, int]) -> None:
    """
    Our fixture models and our reading of the capture are right: MMS answers every pair as it did.
    """
    for exchange in SPLIT_PORTS:
        if tells_of_models(exchange) and exchange.host == "management":
            seen = ask_when_settled(mms_alone["management"], exchange, "loading-memory-error", {})
        else:
            seen = comparable(ask(mms_alone[exchange.host], exchange, exchange.target))
        assert seen == expected(exchange), exchange.curl
    assert described(mms_alone) == DESCRIBED


def test_our_command_answers_as_captured(servers: Servers, tmp_path: Path) -> None:
    """
    `multi-model-server`, ours, in MMS's place: two ports, urls relative to the model store, no default workers.
    """
    servers.stop()
    command = str(COMMAND_FOLDER / "multi-model-server")
    ready = ["ready on http://127.0.0.1:{inference}", "ready on http://127.0.0.1:{management}"]
    with on_two_ports(command, str(MODELS), tmp_path, ready) as ports:
        for exchange in SPLIT_PORTS:
            if exchange.target.endswith("limit=0"):
                continue  # test_a_limit_of_zero
            if tells_of_models(exchange) and exchange.host == "management":
                seen = ask_when_settled(ports["management"], exchange, "loading-memory-error", {})
                assert seen == expected(exchange), exchange.curl
                continue
            answer = ask(ports[exchange.host], exchange, exchange.target)
            if "url=http" in exchange.curl:
                assert answer.message.startswith("Model url is not under a model root: http://")
            elif "Failed to start workers" in exchange.body:
                assert answer.status == exchange.status
                assert answer.message != "Failed to start workers"  # the handler's own words
            else:
                assert comparable(answer) == expected(exchange), exchange.curl
        assert described(ports) == {host: DESCRIBED[host] | OURS[host] for host in ports}


HOUSE = "1998,2150,3,2.5,0.4,2"


@pytest.mark.parametrize(
    ("model", "handler", "body", "content_type", "answer"),
    [
        ("houston", "xgboost_handler", HOUSE, "text/csv", r"\d{6}\.\d+"),
        ("house_preprocessor", "sklearn_handler", f"{HOUSE},y,n", "text/csv", r"\[\[.*, 1\.0, 0\.0\]\]"),
        (
            "house_linear_learner",
            "linear_learner_handler",
            "1,2,3,4,5,6,1,0",
            "text/csv",
            r'{"predictions": \[{"score": .*',
        ),
        ("house_network", "onnx_handler", f"[[{HOUSE}]]", "application/json", r'{"predictions": \[\[.*\]\]}'),
        ("listing_tone", "script_handler", '{"text": "sunny"}', "application/json", '{"tone": "warm", "score": 2}'),
        ("boston", "auto", HOUSE, "text/csv", r"\d{6,}\.\d+"),
    ],
)
def test_each_handler_works_with_a_stock_mms(
    mms_of_any_model: dict[str, int], samples_folder: Path, model: str, handler: str, body: str, content_type: str,
    answer: str,
) -> None:  # fmt: skip
    """
    Named as a handler, without our server: MMS's defaults, which decode text and JSON before a handler sees them.
    """
    ports = mms_of_any_model
    named = f"model_name={model}&url={samples_folder / model}&handler=polyhost_handlers.{handler}:handle"
    loaded = request(ports["management"], "POST", f"/models?{named}&initial_workers=1&synchronous=true")
    assert loaded.status == 200, loaded.text
    predicted = request(ports["inference"], "POST", f"/predictions/{model}", body, {"Content-Type": content_type})
    request(ports["management"], "DELETE", f"/models/{model}")

    assert predicted.status == 200, predicted.text
    assert re.fullmatch(answer, predicted.text)


def test_our_server_answers_as_captured(engine: str, servers: Servers) -> None:
    """
    The same calls in the same order on our one port, model store `/`, as the toolkit boots it.

    Where MMS is wrong ours is right: urls of other hosts, the reason of a failed load, what stays after it.
    """
    server = servers.get(engine, environ={"SAGEMAKER_MULTI_MODEL": "true", "MMS_DEFAULT_WORKERS_PER_MODEL": "0"})
    for exchange in SPLIT_PORTS:
        if exchange.curl.endswith(OF_TWO_PORTS):
            continue
        names = [path.name for path in MODELS.iterdir()]
        target = exchange.target
        body_url = None
        for name in names:
            target = target.replace(f"url={name}", f"url={MODELS}/{name}")
            if exchange.sent_body and f'"url":"{name}"' in exchange.sent_body:
                body_url = name
        asked = exchange
        if body_url:
            asked = Exchange(exchange.curl.replace(f'"url":"{body_url}"', f'"url":"{MODELS}/{body_url}"'),
                             exchange.status, exchange.headers, exchange.body)  # fmt: skip
        if exchange.target.endswith("limit=0"):
            continue  # test_a_limit_of_zero
        if tells_of_models(exchange):
            seen = ask_when_settled(server.port, exchange, f"{MODELS}/loading-memory-error", {f"{MODELS}/": ""})
            assert seen == expected(exchange), exchange.curl
            continue
        answer = ask(server.port, asked, target)
        if "url=http" in exchange.curl:
            assert answer.message.startswith("Model url is not under a model root: http://")
        elif "Failed to start workers" in exchange.body:
            assert answer.status == exchange.status
            assert answer.message != "Failed to start workers"  # the handler's own words
        else:
            assert comparable(answer, replace={f"{MODELS}/": ""}) == expected(exchange), exchange.curl


def test_the_toolkits_own_handler_answers_as_captured(engine: str, servers: Servers, tmp_path: Path) -> None:
    """
    With the toolkit's DefaultHandlerService and archives that it cannot serve, its answers pass unchanged.

    It brings its traceback to the client; ours never do. What MMS swallows at load, we say at once: these models are
    not loaded at all.
    """
    for name in ("good", "bad", "mem", "empty"):
        (tmp_path / name).mkdir()
    server = servers.get(
        engine, ["--handler", "sagemaker_inference.default_handler_service"], {"SAGEMAKER_MULTI_MODEL": "true"},
    )  # fmt: skip
    for exchange in ONE_PORT:
        if "big.bin" in exchange.curl:
            answer = server.request("POST", exchange.target, bytes(7_000_000), Content_Type="application/json")
            assert answer.status == exchange.status == 413
            assert "may have 6553500 bytes" in answer.message  # MMS says nothing
            continue
        body = (exchange.sent_body or "").replace("/opt/ml/models/", f"{tmp_path}/")
        headers = {**exchange.sent_headers}
        answer = request(server.port, exchange.method, exchange.target, body or None, headers)
        if re.search(r"good|bad|mem|empty", exchange.curl + exchange.body):
            if exchange.body == '{\n  "status": "Workers scaled"\n}\n':
                assert answer.status == 500
                assert "Please provide a model_fn implementation." in answer.message
            continue
        if exchange.method == "OPTIONS":
            assert answer.status == exchange.status  # its contents: test_the_api_is_described
            continue
        assert comparable(answer, replace={f"{tmp_path}/": "/opt/ml/models/"}) == expected(exchange), exchange.curl
