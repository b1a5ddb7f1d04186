"""
Multi Model Server's HTTP API, as SageMaker's multi-model endpoints call it: one ASGI application.

Status, header fields and bodies are MMS's; where it is wrong (docs/multi-model-server.md) ours are right. The
hot path, a prediction, is a split of the path, a read of the body, a call of the engine and one answer.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from polyhost.api.http import Headers, Reply, Request
from polyhost.api.openapi import api_document, model_document
from polyhost.engine.errors import BadRequest, BodyTooLarge, EngineError, MethodNotAllowed, RouteNotFound
from polyhost.engine.protocol import Answer, Engine, Item, Registration
from polyhost.metrics import CONTENT_TYPE, Metrics

logger = logging.getLogger("polyhost.api")

_NO_ROUTE = "Requested resource is not found, please refer to API document."
_NO_METHOD = "Requested method is not allowed, please refer to API document."
_EVERY_REPLY = (
    (b"pragma", b"no-cache"),
    (b"cache-control", b"no-cache; no-store, must-revalidate, private"),
    (b"expires", b"Thu, 01 Jan 1970 00:00:00 UTC"),
)
_JSON = ((b"content-type", b"application/json"), *_EVERY_REPLY)
_METRICS = ((b"content-type", CONTENT_TYPE.encode()), *_EVERY_REPLY)
_DEFAULT_PAGE = 100
# What HTTP itself puts around an answer is ours to say, not a handler's.
_NOT_A_HANDLERS = frozenset(("content-length", "connection", "transfer-encoding"))


class Result(NamedTuple):
    """What a route answers."""

    body: bytes
    status: int = 200
    headers: Headers = _JSON


class ContainerApi:
    """
    The application. `single_model` is the model that /invocations means when it names none.

    MMS splits its API in two where they have ports of their own: an application serves one part or both.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        max_request_bytes: int,
        single_model: str | None,
        workers: int,
        serves_predictions: bool = True,
        serves_management: bool = True,
    ) -> None:
        self.max_request_bytes = max_request_bytes
        self._engine = engine
        self._metrics = metrics
        self._single_model = single_model
        self._workers = workers
        self._ids = request_ids()
        self._serves_predictions = serves_predictions
        self._serves_management = serves_management
        self._is_whole = serves_predictions and serves_management

    async def answer(self, request: Request) -> Reply:
        request_id = next(self._ids)
        try:
            result = await self._route(request, request_id)
        except EngineError as error:
            result = error_result(error)
        except Exception:
            logger.exception("request %s failed", request_id)
            result = error_result(EngineError(f"Internal error: the server's log has request {request_id}."))
        return _reply(result, request_id)

    def answer_soon(self, request: Request, done: Callable[[Reply], None]) -> Coroutine[Any, Any, Reply] | None:
        return None if self._has_begun(request, done) else self.answer(request)

    def _has_begun(self, request: Request, done: Callable[[Reply], None]) -> bool:
        path = request.path
        if not (path.startswith("/models/") and path.endswith("/invoke")) or request.query or not self._is_whole:
            return False
        name = path[len("/models/") : -len("/invoke")]
        if "/" in name or "%" in name:
            return False
        request_id = next(self._ids)
        return self._engine.invoke_soon(
            name,
            Item(request_id, request.headers, "", request.body),
            lambda answer: done(_reply(answer_result(answer), request_id)),
            lambda error: done(_reply(error_result(error), request_id)),
        )

    def too_large(self, request: Request) -> Reply:  # noqa: ARG002 - all routes have one limit
        error = BodyTooLarge(
            f"The body of a request may have {self.max_request_bytes} bytes: send less in each request, or set "
            "SAGEMAKER_MAX_REQUEST_SIZE to more bytes."
        )
        return _reply(error_result(error), next(self._ids))

    async def _route(self, request: Request, request_id: str) -> Result:
        parts = request.path.split("/")[1:]
        if "%" in request.path:
            parts = [unquote(part) for part in parts]
        if not self._is_whole and not self._offers(parts):
            raise RouteNotFound(_NO_ROUTE)
        match parts:
            case ["models", name, "invoke"] | ["predictions", name] if request.method != "OPTIONS":
                return await self._invoke(request, request_id, name)
            case [name, "predict"]:
                return await self._invoke(request, request_id, name)
            case ["invocations"]:
                return await self._invocations(request, request_id)
            case ["ping"]:
                return json_result({"status": "Healthy"})
            case ["models"] | ["models", ""]:
                return await self._models(request)
            case ["models", name]:
                return await self._model(request, name)
            case ["predictions", name]:
                await self._engine.describe(name)  # raises if it is unknown
                return json_result(model_document(name))
            case ["metrics"]:
                return Result(await self._metrics.exposition_aside(), headers=_METRICS)
            case ["execution-parameters"]:
                return self._execution_parameters()
            case ["api-description"]:
                return json_result(api_document())
            case [""]:
                if request.method == "OPTIONS":
                    return json_result(api_document())
                raise MethodNotAllowed(_NO_METHOD)
            case _:
                raise RouteNotFound(_NO_ROUTE)

    def _offers(self, parts: list[str]) -> bool:
        match parts:
            case [""] | ["api-description"]:
                return True
            case ["models"] | ["models", _]:
                return self._serves_management
            case _:
                return self._serves_predictions

    # Predictions

    async def _invoke(self, request: Request, request_id: str, name: str) -> Result:
        item = Item(request_id, request.headers, request.query, request.body)
        return answer_result(await self._engine.invoke(name, item))

    async def _invocations(self, request: Request, request_id: str) -> Result:
        name = dict(parse_qsl(request.query)).get("model_name") or self._single_model
        if name is None:
            raise BadRequest("Parameter model_name is required.")
        return await self._invoke(request, request_id, name)

    # Models

    async def _models(self, request: Request) -> Result:
        if request.method == "GET":
            return self._list(dict(parse_qsl(request.query)))
        if request.method == "POST":
            status = await self._engine.load(registration_of(request))
            return json_result({"status": status}, 202 if status.startswith("Processing") else 200)
        raise MethodNotAllowed(_NO_METHOD)

    async def _model(self, request: Request, name: str) -> Result:
        query = dict(parse_qsl(request.query))
        match request.method:
            case "GET":
                return json_result(await self._engine.describe(name))
            case "DELETE":
                await self._engine.unload(name)
                return json_result({"status": f'Model "{name}" unregistered'})
            case "PUT":
                minimum = _number(query, "min_worker", 1)
                maximum = _number(query, "max_worker", minimum) if "max_worker" in query else None
                is_synchronous = query.get("synchronous", "").lower() == "true"
                status = await self._engine.scale(name, minimum, maximum, is_synchronous)
                return json_result({"status": status}, 200 if is_synchronous else 202)
            case _:
                raise MethodNotAllowed(_NO_METHOD)

    def _list(self, query: dict[str, str]) -> Result:
        limit = _number(query, "limit", _DEFAULT_PAGE)
        if not 0 < limit <= _DEFAULT_PAGE:
            limit = _DEFAULT_PAGE
        first = max(0, _number(query, "next_page_token", 0))
        names = self._engine.names()
        page: dict[str, Any] = {}
        if first + limit <= len(names):
            page["nextPageToken"] = str(first + limit)
        page["models"] = [
            {"modelName": name, "modelUrl": self._engine.url_of(name)} for name in names[first : first + limit]
        ]
        return json_result(page)

    def _execution_parameters(self) -> Result:
        return json_result(
            {
                "MaxConcurrentTransforms": self._workers,
                "BatchStrategy": "MULTI_RECORD",
                "MaxPayloadInMB": max(1, self.max_request_bytes // 1024**2),
            },
        )


def registration_of(request: Request) -> Registration:
    """Raises BadRequest."""
    given: dict[str, Any] = dict(parse_qsl(request.query))
    # In the query it is minutes, in JSON seconds: MMS's own rule.
    timeout_unit_secs = 60
    if request.headers.get("content-type", "").startswith("application/json") and request.body:
        given, timeout_unit_secs = _json_object(request.body), 1
    url = given.get("url")
    if not url:
        raise BadRequest("Parameter url is required.")
    if not isinstance(url, str):
        raise BadRequest("Parameter url is not text.")
    runtime = str(given.get("runtime") or "python")
    if runtime not in ("python", "python2", "python3"):
        raise BadRequest(f"Invalid RuntimeType value: {runtime}")
    timeout = _number(given, "response_timeout", 0, is_strict=True)
    return Registration(
        url=url,
        name=str(given.get("model_name") or ""),
        handler=str(given.get("handler") or ""),
        batch_size=_number(given, "batch_size", 1, is_strict=True, least=1),
        max_batch_delay_ms=_number(given, "max_batch_delay", 100, is_strict=True),
        initial_workers=_number(given, "initial_workers", 0, is_strict=True) if "initial_workers" in given else None,
        response_timeout_secs=timeout * timeout_unit_secs or None,
        is_synchronous=str(given.get("synchronous", "true")).lower() != "false",
        preload_model=str(given.get("preload_model", "false")).lower() == "true",
    )


def request_ids() -> Iterator[str]:
    """UUIDs of this process: a random part and a count."""
    start = os.urandom(10).hex()
    prefix = f"{start[:8]}-{start[8:12]}-4{start[12:15]}-a{start[15:18]}"
    return (f"{prefix}-{number:012x}" for number in itertools.count(1))


def json_result(document: Any, status: int = 200) -> Result:
    return Result((json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(), status)


def error_result(error: EngineError) -> Result:
    return Result(error.body, error.status)


def answer_result(answer: Answer) -> Result:
    return Result(answer.body, answer.status, _answer_headers(tuple(answer.headers.items())))


def _reply(result: Result, request_id: str) -> Reply:
    own_headers = b"x-request-id: %b\r\n" % request_id.encode()
    return Reply(result.body, result.status, result.headers, own_headers, result.status >= 400)


@functools.lru_cache(maxsize=1024)
def _answer_headers(headers: tuple[tuple[str, str], ...]) -> Headers:
    return (
        tuple(
            (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
            for name, value in headers
            if name.lower() not in _NOT_A_HANDLERS
        )
        + _EVERY_REPLY
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise BadRequest(f"The body is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise BadRequest(f"The body is a JSON {type(document).__name__}: send an object with url and model_name.")
    return document


def _number(given: dict[str, Any], name: str, default: int, *, is_strict: bool = False, least: int = 0) -> int:
    """A whole number; what is none is the default, as MMS takes it, or with `is_strict` BadRequest."""
    value = given.get(name, default)
    try:
        number = int(value)
    except (TypeError, ValueError):
        if is_strict:
            raise BadRequest(f"Parameter {name} is not a number: {value!r}.") from None
        return default
    if is_strict and number < least:
        raise BadRequest(f"Parameter {name} is {number}, at least {least} is due.")
    return number
