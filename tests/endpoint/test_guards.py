"""Each route of a server with access control: nothing is done before its guard was asked."""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from conftest import ROOT
from polyhost.api.container import ContainerApi
from polyhost.api.endpoint import EndpointApi
from polyhost.api.http import Reply, Request
from polyhost.api.routes import Guard, Route
from polyhost.config import Config
from polyhost.endpoint_server import EndpointHalf, endpoint_half
from polyhost.engine.protocol import Answer, Item, WhenDone, answer_of
from polyhost.limits import Limits
from polyhost.metrics import Metrics
from polyhost.plan import Plan
from polyhost.readiness import Readiness
from support.principals import ANNA, BERT, METRICS_TOKEN, House, document, policy
from support.signing import signed

HERE = "http://127.0.0.1:8080"
ANNAS_KEY, BERTS_KEY = "phk_of-anna", "phk_of-bert"
ROLE = "arn:aws:iam::123456789012:role/annas"
CONTAINER = "polyhost/AllTraffic/0"
REFUSED = re.compile(
    "Missing ?Authentication ?Token|Unrecognized|There is no user|Log in|not authorized", re.IGNORECASE
)
NOBODY = {"key": "AKIANOBODY0000000000", "secret": "any"}
OWN_PAGE = {"x-polyhost-dashboard": "1"}


class Example(NamedTuple):
    """What makes a good request of a route, beside its method and path."""

    query: str = ""
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


def form(**fields: object) -> Example:
    return Example(headers=OWN_PAGE, body=json.dumps(fields).encode())


def tensors() -> Example:
    return Example(body=b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}')


EXAMPLES = {
    ("/models", "polyhost:RegisterModel"): Example("url=/nowhere&model_name=a"),
    ("/invocations", "polyhost:InvokeModel"): Example("model_name=a"),
    ("/endpoints/{endpoint_name...}/invocations", "sagemaker:InvokeEndpoint"): Example(
        headers={"x-amzn-sagemaker-target-model": "a.tar.gz"}
    ),
    (
        "/endpoints/{endpoint_name...}/invocations-response-stream",
        "sagemaker:InvokeEndpointWithResponseStream",
    ): Example(headers={"x-amzn-sagemaker-target-model": "a.tar.gz"}),
    ("/endpoints/{endpoint_name...}/async-invocations", "sagemaker:InvokeEndpointAsync"): Example(
        headers={"x-amzn-sagemaker-inputlocation": "s3://bucket/input"}
    ),
    ("/invocations", "sagemaker:InvokeEndpoint"): Example(headers={"x-amzn-sagemaker-target-model": "a.tar.gz"}),
    ("/v2/models/{model_name...}/infer", "sagemaker:InvokeEndpoint"): tensors(),
    ("/v2/models/{model_name...}/versions/{version}/infer", "sagemaker:InvokeEndpoint"): tensors(),
    ("/", "sagemaker:*"): Example(headers={"x-amz-target": "SageMaker.DeleteModel"}, body=b'{"ModelName": "a"}'),
    ("/", "sts:AssumeRole"): Example(
        body=f"Action=AssumeRole&Version=2011-06-15&RoleArn={ROLE}&RoleSessionName=tuesday".encode()
    ),
    ("/", "cloudwatch:*"): Example(headers={"x-amz-target": "GraniteServiceVersion20100801.ListMetrics"}),
    ("/dashboard/load", "polyhost:LoadModel"): form(container=CONTAINER, target="a.tar.gz"),
    ("/dashboard/unload", "polyhost:UnloadModel"): form(container=CONTAINER, target="a.tar.gz"),
    ("/dashboard/pin", "polyhost:PinModel"): form(container=CONTAINER, target="a.tar.gz", is_pinned=True),
    ("/dashboard/refresh", "polyhost:Refresh"): form(container=CONTAINER),
    ("/dashboard/invoke", "sagemaker:InvokeEndpoint"): form(container=CONTAINER, target="a.tar.gz", body=""),
}
# The only ones that nobody guards: liveness, what the page is made of, leaving it, and a refusal.
FOR_EVERYBODY = {
    "/v2/health/live",
    "/v2/health/ready",
    "/ping",
    "/ready",
    "/",
    "/dashboard/*",
    "/dashboard/logout",
    "/endpoints/{operation}/...",
}


