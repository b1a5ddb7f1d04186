"""
What models a container has, in its bucket, on disk and in memory, as one list that is searched, sorted and paged.

Fifty thousand models are ordinary, and the event loop has requests to answer. So the order of a list is found in
slices, between which others have their turn, and so seldom that it takes a small share of the time; what a page shows
of its rows is looked up when it is asked for. Nothing here changes a model.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar, get_args
from weakref import WeakKeyDictionary

import msgspec

from polyhost.artifacts import Artifacts, Listed, Listing
from polyhost.endpoint.events import ModelLeaving, ModelLoaded, Publisher
from polyhost.endpoint.measures import Measures
from polyhost.endpoint.measures.tallies import ModelTally
from polyhost.endpoint.shelf import Model, Shelf
from polyhost.service_errors import EndpointError
from polyhost.tasks import SingleFlight, SingleFlights

Status = Literal["memory", "disk", "store"]
Sort = Literal["status", "name", "size", "requests", "hits", "errors", "last_used"]
STATUSES: tuple[Status, ...] = get_args(Status)

# About a millisecond's work.
_SLICE = 1000
_ORDERS_KEPT = 8
_FRESH_SECS = 2.0
# How long a model that no listing has may be missing.
_NAMES_SECS = 10.0
_PLACE_BITS = 24
_PLACE_MASK = (1 << _PLACE_BITS) - 1
# Finding orders may take a twentieth of the time.
_SHARE = 20
_CHANGES_WITH_REQUESTS = frozenset(("requests", "hits", "errors", "last_used"))

_T = TypeVar("_T")
_O = TypeVar("_O", int, str)


class Query(NamedTuple):
    """`search`: words that a name has, all of them; `status`: None is any."""

    search: str = ""
    status: Status | None = None
    sort: Sort = "status"
    is_descending: bool = False


class Place(NamedTuple):
    """A container, and the variant that its models are asked through."""

    shelf: Shelf
    endpoint: str
    variant: str


class Row(msgspec.Struct, frozen=True):
    """
    A model now. `size_bytes` is the archive's, None where it is not known; `users` are requests in flight.

    `requests` are those that the model was sent since the server started; `last_used_secs` since 1970, 0.0 for never.
    `problem`: why it cannot be loaded, in a sentence.
    """

    name: str
    status: Status
    is_loading: bool
    is_pinned: bool
    users: int
    size_bytes: int | None
    unpacked_bytes: int | None
    requests: int
    hits: int
    errors: int
    last_used_secs: float
    problem: str


class Page(msgspec.Struct, frozen=True):
    """
    `total` and `counts` are of what was searched for; `listed_secs`: when the bucket was last listed, since 1970.

    Of a large bucket a part is listed, by name: what comes behind `listed_after`. `next_after`: where the next part
    begins, "" where there is none.

    `order` is the number of the order that the rows are in.
    """

    order: int
    rows: list[Row]
    total: int
    counts: Mapping[Status, int]
    listed_secs: float | None
    listed_after: str
    next_after: str
    is_listing: bool
    problem: str


@dataclass(frozen=True)
class _Order:
    """The names that a query finds, sorted. `state` is what they depend on."""

    number: int
    names: Sequence[str]
    counts: Mapping[Status, int]
    state: object
    found_at: float
    cost_secs: float

    def is_good(self, state: object) -> bool:
        age_secs = time.monotonic() - self.found_at
        return self.state == state or age_secs < max(_FRESH_SECS, _SHARE * self.cost_secs)


@dataclass
class _Known:
    """What is known of one shelf: all names, sorted, and the orders that were asked for."""

    names: list[str] = field(default_factory=list)
    # Names that no listing has.
    others: set[str] = field(default_factory=set)
    names_of: float | None = None
    names_at: float = -math.inf
    # By what was asked, least recently asked first; and the last ones by number.
    orders: OrderedDict[object, _Order] = field(default_factory=OrderedDict)
    numbered: OrderedDict[int, _Order] = field(default_factory=OrderedDict)
    finding: SingleFlights[object, _Order] = field(default_factory=SingleFlights)
    listing: SingleFlight[None] = field(default_factory=SingleFlight)
    listing_began: float = -math.inf
    # How often a model has come into memory or left it.
    changes: int = 0
    problem: str = ""


class Inventory:
    def __init__(self, artifacts: Artifacts, measures: Measures) -> None:
        self._artifacts = artifacts
        self._measures = measures
        self._known: WeakKeyDictionary[Shelf, _Known] = WeakKeyDictionary()
        self._numbers = itertools.count(1)

    async def page(self, place: Place, query: Query, offset: int, limit: int, held: int = 0) -> Page:
        """`held`: number of the order that the rows stay in, if it is still known, because somebody points at one."""
        known = self._known_of(place.shelf)
        listed = self._listed(place.shelf)
        if self._is_due(place.shelf, known):
            known.listing.begin(lambda: self._begin_to_list(place.shelf, known))
        order = known.numbered.get(held) or await self._order(place, known, query)
        archives = listed[0] if listed else {}
        tallies = self._measures.models(place.endpoint, place.variant)
        return Page(
            order=order.number,
            rows=[self._row(place.shelf, name, archives, tallies) for name in order.names[offset : offset + limit]],
            total=len(order.names),
            counts=order.counts,
            listed_secs=time.time() - (time.monotonic() - listed[1]) if listed else None,
            listed_after=listed.after if listed else "",
            next_after=max(archives, default="") if listed and listed.has_more else "",
            is_listing=known.listing.is_under_way,
            problem=known.problem,
        )

    def subscribe_to(self, events: Publisher) -> None:
        """An order by what is in memory may not hold any more after these."""
        events.subscribe((ModelLoaded,), self._has_moved)
        events.subscribe((ModelLeaving,), self._has_moved)

    def _has_moved(self, event: ModelLoaded | ModelLeaving) -> None:
        self._known_of(event.shelf).changes += 1

    def has_changed(self, shelf: Shelf) -> None:
        """Somebody has loaded or unloaded a model and wants to see it."""
        known = self._known_of(shelf)
        known.orders.clear()
        known.names_at = -math.inf

    async def list_now(self, shelf: Shelf, after: str = "") -> None:
        """Ask the bucket or folder for what comes behind `after`; what goes wrong is the next page's `problem`."""
        if not shelf.container.is_multi_model:
            return
        known = self._known_of(shelf)
        await known.listing.join(lambda: self._begin_to_list(shelf, known, after))

    # Listings

    def _known_of(self, shelf: Shelf) -> _Known:
        return self._known.setdefault(shelf, _Known())

    def _listed(self, shelf: Shelf) -> Listing | None:
        return self._artifacts.last_listing(shelf.source) if shelf.container.is_multi_model else None

    def _is_due(self, shelf: Shelf, known: _Known) -> bool:
        """
        A source is listed when somebody looks at its models for the first time, and then when somebody asks for it.

        A bucket that has just refused is not asked again at once.
        """
        if not shelf.container.is_multi_model or self._listed(shelf) is not None or known.listing.is_under_way:
            return False
        return time.monotonic() - known.listing_began >= _FRESH_SECS

    def _begin_to_list(self, shelf: Shelf, known: _Known, after: str = "") -> asyncio.Task[None]:
        known.listing_began = time.monotonic()
        return asyncio.get_running_loop().create_task(self._list(shelf, known, after))

    async def _list(self, shelf: Shelf, known: _Known, after: str) -> None:
        try:
            await self._artifacts.list(shelf.source, after)
        except EndpointError as error:
            known.problem = error.message
        else:
            known.problem = ""
            known.orders.clear()

    # Orders

    async def _order(self, place: Place, known: _Known, query: Query) -> _Order:
        asked = (query, place.endpoint, place.variant)
        state = self._state(place.shelf, query)
        order = known.orders.get(asked)
        if order is not None and order.is_good(state):
            known.orders.move_to_end(asked)
            return order
        order = known.orders[asked] = await known.finding.join(
            asked,
            lambda: asyncio.get_running_loop().create_task(self._find(place, known, query, state)),
        )
        known.numbered[order.number] = order
        for kept in (known.orders, known.numbered):
            while len(kept) > _ORDERS_KEPT:
                kept.popitem(last=False)
        return order

    def _state(self, shelf: Shelf, query: Query) -> object:
        """What the order depends on: where it is equal, the order is the same."""
        listed = self._listed(shelf)
        requests = self._measures.invocations_ever if query.sort in _CHANGES_WITH_REQUESTS else None
        on_disk = len(self._artifacts.on_disk())
        return listed and listed[1], self._known_of(shelf).changes, on_disk, len(shelf.models), requests

    async def _find(self, place: Place, known: _Known, query: Query, state: object) -> _Order:
        began = time.perf_counter()
        words = query.search.casefold().split()
        status_of = self._status_of(place.shelf)
        found: list[str] = []
        groups: dict[Status, list[str]] = {status: [] for status in STATUSES}
        async for names in _slices(await self._names(place.shelf, known)):
            matching = [name for name in names if _has(name.casefold(), words)] if words else names
            found += matching
            for name in matching:
                groups[status_of(name)].append(name)
        return _Order(
            number=next(self._numbers),
            names=await self._sorted(place, query, found, groups),
            counts={status: len(names) for status, names in groups.items()},
            state=state,
            found_at=time.monotonic(),
            cost_secs=time.perf_counter() - began,
        )

    async def _names(self, shelf: Shelf, known: _Known) -> list[str]:
        """In the bucket or not: what was deleted there may be in memory yet, what is new may not be listed."""
        listed = self._listed(shelf)
        listed_at = listed[1] if listed else None
        if known.names_of != listed_at or time.monotonic() - known.names_at > _NAMES_SECS:
            archives = listed[0] if listed else {}
            others = await self._others(shelf, archives)
            if known.names_of != listed_at or known.others != others or not known.names:
                known.names = await _in_order([*archives, *others])
            known.names_of, known.others, known.names_at = listed_at, others, time.monotonic()
        return known.names

    async def _others(self, shelf: Shelf, archives: Mapping[str, Listed]) -> set[str]:
        if shelf.only_target:
            return {shelf.only_target}
        others: set[str] = set()
        async for models in _slices(list(shelf.models)):
            others.update(name for name in models if name not in archives)
        async for entries in _slices(list(self._artifacts.on_disk())):
            others.update(key for source, key in entries if source == shelf.source and key not in archives)
        return others

    async def _sorted(
        self, place: Place, query: Query, found: list[str], groups: Mapping[Status, list[str]]
    ) -> Sequence[str]:
        names = groups[query.status] if query.status else found
        if query.sort == "name":
            return names[::-1] if query.is_descending else names
        if query.sort == "status":
            order = reversed(STATUSES) if query.is_descending else STATUSES
            chosen = (status for status in order if query.status in (None, status))
            return list(itertools.chain.from_iterable(groups[status] for status in chosen))
        return await _by_number(names, self._number(place, query.sort), is_descending=query.is_descending)

    def _number(self, place: Place, sort: Sort) -> Callable[[str], int]:
        """What a name is sorted by."""
        models, tallies = place.shelf.models, self._measures.models(place.endpoint, place.variant)
        listed = self._listed(place.shelf)
        archives = listed[0] if listed else {}
        match sort:
            case "size":
                return lambda name: archives[name].size_bytes if name in archives else 0
            case "requests":
                return lambda name: models[name].uses if name in models else 0
            case "last_used":
                return lambda name: int(models[name].last_used * 1000) if name in models else 0
            case "hits":
                return lambda name: tallies[name].hits if name in tallies else 0
            case "errors":
                return lambda name: tallies[name].errors if name in tallies else 0
            case _:
                return lambda _: 0

    # Models

    def _status_of(self, shelf: Shelf) -> Callable[[str], Status]:
        models, source, on_disk = shelf.models, shelf.source, self._artifacts.on_disk()

        def status_of(name: str) -> Status:
            model = models.get(name)
            if model is not None and (model.loaded or model.loading.is_under_way):
                return "memory"
            return "disk" if (source, name) in on_disk else "store"

        return status_of

    def _row(self, shelf: Shelf, name: str, archives: Mapping[str, Listed], tallies: Mapping[str, ModelTally]) -> Row:
        model = shelf.models.get(name) or Model(shelf, name)
        artifact = model.loaded.artifact if model.loaded else None
        listed = archives.get(name)
        size_bytes = listed.size_bytes if listed else artifact.archive_bytes if artifact else None
        tally = tallies.get(name) or ModelTally()
        return Row(
            name=name,
            status=self._status_of(shelf)(name),
            is_loading=model.loading.is_under_way,
            is_pinned=model.is_pinned,
            users=model.loaded.users if model.loaded else 0,
            size_bytes=size_bytes,
            unpacked_bytes=artifact.unpacked_bytes if artifact else None,
            requests=model.uses,
            hits=tally.hits,
            errors=tally.errors,
            last_used_secs=model.last_used,
            problem=model.too_large[1] if model.too_large else "",
        )


