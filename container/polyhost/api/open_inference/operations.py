"""What the OpenAPI document says of the protocol's routes."""

from __future__ import annotations

from typing import Any

from polyhost.api.routes import Operation

_TEXT = {"type": "string"}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": _TEXT}}
_OBJECT = {"type": "object"}
_PHRASES = {
    400: "Bad Request", 404: "Not Found", 409: "Conflict", 413: "Request Entity Too Large",
    500: "Internal Server Error", 503: "Service Unavailable", 507: "Insufficient Storage",
}  # fmt: skip


def _parameter(name: str) -> dict[str, Any]:
    return {"in": "path", "name": name, "required": True, "schema": _TEXT}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(
    method: str, operation_id: str, names: tuple[str, ...], statuses: tuple[int, ...], *,
    schema: dict[str, Any] = _OBJECT, binary: bool = False, body: dict[str, Any] | None = None,
) -> Operation:  # fmt: skip
    content = _json(schema)
    if binary:
        content = {**content, "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    errors = {str(one): {"description": _PHRASES[one], "content": _json(_ERROR)} for one in statuses}
    description = {
        "operationId": operation_id,
        "parameters": [_parameter(name) for name in names],
        "responses": {"200": {"description": "OK", "content": content}, **errors},
    }
    if body is not None:
        description["requestBody"] = {"content": body}
    return Operation(method, description)


_NAME, _VERSIONED = ("model_name",), ("model_name", "version")
_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": _TEXT, "datatype": _TEXT, "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": _OBJECT, "data": {"type": "array", "items": {}},
    },
}  # fmt: skip
_INFERENCE = _json({
    "type": "object",
    "required": ["inputs"],
    "properties": {"id": _TEXT, "parameters": _OBJECT, "inputs": {"type": "array", "items": _TENSOR}},
})  # fmt: skip
# A handler may answer with others.
_INFER_STATUSES = (400, 404, 413, 500, 503, 507)
_OF_A_MODEL = (400, 404, 413)

SERVER = _operation("get", "serverMetadata", (), (413,))
LIVE = _operation("get", "serverLive", (), (413,))
READY = _operation("get", "serverReady", (), (413, 503))
INDEX = _operation("post", "repositoryIndex", (), (413,), schema={"type": "array", "items": _OBJECT})
LOAD = _operation("post", "repositoryLoad", _NAME, (400, 404, 409, 413, 500, 507), body=_json(_OBJECT))
UNLOAD = _operation("post", "repositoryUnload", _NAME, (400, 404, 413, 500))
INFER = _operation("post", "modelInfer", _NAME, _INFER_STATUSES, binary=True, body=_INFERENCE)
INFER_VERSION = _operation("post", "modelVersionInfer", _VERSIONED, _INFER_STATUSES, binary=True, body=_INFERENCE)
MODEL = _operation("get", "modelMetadata", _NAME, _OF_A_MODEL)
MODEL_VERSION = _operation("get", "modelVersionMetadata", _VERSIONED, _OF_A_MODEL)
MODEL_READY = _operation("get", "modelReady", _NAME, _OF_A_MODEL)
MODEL_READY_VERSION = _operation("get", "modelVersionReady", _VERSIONED, _OF_A_MODEL)
