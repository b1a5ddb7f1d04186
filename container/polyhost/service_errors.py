"""
What a client of an endpoint sees instead of a prediction. The type picks boto3's exception; docs/troubleshooting.md has
`advice`.

* EndpointError             500 InternalFailure
  x ValidationError         400 ValidationError
    x EndpointMissing
    x ArtifactMissing                              no such key, or nobody here may read it
    x ArtifactUnusable                             it is there, but no archive of a model
    x BodyTooLarge        413 ValidationError
  x AccessDenied            403 AccessDeniedException
  x NotAuthenticated        403 its own type       no or a wrong signature
  x Throttled               429 ThrottlingException      its caller asks too often
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
    advice = "A bug of ours. The log has the request's id."

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ValidationError(EndpointError):
    status = 400
    type = "ValidationError"
    advice = "The endpoint, variant, target or archive is wrong. Change it: calling again does not help."


class EndpointMissing(ValidationError):
    pass


class ArtifactMissing(ValidationError):
    pass


class ArtifactUnusable(ValidationError):
    pass


class BodyTooLarge(ValidationError):
    """In AWS's words, with the cure."""

    status = 413
    advice = "The body is larger than SageMaker allows. Send less in each request."

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"HTTP content length exceeded {limit_bytes} bytes: send less in each request.")


class AccessDenied(EndpointError):
    status = 403
    type = "AccessDeniedException"
    advice = "We know who calls, but no policy allows the call. Change the policies."


class NotAuthenticated(EndpointError):
    """`type` is one of AWS's: InvalidSignatureException, ExpiredTokenException, …"""

    status = 403
    type = "InvalidSignatureException"
    advice = "The signature is missing, wrong or expired, so we do not know who calls. Sign the request."

    def __init__(self, type_: str, message: str) -> None:
        super().__init__(message)
        self.type = type_


class Throttled(EndpointError):
    """AWS's own status for it is 400. SDKs repeat both; other clients and proxies know 429."""

    status = 429
    type = "ThrottlingException"
    advice = "The caller asks more often than its rate limit allows. Call again after Retry-After, or raise the limit."

    def __init__(self, message: str, *, retry_after_secs: int) -> None:
        super().__init__(message)
        self.retry_after_secs = retry_after_secs


class ModelNotReady(EndpointError):
    """`again_secs`: when to ask again, None for when a model's load takes."""

    status = 429
    type = "ModelNotReadyException"
    advice = "The model is still being fetched or loaded. Call again after Retry-After: the load goes on."

    def __init__(self, message: str, again_secs: int | None = None) -> None:
        super().__init__(message)
        self.again_secs = again_secs


class ModelError(EndpointError):
    status = 424
    type = "ModelError"
    advice = "The model's own answer: see OriginalStatusCode and OriginalMessage."

    def __init__(self, message: str, original_status: int, original_message: str) -> None:
        super().__init__(message)
        self.original_status = original_status
        self.original_message = original_message


class ServiceUnavailable(EndpointError):
    status = 503
    type = "ServiceUnavailable"
    advice = "The bucket, the disk, the memory or the queue is not available now. Call again after Retry-After."


class StoreFailed(ServiceUnavailable):
    pass


class DiskFull(ServiceUnavailable):
    """
    `need_bytes`: what all of it takes. `missing_bytes`: how much must be given free besides what nobody uses; 0 where
    that is not known.
    """

    def __init__(self, message: str, *, need_bytes: int = 0, missing_bytes: int = 0) -> None:
        super().__init__(message)
        self.need_bytes = need_bytes
        self.missing_bytes = missing_bytes
