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
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import parse_qs, urlsplit

import msgspec

from polyhost import __version__
from polyhost.api.assets import SAFE, assets
from polyhost.api.http import Headers, Reply, Request, rendered
from polyhost.api.runtime import RuntimeApi
from polyhost.endpoint.access import LOGIN_SECS, Access, Caller
from polyhost.endpoint.artifacts import Artifacts, check_key
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.definitions import Endpoint, Variant
from polyhost.endpoint.errors import AccessDenied, EndpointError, NotAuthenticated, ServiceUnavailable, ValidationError
from polyhost.endpoint.hosting import Hosting
from polyhost.endpoint.inventory import Inventory, Place, Query, Sort, Status
from polyhost.endpoint.measures import Measures, Recent
from polyhost.endpoint.traffic import Traffic
from polyhost.engine.errors import EngineError
from polyhost.engine.protocol import Engine

logger = logging.getLogger("polyhost.dashboard")

_JSON: Headers = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"), *SAFE)
_COOKIE = "polyhost-login"
_OWN_HEADER = "x-polyhost-dashboard"
# The body of what is signed is hashed: of more than this, in a thread.
_HASHED_AT_ONCE_BYTES = 256 * 1024
_MOST_ROWS = 200
_LONGEST_SEARCH = 200
_FRESH_SECS = 0.5
# What measuring may take of the time: one part in so many.
_SHARE = 100
# Wrong logins at the same time, how long each takes, and how many wait for their turn.
_LOGINS_AT_ONCE = 4
_WRONG_LOGIN_SECS = 1.0
_MOST_LOGINS = 32

_INVOKE = "sagemaker:InvokeEndpoint"

_T = TypeVar("_T")
_D = TypeVar("_D", bound=msgspec.Struct)


