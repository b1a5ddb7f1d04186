"""
Multi Model Server's HTTP API, as SageMaker's multi-model endpoints call it: one ASGI application.

Status, header fields and bodies are MMS's; where it is wrong (docs/multi-model-server.md) ours are right. The
hot path, a prediction, is a split of the path, a read of the body, a call of the engine and one answer.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from polyhost.api.openapi import api_document, model_document
from polyhost.engine.errors import BadRequest, EngineError, MethodNotAllowed, RouteNotFound
from polyhost.engine.protocol import Answer, Engine, Item, Registration

logger = logging.getLogger("polyhost.api")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_NO_ROUTE = "Requested resource is not found, please refer to API document."
_NO_METHOD = "Requested method is not allowed, please refer to API document."
_JSON = (b"content-type", b"application/json")
_EVERY_ANSWER = (
    (b"pragma", b"no-cache"),
    (b"cache-control", b"no-cache; no-store, must-revalidate, private"),
    (b"expires", b"Thu, 01 Jan 1970 00:00:00 UTC"),
)
_KEEP_ALIVE = (b"connection", b"keep-alive")
_CLOSE = (b"connection", b"close")
_DEFAULT_PAGE = 100
# What HTTP itself puts around an answer is ours to say, not a handler's.
_NOT_A_HANDLERS = frozenset((b"content-length", b"connection", b"transfer-encoding"))


class TooLarge(Exception):
    """The body is over the limit: 413 with nothing in it, as MMS answers."""


@dataclass(frozen=True)
class Reply:
    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


class ContainerApi:
    """
    The application. `single_model` is the model that /invocations means when it names none.

    MMS splits its API in two where they have ports of their own: an application serves one part or both.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_request_bytes: int,
        single_model: str | None,
        workers: int,
        serves_predictions: bool = True,
        serves_management: bool = True,
    ) -> None:
        self._engine = engine
        self._max_request_bytes = max_request_bytes
        self._single_model = single_model
        self._workers = workers
        self._serves_predictions = serves_predictions
        self._serves_management = serves_management
        self._is_whole = serves_predictions and serves_management

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request_id = str(uuid.uuid4())
        try:
            reply = await self._reply(scope, receive, request_id)
        except EngineError as error:
            reply = error_reply(error)
        except TooLarge:
            await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})
            return
        except Exception:
            logger.exception("request %s failed", request_id)
            reply = error_reply(EngineError(f"Internal error: the server's log has request {request_id}."))
        headers = [
            *reply.headers,
            (b"x-request-id", request_id.encode()),
            *_EVERY_ANSWER,
            (b"content-length", b"%d" % len(reply.body)),
            _KEEP_ALIVE if reply.status < 400 else _CLOSE,
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body if scope["method"] != "HEAD" else b""})

    async def _reply(self, scope: Scope, receive: Receive, request_id: str) -> Reply:
        parts = [unquote(part) for part in scope["raw_path"].decode("latin-1").split("/")[1:]]
        if not self._is_whole and not self._offers(parts):
            raise RouteNotFound(_NO_ROUTE)
        match parts:
            case ["models", name, "invoke"] | ["predictions", name] if scope["method"] != "OPTIONS":
                return await self._invoke(scope, receive, request_id, name)
            case [name, "predict"]:
                return await self._invoke(scope, receive, request_id, name)
            case ["invocations"]:
                return await self._invocations(scope, receive, request_id)
            case ["ping"]:
                return json_reply({"status": "Healthy"})
            case ["models"] | ["models", ""]:
                return await self._models(scope, receive)
            case ["models", name]:
                return await self._model(scope, name)
            case ["predictions", name]:
                await self._engine.describe(name)  # raises if it is unknown
                return json_reply(model_document(name))
            case ["execution-parameters"]:
                return self._execution_parameters()
            case ["api-description"]:
                return json_reply(api_document())
            case [""]:
                if scope["method"] == "OPTIONS":
                    return json_reply(api_document())
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

    async def _invoke(self, scope: Scope, receive: Receive, request_id: str, name: str) -> Reply:
        item = await self._item(scope, receive, request_id)
        return answer_reply(await self._engine.invoke(name, item))

    async def _invocations(self, scope: Scope, receive: Receive, request_id: str) -> Reply:
        item = await self._item(scope, receive, request_id)
        name = dict(parse_qsl(scope["query_string"].decode())).get("model_name") or self._single_model
        if name is None:
            raise BadRequest("Parameter model_name is required.")
        return answer_reply(await self._engine.invoke(name, item))

    async def _item(self, scope: Scope, receive: Receive, request_id: str) -> Item:
        body = await self._body(scope, receive)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return Item(request_id, headers, scope["query_string"].decode("latin-1"), body)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        message = await receive()
        body: bytes = message.get("body", b"")
        if len(body) > self._max_request_bytes:
            raise TooLarge
        if not message.get("more_body", False):
            return body
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._max_request_bytes:
                raise TooLarge
        chunks = [body]
        size = len(body)
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise BadRequest("The client left before its body was complete.")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._max_request_bytes:
                raise TooLarge
        return b"".join(chunks)

    # Models

    async def _models(self, scope: Scope, receive: Receive) -> Reply:
        if scope["method"] == "GET":
            return self._list(dict(parse_qsl(scope["query_string"].decode("latin-1"))))
        if scope["method"] == "POST":
            registration = await self._registration(scope, receive)
            status = await self._engine.load(registration)
            return json_reply({"status": status}, 202 if status.startswith("Processing") else 200)
        raise MethodNotAllowed(_NO_METHOD)

    async def _model(self, scope: Scope, name: str) -> Reply:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        match scope["method"]:
            case "GET":
                return json_reply(await self._engine.describe(name))
            case "DELETE":
                await self._engine.unload(name)
                return json_reply({"status": f'Model "{name}" unregistered'})
            case "PUT":
                minimum = _number(query, "min_worker", 1)
                maximum = _number(query, "max_worker", minimum) if "max_worker" in query else None
                is_synchronous = query.get("synchronous", "").lower() == "true"
                status = await self._engine.scale(name, minimum, maximum, is_synchronous)
                return json_reply({"status": status}, 200 if is_synchronous else 202)
            case _:
                raise MethodNotAllowed(_NO_METHOD)

    def _list(self, query: dict[str, str]) -> Reply:
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
        return json_reply(page)

    async def _registration(self, scope: Scope, receive: Receive) -> Registration:
        given: dict[str, Any] = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        # In the query it is minutes, in JSON seconds: MMS's own rule.
        timeout_unit_secs = 60
        body = await self._body(scope, receive)
        if dict(scope["headers"]).get(b"content-type", b"").startswith(b"application/json") and body:
            given, timeout_unit_secs = _json_object(body), 1
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
            initial_workers=_number(given, "initial_workers", 0, is_strict=True)
            if "initial_workers" in given
            else None,
            response_timeout_secs=timeout * timeout_unit_secs or None,
            is_synchronous=str(given.get("synchronous", "true")).lower() != "false",
            preload_model=str(given.get("preload_model", "false")).lower() == "true",
        )

    def _execution_parameters(self) -> Reply:
        return json_reply(
            {
                "MaxConcurrentTransforms": self._workers,
                "BatchStrategy": "MULTI_RECORD",
                "MaxPayloadInMB": max(1, self._max_request_bytes // 1024**2),
            },
        )


def json_reply(document: Any, status: int = 200) -> Reply:
    return Reply((json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(), status)


def error_reply(error: EngineError) -> Reply:
    return json_reply({"code": error.status, "type": error.type, "message": error.message}, error.status)


def answer_reply(answer: Answer) -> Reply:
    headers = tuple(
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in answer.headers.items()
        if name.lower().encode("latin-1", "replace") not in _NOT_A_HANDLERS and "\n" not in name + value
    )
    return Reply(answer.body, answer.status, headers)


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
