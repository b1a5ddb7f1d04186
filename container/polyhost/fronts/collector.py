"""What fronts have counted, brought to where the keeper counts: when somebody asks, and some times a second."""

from __future__ import annotations

import asyncio

from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.measures import Measures
from polyhost.endpoint.residents import Use
from polyhost.fronts.counts import Counted
from polyhost.fronts.lessor import Lessor

# A second of the dashboard's is told in time.
_EVERY_SECS = 0.25


class Collector:
    def __init__(self, lessor: Lessor, cache: ModelCache, measures: Measures) -> None:
        self._lessor = lessor
        self._cache = cache
        self._measures = measures
        self._counted: set[Counted] = set()

    def add(self, counted: Counted) -> None:
        """Count a front from its start on."""
        self._counted.add(counted)

    def remove(self, counted: Counted) -> None:
        """A front has ended. Its counts stay in the sums."""
        self.collect()
        self._counted.discard(counted)

    async def collect_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_SECS)
            self.collect()

    def collect(self) -> None:
        self.collect_uses()
        names = [*self._lessor.lanes]
        for counted in self._counted:
            for lane, calls in counted.take_calls(len(names)):
                self._measures.hits(*names[lane], calls)

    def collect_uses(self) -> None:
        uses = []
        for counted in self._counted:
            for slot, count, secs, last_used in counted.take_used():
                model = self._lessor.models.get(slot)
                if model is not None:
                    uses.append(Use(model, count, last_used))
                    self._measures.model_hits(
                        model.shelf.endpoint, model.shelf.variant, model.target, count, secs,
                        is_resident=model.loaded is not None,
                    )  # fmt: skip
        if uses:
            self._cache.used(uses)

    def routes_have_changed(self) -> None:
        """What was answered until now is counted where it was asked."""
        self.collect()
        self._lessor.routes_have_changed()

    def slot_ended(self, slot: int) -> None:
        """Another model may get it."""
        self.collect_uses()
        self._lessor.ended(slot)
        for counted in self._counted:
            counted.forget(slot)
