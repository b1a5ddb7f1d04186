"""
Models of endpoints: `ENDPOINT` names the model of a single-model endpoint, `ENDPOINT/TARGET` one of a multi-model one.

A policy is asked what it is asked for SageMaker's routes and the dashboard: the same actions, the same conditions.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, NamedTuple

from polyhost_handlers.signature import Signature

from polyhost.api.http import Reply, Request
from polyhost.api.open_inference.replies import failure_of
from polyhost.api.open_inference.requests import Parameters
from polyhost.api.runtime import INVOKE, MAX_BODY_BYTES, RuntimeApi
from polyhost.artifacts import check_key
from polyhost.endpoint.access import HASHED_AT_ONCE_BYTES
from polyhost.endpoint.arns import ENDPOINT, Arns
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.hosting import Hosting
from polyhost.endpoint.shelf import Shelf
from polyhost.endpoint.traffic import Route, Traffic
from polyhost.service_errors import BodyTooLarge, EndpointMissing

# Whom it is asked of, the action, the endpoint's ARN, and what a policy's conditions see.
Authorize = Callable[[Request, str, str, Mapping[str, str]], None]
_TARGET = "x-amzn-sagemaker-target-model"


class _Name(NamedTuple):
    endpoint: str
    target: str


def split_name(name: str) -> _Name:
    """No endpoint has a slash in its name, and a target may begin with one."""
    endpoint, _, target = name.partition("/")
    return _Name(endpoint, target.removeprefix("/"))


class EndpointModels:
    """A `Served`."""

    def __init__(
        self,
        runtime: RuntimeApi,
        hosting: Hosting,
        traffic: Traffic,
        cache: ModelCache,
        arns: Arns,
        authorize: Authorize,
    ) -> None:
        """`runtime`: it asks no policy itself."""
        self._runtime = runtime
        self._hosting = hosting
        self._traffic = traffic
        self._cache = cache
        self._arns = arns
        self._authorize = authorize

    async def require_infer(self, request: Request | None, name: str, size: int) -> None:
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge(MAX_BODY_BYTES)
        await self._require(request, INVOKE, name)

    def infer(
        self, name: str, asked: Request, request_id: str, done: Callable[[Reply], None]
    ) -> Callable[[], object] | None:
        endpoint, target = split_name(name)
        headers = {key: value for key, value in asked.headers.items() if key != _TARGET}
        if target:
            headers[_TARGET] = target.encode().decode("latin-1")
        return self._runtime.answer(asked._replace(headers=headers), endpoint, request_id, done)

    def refused(self, name: str, request_id: str, size: int, error: Exception) -> None:
        endpoint, target = split_name(name)
        failure = failure_of(error, request_id)
        self._runtime.refused(endpoint, target, request_id, failure.status, size)

    async def require_model(self, request: Request | None, name: str) -> None:
        await self._require(request, "polyhost:DescribeModel", name)
        await self._each(name, self._cache.require)

    async def signature(self, name: str) -> Signature:
        """Of a pipeline what its first container takes, and what its last one answers."""
        _, target = split_name(name)
        shelves = (await self._route(name)).lanes[0].shelves
        first, last = shelves[0], shelves[-1]
        inputs = (await self._cache.signature(first, first.only_target or target)).inputs
        return Signature(inputs, (await self._cache.signature(last, last.only_target or target)).outputs)

    async def load(self, request: Request | None, name: str, _: Parameters) -> None:
        await self._require(request, "polyhost:LoadModel", name)
        await self._each(name, self._cache.load)

    async def unload(self, request: Request | None, name: str) -> None:
        await self._require(request, "polyhost:UnloadModel", name)
        await self._each(name, self._cache.unload)

    def index(self) -> list[dict[str, Any]]:
        """Of a multi-model endpoint what is in memory: its bucket may have thousands."""
        return [
            {"name": name, "version": "1", "state": "READY", "reason": ""}
            for endpoint in self._hosting.endpoints()
            for name in dict.fromkeys(_names(endpoint.name, self._traffic.route(endpoint.name)))
        ]

    async def _require(self, request: Request | None, action: str, name: str) -> None:
        endpoint, target = split_name(name)
        context = {}
        if target:
            check_key(target)  # `a/../b` is below `a/` for a policy only
            context["sagemaker:TargetModel"] = target
        if request is None:
            return
        ask = functools.partial(self._authorize, request, action, self._arns.of(ENDPOINT, endpoint), context)
        if len(request.body) > HASHED_AT_ONCE_BYTES:
            await asyncio.get_running_loop().run_in_executor(None, ask)
        else:
            ask()

    async def _each(self, name: str, act: Callable[[Shelf, str], Coroutine[Any, Any, None]]) -> None:
        _, target = split_name(name)
        route = await self._route(name)
        for shelf in (shelf for lane in route.lanes for shelf in lane.shelves):
            await act(shelf, shelf.only_target or target)

    async def _route(self, name: str) -> Route:
        """Where the requests of its endpoint go, which may have been made a moment ago, at another server."""
        endpoint, target = split_name(name)
        try:
            route = self._traffic.route(endpoint)
        except EndpointMissing:
            if not self._hosting.is_shared:
                raise
            await self._hosting.look()
            route = self._traffic.route(endpoint)
        for lane in route.lanes:
            self._traffic.lane(endpoint, lane.variant.name, target)  # whether it takes a target, or needs one
        return route


def _names(endpoint: str, route: Route) -> Iterator[str]:
    for lane in route.lanes:
        if not lane.is_multi_model:
            yield endpoint
        for shelf in lane.shelves:
            if not shelf.only_target:
                yield from (f"{endpoint}/{target}" for target, model in shelf.models.items() if model.loaded)
