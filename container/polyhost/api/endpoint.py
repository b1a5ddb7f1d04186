"""
Everything that a server with an endpoint answers, on one port: which part of it a request is for.

    POST /endpoints/NAME/invocations, /invocations     runtime.py     InvokeEndpoint
    POST /endpoints/NAME/…                        here           other operations of the runtime, which are refused
    POST / with X-Amz-Target                           hosting.py     the control plane
    POST / with a form                                 sts.py         who am I, AssumeRole
    POST /refresh                                      here           look at buckets and folders now
    GET /, /dashboard/…                                ops.py         the dashboard
    all else                                           container.py   MMS's routes, /ping, /metrics

With access control, each part names the action that a policy must allow.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from polyhost.api import hosting as hosting_api
from polyhost.api.container import ContainerApi, registration_of, request_ids
from polyhost.api.http import Reply, Request
from polyhost.api.ops import DashboardApi
from polyhost.api.runtime import RuntimeApi, error_reply, unsupported
from polyhost.api.sts import Sts
from polyhost.endpoint.access import Access
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.errors import AccessDenied, BodyTooLarge, EndpointError, NotAuthenticated, ValidationError
from polyhost.endpoint.hosting import Hosting
from polyhost.endpoint.measures import Measures
from polyhost.endpoint.traffic import Traffic
from polyhost.engine.errors import BadRequest

logger = logging.getLogger("polyhost.api")

_JSON = ((b"content-type", b"application/json"),)
_INVOKE = "sagemaker:InvokeEndpoint"


class EndpointApi:
    """The application: an `App`."""

    def __init__(
        self,
        container: ContainerApi,
        hosting: Hosting,
        traffic: Traffic,
        cache: ModelCache,
        measures: Measures,
        access: Access | None,
        dashboard: DashboardApi,
        *,
        own_endpoint: str | None,
        account_id: str,
        region: str,
    ) -> None:
        """`access`: None where everybody may call everything."""
        self.max_request_bytes = container.max_request_bytes
        self._container = container
        self._hosting = hosting
        self._cache = cache
        self._access = access
        self._dashboard = dashboard
        self._resources = f"arn:aws:polyhost:{region}:{account_id}:loaded-model/"
        self._sts = Sts(access, account_id)
        self._ids = request_ids()
        self._runtime = RuntimeApi(
            traffic,
            measures,
            None if access is None else self._authorize_invocation,
            own_endpoint=own_endpoint,
            account_id=account_id,
            region=region,
        )

    async def answer(self, request: Request) -> Reply:
        request_id = next(self._ids)
        return await self._answered(self._answer(request, request_id), request_id)

    async def _answered(self, answering: Coroutine[Any, Any, Reply], request_id: str) -> Reply:
        try:
            return await answering
        except EndpointError as error:
            return error_reply(error, request_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            return error_reply(EndpointError(f"Internal error: the server's log has request {request_id}."), request_id)

    def answer_soon(self, request: Request, done: Callable[[Reply], None]) -> Coroutine[Any, Any, Reply] | None:
        endpoint = self._runtime.endpoint_of(request)
        if endpoint is not None:
            request_id = next(self._ids)
            rest = self._runtime.answer_soon(request, endpoint, request_id, done)
            return None if rest is None else self._answered(rest, request_id)
        if self._access is None and request.path.startswith("/models/"):
            return self._container.answer_soon(request, done)
        return self.answer(request)

    def too_large(self, request: Request) -> Reply:
        """In the words of the part that the request is for. Nobody's signature was looked at: it covers the body."""
        endpoint = self._runtime.endpoint_of(request)
        if endpoint is not None:
            return self._runtime.too_large(request, endpoint, next(self._ids), self.max_request_bytes)
        if request.path == "/" and request.method == "POST":
            if hosting_api.TARGET_HEADER in request.headers:
                return hosting_api.too_large(next(self._ids))
            return self._sts.too_large(self.max_request_bytes, next(self._ids))
        if self._dashboard.is_for(request):
            return error_reply(BodyTooLarge(self.max_request_bytes), next(self._ids))
        return self._container.too_large(request)

    async def _answer(self, request: Request, request_id: str) -> Reply:
        """Raises EndpointError."""
        endpoint = self._runtime.endpoint_of(request)
        if endpoint is not None and request.method == "POST":
            return await self._runtime.answer(request, endpoint, request_id)
        if request.method == "POST" and request.path == "/":
            if hosting_api.TARGET_HEADER in request.headers:
                return await hosting_api.answer(
                    self._hosting,
                    request,
                    request_id,
                    lambda action, resource: self._authorize(request, action, resource, {}),
                )
            return self._sts.answer(request, request_id)
        if request.path.startswith("/endpoints/") and request.method == "POST":
            raise ValidationError(unsupported(request))
        if request.method == "POST" and request.path == "/refresh":
            self._authorize(request, "polyhost:Refresh", "*", {})
            await self._cache.refresh()
            return Reply(json.dumps({"Status": "Refreshed"}).encode(), 200, _JSON)
        if self._dashboard.is_for(request):
            return await self._dashboard.answer(request, request_id)
        self._authorize_route(request)
        return await self._container.answer(request if self._access is None else _without_credentials(request))

    # Who may do that

    def _authorize(self, request: Request, action: str, resource: str, context: Mapping[str, str]) -> None:
        """Raises NotAuthenticated, AccessDenied."""
        if self._access is None:
            return
        caller = self._access.authenticate(
            request.method, request.path, request.query, request.headers, request.body, service="sagemaker"
        )
        self._access.authorize(caller, action, resource, context)

    def _authorize_invocation(self, request: Request, arn: str, context: Mapping[str, str]) -> None:
        self._authorize(request, _INVOKE, arn, context)

    def _authorize_route(self, request: Request) -> None:
        """MMS's routes: /ping is open, /metrics is for whoever has the token."""
        if self._access is None or request.path == "/ping":
            return
        if request.path == "/metrics":
            if not self._access.is_metrics_token(request.headers.get("authorization", "")):
                raise NotAuthenticated("MissingAuthenticationTokenException", "Send `Authorization: Bearer TOKEN`.")
            return
        action, name = route_action(request)
        self._authorize(request, action, self._resources + name if name else "*", {})