class Reached:
    """What of the server a request has reached: names of an engine's, a cache's and the control plane's verbs."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def awaited(self, name: str, result: object) -> Any:
        async def reach(*_: object, **__: object) -> object:
            self.names.append(name)
            return result

        return reach

    def at_once(self, name: str, result: object) -> Any:
        def reach(*_: object, **__: object) -> object:
            self.names.append(name)
            return result

        return reach


class Engine:
    budget_bytes = 1_000_000

    def __init__(self, reached: Reached) -> None:
        self._reached = reached
        self.load = reached.awaited("load", "loaded")
        self.unload = reached.awaited("unload", None)
        self.scale = reached.awaited("scale", "scaled")
        self.describe = reached.awaited("describe", {})
        self.names = reached.at_once("names", [])
        self.prepare = Reached().awaited("prepare", None)  # for the endpoint, which is being deployed meanwhile
        self.used_bytes = lambda: 0

    def invoke(self, _: str, __: Item, done: WhenDone, ___: object = None) -> None:
        self._reached.names.append("invoke")
        done(Answer(200, {}, b""))


class Server:
    """The applications of a server with the file of principals; what they would do is only written down."""

    def __init__(self, folder: Path) -> None:
        content = document()
        content["users"][0]["policies"] = [policy()]
        content["users"][0]["api_keys"] = ["sha256:" + hashlib.sha256(ANNAS_KEY.encode()).hexdigest()]
        content["users"][1]["api_keys"] = ["sha256:" + hashlib.sha256(BERTS_KEY.encode()).hexdigest()]
        principals = House(folder, content)
        (folder / "models").mkdir()
        config = Config(
            auth="sigv4", auth_file=principals.file, models=f"{folder}/models/", state_dir=folder / "state",
            cache_dir=folder / "cache",
        )  # fmt: skip
        self.reached = Reached()
        engine: Any = Engine(self.reached)
        plan = Plan(config=config, environ={}, limits=Limits.of_platform(config, {"SAGEMAKER_MULTI_MODEL": "true"}))
        metrics = Metrics()
        half = endpoint_half(plan, {}, engine, metrics, write_line=lambda _line: None)
        self._loop = asyncio.new_event_loop()
        self._hosting = half.hosting
        self._loop.run_until_complete(half.hosting.start())
        self._watch(half)
        container = ContainerApi(
            engine, metrics, max_request_bytes=1_000_000, single_model=None, workers=1, readiness=Readiness(),
            has_endpoint=True,
        )  # fmt: skip
        self.app: EndpointApi = half.app(container)
        self.routes = [*self.app.routes, *container.routes]

    def _watch(self, half: EndpointHalf) -> None:
        def invoke(*arguments: Any) -> None:
            self.reached.names.append("call")
            arguments[-1](Answer(200, {}, b""))

        cache: Any = half.cache
        cache.invoke = invoke
        for name in ("load", "unload", "refresh", "require"):
            setattr(cache, name, self.reached.awaited(name, None))
        cache.pin = self.reached.at_once("pin", None)
        artifacts: Any = half.artifacts
        artifacts.list = self.reached.awaited("list", {})
        hosting: Any = half.hosting
        hosting.call = self.reached.awaited("hosting", {})
        monitoring: Any = half.monitoring
        monitoring.call = self.reached.awaited("monitoring", {})

    def ask(self, request: Request) -> tuple[Reply, list[str]]:
        """The reply, and what was reached for it."""
        self.reached.names.clear()

        async def reply() -> Reply:
            return await answer_of(lambda done: self.app.answer(request, done))

        return self._loop.run_until_complete(reply()), list(self.reached.names)

    def stop(self) -> None:
        self._loop.run_until_complete(self._hosting.stop())
        self._loop.close()


def text_of(reply: Reply) -> str:
    """What a reply says; the dashboard passes on what an invocation would be answered."""
    text = reply.body.decode()
    if text.startswith('{"status":'):
        return base64.b64decode(json.loads(text)["body"]).decode()
    return text


def request_of(route: Route, who: dict[str, str] | None = None, **headers: str) -> Request:
    """A good request for a route; signed, if it is somebody's."""
    example = EXAMPLES.get((route.path, route.action), Example())
    if route.path == "/dashboard/login":
        user = who or NOBODY
        example = form(access_key_id=user.get("key", ""), secret_access_key=user.get("secret") or user["api_key"])
    method = route.methods[0] if route.methods else "PATCH"  # which no route names
    path = route.path.replace("{version}", "1").replace("{model_name...}", "polyhost/a.tar.gz")
    path = re.sub(r"/\.\.\.", "/1", re.sub(r"{\w+(\.\.\.)?}", "polyhost", path))
    sent = {**example.headers, **headers, "host": "127.0.0.1:8080"}
    if who is None:
        return Request(method, path, example.query, sent, example.body)
    if "api_key" in who:
        sent["authorization"] = f"Bearer {who['api_key']}"
        return Request(method, path, example.query, sent, example.body)
    service = {"sts": "sts", "cloudwatch": "monitoring"}.get(route.action.partition(":")[0], "sagemaker")
    url = f"{HERE}{path}{'?' if example.query else ''}{example.query}"
    return Request(*signed(url, method=method, headers=example.headers, body=example.body, service=service, **who))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("guards"))
    yield server
    server.stop()


def rows(server: Server, *guards: Guard) -> Iterator[Route]:
    return (route for route in server.routes if route.guard in guards)


