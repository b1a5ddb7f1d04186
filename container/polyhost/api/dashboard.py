"""
The dashboard: a page for browsers, what it asks every second, and what its buttons do.

    GET /                          the page; its files at /dashboard/FILE
    GET /dashboard/state           numbers, charts, events
    GET /dashboard/models          a container's models, searched and sorted, some at a time
    POST /dashboard/load, unload, pin, refresh, invoke
    POST /dashboard/login, logout

What the page itself is made of holds no secrets and is open. With access control the rest asks for a login, or a
signature; each action is authorized as such. No other site can have a browser do any of this: actions need a header
that forms cannot send and an origin that is ours, and the cookie of a login is not sent with other sites' requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import parse_qs

import msgspec

from polyhost import __version__
from polyhost.api.assets import SAFE, assets
from polyhost.api.http import Headers, Reply, Request, rendered
from polyhost.api.logins import Logins, name_of
from polyhost.api.origins import Origins, why_foreign
from polyhost.api.routes import Guard, Route
from polyhost.api.runtime import INVOKE, RuntimeApi, error_reply
from polyhost.api.signals import Signals
from polyhost.artifacts import Artifacts, check_key
from polyhost.endpoint.access import Access, Caller
from polyhost.endpoint.arns import Arns
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.definitions import Endpoint, Variant
from polyhost.endpoint.events import Publisher
from polyhost.endpoint.hosting import Hosting
from polyhost.endpoint.inventory import Inventory, Place, Query, Sort, Status
from polyhost.endpoint.measures import Measures, Recent
from polyhost.endpoint.traffic import Traffic
from polyhost.engine.errors import EngineError
from polyhost.engine.protocol import Engine, answer_of
from polyhost.service_errors import (
    AccessDenied,
    BodyTooLarge,
    EndpointError,
    ValidationError,
)

logger = logging.getLogger("polyhost.dashboard")

_JSON: Headers = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"), *SAFE)
_OWN_HEADER = "x-polyhost-dashboard"
_MOST_ROWS = 200
_LONGEST_SEARCH = 200
_FRESH_SECS = 0.5
# Measuring may take a hundredth of the time.
_SHARE = 100
_T = TypeVar("_T")
_D = TypeVar("_D", bound=msgspec.Struct)


class _EngineFailed(EndpointError):
    def __init__(self, error: EngineError) -> None:
        super().__init__(error.message)
        self.status, self.type = error.status, error.type


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class _OfModel(_Strict):
    """`container`: its id in the state."""

    container: str
    target: str


class _Pin(_OfModel):
    is_pinned: bool


class _Refresh(_Strict):
    """`after`: list what comes behind this name."""

    container: str
    after: str = ""


class _Invoke(_Strict):
    """`body` in base64."""

    container: str
    body: bytes
    target: str = ""
    content_type: str = ""
    accept: str = ""


class _LogIn(_Strict):
    access_key_id: str
    secret_access_key: str


class _Asked(_Strict):
    """For a container's models; None: the first container. `held`: see `Inventory.page`."""

    container: str | None = None
    search: str = ""
    status: Status | None = None
    sort: Sort = "status"
    is_descending: bool = False
    offset: int = 0
    limit: int = 50
    held: int = 0


class _Chosen(NamedTuple):
    """What a container's id stands for."""

    endpoint: Endpoint
    place: Place


