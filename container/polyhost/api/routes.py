"""
What the methods and paths of requests lead to.

An application has one list of routes. Which handler answers, what a policy must allow, which of MMS's two addresses
serves a route and what the OpenAPI document says of it follow from that list.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from polyhost.api.http import Reply, Request
from polyhost.api.tasks import AnsweringTasks
from polyhost.service_errors import EndpointError

# A handler gets the request, the name in its path and the request's id. It answers at once or by a callback, and
# returns what to call when the client has gone; or it is a coroutine. Both may raise.
Begin = Callable[[Request, str, str, Callable[[Reply], None]], Callable[[], object] | None]
Handle = Callable[[Request, str, str], Coroutine[Any, Any, Reply]]

ANY: tuple[str, ...] = ()
_REST = "..."
# How many methods and paths are remembered with their routes, and up to which length: paths are the clients' choice.
_REMEMBERED, _REMEMBERED_CHARS = 2000, 200


class Guard(enum.Enum):
    """Who is asked, where access is controlled, before a route does anything."""

    NOBODY = "it tells no secrets and changes nothing"
    TOKEN = "the request brings the metrics token"  # noqa: S105 - it is none
    POLICY = "a policy allows the route's action"
    HANDLER = "the handler asks: what the action is about is in the request's header or body"


class Ports(enum.Flag):
    """MMS's API has two addresses, which may be the same."""

    PREDICTIONS = enum.auto()
    MANAGEMENT = enum.auto()
    BOTH = PREDICTIONS | MANAGEMENT


class Operation(NamedTuple):
    """What the OpenAPI document says of a route, under a method in small letters."""

    method: str
    description: dict[str, Any]


def name_in_path(_: Request, name: str) -> str:
    return name


@dataclass(frozen=True, kw_only=True)
class Route:
    """
    `methods`: `ANY` for every one. `path`: `{name}` stands for one part, `...` and `{name...}` for any number of them;
    the first of several names is the model's.

    It has one handler, `begin` or `answer`. `when`: what else must be true of the request, if anything.
    `model`: the name of the model that the action is about; it raises BadRequest where there must be one and is none.
    `is_for_any_page`: whether other sites' pages may have a browser ask for it, also where access is not controlled.
    `too_large`: the reply to a body that was not read; None for the container's. `refused`: that to a request which is
    refused before its handler, in its protocol; None for the server's own. `is_counted`: whether rate limits count it.
    `failed`: the reply to what is raised; None for the application's own. `is_raw`: whether the model is sent the
    body as it came, and its answer goes back as it is.
    """

    methods: tuple[str, ...]
    path: str
    guard: Guard
    action: str = ""
    begin: Begin | None = None
    answer: Handle | None = None
    when: Callable[[Request], bool] | None = None
    model: Callable[[Request, str], str] = name_in_path
    is_for_any_page: bool = False
    ports: Ports = Ports.PREDICTIONS
    operation: Operation | None = None
    too_large: Callable[[Request, str, str], Reply] | None = None
    refused: Callable[[Request, str, str, EndpointError], Reply] | None = None
    is_counted: bool = True
    failed: Callable[[Exception, str], Reply] | None = None
    is_raw: bool = True


# A request's route, and the name in its path, "" if there is none.
Found = tuple[Route, str]


class Routes:
    """A list of routes, of which the first that fits a request is its own."""

    def __init__(self, routes: Iterable[Route], split: Callable[[str], Sequence[str]]) -> None:
        """`split`: a path's parts."""
        self._patterns = [_Pattern(route) for route in routes]
        self._split = split
        self._remembered = functools.lru_cache(_REMEMBERED)(self._fitting)
        # By the first part of a path, which tells most of them apart.
        self._others = [one for one in self._patterns if one.first is None]
        firsts = {one.first for one in self._patterns if one.first is not None}
        self._by_first = {first: [one for one in self._patterns if one.first in (first, None)] for first in firsts}

    def __iter__(self) -> Iterator[Route]:
        return (one.route for one in self._patterns)

    def find(self, request: Request) -> Found | None:
        path = request.path
        fitting = self._remembered if len(path) <= _REMEMBERED_CHARS else self._fitting
        for found in fitting(request.method, path):
            when = found[0].when
            if when is None or when(request):
                return found
        return None

    def _fitting(self, method: str, path: str) -> tuple[Found, ...]:
        """The routes of this method and path, in their order."""
        parts = self._split(path)
        candidates = self._by_first.get(parts[0], self._others) if parts else ()
        names = ((one.route, one.name_in(parts)) for one in candidates)
        return tuple(
            (route, name)
            for route, name in names
            if name is not None and (not route.methods or method in route.methods)
        )


class _Pattern:
    """A route's path, taken apart."""

    __slots__ = ("_fixed", "_has_rest", "_length", "_name_at", "_name_end", "first", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        parts = route.path.split("/")[1:]
        self._has_rest = any(_REST in part for part in parts)
        self._length = len(parts) - self._has_rest
        self._name_at: int | None = None
        # Counted from the end, for a name of any number of parts; 0 for a name of one.
        self._name_end: int | None = None
        self._fixed = []
        is_behind = False
        for at, part in enumerate(parts):
            place = at - len(parts) if is_behind else at
            if part.startswith("{"):
                if self._name_at is None:
                    self._name_at = at
                    self._name_end = at + 1 - len(parts) if _REST in part else None
            elif part != _REST:
                self._fixed.append((place, part))
            is_behind = is_behind or _REST in part
        self.first = parts[0] if self._fixed and self._fixed[0][0] == 0 else None

    def name_in(self, parts: Sequence[str]) -> str | None:
        """What the path's name stands for, "" if it has none; None where it is not of this pattern."""
        count = len(parts)
        if count < self._length or (count > self._length and not self._has_rest):
            return None
        for at, part in self._fixed:
            if parts[at] != part:
                return None
        if self._name_at is None:
            return ""
        if self._name_end is None:
            return parts[self._name_at]
        return "/".join(parts[self._name_at : count + self._name_end])


def serve(
    found: Found,
    request: Request,
    request_id: str,
    done: Callable[[Reply], None],
    tasks: AnsweringTasks,
    failed: Callable[[Exception, str], Reply],
) -> Callable[[], object] | None:
    """
    Let a route's handler answer: by callback, or as a coroutine in a task. No other place tells them apart.

    `failed`: the reply to what a handler raises, unless its route has one.

    Returns what to call when the client has gone.
    """
    route, name = found
    failed = route.failed or failed
    try:
        if route.begin is not None:
            return route.begin(request, name, request_id, done)
        assert route.answer is not None
        return tasks.run(_answered(route.answer(request, name, request_id), request_id, failed), done)
    except Exception as error:  # noqa: BLE001 - it becomes the answer
        done(failed(error, request_id))
        return None


async def _answered(
    answering: Coroutine[Any, Any, Reply], request_id: str, failed: Callable[[Exception, str], Reply]
) -> Reply:
    try:
        return await answering
    except Exception as error:  # noqa: BLE001 - as above
        return failed(error, request_id)
