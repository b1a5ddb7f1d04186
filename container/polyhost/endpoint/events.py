"""
What happens on endpoints, told to whoever has subscribed: the measures, the dashboard, the logs.

The model cache and the API publish, and know none of them. A subscriber is called at once, on the event loop, and must
not wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, get_args

from polyhost.endpoint.shelf import Failure, Shelf
from polyhost.service_errors import EndpointError

logger = logging.getLogger("polyhost.cache")


class CallAnswered(NamedTuple):
    """
    An InvokeEndpoint was answered.

    `variant` is "" where there is no such endpoint, `target` where none was named; `model_secs` is 0.0 if no model
    was asked. `was_hit` is None unless a model was looked up in the cache; `wait_secs`: what it waited for its model.
    `model_status`, where a model has answered, says whose error a 424 is: it counts as the model's status.
    """

    request_id: str
    endpoint: str
    variant: str
    target: str
    status: int
    bytes_in: int
    bytes_out: int
    total_secs: float
    model_secs: float
    was_hit: bool | None
    wait_secs: float = 0.0
    model_status: int = 0


@dataclass(frozen=True, slots=True)
class ShadowAnswered:
    """A copy of a request was answered by a shadow variant, whose call it counts as. Nobody was sent the answer."""

    call: CallAnswered
    is_same: bool


@dataclass(frozen=True, slots=True)
class ShadowDropped:
    """A copy was not sent: the shadow variant is at work on as many as it may be."""

    endpoint: str
    variant: str


@dataclass(frozen=True, slots=True)
class CallsCaptured:
    """Of calls that were to be captured: those that were written, and those that could not be."""

    endpoint: str
    variant: str
    written: int
    dropped: int


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """`download_secs` is 0.0 where the archive was on disk."""

    shelf: Shelf
    target: str
    download_secs: float
    load_secs: float


@dataclass(frozen=True, slots=True)
class ModelSwapped:
    """A new version of its archive has taken the old one's place. `ModelLoaded` follows."""

    shelf: Shelf
    target: str
    load_secs: float


@dataclass(frozen=True, slots=True)
class ModelLeaving:
    """
    Its next request loads it again, or loads a newer version. `is_evicted`: to make room for another model.

    `ModelUnloaded` follows when nobody uses it any more and the engine has unloaded it.
    """

    shelf: Shelf
    target: str
    is_evicted: bool


@dataclass(frozen=True, slots=True)
class ModelUnloaded:
    """The engine does not hold it any more."""

    shelf: Shelf
    target: str
    secs: float
    was_evicted: bool


@dataclass(frozen=True, slots=True)
class ArchiveOverwritten:
    shelf: Shelf
    target: str


@dataclass(frozen=True, slots=True)
class ArchiveDeleted:
    """Its model is not served any more."""

    shelf: Shelf
    target: str


@dataclass(frozen=True, slots=True)
class SwapFailed:
    """The new version was not loaded. The old one goes on answering."""

    shelf: Shelf
    target: str
    error: Failure


@dataclass(frozen=True, slots=True)
class ShelfFailed:
    """A container cannot be served."""

    shelf: Shelf
    error: Failure


@dataclass(frozen=True, slots=True)
class LookFailed:
    """What changed in the bucket or folder of a container is not known."""

    shelf: Shelf
    error: EndpointError


@dataclass(frozen=True, slots=True)
class ModelForTrialMissing:
    """A container's script wants a model beside it, and none can be fetched to try it with."""

    shelf: Shelf
    error: EndpointError


CacheEvent = (
    ModelLoaded
    | ModelSwapped
    | ModelLeaving
    | ModelUnloaded
    | ArchiveOverwritten
    | ArchiveDeleted
    | SwapFailed
    | ShelfFailed
    | LookFailed
    | ModelForTrialMissing
)
FollowerEvent = ShadowAnswered | ShadowDropped | CallsCaptured
Event = CacheEvent | CallAnswered | FollowerEvent
# The kinds of what happens to models and shelves.
CACHE_EVENTS: tuple[type[CacheEvent], ...] = get_args(CacheEvent)
# And of what follows calls.
FOLLOWER_EVENTS: tuple[type[FollowerEvent], ...] = get_args(FollowerEvent)

E = TypeVar("E")


class Publisher:
    def __init__(self) -> None:
        self._subscribers: dict[type, list[Callable[..., None]]] = {kind: [] for kind in get_args(Event)}

    def subscribe(self, kinds: Collection[type[E]], subscriber: Callable[[E], None]) -> None:
        """By kind, so that a call that was answered costs no more than those who want to hear of it."""
        for kind in kinds:
            self._subscribers[kind].append(subscriber)

    def publish(self, event: Event) -> None:
        """To all, whatever one of them makes of it: what the publisher does next must not depend on that."""
        for subscriber in self._subscribers[type(event)]:
            try:
                subscriber(event)
            except Exception:
                logger.exception("unexpected")


def log(event: CacheEvent) -> None:
    """The subscriber that writes the log of the cache."""
    match event:
        case ArchiveOverwritten(shelf, target):
            logger.info("%s: %s was overwritten", shelf.source, target)
        case ArchiveDeleted(shelf, target):
            logger.info("%s: %s was deleted", shelf.source, target)
        case SwapFailed(_, target, error):
            logger.warning("%s: the new version was not loaded, the old one stays: %s", target, error)
        case ShelfFailed(shelf, error):
            logger.warning("container of %s: %s", shelf.container.source, error)
        case LookFailed(shelf, error):
            logger.warning("%s: whether archives have changed is not known: %s", shelf.source, error.message)
        case ModelForTrialMissing(shelf, error):
            logger.warning("%s: no model to try the script with: %s", shelf.source, error.message)
