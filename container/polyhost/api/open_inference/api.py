"""The Open Inference Protocol's routes: health, metadata, inference and the repository of models."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import unquote

from polyhost_handlers.signature import Signature

from polyhost import __version__
from polyhost.api.http import Reply, Request
from polyhost.api.open_inference import operations
from polyhost.api.open_inference.answers import encoded
from polyhost.api.open_inference.inference import VERSION, Call, Inference, require_version
from polyhost.api.open_inference.replies import document_reply, error_reply, failure_of, passed_on, tensors_reply
from polyhost.api.open_inference.requests import HEADER_LENGTH, Asked, Parameters, read_request
from polyhost.api.open_inference.served import Served
from polyhost.api.routes import Guard, Operation, Ports, Route
from polyhost.api.tasks import AnsweringTasks
from polyhost.engine.errors import BadRequest
from polyhost.readiness import Readiness
from polyhost.service_errors import BodyTooLarge, EndpointError

EXTENSIONS = ["binary_tensor_data", "model_repository"]
_VERSIONS = "versions"


class Actions:
    """What a policy must allow, in a server without an endpoint: those of MMS's routes."""

    def __init__(self, guard: Guard, infer: str, load: str, unload: str) -> None:
        self.guard, self.infer, self.load, self.unload = guard, infer, load, unload


