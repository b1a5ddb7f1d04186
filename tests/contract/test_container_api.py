"""
Every row of the container's contract, over HTTP, on every engine: the answers are the same.

What the real MMS answers alone, without our front before it, is in test_captured.py.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MODELS
from support.exchanges import read_exchanges
from support.server import Server, gone

SCALED = {"status": "Workers scaled"}
HEADERS_OF_EVERY_ANSWER = {
    "pragma": "no-cache",
    "cache-control": "no-cache; no-store, must-revalidate, private",
    "expires": "Thu, 01 Jan 1970 00:00:00 UTC",
}


# /ping


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_ping_is_healthy(server: Server, method: str) -> None:
    """/ping answers 200 to every method, with the headers of every answer."""
    answer = server.request(method, "/ping")

    assert answer.status == 200
    assert answer.fields.items() >= HEADERS_OF_EVERY_ANSWER.items()
    assert answer.fields["connection"] == "keep-alive"
    if method != "HEAD":
        assert answer.text == '{\n  "status": "Healthy"\n}\n'


def test_each_answer_has_a_request_id_of_its_own(server: Server) -> None:
    """x-request-id tells requests apart."""
    first, second = (server.request("GET", "/ping").fields["x-request-id"] for _ in range(2))

    assert first != second


# Load, list, describe, unload


def test_a_model_loads_is_listed_described_and_unloaded(server: Server) -> None:
    """The platform's whole conversation about one model."""
    name = "9f2c1"
    assert server.load(name, MODELS / "noop-v1.0").json() == SCALED
    assert name in server.names()

    described = server.request("GET", f"/models/{name}").json()
    assert list(described) == [
        "modelName", "modelVersion", "modelUrl", "runtime", "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay",
        "loadedAtStartup", "workers",
    ]  # fmt: skip
    (worker,) = described["workers"]
    assert list(worker) == ["id", "startTime", "status", "gpu", "memoryUsage"]
    assert (worker["status"], worker["gpu"]) == ("READY", False)

    assert server.invoke(name).text == "OK"
    assert server.unload(name).text == f'{{\n  "status": "Model \\"{name}\\" unregistered"\n}}\n'
    assert name not in server.names()
    assert server.invoke(name).message == f"Model not found: {name}"


def test_the_same_parameters_come_as_json_or_in_the_query(server: Server) -> None:
    """POST /models takes query parameters as well."""
    target = f"/models?model_name=by-query&url={MODELS}/noop-v1.0&initial_workers=1&synchronous=true"
    answer = server.request("POST", target)

    assert answer.json() == SCALED
    server.unload("by-query")


def test_a_second_load_is_a_conflict(server: Server) -> None:
    """A name that is taken is 409, and the model goes on."""
    with server.loaded("twice", MODELS / "noop-v1.0") as invoke:
        answer = server.load("twice", MODELS / "noop-v1.0")

        assert (answer.status, answer.message) == (409, "Model twice is already registered.")
        assert answer.fields["connection"] == "close"
        assert invoke().status == 200


def test_a_second_unload_finds_nothing(server: Server) -> None:
    """What is unloaded is unknown."""
    with server.loaded("gone", MODELS / "noop-v1.0"):
        assert server.unload("gone").status == 200
        answer = server.unload("gone")

        assert (answer.status, answer.message) == (404, "Model not found: gone")


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        ({"model_name": "x"}, 400, "Parameter url is required."),
        ({"url": "/nowhere/x"}, 404, "Model not found in model store: /nowhere/x"),
        ({"url": "x/../y"}, 404, "Relative path is not allowed in url: x/../y"),
    ],
)
def test_a_load_that_cannot_be(server: Server, document: dict[str, str], status: int, message: str) -> None:
    """Wrong parameters are told by name."""
    answer = server.request("POST", "/models", json.dumps(document), Content_Type="application/json")

    assert (answer.status, answer.message) == (status, message)


def test_a_url_of_another_host_is_not_fetched(server: Server) -> None:
    """MMS alone fetches any address (SSRF); urls must lie under a model root."""
    answer = server.load("remote", "http://127.0.0.1:9/model.mar")

    assert answer.status == 400
    assert answer.message == "Model url is not under a model root: http://127.0.0.1:9/model.mar"


