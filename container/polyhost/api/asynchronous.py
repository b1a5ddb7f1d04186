"""
InvokeEndpointAsync over HTTP, as boto3's `sagemaker-runtime` speaks it: a call is answered once it is on the disk.

What comes of it is an object, whose url the answer has.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from polyhost.api.http import Reply, Request
from polyhost.api.routes import Guard, Route
from polyhost.api.runtime import ID_FIELD, as_utf8, error_reply
from polyhost.artifacts import check_key
from polyhost.endpoint.arns import ENDPOINT, Arns
from polyhost.endpoint.asynchronous import AsyncCall, AsyncCalls
from polyhost.endpoint.definitions import Asynchronous
from polyhost.endpoint.hosting.asynchronous import SHARED
from polyhost.endpoint.hosting.containers import Unusable, located
from polyhost.endpoint.traffic import Traffic
from polyhost.service_errors import BodyTooLarge, ValidationError

INVOKE_ASYNC = "sagemaker:InvokeEndpointAsync"
# SageMaker's own limit of an input that comes with the call.
_MAX_BODY_BYTES = 128_000
_PREFIX = "x-amzn-sagemaker-"


class Field(NamedTuple):
    """A header of the call's, behind _PREFIX. `passed_on`: as what the model is sent it, "" where it is not."""

    parameter: str
    form: str
    passed_on: str = ""