class OpenInference:
    def __init__(
        self, served: Served, readiness: Readiness, tasks: AnsweringTasks, *, max_request_bytes: int, name_part: str,
        actions: Actions, id_field: bytes, admit: Callable[[Request], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """
        `name_part`: what stands for a model's name in paths. `id_field`: of a reply's header. `admit`: what is asked
        first of a request that does not come by REST; raises EndpointError.
        """
        self.served = served
        self.admit = admit
        self._readiness = readiness
        self._tasks = tasks
        self._max_request_bytes = max_request_bytes
        self._name_part = name_part
        self._actions = actions
        self._id_field = id_field
        self.inference = Inference(served)

    @property
    def is_ready(self) -> bool:
        return self._readiness.reason is None

    # Routes

    def routes(self) -> tuple[Route, ...]:
        model, actions = f"/v2/models/{self._name_part}", self._actions
        versioned = f"{model}/{_VERSIONS}/{{version}}"
        repository = f"/v2/repository/models/{self._name_part}"
        look, act = functools.partial(self._route, ("GET",)), functools.partial(self._route, ("POST",))
        describe = "polyhost:DescribeModel"
        return (
            look("/v2", "polyhost:DescribeServer", self._describe_server, operations.SERVER, guard=Guard.POLICY),
            look("/v2/health/live", "", self._live, operations.LIVE, guard=Guard.NOBODY),
            look("/v2/health/ready", "", self._ready, operations.READY, guard=Guard.NOBODY),
            act("/v2/repository/index", "polyhost:ListModels", self._index, operations.INDEX, guard=Guard.POLICY),
            act(f"{repository}/load", actions.load, self._load, operations.LOAD),
            act(f"{repository}/unload", actions.unload, self._unload, operations.UNLOAD),
            self._inference(f"{versioned}/infer", operations.INFER_VERSION),
            self._inference(f"{model}/infer", operations.INFER),
            look(f"{versioned}/ready", describe, self._model_ready, operations.MODEL_READY_VERSION),
            look(f"{model}/ready", describe, self._model_ready, operations.MODEL_READY),
            look(versioned, describe, self._describe_model, operations.MODEL_VERSION),
            look(model, describe, self._describe_model, operations.MODEL),
        )

    def _inference(self, path: str, operation: Operation) -> Route:
        return Route(
            methods=("POST",), path=path, guard=self._actions.guard, action=self._actions.infer, begin=self._begin,
            operation=operation, failed=self.failed, too_large=self._too_large, refused=self._refused, is_raw=False,
        )  # fmt: skip

    def _route(
        self, methods: tuple[str, ...], path: str, action: str,
        answer: Callable[[Request, str, str], Coroutine[Any, Any, Reply]], operation: Operation, *,
        guard: Guard | None = None,
    ) -> Route:  # fmt: skip
        return Route(
            methods=methods, path=path, guard=guard or self._actions.guard, action=action, answer=answer,
            operation=operation, failed=self.failed, too_large=self._too_large, ports=Ports.BOTH,
            is_for_any_page=guard is Guard.NOBODY,
        )  # fmt: skip

    def failed(self, error: Exception, request_id: str) -> Reply:
        return error_reply(failure_of(error, request_id, self._own(request_id)))

    def _refused(self, request: Request, name: str, request_id: str, error: EndpointError) -> Reply:
        self.served.refused(unquote(name), request_id, len(request.body), error)
        return self.failed(error, request_id)

    def _too_large(self, _: Request, __: str, request_id: str) -> Reply:
        return self.failed(BodyTooLarge(self._max_request_bytes), request_id)

    def _own(self, request_id: str) -> bytes:
        return b"%b: %b\r\n" % (self._id_field, request_id.encode())

    def _document(self, document: Any, request_id: str) -> Reply:
        return document_reply(document, own_headers=self._own(request_id))

    # The server

    async def _describe_server(self, _: Request, __: str, request_id: str) -> Reply:
        return self._document({"name": "polyhost", "version": __version__, "extensions": EXTENSIONS}, request_id)

    async def _live(self, _: Request, __: str, request_id: str) -> Reply:
        return self._document({"live": True}, request_id)

    async def _ready(self, _: Request, __: str, request_id: str) -> Reply:
        reason = self._readiness.reason
        if reason is None:
            return self._document({"ready": True}, request_id)
        return document_reply({"ready": False, "error": reason}, 503, self._own(request_id))

    # Models

    async def _describe_model(self, request: Request, name: str, request_id: str) -> Reply:
        await self.served.require_model(request, unquote(name))
        require_version(_version_in(request.path))
        document = model_document(unquote(name), await self.served.signature(unquote(name)))
        return self._document(document, request_id)

    async def _model_ready(self, request: Request, name: str, request_id: str) -> Reply:
        await self.served.require_model(request, unquote(name))
        require_version(_version_in(request.path))
        return self._document({"name": unquote(name), "ready": True}, request_id)

    async def _load(self, request: Request, name: str, request_id: str) -> Reply:
        await self.served.load(request, unquote(name), _parameters(request.body))
        return self._document({}, request_id)

    async def _unload(self, request: Request, name: str, request_id: str) -> Reply:
        await self.served.unload(request, unquote(name))
        return self._document({}, request_id)

    async def _index(self, _: Request, __: str, request_id: str) -> Reply:
        return self._document(self.served.index(), request_id)

    # Inference

    def _begin(
        self, request: Request, name: str, request_id: str, done: Callable[[Reply], None]
    ) -> Callable[[], object]:
        return self._tasks.run_for_client(self._answer_or_fail(request, unquote(name), request_id), done)

    async def _answer_or_fail(self, request: Request, name: str, request_id: str) -> Reply:
        try:
            return await self._answer(request, name, request_id)
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            return self.failed(error, request_id)

    async def _answer(self, request: Request, name: str, request_id: str) -> Reply:
        call = Call(
            request_id, name, _version_in(request.path), request, len(request.body), lambda: _read(request),
            passed_on(request.headers),
        )  # fmt: skip
        asked, outputs, own_headers = await self.inference.answered(call)
        size = sum(len(output.data) for output in outputs)
        answer = await self.inference.aside(size, lambda: encoded(name, asked, outputs))
        return tensors_reply(answer, own_headers)


def actions_of_container() -> Actions:
    return Actions(Guard.POLICY, "polyhost:InvokeModel", "polyhost:RegisterModel", "polyhost:UnregisterModel")


def actions_of_endpoints() -> Actions:
    """What they are about is the endpoint's ARN: the handlers ask."""
    return Actions(Guard.HANDLER, "sagemaker:InvokeEndpoint", "polyhost:LoadModel", "polyhost:UnloadModel")


def model_document(name: str, signature: Signature) -> dict[str, Any]:
    inputs, outputs = ([spec._asdict() for spec in specs] for specs in signature)
    return {"name": name, "versions": [VERSION], "platform": "polyhost", "inputs": inputs, "outputs": outputs}


def _read(request: Request) -> Asked:
    """Raises BadRequest."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BadRequest("The body has a Content-Encoding: send it without compression.")
    return read_request(request.body, request.headers.get(HEADER_LENGTH))


def _version_in(path: str) -> str:
    """What a path says behind the model's name, "" if that is nothing."""
    parts = path.split("/")
    return next((parts[at] for at in (-1, -2) if len(parts) > 5 and parts[at - 1] == _VERSIONS), "")


def _parameters(body: bytes) -> Parameters:
    """Of a load. Raises BadRequest."""
    if not body.strip():
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    parameters = document.get("parameters", {}) if isinstance(document, dict) else None
    if not isinstance(parameters, dict):
        raise BadRequest('The body of a load is no JSON object: send {}, or {"parameters": {…}}.')
    return parameters
