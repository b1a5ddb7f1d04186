"""
Where a request to an endpoint goes: which variant, which containers one after the other, which target of each.

What the containers answer becomes the endpoint's answer, or its ModelError, in SageMaker's words.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.calls import CallContext
from polyhost.endpoint.definitions import Endpoint, Variant
from polyhost.endpoint.followers import Follower
from polyhost.endpoint.shelf import Failure, Shelf
from polyhost.engine.errors import EngineError, EnvironmentBuilding, Unavailable
from polyhost.engine.protocol import Answer, Item, WhenDone
from polyhost.service_errors import EndpointMissing, ModelError, ModelNotReady, ServiceUnavailable, ValidationError

_TARGET = "x-amzn-sagemaker-target-model"
# The longest FailureReason.
_MOST_REASON_CHARS = 1024


@dataclass(eq=False)
class Lane:
    """A variant, with the models of its containers."""

    variant: Variant
    shelves: tuple[Shelf, ...]
    # The one target of a container that has no choice of models, "" for one that has.
    targets: tuple[str, ...]
    # What follows each answer.
    followers: tuple[Follower, ...] = ()

    @property
    def is_pipeline(self) -> bool:
        return len(self.shelves) > 1

    @property
    def is_multi_model(self) -> bool:
        return "" in self.targets


@dataclass(eq=False)
class Route:
    endpoint: Endpoint
    lanes: tuple[Lane, ...]
    cumulative_weights: tuple[float, ...]
    shadows: tuple[Lane, ...] = ()

    def shelves(self) -> Iterator[Shelf]:
        return (shelf for lane in (*self.lanes, *self.shadows) for shelf in lane.shelves)

    def choose(self, variant: str) -> Lane:
        """The named variant, or one by weight. Raises ValidationError."""
        if not variant:
            if len(self.lanes) == 1:
                return self.lanes[0]
            return random.choices(self.lanes, cum_weights=self.cumulative_weights)[0]  # noqa: S311 - no secret
        for lane in self.lanes:
            if lane.variant.name == variant:
                return lane
        names = ", ".join(lane.variant.name for lane in self.lanes)
        raise ValidationError(f"Endpoint {self.endpoint.name} has no variant {variant}: it has {names}.")


class Traffic:
    def __init__(
        self,
        cache: ModelCache,
        find: Callable[[str], Endpoint | None],
        account_id: str,
        *,
        followers_of: Callable[[Route], tuple[Follower, ...]] = lambda _: (),
    ) -> None:
        """
        `find`: the endpoint of a name, None if there is none. `followers_of`: what follows the answers of a route's
        lanes.
        """
        self._followers_of = followers_of
        self.cache = cache
        self._find = find
        self._account_id = account_id
        # Called when requests to an endpoint go elsewhere than before, or nowhere.
        self.on_change: Callable[[], None] = lambda: None
        self._routes: dict[str, Route] = {}
        # Routes that are being prepared.
        self._coming: set[Route] = set()

    def route(self, endpoint_name: str) -> Route:
        """Where an endpoint's requests go now. Raises EndpointMissing."""
        endpoint = self._find(endpoint_name)
        if endpoint is None:
            raise EndpointMissing(f"Endpoint {endpoint_name} of account {self._account_id} not found.")
        route = self._routes.get(endpoint_name)
        if route is None:
            route = self._routes[endpoint_name] = self._route(endpoint)
        return route

    def lane(self, endpoint_name: str, variant: str, target: str) -> Lane:
        """Where the request goes. Raises ValidationError."""
        lane = self.route(endpoint_name).choose(variant)
        if target and not lane.is_multi_model:
            raise ValidationError(
                f"Endpoint {endpoint_name} is not a multi-model endpoint and does not support target model header."
            )
        if not target and lane.is_multi_model:
            raise ValidationError(
                f"Endpoint {endpoint_name} is a multi-model endpoint: name the archive of the model in TargetModel."
            )
        return lane

    def _route(self, endpoint: Endpoint) -> Route:
        lanes = tuple(self._lane_of(endpoint, variant) for variant in endpoint.variants)
        weights = [lane.variant.weight for lane in lanes]
        if not any(weights):
            weights = [1.0 for _ in lanes]
        shadows = tuple(self._lane_of(endpoint, variant) for variant in endpoint.shadows)
        route = Route(endpoint, lanes, tuple(itertools.accumulate(weights)), shadows)
        followers = self._followers_of(route)
        for lane in lanes:
            lane.followers = followers
        return route

    def _lane_of(self, endpoint: Endpoint, variant: Variant) -> Lane:
        shelves = tuple(
            self.cache.shelf(container, endpoint.name, variant.name, variant.since) for container in variant.containers
        )
        return Lane(variant, shelves, tuple(shelf.only_target for shelf in shelves))

    async def deploy(self, endpoint: Endpoint) -> str | None:
        """
        Prepare the endpoint as it is defined now, and let it serve. Why a container cannot, None if all can.

        A new endpoint takes requests at once, and they wait; of one that changed, the old route serves until the new
        one is prepared, and goes on if that fails. Shadows are not waited for: no client is. Raises ValidationError.
        """
        before = self._routes.get(endpoint.name)
        route = self._route(endpoint)
        if before is None or before.endpoint is endpoint:  # a request may have come first
            before = None
            self._routes[endpoint.name] = route
        kept = set(before.shelves()) if before else set()
        self._coming.add(route)
        try:
            for lane in route.lanes:
                for index, shelf in enumerate(lane.shelves):
                    failure = None if shelf in kept else await self.cache.prepared(shelf)
                    if failure is not None:
                        return _failure_reason(lane, index, failure)
        finally:
            self._coming.discard(route)
        self._routes[endpoint.name] = route
        self.on_change()
        return None

    def shelves(self) -> set[Shelf]:
        """All that requests go to, or soon will."""
        return {shelf for route in (*self._routes.values(), *self._coming) for shelf in route.shelves()}

    def unready_shadows(self, endpoint_name: str) -> dict[str, str]:
        """By their names: why one cannot be prepared, "" where it is being prepared."""
        route = self._routes.get(endpoint_name)
        unready = {lane.variant.name: _why_unready(lane) for lane in (route.shadows if route else ())}
        return {name: reason for name, reason in unready.items() if reason is not None}

    def forget_all_but(self, names: Collection[str]) -> list[str]:
        """The endpoints that were here and are no more."""
        gone = [name for name in self._routes if name not in names]
        for name in gone:
            del self._routes[name]
        if gone:
            self.on_change()
        return gone

    def invoke(
        self, lane: Lane, target: str, item: Item, context: CallContext, done: WhenDone, index: int = 0,
        before: Answer | None = None,
    ) -> None:  # fmt: skip
        """
        Ask the lane's containers, one after the other, from `index` on; each is sent what the one before answered.

        `done` is called once, now or later, with the last one's answer, or with the EndpointError that one of them is
        for the client. It is not called where the client leaves before all were asked.
        """
        only_target = lane.targets[index]
        last = len(lane.shelves) - 1
        request = _between(item, before, is_last=index == last, takes_target=not only_target) if last else item
        answered = functools.partial(self._answered, lane, target, item, context, done, index)
        self.cache.invoke(lane.shelves[index], only_target or target, request, context, answered)

    def _answered(
        self, lane: Lane, target: str, item: Item, context: CallContext, done: WhenDone, index: int,
        outcome: Answer | Exception,
    ) -> None:  # fmt: skip
        judged = _judged(lane, index, outcome, context.max_answer_bytes)
        if index == len(lane.shelves) - 1 or isinstance(judged, Exception):
            done(judged)
        elif not context.has_left:
            self.invoke(lane, target, item, context, done, index + 1, judged)