class NotLoggedIn(NotAuthenticated):
    """The page then asks for a login."""

    status = 401


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
    container: str


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
        measures: Measures,
        access: Access | None,
        account_id: str,
        region: str,
        refresh_secs: float,
    ) -> None:
        """`access`: None where everybody may do everything."""
        self._engine = engine
        self._artifacts = artifacts
        self._cache = cache
        self._hosting = hosting
        self._traffic = traffic
        self._measures = measures
        self._access = access
        self._account_id = account_id
        self._region = region
        self._inventory = Inventory(artifacts, measures, refresh_secs=refresh_secs)
        self._doors = _Doors()
        self._server = {
            # Another one after a restart: what the page has drawn is then of another life.
            "id": secrets.token_hex(8),
            "version": __version__,
            "started_secs": time.time(),
            "region": region,
            "is_locked": access is not None,
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
        self._actions: dict[str, Callable[[Request, Caller | None, str], Awaitable[object]]] = {
            "/dashboard/load": self._load,
            "/dashboard/unload": self._unload,
            "/dashboard/pin": self._pin,
            "/dashboard/refresh": self._refresh,
            "/dashboard/invoke": self._invoke,
        }

    def is_for(self, request: Request) -> bool:
        """All else below /dashboard is MMS's: a model may have that name."""
        if request.method == "POST":
            return request.path in self._actions or request.path in ("/dashboard/login", "/dashboard/logout")
        return request.method in ("GET", "HEAD") and (request.path in self._assets or request.path in self._gets)

    async def answer(self, request: Request, request_id: str) -> Reply:
        """Raises EndpointError."""
        if request.method != "POST":
            if request.path in self._assets:
                return self._assets[request.path].reply(request)
            caller = await self._caller(request)
            self._authorize(caller, "polyhost:ViewDashboard")
            return _json(await self._gets[request.path](request, caller))
        _require_own_page(request)
        if request.path == "/dashboard/login":
            return await self._log_in(request)
        if request.path == "/dashboard/logout":
            return _json({}, self._cookie("", 0))
        return _json(await self._actions[request.path](request, await self._caller(request), request_id))

    # Who asks, may they

    async def _caller(self, request: Request) -> Caller | None:
        """Whoever signed the request, or is logged in; None where nobody is asked. Raises NotAuthenticated."""
        if self._access is None:
            return None
        if request.headers.get("authorization", "").startswith("AWS4-"):
            if len(request.body) > _HASHED_AT_ONCE_BYTES:
                return await asyncio.to_thread(self._signer, self._access, request)
            return self._signer(self._access, request)
        token = _cookie_of(request)
        if not token:
            raise _log_in_first()
        try:
            return self._access.logged_in(token)
        except NotAuthenticated as error:
            raise NotLoggedIn(error.type, "This login has ended: log in again.") from error

    def _signer(self, access: Access, request: Request) -> Caller:
        method, path, query, headers, body = request
        return access.authenticate(method, path, query, headers, body, service="sagemaker")

    def _authorize(
        self, caller: Caller | None, action: str, resource: str = "*", context: Mapping[str, str] | None = None
    ) -> None:
        """Raises AccessDenied."""
        if self._access is None:
            return
        if caller is None:
            raise _log_in_first()
        self._access.authorize(caller, action, resource, context or {})

    def _authorize_for_model(self, caller: Caller | None, action: str, asked: _OfModel) -> Place:
        """Where the model is. Raises AccessDenied, ValidationError."""
        check_key(asked.target)  # `a/../b` is below `a/` for a policy only
        endpoint, place = self._chosen(asked.container)
        only = place.shelf.only_target
        if only and asked.target != only:
            raise ValidationError(f"This container has one model, {only}.")
        context = {"sagemaker:TargetModel": asked.target, "sagemaker:TargetVariant": place.variant}
        self._authorize(caller, action, endpoint.arn, context)
        logger.info("%s: %s %s", caller.arn if caller else "anybody", action, json.dumps(asked.target))
        return place

    async def _log_in(self, request: Request) -> Reply:
        if self._access is None:
            raise ValidationError("There is no access control here: nobody needs to log in.")
        asked = _document(request, _LogIn)
        async with self._doors.turn():
            try:
                caller, token = self._access.log_in(asked.access_key_id, asked.secret_access_key)
            except NotAuthenticated as error:
                logger.warning("a login was refused")
                await asyncio.sleep(_WRONG_LOGIN_SECS)
                raise NotLoggedIn(error.type, error.message) from error
        self._authorize(caller, "polyhost:ViewDashboard")
        logger.info("%s has logged in", caller.arn)
        return _json({"user": _name_of(caller)}, self._cookie(token, LOGIN_SECS))

    def _cookie(self, token: str, secs: int) -> bytes:
        secure = "; Secure" if self._access is not None and self._access.is_tls else ""
        line = f"set-cookie: {_COOKIE}={token}; Path=/dashboard; Max-Age={secs}; HttpOnly; SameSite=Strict{secure}\r\n"
        return line.encode()

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
            "user": _name_of(caller) if caller else None,
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
            raise ValidationError(f"This asks for no list of models: {error}.") from error
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
        self._authorize(caller, "polyhost:Refresh")
        # Both ask for the same listing, which is made once.
        place = self._chosen(asked.container).place
        await asyncio.gather(self._inventory.list_now(place.shelf), self._cache.refresh())
        return {}

    async def _invoke(self, request: Request, caller: Caller | None, request_id: str) -> object:
        """What a client of the endpoint would be answered, whatever it is."""
        asked = _document(request, _Invoke)
        endpoint, place = self._chosen(asked.container)
        runtime = RuntimeApi(
            self._traffic,
            self._measures,
            lambda _, arn, context: self._authorize(caller, _INVOKE, arn, context),
            own_endpoint=None,
            account_id=self._account_id,
            region=self._region,
        )
        headers = _invocations_headers(asked, place.variant if len(endpoint.variants) > 1 else "")
        invocation = Request("POST", f"/endpoints/{endpoint.name}/invocations", "", headers, asked.body)
        begin = time.perf_counter()
        reply = await runtime.answer(invocation, endpoint.name, request_id)
        lines = (rendered(reply.headers) + reply.own_headers).decode("latin-1").split("\r\n")
        return {
            "status": reply.status,
            "ms": (time.perf_counter() - begin) * 1000,
            "headers": [line.split(": ", 1) for line in lines if line],
            "body": reply.body,
        }


class _Doors:
    """Whoever guesses waits for each guess, few guess at the same time, and not many wait for their turn."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_LOGINS_AT_ONCE)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises ServiceUnavailable."""
        if self._waiting >= _MOST_LOGINS:
            raise ServiceUnavailable("Too many are trying to log in. Try again in a minute.")
        self._waiting += 1
        try:
            async with self._places:
                yield
        finally:
            self._waiting -= 1


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


def _log_in_first() -> NotLoggedIn:
    return NotLoggedIn("MissingAuthenticationTokenException", "Log in with an access key of this server.")


def _require_own_page(request: Request) -> None:
    """That no other site has made the browser send it. Raises AccessDenied."""
    headers = request.headers
    origin = headers.get("origin")
    if (
        headers.get(_OWN_HEADER) != "1"
        or headers.get("sec-fetch-site", "same-origin") != "same-origin"
        or (origin is not None and urlsplit(origin).netloc != headers.get("host"))
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


def _cookie_of(request: Request) -> str:
    for pair in request.headers.get("cookie", "").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == _COOKIE:
            return value
    return ""


def _number(query: Mapping[str, list[str]], name: str, default: int) -> int:
    text = query.get(name, [""])[-1]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else default


def _name_of(caller: Caller) -> str:
    return caller.arn.rpartition("/")[2]


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
