"""
What an engine answers instead of a result, and the HTTP answer it becomes (MMS's JSON).

* EngineError           500 InternalServerException
  x BadRequest          400 BadRequestException
  x ModelNotFound       404 ModelNotFoundException
  x RouteNotFound       404 ResourceNotFoundException
  x MethodNotAllowed    405 MethodNotAllowedException
  x Conflict            409 ConflictStatusException
  x BodyTooLarge        413 RequestEntityTooLargeException
  x Unavailable         503 ServiceUnavailableException   no worker, or too many wait
  x PredictionFailed    the handler's own code, 503 if it has none
  x OutOfMemory         507 InternalServerException       not now: unload something, ask again
"""

from __future__ import annotations

import json


class EngineError(Exception):
    status = 500
    type = "InternalServerException"

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


class ModelNotFound(EngineError):
    status = 404
    type = "ModelNotFoundException"


class RouteNotFound(EngineError):
    status = 404
    type = "ResourceNotFoundException"


class MethodNotAllowed(EngineError):
    status = 405
    type = "MethodNotAllowedException"


class Conflict(EngineError):
    status = 409
    type = "ConflictStatusException"


class BodyTooLarge(EngineError):
    status = 413
    type = "RequestEntityTooLargeException"


class Unavailable(EngineError):
    status = 503
    type = "ServiceUnavailableException"


class PredictionFailed(EngineError):
    status = 503


class OutOfMemory(EngineError):
    status = 507