# What may come, in botocore's words. The target is our own: SageMaker has no such endpoint of many models.
_TEXT = r"[\x20-\x7e]{1,1024}"
_FIELDS = {
    "content-type": Field("ContentType", _TEXT, "content-type"),
    "accept": Field("Accept", _TEXT, "accept"),
    "custom-attributes": Field("CustomAttributes", _TEXT, f"{_PREFIX}custom-attributes"),
    "inference-id": Field("InferenceId", r"[\x21-\x7e][\x20-\x7e]{0,63}", f"{_PREFIX}inference-id"),
    "target-model": Field("TargetModel", r".{1,1024}", f"{_PREFIX}target-model"),
    "target-variant": Field("TargetVariant", r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", f"{_PREFIX}target-variant"),
    "inputlocation": Field("InputLocation", r".{1,1024}"),
    "s3outputpathextension": Field("S3OutputPathExtension", r"(?!s3:|https:)[a-zA-Z0-9!_.*'()/-]{1,512}"),
    "filename": Field("Filename", r"(?!.*\..*\.)[a-zA-Z0-9][a-zA-Z0-9_.-]{0,31}"),
    "requestttlseconds": Field("RequestTTLSeconds", r"[0-9]{1,9}"),
    "invocationtimeoutseconds": Field("InvocationTimeoutSeconds", r"[0-9]{1,9}"),
}
_TTL_SECS, _LEAST_TTL_SECS = 21_600, 60
_TIMEOUT_SECS, _MOST_TIMEOUT_SECS = 900, 3600


class AsynchronousApi:
    def __init__(
        self,
        traffic: Traffic,
        calls: AsyncCalls,
        authorize: Callable[[Request, str, str, Mapping[str, str]], None],
        *,
        arns: Arns,
        allowed_folders: Sequence[Path],
        is_shared: Callable[[], bool],
    ) -> None:
        """
        `authorize` is asked with an action, an ARN and what a policy's conditions see; it raises EndpointError.

        `is_shared`: whether others than this server change its endpoints.
        """
        self._traffic = traffic
        self._calls = calls
        self._authorize = authorize
        self._arns = arns
        self._allowed_folders = allowed_folders
        self._is_shared = is_shared

    def route(self) -> Route:
        return Route(
            methods=("POST",), path="/endpoints/{endpoint_name...}/async-invocations", guard=Guard.HANDLER,
            action=INVOKE_ASYNC, answer=self._answer,
            too_large=lambda _, __, request_id: error_reply(BodyTooLarge(_MAX_BODY_BYTES), request_id),
            refused=lambda _, __, request_id, error: error_reply(error, request_id),
        )  # fmt: skip

    async def _answer(self, request: Request, name: str, request_id: str) -> Reply:
        """Raises EndpointError."""
        call = self._call_of(request, unquote(name))
        await self._calls.accept(call, request.body)
        body = json.dumps({"InferenceId": call.inference_id}).encode()
        fields = ((b"content-type", b"application/json"),)
        own = b"%b: %b\r\nx-amzn-sagemaker-outputlocation: %b\r\nx-amzn-sagemaker-failurelocation: %b\r\n" % (
            ID_FIELD, request_id.encode(), call.output.encode(), call.failure.encode(),
        )  # fmt: skip
        return Reply(body, 202, fields, own)

    def _call_of(self, request: Request, endpoint: str) -> AsyncCall:
        """Raises EndpointError."""
        if len(request.body) > _MAX_BODY_BYTES:
            raise BodyTooLarge(_MAX_BODY_BYTES)
        given = _given(request.headers)
        source = self._source(given.get("InputLocation", ""), request.body)
        target = as_utf8(given.get("TargetModel", "")).removeprefix("/")
        variant = given.get("TargetVariant", "")
        self._require_access(request, endpoint, source, target, variant)
        if self._is_shared():
            raise ValidationError(SHARED)
        places = self._places(endpoint)
        self._traffic.lane(endpoint, variant, target)
        id_ = str(uuid.uuid4())
        output, failure = _urls(places, given, id_)
        return AsyncCall(
            id=id_,
            inference_id=given.get("InferenceId", id_),
            endpoint=endpoint,
            variant=variant,
            target=target,
            headers=_passed_on(request, given),
            source=source,
            output=output,
            failure=failure,
            kms_key=places.kms_key,
            accepted=time.time(),
            ttl_secs=_number(given, "RequestTTLSeconds", _TTL_SECS, _LEAST_TTL_SECS, _TTL_SECS),
            timeout_secs=_number(given, "InvocationTimeoutSeconds", _TIMEOUT_SECS, 1, _MOST_TIMEOUT_SECS),
            root=places.output,
        )

    def _source(self, location: str, body: bytes) -> str:
        """The input's url as stores know it, "" where it is the body. Raises ValidationError."""
        if bool(location) == bool(body):
            raise ValidationError(
                "Give either InputLocation, the url of an object with the input, or Body, the input itself."
            )
        if not location:
            return ""
        location = as_utf8(location)
        try:
            folder = located(location, "InputLocation", is_multi_model=True, allowed_folders=self._allowed_folders)
        except Unusable as error:
            raise ValidationError(f"{error}.") from error
        if location.endswith("/") or re.fullmatch(r"s3://[^/]+/", folder):
            raise ValidationError("InputLocation names no object: write s3://BUCKET/KEY.")
        return folder.removesuffix("/")

    def _require_access(self, request: Request, endpoint: str, source: str, target: str, variant: str) -> None:
        """Raises NotAuthenticated, AccessDenied, ValidationError."""
        if target:
            check_key(target)  # `a/../b` is below `a/` for a policy only
        seen = {
            "polyhost:InputLocation": source, "sagemaker:TargetModel": target, "sagemaker:TargetVariant": variant,
        }  # fmt: skip
        context = {key: value for key, value in seen.items() if value}
        self._authorize(request, INVOKE_ASYNC, self._arns.of(ENDPOINT, endpoint), context)

    def _places(self, name: str) -> Asynchronous:
        """Raises ValidationError."""
        endpoint = self._traffic.route(name).endpoint
        if endpoint.asynchronous is None:
            raise ValidationError(
                f"Endpoint {name} takes no asynchronous calls: make it of a configuration with AsyncInferenceConfig, "
                "or use InvokeEndpoint."
            )
        return endpoint.asynchronous


def _given(headers: Mapping[str, str]) -> dict[str, str]:
    """By parameter. Raises ValidationError."""
    given = {}
    for name, field in _FIELDS.items():
        value = headers.get(_PREFIX + name)
        if value is None:
            continue
        if re.fullmatch(field.form, value) is None:
            raise ValidationError(
                f"{field.parameter} {value[:100]!r} is not of the form that SageMaker takes, {field.form}."
            )
        given[field.parameter] = value
    return given


def _number(given: Mapping[str, str], parameter: str, otherwise: int, least: int, most: int) -> float:
    """Raises ValidationError."""
    number = int(given.get(parameter, otherwise))
    if not least <= number <= most:
        raise ValidationError(f"{parameter} is {number}, it must be from {least} to {most}.")
    return float(number)


def _passed_on(request: Request, given: Mapping[str, str]) -> dict[str, str]:
    """What the model is sent of the headers; of curl's, which names no ContentType, that of the body."""
    passed_on = {field.passed_on: given[field.parameter] for field in _FIELDS.values() if field.parameter in given}
    passed_on.pop("", None)
    if request.body and "content-type" in request.headers:
        passed_on.setdefault("content-type", request.headers["content-type"])
    return passed_on


def _urls(places: Asynchronous, given: Mapping[str, str], id_: str) -> tuple[str, str]:
    """Of the answer and of a failure. Raises ValidationError."""
    extension = given.get("S3OutputPathExtension", "").strip("/")
    if ".." in extension.split("/"):
        raise ValidationError("S3OutputPathExtension has .. between slashes: leave that out.")
    folder = places.output + (f"{extension}/" if extension else "")
    name = given.get("Filename", f"{id_}.out")
    return folder + name, f"{places.failure}{given.get('Filename', id_)}-error.out"
