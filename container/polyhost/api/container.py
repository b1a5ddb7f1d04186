"""
Multi Model Server's HTTP API, as SageMaker's multi-model endpoints call it.

Status, header fields and bodies are MMS's; where it is wrong (docs/multi-model-server.md) ours are right. What there
is to ask for is the table of routes.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import msgspec

from polyhost.api import openapi
from polyhost.api.http import Body, Headers, Reply, Request
from polyhost.api.open_inference.api import OpenInference, actions_of_container
from polyhost.api.open_inference.of_container import ContainerModels
from polyhost.api.request_ids import request_ids
from polyhost.api.routes import ANY, Begin, Found, Guard, Handle, Operation, Ports, Route, Routes, name_in_path, serve
from polyhost.api.tasks import AnsweringTasks
from polyhost.engine.errors import (
    BadRequest,
    BodyTooLarge,
    EngineError,
    EnvironmentBuilding,
    MethodNotAllowed,
    RouteNotFound,
)
from polyhost.engine.protocol import PROCESSING, Answer, Engine, Item, Registration, Stream
from polyhost.metrics import CONTENT_TYPE, Metrics
from polyhost.readiness import Readiness

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
ID_FIELD = b"x-request-id"
_DEFAULT_PAGE = 100
_PREDICTION = "polyhost:InvokeModel"
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

    MMS's API has two parts, which may have addresses of their own: `ports` says which of them this one is, or both.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        *,
        max_request_bytes: int,
        single_model: str | None,
        workers: int,
        readiness: Readiness,
        ports: Ports = Ports.BOTH,
        has_endpoint: bool = False,
    ) -> None:
        """`has_endpoint`: whether it is an endpoint's part, whose own are the routes of the Open Inference Protocol."""
        self.max_request_bytes = max_request_bytes
        self.tasks = AnsweringTasks()
        self._engine = engine
        self._metrics = metrics
        self._single_model = single_model
        self._workers = workers
        self.readiness = readiness
        self._ids = request_ids()
        self.open_inference = self._make_open_inference()
        table = self._table() if has_endpoint else (*self.open_inference.routes(), *self._table())
        self.routes = Routes((route for route in table if route.ports & ports), parts_of)

    def _make_open_inference(self) -> OpenInference:
        return OpenInference(
            ContainerModels(self._engine, self._invoke_whole), self.readiness, self.tasks, name_part="{model_name}",
            max_request_bytes=self.max_request_bytes, actions=actions_of_container(), id_field=ID_FIELD,
        )  # fmt: skip

    def _table(self) -> tuple[Route, ...]:
        """A path whose last row takes any method has a 405 for those that the rows above lack."""
        return (
            _prediction("/models/{model_name}/invoke", self._invoke, openapi.INVOKE_MODEL, when=_is_not_options),
            Route(
                methods=("OPTIONS",), path="/predictions/{model_name}/...", guard=Guard.POLICY,
                action="polyhost:DescribeModel", answer=self._describe_api, operation=openapi.MODEL_DESCRIPTION,
            ),
            _prediction("/predictions/{model_name}/...", self._invoke, openapi.PREDICTIONS),
            _prediction("/{model_name}/predict", self._invoke, openapi.PREDICT),
            _prediction("/invocations", self._invoke_named, openapi.INVOCATIONS, model=_model_in_query),
            Route(
                methods=ANY, path="/ping", guard=Guard.NOBODY, begin=_at_once(self._ping), operation=openapi.PING,
                is_for_any_page=True,
            ),
            Route(
                methods=ANY, path="/ready", guard=Guard.NOBODY, begin=_at_once(self._ready), is_for_any_page=True,
            ),
            Route(
                methods=ANY, path="/metrics", guard=Guard.TOKEN, answer=self._expose_metrics, is_for_any_page=True,
            ),
            _management(("GET",), "/models", "polyhost:ListModels", begin=_at_once(self._list),
                        operation=openapi.LIST_MODELS),
            _management(("POST",), "/models", "polyhost:RegisterModel", answer=self._load, model=registered_name,
                        operation=openapi.REGISTER_MODEL),
            _management(ANY, "/models", "polyhost:ListModels", begin=_no_method),
            _management(("GET",), "/models/{model_name}", "polyhost:DescribeModel", answer=self._describe,
                        operation=openapi.DESCRIBE_MODEL),
            _management(("PUT",), "/models/{model_name}", "polyhost:ScaleWorkers", answer=self._scale,
                        operation=openapi.SCALE_WORKERS),
            _management(("DELETE",), "/models/{model_name}", "polyhost:UnregisterModel", answer=self._unload,
                        operation=openapi.UNREGISTER_MODEL),
            _management(ANY, "/models/{model_name}", "polyhost:DescribeModel", begin=_no_method),
            _description(ANY, "/execution-parameters", _at_once(self._execution_parameters),
                         openapi.EXECUTION_PARAMETERS, Ports.PREDICTIONS),
            _description(ANY, "/api-description", _at_once(self._describe_all), openapi.API_DESCRIPTION),
            _description(("OPTIONS",), "/", _at_once(self._describe_all), openapi.ROOT),
            _description(ANY, "/", _no_method, None),
        )  # fmt: skip

    def answer(self, request: Request, done: Callable[[Reply], None]) -> Callable[[], object] | None:
        found = self.routes.find(request)
        if found is None:
            done(self._failed(RouteNotFound(_NO_ROUTE), next(self._ids)))
            return None
        return serve(found, request, next(self._ids), done, self.tasks, self._failed)

    def serve(self, found: Found, request: Request, done: Callable[[Reply], None]) -> Callable[[], object] | None:
        """As `answer`, of a request whose route has been found. Loads go on without the client that asked for them."""
        return serve(found, request, next(self._ids), done, self.tasks, self._failed)

    def predicting(self, found: Found, request: Request) -> str | None:
        """The name of the model that a route asks for a prediction, None where it asks for something else."""
        route, name = found
        if route.action != _PREDICTION or not route.is_raw:
            return None
        return route.model(request, name) or self._single_model

    def stop_soon(self) -> None:
        self.tasks.stop_soon()

    async def stop(self) -> None:
        await self.tasks.stop()

    def too_large(self, request: Request, done: Callable[[Reply], None]) -> None:
        route, name = self.routes.find(request) or (None, "")
        if route is not None and route.too_large is not None:
            done(route.too_large(request, name, next(self._ids)))
            return
        error = BodyTooLarge(
            f"The body of a request may have {self.max_request_bytes} bytes: send less in each request, or set "
            "SAGEMAKER_MAX_REQUEST_SIZE to more bytes."
        )
        done(_reply(error_result(error), next(self._ids)))

    def _failed(self, error: Exception, request_id: str) -> Reply:
        return _reply(_result(error, request_id), request_id)

    # Predictions

    def _invoke(
        self, request: Request, name: str, request_id: str, done: Callable[[Reply], None]
    ) -> Callable[[], object]:
        item = Item(request_id, request.headers, request.query, request.body, None, True)
        answering = _Answering(request_id, done)
        stream = Stream(answering.part)
        self._engine.invoke(name, item, answering.concluded, stream)
        return stream.leave

    def _invoke_whole(self, request: Request, name: str, request_id: str, done: Callable[[Reply], None]) -> None:
        """The reply has all of its body."""
        item = Item(request_id, request.headers, request.query, request.body)
        self._engine.invoke(name, item, lambda outcome: done(_reply(_result(outcome, request_id), request_id)))

    def _invoke_named(
        self, request: Request, _: str, request_id: str, done: Callable[[Reply], None]
    ) -> Callable[[], object]:
        name = _model_in_query(request) or self._single_model
        if name is None:
            raise BadRequest("Parameter model_name is required.")
        return self._invoke(request, name, request_id, done)

    # Models

    async def _load(self, request: Request, _: str, request_id: str) -> Reply:
        status = await self._engine.load(registration_of(request))
        return _reply(json_result({"status": status}, 202 if status == PROCESSING else 200), request_id)

    async def _describe(self, _: Request, name: str, request_id: str) -> Reply:
        return _reply(json_result(await self._engine.describe(name)), request_id)

    async def _unload(self, _: Request, name: str, request_id: str) -> Reply:
        await self._engine.unload(name)
        return _reply(json_result({"status": f'Model "{name}" unregistered'}), request_id)

    async def _scale(self, request: Request, name: str, request_id: str) -> Reply:
        query = parameters_of(request.query)
        minimum = _number(query, "min_worker", 1)
        maximum = _number(query, "max_worker", minimum) if "max_worker" in query else None
        is_synchronous = query.get("synchronous", "").lower() == "true"
        status = await self._engine.scale(name, minimum, maximum, is_synchronous)
        return _reply(json_result({"status": status}, 200 if is_synchronous else 202), request_id)

    def _list(self, request: Request) -> Result:
        query = parameters_of(request.query)
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

    # The server

    def _ping(self, _: Request) -> Result:
        return json_result({"status": "Healthy"})

    def _ready(self, _: Request) -> Result:
        """Says why the server is not ready. Whether it is alive is told by `/ping`."""
        reason = self.readiness.reason
        if reason is None:
            return json_result({"status": "Ready"})
        return json_result({"status": "Unready", "reason": reason}, 503)

    async def _expose_metrics(self, _: Request, __: str, request_id: str) -> Reply:
        return _reply(Result(await self._metrics.exposition(), headers=_METRICS), request_id)

    def _execution_parameters(self, _: Request) -> Result:
        return json_result(
            {
                "MaxConcurrentTransforms": self._workers,
                "BatchStrategy": "MULTI_RECORD",
                "MaxPayloadInMB": max(1, self.max_request_bytes // 1024**2),
            },
        )

    def _describe_all(self, _: Request) -> Result:
        return json_result(openapi.api_document(self.routes))

    async def _describe_api(self, _: Request, name: str, request_id: str) -> Reply:
        await self._engine.describe(name)  # raises if it is unknown
        return _reply(json_result(openapi.model_document(name)), request_id)


class _Answering(msgspec.Struct, eq=False):
    """A prediction on its way: in one piece, or in chunks where its script yields, as SageMaker's containers stream."""

    request_id: str
    done: Callable[[Reply], None]
    body: Body | None = None

    def part(self, content_type: str, part: bytes) -> None:
        if self.body is None:
            self.body = Body()
            headers = _answer_headers((("content-type", content_type),))
            self.done(_reply(Result(b"", headers=headers), self.request_id)._replace(parts=self.body))
        self.body.write(part)

    def concluded(self, outcome: Answer | Exception) -> None:
        """A body that is not whole has no other sign than that its connection ends."""
        result = _result(outcome, self.request_id)
        if self.body is None:
            self.done(_reply(result, self.request_id))
            return
        is_whole = result.status < 400
        if not is_whole:
            logger.warning("request %s failed in the middle of its answer: %s", self.request_id, result.body.decode())
        self.body.end(is_whole=is_whole)


# Kinds of rows


def _prediction(
    path: str, begin: Begin, operation: Operation, *,
    model: Callable[[Request, str], str] = name_in_path, when: Callable[[Request], bool] | None = None,
) -> Route:  # fmt: skip
    return Route(
        methods=ANY, path=path, guard=Guard.POLICY, action=_PREDICTION, begin=begin, operation=operation,
        model=model, when=when,
    )  # fmt: skip


def _management(
    methods: tuple[str, ...], path: str, action: str, *, begin: Begin | None = None, answer: Handle | None = None,
    model: Callable[[Request, str], str] = name_in_path, operation: Operation | None = None,
) -> Route:  # fmt: skip
    return Route(
        methods=methods, path=path, guard=Guard.POLICY, action=action, begin=begin, answer=answer, model=model,
        operation=operation, ports=Ports.MANAGEMENT,
    )  # fmt: skip


def _description(
    methods: tuple[str, ...], path: str, begin: Begin, operation: Operation | None, ports: Ports = Ports.BOTH
) -> Route:
    return Route(
        methods=methods, path=path, guard=Guard.POLICY, action="polyhost:DescribeServer", begin=begin,
        operation=operation, ports=ports,
    )  # fmt: skip


def _at_once(result_of: Callable[[Request], Result]) -> Begin:
    """A handler that waits for nothing."""

    def begin(request: Request, _: str, request_id: str, done: Callable[[Reply], None]) -> None:
        done(_reply(result_of(request), request_id))

    return begin


def _no_method(_: Request, __: str, ___: str, ____: Callable[[Reply], None]) -> None:
    raise MethodNotAllowed(_NO_METHOD)


def _is_not_options(request: Request) -> bool:
    return request.method != "OPTIONS"


def _model_in_query(request: Request, _: str = "") -> str:
    return parameters_of(request.query).get("model_name", "")


def registered_name(request: Request, _: str = "") -> str:
    """The name that a policy is asked for is the one that the model gets. Raises BadRequest."""
    name = registration_of(request).name
    if not name:
        raise BadRequest("Parameter model_name is required where access is controlled.")
    return name


# Requests


def parts_of(path: str) -> list[str]:
    """A path's parts, unescaped. As with MMS, slashes at the end count for nothing."""
    parts = (path.rstrip("/") or "/").split("/")[1:]
    return [unquote(part) for part in parts] if "%" in path else parts


def parameters_of(query: str) -> dict[str, str]:
    """The first value counts where a parameter is given twice, as with MMS."""
    return dict(reversed(parse_qsl(query)))


def registration_of(request: Request) -> Registration:
    """Raises BadRequest."""
    given: dict[str, Any] = dict(parameters_of(request.query))
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


def json_result(document: Any, status: int = 200) -> Result:
    return Result((json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(), status)


def error_result(error: EngineError) -> Result:
    if isinstance(error, EnvironmentBuilding):
        return Result(error.body, error.status, (*_JSON, (b"retry-after", b"%d" % error.again_secs)))
    return Result(error.body, error.status)


def _result(outcome: Answer | Exception, request_id: str) -> Result:
    """The answer to a call, or to another route that has failed."""
    if isinstance(outcome, Answer):
        return answer_result(outcome)
    if isinstance(outcome, EngineError):
        return error_result(outcome)
    logger.error("request %s failed", request_id, exc_info=outcome)
    return error_result(EngineError(f"Internal error: the server's log has request {request_id}."))


def answer_result(answer: Answer) -> Result:
    return Result(answer.body, answer.status, _answer_headers(tuple(answer.headers.items())))


def _reply(result: Result, request_id: str) -> Reply:
    own_headers = b"%b: %b\r\n" % (ID_FIELD, request_id.encode())
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
    except RecursionError:
        raise BadRequest("The body is not JSON that can be read: too many brackets in brackets.") from None
    if not isinstance(document, dict):
        raise BadRequest(f"The body is a JSON {type(document).__name__}: send an object with url and model_name.")
    return document


def _number(given: dict[str, Any], name: str, default: int, *, is_strict: bool = False, least: int = 0) -> int:
    """A whole number. Any other text gives the default, as in MMS; with `is_strict` it raises BadRequest."""
    value = given.get(name, default)
    try:
        number = int(value)
    except (TypeError, ValueError):
        if is_strict:
            raise BadRequest(f"Parameter {name} is not a number: {value!r}.") from None
        return default
    if is_strict and number < least:
        raise BadRequest(f"Parameter {name} is {number}: give at least {least}.")
    return number
