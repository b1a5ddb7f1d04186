"""A policy is asked about the model that is served: both read a path and a query alike."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhost.api.container import ContainerApi
from polyhost.api.http import App, Reply, Request
from polyhost.api.routes import ANY, Guard, Ports, Route, Routes
from polyhost.engine.errors import BadRequest, ModelNotFound
from polyhost.engine.protocol import Item, Stream, WhenDone, answer_of
from polyhost.readiness import Readiness

PIECES = st.sampled_from([
    "a", "b", "models", "invoke", "predictions", "predict", "invocations", "ping", "%2F", "%61", "", "%", "..", "ä",
    "%ff",
])  # fmt: skip
PATHS = st.lists(PIECES, max_size=5).map(lambda pieces: "/" + "/".join(pieces))
QUERIES = st.lists(
    st.sampled_from(["model_name=a", "model_name=b", "model_name=", "model%5Fname=c", "x=1", ";", ""])
).map("&".join)


class NamingEngine:
    """No model is there; `asked` are the names that were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def invoke(self, name: str, item: Item, done: WhenDone, _: Stream) -> None:
        self.asked.append(name)
        done(ModelNotFound(name))

    async def describe(self, name: str) -> Any:
        self.asked.append(name)
        raise ModelNotFound(name)

    async def unload(self, name: str) -> None:
        self.asked.append(name)

    async def scale(self, name: str, *_: object) -> str:
        self.asked.append(name)
        return ""

    def names(self) -> list[str]:
        return []


async def reply_to(api: App, request: Request) -> Reply:
    return await answer_of(lambda done: api.answer(request, done))


def container_of(engine: Any, ports: Ports = Ports.BOTH) -> ContainerApi:
    metrics: Any = SimpleNamespace()
    return ContainerApi(
        engine, metrics, max_request_bytes=100, single_model=None, workers=1, readiness=Readiness(), ports=ports
    )


def served(request: Request) -> list[str]:
    engine: Any = NamingEngine()
    asyncio.run(reply_to(container_of(engine), request))
    return engine.asked


def allowed(request: Request) -> str:
    """The model that a policy is asked for; "" if no policy could allow the request."""
    route, name = container_of(NamingEngine()).routes.find(request) or (None, "")
    if route is None or route.guard is not Guard.POLICY:
        return ""
    try:
        return route.model(request, name)
    except BadRequest:
        return ""


@given(st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]), PATHS, QUERIES)
def test_the_model_that_a_policy_allows_is_the_model_that_is_served(method: str, path: str, query: str) -> None:
    request = Request(method, path, query, {}, b"")

    assert {*served(request)} <= {allowed(request)}


@pytest.mark.parametrize(
    ("method", "target", "name"),
    [
        ("POST", "/models/a/invoke", "a"),
        ("POST", "/models/a/invoke/", "a"),
        ("POST", "/models/a%2Fb/invoke", "a/b"),
        ("POST", "/predictions/a", "a"),
        ("POST", "/predictions/a/1.0", "a"),
        ("OPTIONS", "/predictions/a/1.0", "a"),
        ("POST", "/a/predict//", "a"),
        ("POST", "/invocations?model_name=a&model_name=b", "a"),
        ("GET", "/models/a/", "a"),
        ("DELETE", "/models/a/", "a"),
        ("PUT", "/models/a", "a"),
    ],
)
def test_routes(method: str, target: str, name: str) -> None:
    """Slashes at the end, versions, and which of two parameters counts are as the real MMS has them."""
    path, _, query = target.partition("?")
    request = Request(method, path, query, {}, b"")

    assert served(request) == [name]
    assert allowed(request) == name


# The table