class DashboardApi:
    def __init__(
        self,
        *,
        engine: Engine,
        artifacts: Artifacts,
        cache: ModelCache,
        hosting: Hosting,
        traffic: Traffic,
        events: Publisher,
        measures: Measures,
        access: Access | None,
        arns: Arns,
        origins: Origins,
        signals: Signals,
    ) -> None:
        """`access`: None where everybody may do everything."""
        self._engine = engine
        self._artifacts = artifacts
        self._cache = cache
        self._hosting = hosting
        self._traffic = traffic
        self._events = events
        self._measures = measures
        self._logins = Logins(access)
        self._origins = origins
        self._arns = arns
        self._signals = signals
        self._inventory = Inventory(artifacts, measures)
        self._inventory.subscribe_to(events)
        self._server = {
            # Another one after a restart: what the page has drawn is then of another life.
            "id": secrets.token_hex(8),
            "name": signals.name,
            "version": __version__,
            "started_secs": time.time(),
            "region": arns.region,
            "is_locked": self._logins.is_locked,
        }
        # What all viewers see.
        self._state = _Rarely(self._find_state)
        self._used_bytes = _Rarely(engine.used_bytes)
        self._endpoints: Sequence[Endpoint] = ()
        self._endpoints_version = 0
        self._assets = assets()
        self._gets: dict[str, Callable[[Request, Caller | None], Awaitable[object]]] = {
            "/dashboard/state": self._get_state,
            "/dashboard/models": self._get_models,
        }
        self._actions: dict[str, tuple[str, Callable[[Request, Caller | None, str], Awaitable[object]]]] = {
            "/dashboard/load": ("polyhost:LoadModel", self._load),
            "/dashboard/unload": ("polyhost:UnloadModel", self._unload),
            "/dashboard/pin": ("polyhost:PinModel", self._pin),
            "/dashboard/refresh": ("polyhost:Refresh", self._refresh),
            "/dashboard/invoke": (INVOKE, self._invoke),
        }

    def routes(self, max_request_bytes: int) -> tuple[Route, ...]:
        """All else below /dashboard is MMS's: a model may have that name."""
        route = functools.partial(
            Route, too_large=lambda _, __, request_id: error_reply(BodyTooLarge(max_request_bytes), request_id)
        )
        look = functools.partial(route, methods=("GET", "HEAD"))
        act = functools.partial(route, methods=("POST",), guard=Guard.HANDLER)
        view = "polyhost:ViewDashboard"
        return (
            *(
                look(path=path, guard=Guard.NOBODY, is_for_any_page=True, answer=self._answer_asset)
                for path in self._assets
            ),
            *(
                look(path=path, guard=Guard.HANDLER, action=view, is_counted=False, answer=self._answer_get)
                for path in self._gets
            ),
            *(act(path=path, action=action, answer=self._act) for path, (action, _) in self._actions.items()),
            act(path="/dashboard/login", action=view, answer=self._answer_login),
            route(methods=("POST",), path="/dashboard/logout", guard=Guard.NOBODY, answer=self._answer_logout),
        )

    async def _answer_asset(self, request: Request, _: str, __: str) -> Reply:
        return self._assets[request.path].reply(request)

    async def _answer_get(self, request: Request, _: str, __: str) -> Reply:
        caller = await self._logins.caller(request)
        self._logins.authorize(caller, "polyhost:ViewDashboard")
        return _json(await self._gets[request.path](request, caller))

    async def _act(self, request: Request, _: str, request_id: str) -> Reply:
        _require_own_page(request, self._origins)
        _, act = self._actions[request.path]
        return _json(await act(request, await self._logins.caller(request), request_id))

    async def _answer_login(self, request: Request, _: str, __: str) -> Reply:
        _require_own_page(request, self._origins)
        self._logins.require_locked()
        asked = _document(request, _LogIn)
        caller, cookie = await self._logins.log_in(asked.access_key_id, asked.secret_access_key)
        return _json({"user": name_of(caller)}, cookie)

    async def _answer_logout(self, request: Request, _: str, __: str) -> Reply:
        _require_own_page(request, self._origins)
        return _json({}, self._logins.logged_out())

    def _authorize_for_model(self, caller: Caller | None, action: str, asked: _OfModel) -> Place:
        """Where the model is. Raises AccessDenied, ValidationError."""
        check_key(asked.target)  # `a/../b` is below `a/` for a policy only
        endpoint, place = self._chosen(asked.container)
        only = place.shelf.only_target
        if only and asked.target != only:
            raise ValidationError(f"This container has one model, {only}.")
        context = {"sagemaker:TargetModel": asked.target, "sagemaker:TargetVariant": place.variant}
        self._logins.authorize(caller, action, endpoint.arn, context)
        logger.info("%s: %s %s", caller.arn if caller else "anybody", action, json.dumps(asked.target))
        return place

    # What there is

    async def _get_state(self, request: Request, caller: Caller | None) -> object:
        """
        All seconds later than `after`, all events from number `event` on; the containers unless their version is known.
        """
        query = parse_qs(request.query)
        after, event, endpoints = (_number(query, name, -1) for name in ("after", "event", "endpoints"))
        common = self._state()
        version = self._version_of_endpoints()
        unseen = max(0, common["events_ever"] - event) if event >= 0 else len(common["events"])
        state = {
            **common,
            "events": common["events"][-unseen:] if unseen else [],
            "seconds": [[moment, *_numbers(second)] for moment, second in self._measures.history(after)],
            "user": name_of(caller) if caller else None,
            "endpoints_version": version,
        }
        if endpoints != version:
            state["containers"] = [_described(*one) for one in _containers(self._endpoints)]
        return state

    def _find_state(self) -> dict[str, Any]:
        snapshot = self._measures.snapshot()
        on_disk = len(self._artifacts.on_disk())
        return {
            "server": {**self._server, "now_secs": time.time()},
            "memory": _room(self._used_bytes(), self._engine.budget_bytes, self._cache.resident_count),
            "disk": _room(self._artifacts.used_bytes, self._artifacts.budget_bytes, on_disk),
            "totals": dataclasses.asdict(snapshot.totals),
            "minute": _numbers(snapshot.minute),
            "moment": snapshot.moment,
            "events": snapshot.events,
            "events_ever": snapshot.events_ever,
        }

    def _version_of_endpoints(self) -> int:
        endpoints = self._hosting.endpoints()
        if len(endpoints) != len(self._endpoints) or any(
            now is not before for now, before in zip(endpoints, self._endpoints, strict=True)
        ):
            self._endpoints = endpoints
            self._endpoints_version += 1
        return self._endpoints_version

    async def _get_models(self, request: Request, _: Caller | None) -> object:
        fields = {name: values[-1] for name, values in parse_qs(request.query).items()}
        try:
            asked = msgspec.convert(fields, _Asked, strict=False)
        except msgspec.ValidationError as error:
            raise ValidationError(f"The query for the list of models is not valid: {error}.") from error
        query = Query(asked.search[:_LONGEST_SEARCH], asked.status, asked.sort, asked.is_descending)
        limit = max(1, min(asked.limit, _MOST_ROWS))
        place = self._chosen(asked.container).place
        return await self._inventory.page(place, query, max(0, asked.offset), limit, asked.held)

    def _chosen(self, container: str | None) -> _Chosen:
        """Raises ValidationError."""
        for endpoint, variant, index in _containers(self._hosting.endpoints()):
            if container in (None, _id(endpoint, variant, index)):
                lane = self._traffic.route(endpoint.name).choose(variant.name)
                if index < len(lane.shelves):  # an update may be on its way
                    return _Chosen(endpoint, Place(lane.shelves[index], endpoint.name, variant.name))
        raise ValidationError("There is no such container any more." if container else "There is no endpoint yet.")

    # What can be done

    async def _load(self, request: Request, caller: Caller | None, _: str) -> object:
        asked = _document(request, _OfModel)
        place = self._authorize_for_model(caller, "polyhost:LoadModel", asked)
        with _engines_errors():
            await self._cache.load(place.shelf, asked.target)
        self._inventory.has_changed(place.shelf)
        return {}

    async def _unload(self, request: Request, caller: Caller | None, _: str) -> object:
        asked = _document(request, _OfModel)
        place = self._authorize_for_model(caller, "polyhost:UnloadModel", asked)
        with _engines_errors():
            await self._cache.unload(place.shelf, asked.target)
        self._inventory.has_changed(place.shelf)
        return {}

    async def _pin(self, request: Request, caller: Caller | None, _: str) -> object:
        asked = _document(request, _Pin)
        place = self._authorize_for_model(caller, "polyhost:PinModel", asked)
        self._cache.pin(place.shelf, asked.target, is_pinned=asked.is_pinned)
        return {}

    async def _refresh(self, request: Request, caller: Caller | None, _: str) -> object:
        asked = _document(request, _Refresh)
        self._logins.authorize(caller, "polyhost:Refresh")
        place = self._chosen(asked.container).place
        looking = [] if asked.after else [self._cache.refresh()]
        await asyncio.gather(self._inventory.list_now(place.shelf, asked.after), *looking)
        return {}

    async def _invoke(self, request: Request, caller: Caller | None, request_id: str) -> object:
        """What a client of the endpoint would be answered, whatever it is."""
        asked = _document(request, _Invoke)
        endpoint, place = self._chosen(asked.container)
        runtime = RuntimeApi(
            self._traffic,
            self._events,
            lambda _, action, arn, context: self._logins.authorize(caller, action, arn, context),
            own_endpoint=None,
            arns=self._arns,
            signals=self._signals,
        )
        headers = _invocations_headers(asked, place.variant if len(endpoint.variants) > 1 else "")
        invocation = Request("POST", f"/endpoints/{endpoint.name}/invocations", "", headers, asked.body)
        begin = time.perf_counter()
        reply: Reply = await answer_of(lambda done: runtime.answer(invocation, endpoint.name, request_id, done))
        lines = (rendered(reply.headers) + reply.own_headers).decode("latin-1").split("\r\n")
        return {
            "status": reply.status,
            "ms": (time.perf_counter() - begin) * 1000,
            "headers": [line.split(": ", 1) for line in lines if line],
            "body": reply.body,
        }


