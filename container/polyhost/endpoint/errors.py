"""
What a client of an endpoint sees instead of a prediction. The type picks boto3's exception.

* EndpointError             500 InternalFailure
  x ValidationError         400 ValidationError
    x ArtifactMissing                              no such key, or nobody here may read it
    x ArtifactUnusable                             it is there, but no archive of a model
    x BodyTooLarge        413 ValidationError
  x AccessDenied            403 AccessDeniedException
  x NotAuthenticated        403 its own type       no or a wrong signature
  x ModelNotReady           429 ModelNotReadyException   it is still being fetched or loaded: ask again
  x ModelError              424 ModelError         the container's own answer, with its status
  x ServiceUnavailable      503 ServiceUnavailable
    x StoreFailed                                  the bucket or folder does not answer as it should
    x DiskFull                                     not now: unload something, ask again
"""

from __future__ import annotations


class EndpointError(Exception):
    status = 500
    type = "InternalFailure"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ValidationError(EndpointError):
    status = 400
    type = "ValidationError"


class ArtifactMissing(ValidationError):
    pass


class ArtifactUnusable(ValidationError):
    pass


class BodyTooLarge(ValidationError):
    """In AWS's words, with the cure."""

    status = 413

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"HTTP content length exceeded {limit_bytes} bytes: send less in each request.")


class AccessDenied(EndpointError):
    status = 403
    type = "AccessDeniedException"


class NotAuthenticated(EndpointError):
    """`type` is one of AWS's: InvalidSignatureException, ExpiredTokenException, …"""

    status = 403

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(message)
        self.type = type_


class ModelNotReady(EndpointError):
    status = 429
    type = "ModelNotReadyException"


class ModelError(EndpointError):
    status = 424
    type = "ModelError"

    def __init__(self, message: str, original_status: int, original_message: str) -> None:
        super().__init__(message)
        self.original_status = original_status
        self.original_message = original_message


class ServiceUnavailable(EndpointError):
    status = 503
    type = "ServiceUnavailable"


class StoreFailed(ServiceUnavailable):
    pass


class DiskFull(ServiceUnavailable):
    pass
