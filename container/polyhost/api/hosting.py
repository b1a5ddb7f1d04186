"""
The control plane's protocol: AWS's JSON 1.1, one POST for every operation, named in a header.

Application Auto Scaling's speaks it too: what it keeps is of the control plane.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polyhost.api.http import Reply, Request, with_retry_after
from polyhost.endpoint.hosting import Hosting, HostingError
from polyhost.endpoint.hosting.outcomes import unknown_operation
from polyhost.endpoint.hosting.requests import OPERATIONS, SCALING_OPERATIONS
from polyhost.service_errors import EndpointError

logger = logging.getLogger("polyhost.api")

TARGET_HEADER = "x-amz-target"
# Each service's prefix, and its operations. Its name is that of its actions, and what requests are signed for.
_SERVICES: Mapping[str, tuple[str, Sequence[str]]] = {
    "SageMaker.": ("sagemaker", OPERATIONS),
    "AnyScaleFrontendService.": ("application-autoscaling", SCALING_OPERATIONS),
}
# CloudWatch Logs, where the SDK looks for what a job has written while it waits for its end.
_LOGS = "Logs_20140328."
_JSON = ((b"content-type", b"application/x-amz-json-1.1"),)
# The largest request of ours, CreateModel with 15 containers and all that they may have, is about as long.
_MOST_BYTES = 2 * 1024**2


async def answer(hosting: Hosting, request: Request, request_id: str, authorize: Callable[[str, str], None]) -> Reply:
    """
    The reply to a request that has the header TARGET_HEADER.

    `authorize` is called with the action and its resource's ARN; an EndpointError that it raises is the answer.
    """
    try:
        service, operation = _operation_of(request)
        parameters = _parameters_of(request)
        for resource in hosting.resources_of(operation, parameters):
            authorize(f"{service}:{operation}", resource)
        return _reply(await hosting.call(operation, parameters), request_id)
    except HostingError as error:
        return _error(error.code, error.message, error.status, request_id)
    except EndpointError as error:
        return refused(error, request_id)
    except Exception:
        logger.exception("request %s failed", request_id)
        return _error("InternalFailure", f"Internal error: the server's log has request {request_id}.", 500, request_id)


def is_for(request: Request) -> bool:
    return TARGET_HEADER in request.headers


def refused(error: EndpointError, request_id: str) -> Reply:
    """The protocol has one status for all that is the caller's."""
    status = 400 if error.status < 500 else error.status
    return with_retry_after(_error(error.type, error.message, status, request_id), error)


def too_large(request_id: str) -> Reply:
    error = _body_too_large()
    return _error(error.code, error.message, error.status, request_id)


def _body_too_large() -> HostingError:
    return HostingError("RequestEntityTooLargeException", f"A request has {_MOST_BYTES} bytes at most.", 413)


def _operation_of(request: Request) -> tuple[str, str]:
    """The service and its operation. Raises HostingError."""
    target = request.headers.get(TARGET_HEADER, "")
    if target.startswith(_LOGS):
        raise HostingError(
            "ResourceNotFoundException", "The specified log group does not exist: what jobs say is in the server's log."
        )
    prefix, dot, operation = target.partition(".")
    service, operations = _SERVICES.get(prefix + dot, ("", ()))
    if request.method != "POST" or not service:
        raise HostingError(
            "UnknownOperationException", f"The control plane takes POST / with {TARGET_HEADER}: SageMaker.OPERATION."
        )
    if operation not in operations:
        raise unknown_operation(operation, operations)
    return service, operation


def _parameters_of(request: Request) -> dict[str, Any]:
    if len(request.body) > _MOST_BYTES:
        raise _body_too_large()
    try:
        parameters = json.loads(request.body or b"{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HostingError("SerializationException", f"The body is not JSON: {error}.") from error
    if not isinstance(parameters, dict):
        raise HostingError("SerializationException", "The body is not a JSON object: send one, {…}.")
    return parameters


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _reply(document: Mapping[str, Any], request_id: str) -> Reply:
    return Reply(json.dumps(document).encode(), 200, _JSON, _request_id_line(request_id))


def _error(code: str, message: str, status: int, request_id: str) -> Reply:
    body = json.dumps({"__type": code, "message": message}).encode()
    headers = (*_JSON, (b"x-amzn-errortype", code.encode()))
    return Reply(body, status, headers, _request_id_line(request_id))


def _request_id_line(request_id: str) -> bytes:
    return b"x-amzn-requestid: %b\r\n" % request_id.encode()
