"""
Where a request to an endpoint goes: which variant, which containers one after the other, which target of each.

What the containers answer becomes the endpoint's answer, or its ModelError, in SageMaker's words.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from polyhost.endpoint.cache import Failure, ModelCache, Shelf, Timing
from polyhost.endpoint.definitions import Endpoint, Variant
from polyhost.endpoint.errors import EndpointError, ModelError, ValidationError
from polyhost.engine.errors import EngineError
from polyhost.engine.protocol import Answer, Item

_TARGET = "x-amzn-sagemaker-target-model"
# Of a FailureReason.
_MOST_REASON_CHARS = 1024


@dataclass(eq=False)
class Lane:
    """A variant, with the models of its containers."""

    variant: Variant
    shelves: tuple[Shelf, ...]
    # The one target of a container that has no choice of models, "" for one that has.
    targets: tuple[str, ...]

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

    def shelves(self) -> Iterator[tuple[Lane, int, Shelf]]:
        return ((lane, index, shelf) for lane in self.lanes for index, shelf in enumerate(lane.shelves))

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
    def __init__(self, cache: ModelCache, find: Callable[[str], Endpoint | None], account_id: str) -> None:
        """`find`: the endpoint of a name, None if there is none."""
        self._cache = cache
        self._find = find
        self._account_id = account_id
        self._routes: dict[str, Route] = {}
        # Those that are being prepared.
        self._coming: set[Route] = set()

    def route(self, endpoint_name: str) -> Route:
        """Where an endpoint's requests go now. Raises ValidationError."""
        endpoint = self._find(endpoint_name)
        if endpoint is None:
            raise ValidationError(f"Endpoint {endpoint_name} of account {self._account_id} not found.")
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
        return Route(endpoint, lanes, tuple(itertools.accumulate(weights)))

    def _lane_of(self, endpoint: Endpoint, variant: Variant) -> Lane:
        shelves = tuple(
            self._cache.shelf(container, endpoint.name, variant.name, variant.since) for container in variant.containers
        )
        return Lane(variant, shelves, tuple(shelf.only_target for shelf in shelves))

    async def deploy(self, endpoint: Endpoint) -> str | None:
        """
        Prepare the endpoint as it is defined now, and let it serve. Why a container cannot, None if all can.

        A new endpoint takes requests at once, and they wait; of one that changed, the old route serves until the new
        one is prepared, and goes on if that fails. Raises ValidationError.
        """
        before = self._routes.get(endpoint.name)
        route = self._route(endpoint)
        if before is None or before.endpoint is endpoint:  # a request may have come first
            before = None
            self._routes[endpoint.name] = route
        kept = {shelf for _, _, shelf in before.shelves()} if before else set()
        self._coming.add(route)
        try:
            for lane, index, shelf in route.shelves():
                failure = None if shelf in kept else await self._cache.prepared(shelf)
                if failure is not None:
                    return _failure_reason(lane, index, failure)
        finally:
            self._coming.discard(route)
        self._routes[endpoint.name] = route
        return None

    def shelves(self) -> set[Shelf]:
        """All that requests go to, or soon will."""
        return {shelf for route in (*self._routes.values(), *self._coming) for _, _, shelf in route.shelves()}

    def forget_all_but(self, names: Collection[str]) -> list[str]:
        """The endpoints that were here and are no more."""
        gone = [name for name in self._routes if name not in names]
        for name in gone:
            del self._routes[name]
        return gone

    def is_resident(self, lane: Lane, target: str) -> bool:
        """Whether the model that the client chose answers without a load."""
        shelf = next(shelf for shelf, only in zip(lane.shelves, lane.targets, strict=True) if not only)
        model = shelf.models.get(target)
        return model is not None and model.loaded is not None

    async def invoke(self, lane: Lane, target: str, item: Item, timing: Timing) -> Answer:
        """
        The answer of the last container; each but the first is sent what the one before answered.

        Raises EndpointError.
        """
        last = len(lane.shelves) - 1
        answer: Answer | None = None
        for index, (shelf, only_target) in enumerate(zip(lane.shelves, lane.targets, strict=True)):
            request = item
            if last:
                request = _between(item, answer, is_last=index == last, takes_target=not only_target)
            try:
                answer = await self._cache.invoke(shelf, only_target or target, request, timing)
            except EngineError as error:
                raise model_error(lane, index, error) from error
            if answer.status >= 400:
                raise answered_error(lane, index, answer)
        assert answer is not None
        return answer

    def invoke_soon(self, lane: Lane, target: str, item: Item, done: Callable[[Answer | EndpointError], None]) -> bool:
        """As `invoke`, where nothing is to be waited for but the answer; False where something is."""
        if len(lane.shelves) > 1:
            return False
        model = lane.shelves[0].models.get(lane.targets[0] or target)
        if model is None:
            return False
        return self._cache.invoke_soon(
            model,
            item,
            lambda answer: done(answer if answer.status < 400 else answered_error(lane, 0, answer)),
            lambda error: done(model_error(lane, 0, error)),
        )


def _between(item: Item, before: Answer | None, *, is_last: bool, takes_target: bool) -> Item:
    """What a pipeline's container is sent."""
    headers = dict(item.headers)
    if not takes_target:
        headers.pop(_TARGET, None)
    if not is_last:
        # Each answers in its own default, as at AWS; SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT of the container changes it.
        headers.pop("accept", None)
    if before is None:
        return Item(item.request_id, headers, item.query, item.body)
    headers["content-type"] = _header(before, "content-type") or "text/csv"
    return Item(item.request_id, headers, item.query, before.body)


def _header(answer: Answer, name: str) -> str:
    return next((value for key, value in answer.headers.items() if key.lower() == name), "")


def model_error(lane: Lane, index: int, error: EngineError) -> ModelError:
    return _model_error(lane, index, error.status, error.body)


def answered_error(lane: Lane, index: int, answer: Answer) -> ModelError:
    return _model_error(lane, index, answer.status, answer.body)


def _model_error(lane: Lane, index: int, status: int, body: bytes) -> ModelError:
    original = body.decode("utf-8", "replace")
    side = "client" if 400 <= status < 500 else "server"
    where = "model"
    if lane.is_pipeline:
        where = _hostname(lane, index)
    return ModelError(f'Received {side} error ({status}) from {where} with message "{original}".', status, original)


def _failure_reason(lane: Lane, index: int, failure: Failure) -> str:
    """In SageMaker's words, with the reason that it leaves to its log."""
    which = f"container {_hostname(lane, index)}" if lane.is_pipeline else "primary container"
    what = "did not pass the ping health check" if isinstance(failure, EngineError) else "cannot be started"
    message = str(failure) if isinstance(failure, OSError) else failure.message
    return f"The {which} for production variant {lane.variant.name} {what}: {message}"[:_MOST_REASON_CHARS]


def _hostname(lane: Lane, index: int) -> str:
    return lane.shelves[index].container.hostname or f"container-{index + 1}"
