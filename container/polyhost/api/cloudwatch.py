"""
CloudWatch's reads, as boto3's `cloudwatch` speaks them: older releases by the query protocol, later ones by JSON.

What is read, and what it was, is endpoint/monitoring's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from polyhost.api import query
from polyhost.api.http import Reply, Request, with_retry_after
from polyhost.api.routes import Guard, Route
from polyhost.endpoint.monitoring import OPERATIONS, Monitoring, MonitoringError
from polyhost.endpoint.monitoring.reads import SERVICE, Moment
from polyhost.service_errors import BodyTooLarge, EndpointError

logger = logging.getLogger("polyhost.api")

# The service that requests are signed for.
SIGNED_FOR = "monitoring"
_NAMESPACE = "http://monitoring.amazonaws.com/doc/2010-08-01/"
_VERSION = b"Version=2010-08-01"
_TARGET_HEADER = "x-amz-target"
_TARGET = "GraniteServiceVersion20100801."
_JSON = ((b"content-type", b"application/x-amz-json-1.0"),)
# Five hundred queries with all that they may have.
_MOST_BYTES = 1024**2
_MOST_FIELDS = 20_000
_DEEPEST = 16
# What boto3 calls errors whose codes are those of the query protocol.
_EXCEPTIONS = {
    "InvalidParameterCombination": "InvalidParameterCombinationException",
    "InvalidParameterValue": "InvalidParameterValueException",
}
# Names of maps. All other objects are structures.
_MAPS = frozenset(("ExtendedStatistics",))


class CloudWatchApi:
    def __init__(self, monitoring: Monitoring, authorize: Callable[[Request, str], None]) -> None:
        """`authorize` is asked with the action; raises EndpointError."""
        self._monitoring = monitoring
        self._authorize = authorize

    def route(self) -> Route:
        return Route(
            methods=("POST",), path="/", guard=Guard.HANDLER, action="cloudwatch:*", when=_is_for, answer=self._answer,
            too_large=lambda request, _, request_id: error_reply(request, BodyTooLarge(_MOST_BYTES), request_id),
            refused=lambda request, _, request_id, error: error_reply(request, error, request_id),
        )  # fmt: skip

    async def _answer(self, request: Request, _: str, request_id: str) -> Reply:
        try:
            answer = self._answer_json if _is_json(request) else self._answer_query
            return await answer(request, request_id)
        except EndpointError as error:
            return error_reply(request, error, request_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            internal = EndpointError(f"Internal error: the server's log has request {request_id}.")
            return error_reply(request, internal, request_id)

    async def _answer_json(self, request: Request, request_id: str) -> Reply:
        operation = request.headers[_TARGET_HEADER].removeprefix(_TARGET)
        self._require(request, operation)
        answer = await self._monitoring.call(operation, _json_parameters(request.body))
        return Reply(json.dumps(answer).encode(), 200, _JSON, _request_id_line(request_id))

    async def _answer_query(self, request: Request, request_id: str) -> Reply:
        form = query.form_of(request.body, _MOST_FIELDS)
        operation = form.pop("Action", "")
        self._require(request, operation)
        answer = await self._monitoring.call(operation, query_parameters(operation, form))
        return query.answer_reply(_NAMESPACE, operation, "".join(_elements(answer)), request_id)

    def _require(self, request: Request, operation: str) -> None:
        """That there is such an operation, and that the caller may. Raises EndpointError."""
        if len(request.body) > _MOST_BYTES:
            raise BodyTooLarge(_MOST_BYTES)
        if operation not in OPERATIONS:
            raise MonitoringError(
                "InvalidAction",
                f"{operation[:100]} is not an operation of Polyhost, whose metrics can be read and not written: there "
                f"are {', '.join(OPERATIONS)}.",
            )
        self._authorize(request, f"cloudwatch:{operation}")


def _is_json(request: Request) -> bool:
    return request.headers.get(_TARGET_HEADER, "").startswith(_TARGET)


def _is_for(request: Request) -> bool:
    return _is_json(request) or (_TARGET_HEADER not in request.headers and _VERSION in request.body.split(b"&"))


def error_reply(request: Request, error: EndpointError, request_id: str) -> Reply:
    if _is_json(request):
        return _json_error(error, request_id)
    return query.error_reply(_NAMESPACE, error, request_id)


# JSON


def _json_parameters(body: bytes) -> Mapping[str, Any]:
    try:
        parameters = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        parameters = None
    if not isinstance(parameters, dict):
        raise MonitoringError("SerializationException", "The body is not a JSON object: send one, {…}.")
    return parameters


def _json_error(error: EndpointError, request_id: str) -> Reply:
    body = json.dumps({"__type": _EXCEPTIONS.get(error.type, error.type), "message": error.message}).encode()
    # What a client of the query protocol would read: boto3 goes by it.
    old = b"x-amzn-query-error: %b;%b\r\n" % (query.code_of(error).encode(), query.blame(error).encode())
    return with_retry_after(Reply(body, error.status, _JSON, _request_id_line(request_id) + old), error)


def _request_id_line(request_id: str) -> bytes:
    return b"x-amzn-RequestId: %b\r\n" % request_id.encode()


# The query protocol


def query_parameters(operation: str, form: Mapping[str, str]) -> dict[str, Any]:
    """The parameters that a form stands for: `Dimensions.member.1.Name=…`. Raises MonitoringError."""
    tree: dict[str, Any] = {}
    for name, text in form.items():
        *folders, last = name.split(".")
        if len(folders) > _DEEPEST:
            raise _not_a_form(name)
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise _not_a_form(name)
        node[last] = text
    tree.pop("Version", None)
    return {name: _value(SERVICE.input_shape(operation).members.get(name), node, name) for name, node in tree.items()}


def _value(shape: Any, node: Any, name: str) -> Any:
    """A part of a form as its shape has it. What has none, or another, is left as it is: the shapes will be checked."""
    kind = shape.type_name if shape is not None else ""
    if kind == "structure" and isinstance(node, dict):
        return {key: _value(shape.members.get(key), child, f"{name}.{key}") for key, child in node.items()}
    if kind == "list":
        items = node.get("member", {}) if isinstance(node, dict) else {}
        if not isinstance(items, dict) or not all(_is_number(number) for number in items):
            raise _not_a_form(name)
        return [_value(shape.member, items[number], name) for number in sorted(items, key=int)]
    return _scalar(kind, node, name) if isinstance(node, str) else node


def _scalar(kind: str, text: str, name: str) -> Any:
    try:
        match kind:
            case "integer":
                return int(text) if _is_number(text) else float(text)
            case "boolean":
                return {"true": True, "false": False}[text]
            case "timestamp":
                moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
                return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
            case _:
                return text
    except (ValueError, KeyError, OverflowError):
        raise MonitoringError("MalformedInput", f"{name[:200]} is not of the type {kind}.") from None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _not_a_form(name: str) -> MonitoringError:
    return MonitoringError("MalformedInput", f"The parameter {name[:200]} is not of the query protocol's form.")


def _elements(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if name in _MAPS:
            entries = "".join(
                f"<entry>{query.element('key', key)}{query.element('value', repr(item))}</entry>"
                for key, item in value.items()
            )
            yield f"<{name}>{entries}</{name}>"
        else:
            yield _element(name, value)


def _element(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"<{name}>{''.join(_elements(value))}</{name}>"
    if isinstance(value, list):
        return f"<{name}>{''.join(_element('member', item) for item in value)}</{name}>"
    if isinstance(value, Moment):
        return query.element(name, f"{datetime.fromtimestamp(value, timezone.utc):%Y-%m-%dT%H:%M:%SZ}")
    return query.element(name, str(value))
