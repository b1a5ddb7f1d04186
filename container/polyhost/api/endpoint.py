"""
Everything that a server with an endpoint answers, on one port.

Its table of routes has InvokeEndpoint, in one piece or streamed (runtime.py, streaming.py), InvokeEndpointAsync
(asynchronous.py), the control plane (hosting.py), CloudWatch's reads (cloudwatch.py), STS (sts.py) and the dashboard
(dashboard.py); what none of them fits is the container's (container.py): MMS's routes, /ping, /metrics.

With access control, each route names the action that a policy must allow.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping

from polyhost.api import hosting as hosting_api
from polyhost.api.anybody import Anybody
from polyhost.api.asynchronous import AsynchronousApi
from polyhost.api.cloudwatch import SIGNED_FOR, CloudWatchApi
from polyhost.api.container import ContainerApi
from polyhost.api.dashboard import DashboardApi
from polyhost.api.http import Reply, Request
from polyhost.api.open_inference.api import OpenInference, actions_of_endpoints
from polyhost.api.open_inference.of_endpoints import EndpointModels
from polyhost.api.request_ids import request_ids
from polyhost.api.routes import Found, Guard, Route, Routes, serve
from polyhost.api.runtime import ID_FIELD, INVOKE, Resident, RuntimeApi, error_reply, unexpected, unsupported
from polyhost.api.signals import Signals
from polyhost.api.sts import Sts
from polyhost.endpoint.access import Access, Caller
from polyhost.endpoint.access.api_keys import bearer_of
from polyhost.endpoint.asynchronous import AsyncCalls
from polyhost.endpoint.events import Publisher
from polyhost.endpoint.hosting import Hosting
from polyhost.endpoint.monitoring import Monitoring
from polyhost.endpoint.traces import Traces
from polyhost.endpoint.traffic import Traffic
from polyhost.engine.errors import BadRequest
from polyhost.service_errors import (
    AccessDenied,
    BodyTooLarge,
    EndpointError,
    NotAuthenticated,
    Throttled,
    ValidationError,
)

_JSON = ((b"content-type", b"application/json"),)
_NO_SIGNATURES = (
    "Calls by gRPC are not signed: send an API key in the metadata, `authorization: Bearer phk_…` (docs/api-keys.md)."
)


class EndpointApi:
    """The application: an `App`."""

    def __init__(
        self,
        container: ContainerApi,
        hosting: Hosting,
        traffic: Traffic,
        events: Publisher,
        access: Access | None,
        dashboard: DashboardApi,
        *,
        calls: AsyncCalls,
        monitoring: Monitoring,
        traces: Traces | None,
        anybody: Anybody,
        signals: Signals,
    ) -> None:
        """`access`: None where everybody may call everything. `anybody`: what they are then asked."""
        self.max_request_bytes = container.max_request_bytes
        self.container = container
        self._hosting = hosting
        self._cache = traffic.cache
        self._access = access
        self._anybody = anybody
        self._dashboard = dashboard
        self._arns = arns = hosting.arns
        self._sts = Sts(access, arns.account_id)
        self._cloudwatch = CloudWatchApi(monitoring, self._authorize_reading)
        self._ids = request_ids()
        self._runtime = RuntimeApi(
            traffic,
            events,
            None if access is None else self._authorize,
            own_endpoint=hosting.plane.own.name if hosting.plane.own else None,
            arns=arns,
            signals=signals,
            look=hosting.look if hosting.is_shared else None,
            traces=traces,
            max_request_bytes=self.max_request_bytes,
        )
        self.open_inference = self._make_open_inference(traffic, events, signals, traces)
        self._asynchronous = AsynchronousApi(
            traffic,
            calls,
            self._authorize,
            arns=arns,
            allowed_folders=hosting.plane.allowed_folders,
            is_shared=lambda: hosting.is_shared,
        )
        self.routes = Routes(self._table(), lambda path: path.split("/")[1:])

    def _table(self) -> tuple[Route, ...]:
        """What is none of these is the container's."""
        return (
            *self._runtime.routes(),
            *self.open_inference.routes(),
            self._asynchronous.route(),
            Route(
                methods=("POST",), path="/endpoints/{operation}/...", guard=Guard.NOBODY, begin=_refuse_operation,
            ),
            self._cloudwatch.route(),
            Route(
                methods=("POST",), path="/", guard=Guard.HANDLER, action="sagemaker:*", when=hosting_api.is_for,
                answer=self._answer_hosting, too_large=lambda _, __, request_id: hosting_api.too_large(request_id),
                refused=lambda _, __, request_id, error: hosting_api.refused(error, request_id),
            ),
            Route(
                methods=("POST",), path="/", guard=Guard.HANDLER, action="sts:AssumeRole", begin=self._answer_sts,
                too_large=lambda _, __, request_id: self._sts.refused(BodyTooLarge(self.max_request_bytes), request_id),
                refused=lambda _, __, request_id, error: self._sts.refused(error, request_id),
            ),
            Route(
                methods=("POST",), path="/refresh", guard=Guard.POLICY, action="polyhost:Refresh",
                answer=self._refresh,
            ),
            *self._dashboard.routes(self.max_request_bytes),
        )  # fmt: skip

    def _make_open_inference(
        self, traffic: Traffic, events: Publisher, signals: Signals, traces: Traces | None
    ) -> OpenInference:
        """It asks the policies itself: what the caller has signed is not what the model is sent."""
        runtime = RuntimeApi(
            traffic, events, None, own_endpoint=None, arns=self._arns, signals=signals,
            look=self._hosting.look if self._hosting.is_shared else None, traces=traces, max_body_bytes=sys.maxsize,
        )  # fmt: skip
        models = EndpointModels(runtime, self._hosting, traffic, self._cache, self._arns, self._authorize)
        return OpenInference(
            models, self.container.readiness, self.container.tasks, max_request_bytes=self.max_request_bytes,
            name_part="{model_name...}", actions=actions_of_endpoints(), id_field=ID_FIELD, admit=self._admit_grpc,
        )  # fmt: skip

    def answer(self, request: Request, done: Callable[[Reply], None]) -> Callable[[], object] | None:
        own = self.routes.find(request)
        found = own or self.container.routes.find(request)
        try:
            self._require_access(request, found)
        except Exception as error:  # noqa: BLE001 - it becomes the answer
            done(self._refused(error, request, found))
            return None
        if own is not None:
            return serve(own, request, next(self._ids), done, self.container.tasks, self._failed)
        if self._access is not None:
            request = _without_credentials(request)
        return self.container.answer(request, done) if found is None else self.container.serve(found, request, done)

    def resident(self, request: Request) -> Resident | None:
        """As RuntimeApi's; None for a request that is no InvokeEndpoint."""
        found = self.routes.find(request)
        if found is None or found[0].action != INVOKE or not found[0].is_raw:
            return None
        return self._runtime.resident(request, found[1])

    def stop_soon(self) -> None:
        self.container.stop_soon()

    async def stop(self) -> None:
        await self.container.stop()

    def too_large(self, request: Request, done: Callable[[Reply], None]) -> None:
        """In the words of the part that the request is for. Nobody's signature was looked at: it covers the body."""
        route, name = self.routes.find(request) or (None, "")
        if route is None or route.too_large is None:
            self.container.too_large(request, done)
        else:
            done(route.too_large(request, name, next(self._ids)))

    def _refused(self, error: Exception, request: Request, found: Found | None) -> Reply:
        request_id = next(self._ids)
        route, name = found or (None, "")
        if route is None or route.refused is None or not isinstance(error, Throttled):
            failed = route.failed if route else None
            return (failed or self._failed)(error, request_id)
        return route.refused(request, name, request_id, error)

    def _failed(self, error: Exception, request_id: str) -> Reply:
        if not isinstance(error, EndpointError):
            error = unexpected(error, request_id)
        return error_reply(error, request_id)

    async def _answer_hosting(self, request: Request, _: str, request_id: str) -> Reply:
        caller = functools.cache(lambda service: self._caller(request, service))
        return await hosting_api.answer(
            self._hosting,
            request,
            request_id,
            lambda action, resource: self._authorize_caller(caller(action.partition(":")[0]), action, resource, {}),
        )

    def _answer_sts(self, request: Request, _: str, request_id: str, done: Callable[[Reply], None]) -> None:
        done(self._sts.answer(request, request_id))

    async def _refresh(self, _: Request, __: str, ___: str) -> Reply:
        await self._cache.refresh()
        return Reply(json.dumps({"Status": "Refreshed"}).encode(), 200, _JSON)

    # Who may do that

    def _admit_grpc(self, request: Request) -> None:
        """
        A call by gRPC is asked what the route that does the same is asked. Raises EndpointError.

        A signature would be one of HTTP's methods, paths and bodies, which the call does not have.
        """
        authorization = request.headers.get("authorization")
        if self._access is not None and authorization is not None and bearer_of(authorization) is None:
            raise NotAuthenticated("UnrecognizedClientException", _NO_SIGNATURES)
        self._require_access(request, self.routes.find(request))

    def _require_access(self, request: Request, found: Found | None) -> None:
        """Before anything else is done for a request. Raises EndpointError."""
        route, name = found or (None, "")
        if self._access is None:
            self._anybody.require(request, route)
        elif route is None:
            raise AccessDenied(f"No caller may call {request.path}, because there is no such path.")
        elif route.guard is Guard.POLICY:
            model = _model_of(route, name, request)
            self._authorize(request, route.action, self._arns.loaded_model(model) if model else "*", {})
        elif route.guard is Guard.TOKEN:
            self._require_token(self._access, request)

    def _require_token(self, access: Access, request: Request) -> None:
        if not access.is_metrics_token(request.headers.get("authorization", "")):
            raise NotAuthenticated(
                "MissingAuthenticationTokenException",
                "Send `Authorization: Bearer TOKEN`, with the metrics_token of the auth file.",
            )

    def _authorize(
        self, request: Request, action: str, resource: str, context: Mapping[str, str], service: str = "sagemaker"
    ) -> None:
        """Raises NotAuthenticated, Throttled, AccessDenied."""
        self._authorize_caller(self._caller(request, service), action, resource, context)

    def _caller(self, request: Request, service: str) -> Caller | None:
        """None where nobody is asked. Raises NotAuthenticated, Throttled."""
        if self._access is None:
            return None
        method, path, query, headers, body, _ = request
        return self._access.authenticate(method, path, query, headers, body, service=service)

    def _authorize_caller(self, caller: Caller | None, action: str, resource: str, context: Mapping[str, str]) -> None:
        """Raises AccessDenied."""
        if self._access is not None and caller is not None:
            self._access.authorize(caller, action, resource, context)

    def _authorize_reading(self, request: Request, action: str) -> None:
        self._authorize(request, action, "*", {}, SIGNED_FOR)


def _model_of(route: Route, name: str, request: Request) -> str:
    """The name of the model that a route's action is about, "" if it is about none. Raises ValidationError."""
    try:
        return route.model(request, name)
    except BadRequest as error:
        raise ValidationError(error.message) from error


def _refuse_operation(request: Request, _: str, __: str, ___: Callable[[Reply], None]) -> None:
    raise ValidationError(unsupported(request))


def _without_credentials(request: Request) -> Request:
    """Models see neither signatures nor session tokens."""
    kept = {
        name: value
        for name, value in request.headers.items()
        if name != "authorization" and not name.startswith("x-amz-")
    }
    return request._replace(headers=kept)