@pytest.mark.parametrize(("limit", "shown"), [("", 3), ("2", 2), ("-1", 3), ("101", 3), ("x", 3), ("3", 3)])
def test_the_list_is_sorted_and_paged(server: Server, limit: str, shown: int) -> None:
    """Pages by name; a limit that makes no sense is 100; a page that is just full still names a next one."""
    for name in ("c", "a", "b"):
        assert server.load(name, MODELS / "noop-v1.0", initial_workers=0).status == 200
    try:
        page = server.request("GET", f"/models?limit={limit}").json()

        assert [model["modelName"] for model in page["models"]] == ["a", "b", "c"][:shown]
        assert page.get("nextPageToken") == (limit if limit in ("2", "3") else None)
        if "nextPageToken" in page:
            rest = server.request("GET", f"/models?limit={limit}&next_page_token={page['nextPageToken']}").json()
            assert [model["modelName"] for model in rest["models"]] == ["a", "b", "c"][shown:]
            assert "nextPageToken" not in rest
    finally:
        for name in "abc":
            server.unload(name)


def test_a_limit_of_zero(server: Server) -> None:
    """MMS alone answers limit=0 with the same empty page for ever; it is taken as 100."""
    with server.loaded("one", MODELS / "noop-v1.0", initial_workers=1):
        page = server.request("GET", "/models?limit=0").json()

        assert page == {"models": [{"modelName": "one", "modelUrl": str(MODELS / "noop-v1.0")}]}


def test_an_asynchronous_load_is_accepted_at_once(server: Server) -> None:
    """synchronous=false answers 202; synchronous scaling afterwards waits for the worker."""
    answer = server.load("later", MODELS / "noop-v1.0", synchronous=False)
    assert (answer.status, answer.json()) == (202, {"status": "Processing worker updates..."})

    assert server.request("PUT", "/models/later?min_worker=1&synchronous=true").json() == SCALED
    assert server.invoke("later").text == "OK"
    server.unload("later")


def test_workers_are_scaled(server: Server) -> None:
    """initial_workers=0 registers without a worker; PUT makes some, and takes them away."""
    answer = server.load("scaled", MODELS / "noop-v1.0", initial_workers=0)
    assert answer.json() == {"status": 'Model "scaled" registered'}
    assert server.invoke("scaled").message == (
        "No worker is available to serve request for model: scaled. Consider increasing job queue size."
    )

    assert server.request("PUT", "/models/scaled?min_worker=2&synchronous=true").json() == SCALED
    assert len(server.request("GET", "/models/scaled").json()["workers"]) == 2
    assert server.invoke("scaled").text == "OK"

    answer = server.request("PUT", "/models/scaled?min_worker=3&max_worker=1")
    assert (answer.status, answer.message) == (400, "max_worker cannot be less than min_worker.")
    assert server.request("PUT", "/models/none?min_worker=1").message == "Model not found: none"

    assert server.request("PUT", "/models/scaled?min_worker=0&max_worker=0&synchronous=true").json() == SCALED
    assert server.invoke("scaled").status == 503
    server.unload("scaled")


# Names


@pytest.mark.parametrize(
    "name", ["a/b", "with space", "ünïcode-模型", "x" * 2000, "dots..", "q?x=1&y", "%2e%2e", '"quoted"']
)
def test_any_name_is_a_name(server: Server, name: str) -> None:
    """Names are opaque: what loads can be described, invoked and unloaded."""
    with server.loaded(name, MODELS / "noop-v1.0") as invoke:
        assert invoke().text == "OK"
        assert name in server.names()
    assert name not in server.names()


def test_handlers_and_errors_know_a_model_by_its_name(server: Server) -> None:
    """Whatever an engine calls it inside."""
    with server.loaded("a/b", MODELS / "echo", handler=f"{MODELS}/echo/service.py:handle") as invoke:
        assert invoke().json()["model_name"] == "a/b"
        assert server.request("GET", "/models/a%2Fb").json()["modelName"] == "a/b"
        assert server.request("PUT", "/models/a%2Fb?min_worker=0&synchronous=true").status == 200
        assert "request for model: a/b." in invoke().message
    assert invoke().message == "Model not found: a/b"


# Invoke


ROUTES = ["/models/{}/invoke", "/predictions/{}", "/invocations?model_name={}", "/{}/predict"]


@pytest.mark.parametrize("target", ROUTES)
def test_a_prediction_has_four_routes(server: Server, target: str) -> None:
    """The platform's route and MMS's own lead to the same handler."""
    with server.loaded("routed", MODELS / "noop-v1.0"):
        answer = server.request("POST", target.format("routed"), "x")

        assert (answer.status, answer.text, answer.fields["content-type"]) == (200, "OK", "text/plain")


def test_invocations_without_a_name(server: Server) -> None:
    """In multi-model mode /invocations must say which model."""
    answer = server.request("POST", "/invocations", "x")

    assert (answer.status, answer.message) == (400, "Parameter model_name is required.")