def _between(item: Item, before: Answer | None, *, is_last: bool, takes_target: bool) -> Item:
    """What a pipeline's container is sent."""
    headers = dict(item.headers)
    if not takes_target:
        headers.pop(_TARGET, None)
    if not is_last:
        # Each answers in its own default, as at AWS; SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT of the container changes it.
        headers.pop("accept", None)
    if before is None:
        return Item(item.request_id, headers, item.query, item.body, item.timeout_secs, item.is_streamed and is_last)
    headers["content-type"] = _header(before, "content-type") or "text/csv"
    return Item(item.request_id, headers, item.query, before.body, item.timeout_secs, item.is_streamed and is_last)


def _header(answer: Answer, name: str) -> str:
    return next((value for key, value in answer.headers.items() if key.lower() == name), "")


def _judged(lane: Lane, index: int, outcome: Answer | Exception, most: int | None) -> Answer | Exception:
    """What a container's answer is to the endpoint's client."""
    if isinstance(outcome, Unavailable):  # the model was not asked: another server may have room
        return ServiceUnavailable(f"The model cannot be asked now: {outcome.message} Ask again later.")
    if isinstance(outcome, EnvironmentBuilding):
        return ModelNotReady(outcome.message, outcome.again_secs)
    if isinstance(outcome, EngineError):
        return _model_error(lane, index, outcome.status, outcome.body)
    if isinstance(outcome, Exception):
        return outcome
    if outcome.status >= 400:
        return _model_error(lane, index, outcome.status, outcome.body)
    if most is not None and len(outcome.body) > most:
        reason = (
            f"The model's answer has {len(outcome.body)} bytes, InvokeEndpoint may answer {most}: ask for "
            "less in each request."
        )
        return _model_error(lane, index, 500, reason.encode())
    return outcome


def _model_error(lane: Lane, index: int, status: int, body: bytes) -> ModelError:
    original = body.decode("utf-8", "replace")
    side = "client" if 400 <= status < 500 else "server"
    where = "model"
    if lane.is_pipeline:
        where = _hostname(lane, index)
    return ModelError(f'Received {side} error ({status}) from {where} with message "{original}".', status, original)


def _why_unready(lane: Lane) -> str | None:
    """Of a shadow: None for one that is ready, "" for one that is being prepared."""
    for index, shelf in enumerate(lane.shelves):
        if shelf.preparing is None or not shelf.preparing.done():
            return ""
        failure = None if shelf.preparing.cancelled() else shelf.preparing.result()
        if failure is not None and not any(model.loaded for model in shelf.models.values()):
            return _failure_reason(lane, index, failure, "shadow")
    return None


def _failure_reason(lane: Lane, index: int, failure: Failure, kind: str = "production") -> str:
    """In SageMaker's words, with the reason that it leaves to its log."""
    which = f"container {_hostname(lane, index)}" if lane.is_pipeline else "primary container"
    what = "did not pass the ping health check" if isinstance(failure, EngineError) else "cannot be started"
    message = str(failure) if isinstance(failure, OSError) else failure.message
    return f"The {which} for {kind} variant {lane.variant.name} {what}: {message}"[:_MOST_REASON_CHARS]


def _hostname(lane: Lane, index: int) -> str:
    return lane.shelves[index].container.hostname or f"container-{index + 1}"