@pytest.mark.parametrize(
    ("pattern", "path", "name"),
    [
        ("/", "/", ""),
        ("/a", "/a", ""),
        ("/a", "/b", None),
        ("/a", "/a/", None),
        ("/a", "/", None),
        ("/a/{name}/c", "/a/b/c", "b"),
        ("/a/{name}/c", "/a//c", ""),
        ("/a/{name}/c", "/a/b/d", None),
        ("/a/{name}/c", "/a/b/b/c", None),
        ("/{name}/c", "/a/c", "a"),
        ("/{name}/c", "/a", None),
        ("/a/{name}/...", "/a/b", "b"),
        ("/a/{name}/...", "/a/b/c/d", "b"),
        ("/a/{name}/...", "/a", None),
        ("/a/{name...}/c", "/a/b/c", "b"),
        ("/a/{name...}/c", "/a/b/b/c", "b/b"),
        ("/a/{name...}/c", "/a/c", ""),
        ("/a/{name...}/c", "/a", None),
        ("/a/{name...}/c", "/a/b", None),
        ("/a/{name...}/c", "/a/b/c/", None),
    ],
)
def test_patterns(pattern: str, path: str, name: str | None) -> None:
    route = Route(methods=ANY, path=pattern, guard=Guard.NOBODY)
    found = Routes([route], lambda path: path.split("/")[1:]).find(Request("GET", path, "", {}, b""))
    assert (found[1] if found else None) == name


def test_the_first_route_that_fits_is_the_request_s() -> None:
    """Its method counts, and what else must be true; those that begin with a name keep their place among the others."""

    def route(methods: tuple[str, ...], path: str, **more: Any) -> Route:
        return Route(methods=methods, path=path, guard=Guard.NOBODY, **more)

    listed = [
        route(("GET",), "/a/b"),
        route(("POST",), "/a/b", when=lambda request: request.query == "yes"),
        route(("PUT",), "/{name}/b"),
        route(ANY, "/a/b"),
        route(ANY, "/{name}/b"),
    ]
    routes = Routes(listed, lambda path: path.split("/")[1:])

    def place(method: str, path: str, query: str = "") -> int | None:
        found = routes.find(Request(method, path, query, {}, b""))
        return None if found is None else listed.index(found[0])

    asked = [
        ("GET", "/a/b"),
        ("POST", "/a/b", "yes"),
        ("PUT", "/a/b"),
        ("POST", "/a/b"),
        ("GET", "/c/b"),
        ("GET", "/a"),
    ]
    assert [place(*one) for one in asked] == [0, 1, 2, 3, 4, None]
    assert place("GET", "*") is None


@pytest.mark.parametrize(
    ("method", "path", "ports"),
    [
        ("POST", "/models/a/invoke", Ports.PREDICTIONS),
        ("POST", "/predictions/a", Ports.PREDICTIONS),
        ("POST", "/invocations", Ports.PREDICTIONS),
        ("GET", "/ping", Ports.PREDICTIONS),
        ("GET", "/metrics", Ports.PREDICTIONS),
        ("GET", "/models", Ports.MANAGEMENT),
        ("PATCH", "/models", Ports.MANAGEMENT),
        ("DELETE", "/models/a", Ports.MANAGEMENT),
        ("GET", "/api-description", Ports.BOTH),
        ("OPTIONS", "/", Ports.BOTH),
    ],
)
def test_the_part_of_mms_s_api_that_a_route_belongs_to(method: str, path: str, ports: Ports) -> None:
    for one in (Ports.PREDICTIONS, Ports.MANAGEMENT):
        found = container_of(NamingEngine(), one).routes.find(Request(method, path, "", {}, b""))
        assert (found is not None) is bool(one & ports)


def test_each_address_describes_what_it_serves() -> None:
    async def described(ports: Ports) -> set[str]:
        reply = await reply_to(container_of(NamingEngine(), ports), Request("GET", "/api-description", "", {}, b""))
        return set(json.loads(reply.body)["paths"])

    predictions, management, both = (asyncio.run(described(ports)) for ports in (*Ports, Ports.BOTH))
    assert "/models/{model_name}/invoke" in predictions - management
    assert "/models/{model_name}" in management - predictions
    assert both == predictions | management
    listed = {route.path.removesuffix("/...") for route in container_of(NamingEngine()).routes}
    assert listed - both == {"/metrics", "/ready"}


def test_what_is_no_row_is_no_fronts_to_answer() -> None:
    """A tensor's request is asked of the model, but it is not what the model is sent."""
    container = container_of(NamingEngine())
    for path, name in (("/models/a/invoke", "a"), ("/v2/models/a/infer", None)):
        request = Request("POST", path, "", {}, b"")
        found = container.routes.find(request)
        assert found is not None
        assert container.predicting(found, request) == name
