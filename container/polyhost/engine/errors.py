"""
What an engine answers instead of a result, and the HTTP answer it becomes (MMS's JSON). docs/troubleshooting.md has
`advice`.

* EngineError           500 InternalServerException
  x BadRequest          400 BadRequestException
  x ModelNotFound       404 ModelNotFoundException
  x RouteNotFound       404 ResourceNotFoundException
  x MethodNotAllowed    405 MethodNotAllowedException
  x Conflict            409 ConflictStatusException
  x BodyTooLarge        413 RequestEntityTooLargeException
  x EnvironmentBuilding 429 ModelNotReadyException        its Python environment is being built: ask again
  x EnvironmentMissing  500 InternalServerException       its Python environment is not installed
  x Unavailable         503 ServiceUnavailableException   no worker, or too many wait
  x PredictionFailed    the handler's own code, 503 if it has none
  x OutOfMemory         507 InternalServerException       not now: unload something, ask again
    x NoProcess         the same, and it says nothing of the model's size
"""

from __future__ import annotations

import asyncio
import json


class EngineError(Exception):
    status = 500
    type = "InternalServerException"
    advice = "The model's code failed, or ours. The text says which; the log has the traceback."

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status

    @property
    def body(self) -> bytes:
        """MMS's JSON, as it formats it."""
        document = {"code": self.status, "type": self.type, "message": self.message}
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


class BadRequest(EngineError):
    status = 400
    type = "BadRequestException"
    advice = "The request is wrong. Change what the text names."


class ModelNotFound(EngineError):
    status = 404
    type = "ModelNotFoundException"
    advice = "No such model is loaded. Load it first with POST /models."


class RouteNotFound(EngineError):
    status = 404
    type = "ResourceNotFoundException"
    advice = "There is no such path. OPTIONS / describes those that there are."


class MethodNotAllowed(EngineError):
    status = 405
    type = "MethodNotAllowedException"
    advice = "This path takes another method. OPTIONS / says which."


class Conflict(EngineError):
    status = 409
    type = "ConflictStatusException"
    advice = "A model of that name is loaded. Unload it, or take another name."


class BodyTooLarge(EngineError):
    status = 413
    type = "RequestEntityTooLargeException"
    advice = "The body is too large. Send less, or raise SAGEMAKER_MAX_REQUEST_SIZE."


class EnvironmentMissing(EngineError):
    """`name`: of the environment that can be built."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


class EnvironmentBuilding(EngineError):
    """`build` ends when the environment is built, or could not be."""

    status = 429
    type = "ModelNotReadyException"

    def __init__(self, message: str, build: asyncio.Task[None], again_secs: int) -> None:
        super().__init__(message)
        self.build = build
        self.again_secs = again_secs


class Unavailable(EngineError):
    status = 503
    type = "ServiceUnavailableException"
    advice = "No worker is free, or too many requests wait. Ask again, or raise MMS_JOB_QUEUE_SIZE."


class PredictionFailed(EngineError):
    status = 503
    advice = "The handler raised. The log has the traceback."


class OutOfMemory(EngineError):
    status = 507
    advice = "Memory is short. Unload a model and ask again, or give more with --memory-budget."


class NoProcess(OutOfMemory):
    """The system lets no process be started now. Unloading may help: a process may end with the model."""
