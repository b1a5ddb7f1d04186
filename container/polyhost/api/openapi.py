"""The API's description: OpenAPI 3.0.1 with MMS's paths and operation ids."""

from __future__ import annotations

from typing import Any

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


def api_document() -> dict[str, Any]:
    predict = {"requestBody": _ANY_BODY, "responses": _responses({"*/*": {"schema": _TEXT}}, 404, 413, 500, 503, 507)}
    return {
        "openapi": "3.0.1",
        "info": {
            "title": "Model Server APIs",
            "description": "Many models behind one port: load, list, invoke, unload.",
            "version": "1.0.0",
        },
        "paths": {
            "/": {"options": _operation("apiDescription", [], _responses(_json({"type": "object"}), 500))},
            "/{model_name}/predict": {"post": {**_operation("predict", [_NAME], {}), **predict}},
            "/invocations": {"post": {**_operation("invocations", [_query("model_name")], {}), **predict}},
            "/ping": {"get": _operation("ping", [], _responses(_json(_STATUS), 500))},
            "/predictions/{model_name}": {
                "post": {**_operation("predictions", [_NAME], {}), **predict},
                "options": _operation("predictionsApi", [_NAME], _responses(_json({"type": "object"}), 404, 500)),
            },
            "/models/{model_name}/invoke": {"post": {**_operation("invocations", [_NAME], {}), **predict}},
            "/api-description": {"get": _operation("apiDescription", [], _responses(_json({"type": "object"}), 500))},
            "/models": {
                "get": _operation(
                    "listModels",
                    [_query("limit"), _query("next_page_token")],
                    _responses(_json({"type": "object"}), 500),
                ),
                "post": _operation(
                    "registerModel",
                    [
                        _query(name)
                        for name in (
                            "model_url", "url", "model_name", "handler", "runtime", "batch_size", "max_batch_delay",
                            "response_timeout", "initial_workers", "synchronous", "preload_model",
                        )
                    ],
                    _responses(_json(_STATUS), 202, 400, 404, 409, 500, 507),
                ),
            },
            "/models/{model_name}": {
                "get": _operation("describeModel", [_NAME], _responses(_json({"type": "object"}), 404, 500)),
                "put": _operation(
                    "setAutoScale",
                    [_NAME, _query("min_worker"), _query("max_worker"), _query("number_gpu"), _query("synchronous")],
                    _responses(_json(_STATUS), 202, 400, 404, 500),
                ),
                "delete": _operation("unregisterModel", [_NAME], _responses(_json(_STATUS), 404, 500)),
            },
            "/execution-parameters": {
                "get": _operation("executionParameters", [], _responses(_json({"type": "object"}), 500)),
            },
        },
    }  # fmt: skip


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
    500: "Internal Server Error", 503: "Service Unavailable", 507: "Insufficient Storage",
}  # fmt: skip


def _operation(operation_id: str, parameters: list[dict[str, Any]], responses: dict[str, Any]) -> dict[str, Any]:
    return {"operationId": operation_id, "parameters": parameters, "responses": responses}


def _responses(content: dict[str, Any], *statuses: int) -> dict[str, Any]:
    others = {str(status): {"description": _PHRASES[status], "content": _json(_ERROR)} for status in statuses}
    return {"200": {"description": "OK", "content": content}, **others}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _query(name: str) -> dict[str, Any]:
    return {"in": "query", "name": name, "required": False, "schema": _TEXT}