def test_the_request_reaches_the_handler(server: Server) -> None:
    """Body as bytes, the platform's headers, the context's properties, the model's folder as working directory."""
    with server.loaded("echo", MODELS / "echo") as invoke:
        answer = invoke(
            '{"a": 1}', "application/json", Accept="text/x", X_Amzn_SageMaker_Custom_Attributes="trace=7",
            X_Amzn_SageMaker_Target_Model="a/b.tar.gz", X_Unknown="kept",
        )  # fmt: skip
        told = answer.json()

        assert told["fields"] == {"body": '{"a": 1}'}
        assert told["body_type"] in ("bytes", "bytearray")
        headers = told["headers"]
        assert headers["content-type"] == told["content_type"] == "application/json"
        assert headers["accept"] == "text/x"
        assert headers["x-amzn-sagemaker-custom-attributes"] == "trace=7"
        assert headers["x-amzn-sagemaker-target-model"] == "a/b.tar.gz"
        assert headers["x-unknown"] == "kept"
        assert headers["body"] == {"content-type": "application/json"}
        assert told["request_id"] == answer.fields["x-request-id"]
        assert told["model_name"] == "echo"
        assert told["cwd"] == told["properties"]["model_dir"] == str(MODELS / "echo")
        assert told["properties"]["batch_size"] == 1
        assert told["properties"]["server_name"] == "MMS"
        assert told["manifest"]["model"]["modelVersion"] == "1.0"
        # A handler that sets no content type gets none.
        assert "content-type" not in answer.fields


def test_forms_and_queries_come_by_field(server: Server) -> None:
    """Form fields and query parameters stand beside the body, under their names."""
    with server.loaded("fields", MODELS / "echo") as invoke:
        form = invoke("a=1&b=2", "application/x-www-form-urlencoded").json()
        assert form["fields"] == {"a": "1", "b": "2"}

        query = server.request("POST", "/models/fields/invoke?q=7", "z", Content_Type="text/csv").json()
        assert query["fields"] == {"q": "7", "body": "z"}


def test_the_public_bring_your_own_style(server: Server) -> None:
    """A service in a module global that opens its files by their bare names, at load and at each call."""
    with server.loaded("byo", MODELS / "with-globals") as invoke:
        assert invoke().text == "good morning good morning"


def test_the_toolkits_handler_service_answers_unchanged(server: Server, tmp_path: Path) -> None:
    """A subclass of DefaultHandlerService, as AWS's framework containers have: its answers are its own, errors too."""
    (tmp_path / "service.py").write_text(
        "from sagemaker_inference.default_handler_service import DefaultHandlerService\n"
        "from sagemaker_inference.default_inference_handler import DefaultInferenceHandler\n"
        "from sagemaker_inference.transformer import Transformer\n"
        "class HandlerService(DefaultHandlerService):\n"
        "    class Doubling(DefaultInferenceHandler):\n"
        "        def default_model_fn(self, model_dir): return 2\n"
        "        def default_predict_fn(self, data, model): return data * model\n"
        "    def __init__(self): super().__init__(Transformer(self.Doubling()))\n",
    )
    with server.loaded("toolkit", tmp_path, handler="service") as invoke:
        answer = invoke("[1, 2]", "application/json", Accept="application/json")
        assert (answer.status, answer.text, answer.fields["content-type"]) == (200, "[2, 4]", "application/json")

        answer = invoke("x", "text/unknown")
        assert answer.status == 500
        assert "Traceback" in answer.text  # its doing, not ours


def test_requests_of_a_batch_are_handled_together(server: Server) -> None:
    """batch_size and max_batch_delay: four callers, one call of the handler."""
    batching = server.loaded("batch", MODELS / "echo", batch_size=4, max_batch_delay=60_000)
    with batching as invoke, ThreadPoolExecutor(4) as pool:
        told = [answer.json() for answer in pool.map(invoke, "abcd")]

        assert [one["batch"] for one in told] == [4] * 4
        assert [one["fields"]["body"] for one in told] == list("abcd")


def test_an_answer_that_sets_status_and_header(server: Server) -> None:
    """What a handler sets on its context is what the client sees."""
    with server.loaded("header", MODELS / "respheader-test") as invoke:
        answer = invoke()
        assert (answer.status, answer.fields["dummy"], answer.fields["content-type"]) == (200, "1", "text/plain")
    with server.loaded("status", MODELS / "error_batch") as invoke:
        answer = invoke()
        assert (answer.status, answer.text, answer.fields["connection"]) == (507, "Invalid response", "close")


# 507


