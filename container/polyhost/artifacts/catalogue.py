"""
What the stores have: learned from listings and look-ups, and believed for a while.

One owner of both, on one event loop; times are by time.monotonic().
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

from polyhost.artifacts.entries import Artifact
from polyhost.artifacts.fetching import Fetcher
from polyhost.artifacts.stores import check_key, split_source
from polyhost.artifacts.transfers import ArtifactForbidden, Listed
from polyhost.service_errors import ArtifactMissing, EndpointError
from polyhost.tasks import SingleFlights, Tasks

# What one listing asks a store for, at most: 50 requests to S3, and about 15 MB of memory.
MOST_LISTED = 50_000
_MOST_LOOK_UPS = 100_000

_Name = tuple[str, str]


class Listing(NamedTuple):
    """Archives whose names come after `after`; `has_more`: whether there are others behind them."""

    archives: Mapping[str, Listed]
    asked_at: float
    after: str
    has_more: bool


_NOTHING = Listing({}, 0.0, "", has_more=False)


class Catalogue:
    def __init__(self, fetcher: Fetcher, tasks: Tasks, *, believed_secs: float) -> None:
        """`believed_secs`: 0 for never asking again about what is on disk."""
        self._fetcher = fetcher
        self._tasks = tasks
        self._believed_secs = believed_secs
        self._asking: SingleFlights[_Name, dict[str, Listed]] = SingleFlights()
        # By source; and by source and key, the latest ones. Each with the time at which the store was asked.
        self._listings: dict[str, Listing] = {}
        self._look_ups: OrderedDict[_Name, tuple[Listed, float]] = OrderedDict()

    # Asking

    async def list(self, source: str, after: str = "") -> dict[str, Listed]:
        """
        The archives below a multi-model source whose names come after `after`, by key; not to be changed.

        No more than MOST_LISTED, however many there are. Raises as `look_up` does.
        """
        split_source(source)
        return await self._asking.join(
            (source, after),
            lambda: self._tasks.start(self._list(source, after), expected=(EndpointError,)),
        )

    async def _list(self, source: str, after: str) -> dict[str, Listed]:
        began = time.monotonic()
        archives, has_more = await self._fetcher.list(source, after, MOST_LISTED)
        self._listings[source] = Listing(archives, began, after, has_more)
        older = [name for name, (_, at) in self._look_ups.items() if name[0] == source and at < began]
        for name in older:
            del self._look_ups[name]
        return archives

    async def look_up(self, source: str, key: str) -> Listed:
        """One archive as its store has it now. Raises ArtifactMissing, ValidationError, StoreFailed."""
        check_key(key)
        split_source(source)
        began = time.monotonic()
        try:
            listed = await self._fetcher.look_up(source, key, self.believed(source, key))
        except ArtifactForbidden:  # access may come back
            raise
        except ArtifactMissing:
            # A listing may name it yet: whoever trusts that is told by the store that it is gone.
            self._look_ups.pop((source, key), None)
            raise
        self._remember(source, key, listed, began)
        return listed

    def _remember(self, source: str, key: str, listed: Listed, asked_at: float) -> None:
        """Keys are the clients' choice, and there may be millions."""
        self._look_ups[source, key] = (listed, asked_at)
        self._look_ups.move_to_end((source, key))
        while len(self._look_ups) > _MOST_LOOK_UPS:
            self._look_ups.popitem(last=False)

    # Believing

    def last_listing(self, source: str) -> Listing | None:
        """What `list` last found, and when it asked; None before the first."""
        return self._listings.get(source)

    def is_newest(self, artifact: Artifact, asked_after: float) -> bool:
        """
        As far as is known, and known not too long ago.

        What the store was asked before `asked_after` is not believed.
        """
        known = self._known(artifact.source, artifact.key)
        if known is None:
            return not self._believed_secs and not asked_after
        listed, asked_at = known
        if asked_at < asked_after:
            return False
        is_fresh = not self._believed_secs or time.monotonic() - asked_at < self._believed_secs
        return is_fresh and listed.version == artifact.version

    def believed(self, source: str, key: str) -> Listed | None:
        """However long ago the store has said so."""
        known = self._known(source, key)
        return None if known is None else known[0]

    def believe(self, source: str, key: str, listed: Listed) -> None:
        """Where the store does not answer."""
        self._remember(source, key, listed, time.monotonic())

    def _known(self, source: str, key: str) -> tuple[Listed, float] | None:
        """The newer of the listing and the look-up."""
        looked_up = self._look_ups.get((source, key))
        archives, listed_at, _, _ = self._listings.get(source, _NOTHING)
        if key in archives and (looked_up is None or looked_up[1] < listed_at):
            return archives[key], listed_at
        return looked_up