def test_a_request_that_is_made_for_a_route_finds_it(server: Server) -> None:
    """So that what follows here is about all of them."""
    for route in server.routes:
        request = request_of(route)
        found = server.app.routes.find(request) or server.app.container.routes.find(request)
        assert found is not None, route
        assert found[0] is route, (found[0].path, route.path)


def test_nothing_is_done_for_who_says_not_who_he_is(server: Server) -> None:
    for route in rows(server, Guard.POLICY, Guard.HANDLER):
        reply, reached = server.ask(request_of(route))
        assert REFUSED.search(text_of(reply)), (route.path, reply)
        assert reached == [], route.path


def test_nothing_is_done_for_whoever_brings_a_wrong_api_key(server: Server) -> None:
    for route in rows(server, Guard.POLICY, Guard.HANDLER):
        reply, reached = server.ask(request_of(route, {"api_key": "phk_of-nobody"}))
        assert "The security token included in the request is invalid." in text_of(reply), route.path
        assert reply.status == server.ask(request_of(route, NOBODY))[0].status, route.path
        assert reached == [], route.path


@pytest.mark.parametrize("who", [BERT, {"api_key": BERTS_KEY}], ids=["signature", "api-key"])
def test_nothing_is_done_for_whom_no_policy_allows_it(server: Server, who: dict[str, str]) -> None:
    """The refusal names the action of the table."""
    for route in rows(server, Guard.POLICY, Guard.HANDLER):
        reply, reached = server.ask(request_of(route, who))
        found = re.search(r"not authorized to perform: (\S+)", text_of(reply))
        assert (found is not None, reached) == (True, []), (route.path, reply)
        assert found is not None
        assert fnmatch.fnmatchcase(found[1], route.action), route.path


@pytest.mark.parametrize("who", [ANNA, {"api_key": ANNAS_KEY}], ids=["signature", "api-key"])
def test_all_is_done_for_whom_a_policy_allows_it(server: Server, who: dict[str, str]) -> None:
    """The same requests: what refused them was the policy. Most reach what they are for."""
    silent = set()
    for route in rows(server, Guard.POLICY, Guard.HANDLER):
        reply, reached = server.ask(request_of(route, who))
        assert not REFUSED.search(text_of(reply)), (route.path, reply)
        if not reached and route.path != "/dashboard/models":  # what was listed a moment ago is not listed again
            silent.add((route.path, route.action))
    # These tell of the server, refuse a method, open a session, or are no endpoint's here.
    assert silent == {
        ("/endpoints/{endpoint_name...}/async-invocations", "sagemaker:InvokeEndpointAsync"),
        ("/", "sts:AssumeRole"), ("/dashboard/state", "polyhost:ViewDashboard"),
        ("/dashboard/login", "polyhost:ViewDashboard"), ("/models", "polyhost:ListModels"),
        ("/models/{model_name}", "polyhost:DescribeModel"), ("/execution-parameters", "polyhost:DescribeServer"),
        ("/api-description", "polyhost:DescribeServer"), ("/", "polyhost:DescribeServer"),
        ("/v2", "polyhost:DescribeServer"), ("/v2/repository/index", "polyhost:ListModels"),
    }  # fmt: skip


def test_a_token_opens_what_it_is_for(server: Server) -> None:
    for route in rows(server, Guard.TOKEN):
        assert server.ask(request_of(route))[0].status == 403
        assert server.ask(request_of(route, authorization="Bearer another"))[0].status == 403
        assert server.ask(request_of(route, authorization=f"Bearer {METRICS_TOKEN}"))[0].status == 200
    assert [route.path for route in rows(server, Guard.TOKEN)] == ["/metrics"]


def test_what_nobody_guards_reaches_nothing(server: Server) -> None:
    assets = {path for path in (route.path for route in rows(server, Guard.NOBODY)) if "." in path.rpartition("/")[2]}
    open_paths = {route.path for route in rows(server, Guard.NOBODY)}
    assert {"/dashboard/*" if re.fullmatch(r"/dashboard/\w+\.\w+", path) else path for path in open_paths} == (
        FOR_EVERYBODY
    ), assets
    for route in rows(server, Guard.NOBODY):
        assert server.ask(request_of(route))[1] == [], route.path


@pytest.mark.parametrize("path", ["/nowhere", "/models/a/b/c", "/dashboard/state/", "/endpoints", "/refresh/"])
def test_what_is_no_route_is_for_nobody(server: Server, path: str) -> None:
    reply, reached = server.ask(Request("POST", path, "", {}, b""))
    assert (reply.status, reached) == (403, [])
    assert f"No caller may call {path}, because there is no such path." in reply.body.decode()


def test_the_documents_name_each_action(server: Server) -> None:
    told = (ROOT / "docs" / "security.md").read_text()
    missing = {route.action for route in server.routes if f"`{route.action}`" not in told} - {"", "sagemaker:*"}
    assert missing == set()