def test_507_when_a_load_runs_out_of_memory(server: Server, tmp_path: Path) -> None:
    """507 is "not now": nothing stays registered, and the same call succeeds once there is room."""
    shutil.copytree(MODELS / "loading-memory-error", tmp_path / "model")
    short = (tmp_path / "model" / "service.py").read_text()
    for _ in range(2):
        answer = server.load("short", tmp_path / "model")
        assert (answer.status, answer.message) == (507, "for the test")
        assert answer.json()["type"] == "InternalServerException"
        assert server.invoke("short").status == server.unload("short").status == 404
        assert "short" not in server.names()

    (tmp_path / "model" / "service.py").write_text(re.sub("raise .*", "pass", short))
    with server.loaded("short", tmp_path / "model"):
        assert "short" in server.names()


def test_507_when_a_prediction_runs_out_of_memory(server: Server) -> None:
    """The model stays loaded."""
    with server.loaded("short", MODELS / "prediction-memory-error") as invoke:
        answer = invoke()

        assert (answer.status, answer.message) == (507, "Out of resources")
        assert invoke().status == 507


# Documents


def operations(document: dict[str, Any]) -> set[str]:
    """`METHOD path operationId` of all operations."""
    return {
        f"{method.upper()} {path} {operation['operationId']}"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_the_api_is_described(server: Server) -> None:
    """OPTIONS / and /api-description are OpenAPI with MMS's paths and operation ids."""
    capture = Path(__file__).parent / "exchanges" / "one-port.txt"
    (captured,) = (exchange for exchange in read_exchanges(capture) if exchange.method == "OPTIONS")
    for method, target in (("OPTIONS", "/"), ("GET", "/api-description")):
        document = server.request(method, target).json()

        assert document["openapi"] == "3.0.1"
        assert operations(document) >= operations(json.loads(captured.body))


def test_a_models_api_is_described(server: Server) -> None:
    """OPTIONS /predictions/X; an unknown model is 404."""
    with server.loaded("described", MODELS / "noop-v1.0"):
        document = server.request("OPTIONS", "/predictions/described").json()
        assert operations(document) == {"POST /prediction/described described"}
    assert server.request("OPTIONS", "/predictions/described").message == "Model not found: described"


def test_execution_parameters(server: Server) -> None:
    """Batch transform asks for them; MMS alone does not know the route."""
    answer = server.request("GET", "/execution-parameters")

    assert answer.status == 200
    assert list(answer.json()) == ["MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"]


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("GET", "/", 405), ("GET", "/nope", 404), ("DELETE", "/predictions", 404), ("PUT", "/models", 405)],
)
def test_unknown_routes(server: Server, method: str, target: str, status: int) -> None:
    """What does not exist is said so in MMS's JSON, and the connection is closed."""
    answer = server.request(method, target)

    assert answer.status == status
    assert "please refer to API document." in answer.message
    assert answer.fields["connection"] == "close"


# Archives


def test_a_mar_archive_is_unpacked(server: Server, tmp_path: Path) -> None:
    """A .mar is a zip with a manifest."""
    with zipfile.ZipFile(tmp_path / "noop.mar", "w") as archive:
        for path in sorted((MODELS / "noop-v1.0").rglob("*")):
            archive.write(path, path.relative_to(MODELS / "noop-v1.0"))
    with server.loaded("mar", tmp_path / "noop.mar") as invoke:
        assert invoke().text == "OK"


def test_handlers_are_named_in_every_way(server: Server) -> None:
    """The handler of a request wins over the default: module:function, and /abs/file.py:function."""
    for handler in ("service:handle", f"{MODELS}/echo/service.py:handle"):
        with server.loaded("handled", MODELS / "with-globals", handler=handler) as invoke:
            assert invoke().status == 200


def test_a_container_is_called_by_any_name(server: Server) -> None:
    """SageMaker, Compose and proxies have names of their own for it."""
    answer = server.request("GET", "/models", Host="any.example", Origin="http://other.example")
    assert answer.status == 200


DAEMON = """
import os, time

def model_fn(model_dir):
    return model_dir

def transform_fn(model, body, content_type, accept):
    if body in ("leave", b"leave"):
        os._exit(3)
    middle = os.fork()
    if middle == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        with open(model + "/pid", "w") as file:
            file.write(str(pid))
        os._exit(0)
    os.waitpid(middle, 0)
    return open(model + "/pid").read(), "text/plain"
"""


@pytest.mark.parametrize("ends_by", ["its unload", "its worker's end"])
def test_what_a_model_has_started_ends_with_it(server: Server, tmp_path: Path, ends_by: str) -> None:
    """And not before: while its worker lives, a daemon stays."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(DAEMON)
    with server.loaded("starts", tmp_path, initial_workers=1, response_timeout=60) as invoke:
        daemon = psutil.Process(int(invoke("", "text/plain").text))
        with pytest.raises(psutil.TimeoutExpired):
            daemon.wait(1.5)
        if ends_by == "its worker's end":
            invoke("leave", "text/plain")
            assert gone([daemon])
    assert gone([daemon])
