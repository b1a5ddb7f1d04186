"""The API's description: OpenAPI 3.0.1 with MMS's paths and operation ids. The paths are those of the routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from polyhost.api.routes import Operation, Route

_TEXT = {"type": "string"}
_ERROR = {
    "type": "object",
    "required": ["code", "type", "message"],
    "properties": {
        "code": {"type": "integer", "description": "Error code."},
        "type": {"type": "string", "description": "Error type."},
        "message": {"type": "string", "description": "Error message."},
    },
}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": _TEXT}}
_NAME = {"in": "path", "name": "model_name", "required": True, "schema": _TEXT, "description": "Name of the model."}
_ANY_BODY = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}


# A handler may answer with others.
_PREDICTION_STATUSES = (400, 404, 413, 415, 500, 503, 507)
_LOAD_PARAMETERS = (
    "url", "model_name", "handler", "runtime", "batch_size", "max_batch_delay", "response_timeout", "initial_workers",
    "synchronous", "preload_model",
)  # fmt: skip
# The same parameters: as JSON they come in a body instead of the query.
_LOAD_BODY = {
    "content": {
        "application/json": {"schema": {"type": "object", "properties": {name: {} for name in _LOAD_PARAMETERS}}},
    },
}


def api_document(routes: Iterable[Route]) -> dict[str, Any]:
    """Describes the routes that have a description."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.operation is not None:
            path = route.path.removesuffix("/...")
            paths.setdefault(path, {})[route.operation.method] = route.operation.description
    return {
        "openapi": "3.0.1",
        "info": {
            "title": "Model Server APIs",
            "description": "Many models behind one port: load, list, invoke, unload.",
            "version": "1.0.0",
        },
        "paths": paths,
    }


def model_document(name: str) -> dict[str, Any]:
    """What MMS says of one model; it does say `/prediction/`."""
    operation = {
        "description": f"A predict entry point for model: {name}.",
        "operationId": name,
        "parameters": [],
        "responses": {
            "200": {"description": "OK"},
            "500": {"description": "Internal Server Error", "content": _json(_ERROR)},
        },
    }
    return {
        "openapi": "3.0.1",
        "info": {"title": f"RESTful API for: {name}", "version": "1.0.0"},
        "paths": {f"/prediction/{name}": {"post": operation}},
    }


_PHRASES = {
    202: "Accepted", 400: "Bad Request", 404: "Not Found", 409: "Conflict", 413: "Request Entity Too Large",
    415: "Unsupported Media Type",
    500: "Internal Server Error", 503: "Service Unavailable", 507: "Insufficient Storage",
}  # fmt: skip


def _operation(
    method: str, operation_id: str, parameters: list[dict[str, Any]], responses: dict[str, Any], **more: Any
) -> Operation:
    return Operation(method, {"operationId": operation_id, "parameters": parameters, "responses": responses, **more})


def _predict(operation_id: str, parameter: dict[str, Any]) -> Operation:
    responses = _responses({"*/*": {"schema": _TEXT}}, *_PREDICTION_STATUSES)
    return _operation("post", operation_id, [parameter], responses, requestBody=_ANY_BODY)


def _responses(content: dict[str, Any], *statuses: int) -> dict[str, Any]:
    others = {str(status): {"description": _PHRASES[status], "content": _json(_ERROR)} for status in statuses}
    return {"200": {"description": "OK", "content": content}, **others}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _query(name: str) -> dict[str, Any]:
    return {"in": "query", "name": name, "required": False, "schema": _TEXT}


_OBJECT = _json({"type": "object"})

# MMS's operations, by the routes that carry them out.
API_DESCRIPTION = _operation("get", "apiDescription", [], _responses(_OBJECT, 500))
ROOT = API_DESCRIPTION._replace(method="options")
PREDICT = _predict("predict", _NAME)
INVOKE_MODEL = _predict("invocations", _NAME)
INVOCATIONS = _predict("invocations", _query("model_name"))
PREDICTIONS = _predict("predictions", _NAME)
MODEL_DESCRIPTION = _operation("options", "predictionsApi", [_NAME], _responses(_OBJECT, 404, 500))
PING = _operation("get", "ping", [], _responses(_json(_STATUS), 500))
LIST_MODELS = _operation("get", "listModels", [_query("limit"), _query("next_page_token")], _responses(_OBJECT, 500))
REGISTER_MODEL = _operation(
    "post",
    "registerModel",
    [_query(name) for name in _LOAD_PARAMETERS],
    _responses(_json(_STATUS), 202, 400, 404, 409, 413, 500, 507),
    requestBody=_LOAD_BODY,
)
DESCRIBE_MODEL = _operation("get", "describeModel", [_NAME], _responses(_OBJECT, 404, 500))
SCALE_WORKERS = _operation(
    "put",
    "setAutoScale",
    [_NAME, *(_query(name) for name in ("min_worker", "max_worker", "number_gpu", "synchronous"))],
    _responses(_json(_STATUS), 202, 400, 404, 500),
)
UNREGISTER_MODEL = _operation("delete", "unregisterModel", [_NAME], _responses(_json(_STATUS), 404, 500))
EXECUTION_PARAMETERS = _operation("get", "executionParameters", [], _responses(_OBJECT, 500))