def _has(name: str, words: Sequence[str]) -> bool:
    return all(word in name for word in words)


async def _slices(items: Sequence[_T]) -> AsyncIterator[Sequence[_T]]:
    for start in range(0, len(items), _SLICE):
        if start:
            await asyncio.sleep(0)
        yield items[start : start + _SLICE]


async def _by_number(names: Sequence[str], number_of: Callable[[str], int], *, is_descending: bool) -> list[str]:
    """Stable in both directions."""
    # A number and a place in one integer: quick to compare, and nothing that the garbage collector looks at. Most names
    # have no number, and stay as they are.
    sign = -1 if is_descending else 1
    keys: list[int] = []
    rest: list[str] = []
    places = itertools.count()
    async for part in _slices(names):
        for name, place in zip(part, places):  # noqa: B905 - one is endless
            number = number_of(name)
            if number:
                keys.append((sign * number << _PLACE_BITS) + place)
            else:
                rest.append(name)
    ordered: list[str] = []
    async for some in _slices(await _in_order(keys)):
        ordered += [names[key & _PLACE_MASK] for key in some]
    return ordered + rest if is_descending else rest + ordered


async def _in_order(items: list[_O]) -> list[_O]:
    """Sorted, in steps: runs first, then two by two."""
    runs = [sorted(run) async for run in _slices(items)]
    while len(runs) > 1:
        odd = [runs.pop()] if len(runs) % 2 else []
        runs = [await _merged(runs[index], runs[index + 1]) for index in range(0, len(runs), 2)] + odd
    return runs[0] if runs else []


async def _merged(one: list[_O], other: list[_O]) -> list[_O]:
    merged: list[_O] = []
    at = 0
    async for part in _slices(one):
        until = bisect_right(other, part[-1], at)
        merged += sorted(itertools.chain(part, other[at:until]))
        at = until
    return merged + other[at:]