class _Rarely(Generic[_T]):
    """Finds a thing again only when it is old, and never so often that it costs much."""

    def __init__(self, find: Callable[[], _T]) -> None:
        self._find = find
        self._found: _T | None = None
        self._good_until = 0.0

    def __call__(self) -> _T:
        begin = time.monotonic()
        if self._found is None or begin >= self._good_until:
            self._found = self._find()
            self._good_until = begin + max(_FRESH_SECS, _SHARE * (time.monotonic() - begin))
        return self._found


@contextlib.contextmanager
def _engines_errors() -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise _EngineFailed(error) from error


def _require_own_page(request: Request, origins: Origins) -> None:
    """That no other site has made the browser send it. Raises AccessDenied."""
    headers = request.headers
    if (
        headers.get(_OWN_HEADER) != "1"
        or headers.get("sec-fetch-site", "same-origin") != "same-origin"
        or why_foreign(headers, origins._replace(checks_host=False))
    ):
        raise AccessDenied(
            f"Actions of the dashboard are for its own page: send {_OWN_HEADER}: 1, and no other origin."
        )


def _document(request: Request, form: type[_D]) -> _D:
    """Raises ValidationError."""
    try:
        return msgspec.json.decode(request.body, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValidationError(f"The body is not what {request.path} takes: {error}.") from error


def _json(document: object, own_headers: bytes = b"") -> Reply:
    return Reply(msgspec.json.encode(document), 200, _JSON, own_headers)


def _number(query: Mapping[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [""])[-1]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else default


def _room(used_bytes: int, budget_bytes: int, models: int) -> dict[str, int]:
    return {"used_bytes": used_bytes, "budget_bytes": budget_bytes, "models": models}


def _numbers(recent: Recent) -> tuple[float, ...]:
    """Latencies in milliseconds."""
    latencies = (round(secs * 1000, 3) for secs in (recent.p50_secs, recent.p90_secs, recent.p99_secs))
    return (recent.requests, recent.errors, recent.hits, recent.lookups, *latencies)


def _containers(endpoints: Iterable[Endpoint]) -> Iterator[tuple[Endpoint, Variant, int]]:
    for endpoint in endpoints:
        for variant in endpoint.variants:
            for index in range(len(variant.containers)):
                yield endpoint, variant, index


def _id(endpoint: Endpoint, variant: Variant, index: int) -> str:
    return f"{endpoint.name}/{variant.name}/{index}"


def _described(endpoint: Endpoint, variant: Variant, index: int) -> dict[str, object]:
    """`takes_target`: whether a request must name one of the models of a container there."""
    container = variant.containers[index]
    return {
        "id": _id(endpoint, variant, index),
        "endpoint": endpoint.name,
        "variant": variant.name if len(endpoint.variants) > 1 else "",
        "hostname": container.hostname if len(variant.containers) > 1 else "",
        "source": container.source,
        "is_multi_model": container.is_multi_model,
        "takes_target": any(one.is_multi_model for one in variant.containers),
    }


def _invocations_headers(asked: _Invoke, variant: str) -> dict[str, str]:
    """As they come over HTTP. Raises ValidationError."""
    for value in (asked.content_type, asked.accept):
        if not (value.isascii() and value.isprintable()):
            raise ValidationError(f"{value[:100]!r} is no media type.")
    if asked.target:
        check_key(asked.target)
    headers = {
        "content-type": asked.content_type,
        "accept": asked.accept,
        "x-amzn-sagemaker-target-model": asked.target.encode().decode("latin-1"),
        "x-amzn-sagemaker-target-variant": variant,
    }
    return {name: value for name, value in headers.items() if value}