def route_action(request: Request) -> tuple[str, str]:
    """What a policy calls a request to one of MMS's routes, and the model's name, "" if it names none."""
    match [unquote(part) for part in request.path.split("/")[1:]]:
        case ["models", name, "invoke"] | ["predictions", name] if request.method != "OPTIONS":
            return "polyhost:InvokeModel", name
        case [name, "predict"]:
            return "polyhost:InvokeModel", name
        case ["predictions", name]:
            return "polyhost:DescribeModel", name
        case ["invocations"]:
            return "polyhost:InvokeModel", dict(parse_qsl(request.query)).get("model_name", "")
        case ["models"] | ["models", ""] if request.method == "POST":
            return "polyhost:RegisterModel", _registered_name(request)
        case ["models"] | ["models", ""]:
            return "polyhost:ListModels", ""
        case ["models", name]:
            actions = {"DELETE": "polyhost:UnregisterModel", "PUT": "polyhost:ScaleWorkers"}
            return actions.get(request.method, "polyhost:DescribeModel"), name
        case [""] | ["api-description"] | ["execution-parameters"]:
            return "polyhost:DescribeServer", ""
        case _:
            raise AccessDenied(f"There is no {request.path} that anybody may call.")


def _registered_name(request: Request) -> str:
    """The name that a policy is asked for is the one that the model gets. Raises ValidationError."""
    try:
        name = registration_of(request).name
    except BadRequest as error:
        raise ValidationError(error.message) from error
    if not name:
        raise ValidationError("Parameter model_name is required where access is controlled.")
    return name


def _without_credentials(request: Request) -> Request:
    """Models see neither signatures nor session tokens."""
    kept = {
        name: value
        for name, value in request.headers.items()
        if name != "authorization" and not name.startswith("x-amz-")
    }
    return request._replace(headers=kept)
