"""
What an endpoint's callers and its model cache were seen to do: for `GET /metrics`, CloudWatch and the dashboard.

One owner, one event loop. Recording is plain numbers; whoever wants them in another form pays when asking.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from polyhost.endpoint.events import (
    CACHE_EVENTS,
    FOLLOWER_EVENTS,
    ArchiveDeleted,
    CacheEvent,
    CallAnswered,
    CallsCaptured,
    FollowerEvent,
    ModelLoaded,
    ModelSwapped,
    ModelUnloaded,
    Publisher,
    ShadowAnswered,
    ShadowDropped,
)
from polyhost.endpoint.measures import emf
from polyhost.endpoint.measures.exposition import families
from polyhost.endpoint.measures.histogram import Histogram, observed_together
from polyhost.endpoint.measures.tallies import NO_GAUGES, UNKNOWN, Gauges, ModelTally, Tallies, VariantTally

__all__ = ["Calls", "Event", "EventKind", "Gauges", "Measures", "Recent", "Snapshot", "Totals"]

emf_logger = logging.getLogger("polyhost.emf")

EVENTS_KEPT = 200
SECONDS_KEPT = 60
HISTORY_SECS = 300
_PERIOD_SECS = 60

EventKind = Literal["load", "evict", "unload", "swap"]


class Event(NamedTuple):
    """`moment_secs` since 1970."""

    moment_secs: float
    kind: EventKind
    endpoint: str
    variant: str
    target: str
    ms: float


@dataclass(frozen=True)
class Totals:
    """Sums over the present endpoints, since the server started."""

    invocations: int
    errors: int
    hits: int
    lookups: int
    loads: int
    unloads: int
    evictions: int


@dataclass(frozen=True)
class Recent:
    """Figures of one second, or of the last minute. Latency is the whole request's."""

    requests: int
    errors: int
    hits: int
    lookups: int
    p50_secs: float
    p90_secs: float
    p99_secs: float

    @property
    def hit_ratio(self) -> float | None:
        return self.hits / self.lookups if self.lookups else None


@dataclass(frozen=True)
class Snapshot:
    """
    For a dashboard. `seconds`: the last 60, the newest last, which is not over yet: its number is `moment`.

    `events`: the newest last; there were `events_ever`.
    """

    totals: Totals
    minute: Recent
    moment: int
    seconds: tuple[Recent, ...]
    events: tuple[Event, ...]
    events_ever: int


class _Second:
    __slots__ = ("closed", "errors", "hits", "lookups", "moment", "requests", "total")

    def __init__(self, moment: int) -> None:
        # What it came to, once it is over and somebody asked.
        self.closed: Recent | None = None
        self.moment = moment
        self.requests = self.errors = self.hits = self.lookups = 0
        self.total = Histogram()

    def add(self, total_secs: float, is_error: bool, was_hit: bool | None) -> None:
        self.total.add(total_secs)
        self.requests += 1
        self.errors += is_error
        if was_hit is not None:
            self.lookups += 1
            self.hits += was_hit

    def absorb(self, hits: Histogram) -> None:
        self.total.absorb(hits)
        count = hits.count
        self.requests += count
        self.lookups += count
        self.hits += count


class Calls(NamedTuple):
    """How long calls took: in all, in their models, and beside those."""

    total: Histogram
    model: Histogram
    overhead: Histogram


class Measures(Collector):
    """
    One per server; all calls on its event loop. `gauges` finds what is so now.

    Raises ValueError if a customer may not write into `emf_namespace`.
    """

    gauges: Callable[[], Gauges]

    def __init__(self, *, emf_namespace: str | None, max_models: int = 1000) -> None:
        self.gauges = lambda: NO_GAUGES
        # Called before anybody is told: calls that other processes have answered may not be counted yet.
        self.before_telling: Callable[[], None] = lambda: None
        # Told once a minute, and when somebody asks, what was measured since the last time.
        self.keep: Callable[[Sequence[emf.Minute]], None] = lambda _: None
        self._emf_namespace = None if emf_namespace is None else emf.parse_namespace(emf_namespace)
        self._tallies = Tallies(max_models)
        self._seconds: deque[_Second] = deque([_Second(-1)], maxlen=HISTORY_SECS)
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._events_ever = 0
        self._period_began_secs = time.time()

    # What happened

    def subscribe_to(self, events: Publisher) -> None:
        events.subscribe((CallAnswered,), self.invocation)
        events.subscribe(CACHE_EVENTS, self.on_event)
        events.subscribe(FOLLOWER_EVENTS, self.on_following)

    def invocation(self, call: CallAnswered) -> None:
        self._count(call)
        self._this_second().add(call.total_secs, call.status >= 400, call.was_hit)

    def on_following(self, event: FollowerEvent) -> None:
        """What follows calls: a shadow variant has the same numbers as any other, and some of its own."""
        match event:
            case ShadowAnswered(call, is_same):
                self._count(call)
                shadow = self._tallies.variant(call.endpoint, call.variant)
                shadow.shadow_same += is_same
                shadow.shadow_different += not is_same
            case ShadowDropped(endpoint, variant):
                self._tallies.variant(endpoint, variant).shadow_dropped += 1
            case CallsCaptured(endpoint, variant, written, dropped):
                tally = self._tallies.variants.get((endpoint, variant))
                if tally is not None:  # none: its endpoint has gone
                    tally.captured += written
                    tally.capture_dropped += dropped

    def _count(self, call: CallAnswered) -> None:
        _, endpoint, name, target, status, _, _, total_secs, model_secs, was_hit, wait_secs, model_status = call
        variant = self._tallies.variants.get((endpoint, name)) or self._tallies.variant(endpoint, name)
        is_error = status >= 400
        model = self._model_of(variant, target, was_hit) if target else None

        variant.invocations += 1
        variant.overhead_latency.add(total_secs - model_secs if total_secs > model_secs else 0.0)
        if model_secs > 0:
            variant.model_latency.add(model_secs)
        if is_error:
            if (model_status if model_status >= 400 else status) < 500:
                variant.errors_4xx += 1
            else:
                variant.errors_5xx += 1
        if was_hit is not None:
            variant.lookups += 1
            variant.hits += was_hit
            if not was_hit:
                variant.loading_wait.add(wait_secs)
        if model is not None:
            model.invocations += 1
            model.errors += is_error
            if was_hit:
                model.hits += 1
            if model_secs > 0:
                model.answered += 1
                model.answered_secs += model_secs

    def hits(self, endpoint: str, name: str, calls: Calls) -> None:
        """Count calls that another process has answered since it last reported. Their models were resident."""
        variant = self._tallies.variants.get((endpoint, name))
        if variant is None:  # it went with its endpoint, whose series have ended
            return
        count = calls.total.count
        variant.invocations += count
        variant.lookups += count
        variant.hits += count
        variant.overhead_latency.absorb(calls.overhead)
        variant.model_latency.absorb(calls.model)
        self._this_second().absorb(calls.total)

    def model_hits(self, endpoint: str, name: str, target: str, count: int, secs: float, *, is_resident: bool) -> None:
        """
        Count one model's share of `hits`. `secs`: how long the model took for all of them. `is_resident`: whether it is
        still in memory; the series of a model that is not may have ended.
        """
        variant = self._tallies.variants.get((endpoint, name))
        if variant is None:
            return
        model = variant.models.get(target)
        if model is None:
            model = self._tallies.model(variant, target) if is_resident else variant.other
        model.invocations += count
        model.hits += count
        model.answered += count
        model.answered_secs += secs

    def _this_second(self) -> _Second:
        moment = int(time.monotonic())
        second = self._seconds[-1]
        if second.moment != moment:
            second = _Second(moment)
            self._seconds.append(second)
        return second

    def _model_of(self, variant: VariantTally, target: str, was_hit: bool | None) -> ModelTally:
        model = variant.models.get(target)
        if model is None:
            # Only what was looked up in the cache gets numbers of its own: it was found to exist before.
            model = variant.other if was_hit is None else self._tallies.model(variant, target)
        return model

    def on_event(self, event: CacheEvent) -> None:
        """What happens in the cache."""
        match event:
            case ModelLoaded(shelf, target, download_secs, load_secs):
                self.loaded(shelf.endpoint, shelf.variant, target, download_secs=download_secs, load_secs=load_secs)
            case ModelUnloaded(shelf, target, secs, was_evicted):
                self.unloaded(shelf.endpoint, shelf.variant, target, secs, was_evicted=was_evicted)
            case ModelSwapped(shelf, target, load_secs):
                self.swapped(shelf.endpoint, shelf.variant, target, load_secs)
            case ArchiveDeleted(shelf, target):
                self.forget(shelf.endpoint, shelf.variant, target)

    def loaded(self, endpoint: str, variant: str, target: str, *, download_secs: float, load_secs: float) -> None:
        """`download_secs` is 0.0 where the archive was on disk."""
        tally = self._tallies.variant(endpoint, variant)
        tally.loading.add(load_secs)
        if download_secs > 0:
            tally.downloading.add(download_secs)
        if target:
            self._tallies.model(tally, target).loads += 1
        self._happened("load", endpoint, variant, target, download_secs + load_secs)

    def unloaded(self, endpoint: str, variant: str, target: str, secs: float, *, was_evicted: bool) -> None:
        tally = self._tallies.variants.get((endpoint, variant))
        if tally is not None:  # none: it went with its endpoint, whose series have ended
            tally.unloading.add(secs)
            if was_evicted:
                tally.evictions += 1
                if target:
                    self._tallies.model(tally, target).evictions += 1
        self._happened("evict" if was_evicted else "unload", endpoint, variant, target, secs)

    def swapped(self, endpoint: str, variant: str, target: str, secs: float) -> None:
        """A new version of an archive has taken the old one's place."""
        self._happened("swap", endpoint, variant, target, secs)

    def _happened(self, kind: EventKind, endpoint: str, variant: str, target: str, secs: float) -> None:
        self._events.append(Event(time.time(), kind, endpoint, variant, target, secs * 1000))
        self._events_ever += 1

    def forget(self, endpoint: str, variant: str, target: str) -> None:
        """The model's archive is gone: its series end, what they counted stays in the others' sum."""
        self._tallies.forget(endpoint, variant, target)

    def forget_endpoint(self, endpoint: str) -> None:
        """The endpoint was deleted: all its series end, after the last of it was told."""
        self._tell(self._tallies.of_endpoint(endpoint))
        self._tallies.forget_endpoint(endpoint)

    # Who asks

    def collect(self) -> Iterator[Metric]:
        self.before_telling()
        return families(self._tallies.variants.values(), self.gauges())

    async def tell_every_minute(self) -> None:
        """Until cancelled, and then once more what is left."""
        try:
            while True:
                # By the clock: so are CloudWatch's minutes.
                await asyncio.sleep(_PERIOD_SECS - time.time() % _PERIOD_SECS)
                self.take()
        finally:
            self.take()

    def take(self) -> None:
        """What was measured since the last time goes to `keep`, and to the log for CloudWatch."""
        self.before_telling()
        for endpoint, variant in self.gauges().loaded_models:
            self._tallies.variant(endpoint, variant)
        self._tell(self._tallies.variants.values())
        self._period_began_secs = time.time()

    def _tell(self, variants: Collection[VariantTally]) -> None:
        gauges = self.gauges()
        began_secs = self._period_began_secs
        minutes = [
            emf.Minute(tally.endpoint, tally.name, began_secs, metrics)
            for tally in variants
            if tally.endpoint != UNKNOWN and (metrics := emf.take_metrics(tally, gauges))
        ]
        self.keep(minutes)
        if self._emf_namespace is not None:
            for minute in minutes:
                emf_logger.info(emf.Document(self._emf_namespace, minute))

    def snapshot(self) -> Snapshot:
        self.before_telling()
        now = int(time.monotonic())
        by_moment = {second.moment: second for second in self._seconds}
        minute = [by_moment.get(moment) for moment in range(now - SECONDS_KEPT + 1, now + 1)]
        return Snapshot(
            totals=_totals(self._tallies.variants.values()),
            minute=_recent(second for second in minute if second),
            moment=now,
            seconds=tuple(_recent_of(second, now) if second else _SILENCE for second in minute),
            events=tuple(self._events),
            events_ever=self._events_ever,
        )

    def history(self, after: int) -> list[tuple[int, Recent]]:
        """The finished seconds after `after` that had requests, within the last HISTORY_SECS, with their figures."""
        self.before_telling()
        now = int(time.monotonic())
        first = max(after + 1, now - HISTORY_SECS)
        return [(second.moment, _recent_of(second, now)) for second in self._seconds if first <= second.moment < now]

    @property
    def invocations_ever(self) -> int:
        """How many invocations the present endpoints have had."""
        return sum(tally.invocations for tally in self._tallies.variants.values())

    def models(self, endpoint: str, variant: str) -> Mapping[str, ModelTally]:
        """The models that are counted one by one, by target. A live view: read it, do not keep it."""
        tally = self._tallies.variants.get((endpoint, variant))
        return tally.models if tally else {}


def _totals(variants: Collection[VariantTally]) -> Totals:
    return Totals(
        invocations=sum(tally.invocations for tally in variants),
        errors=sum(tally.errors_4xx + tally.errors_5xx for tally in variants),
        hits=sum(tally.hits for tally in variants),
        lookups=sum(tally.lookups for tally in variants),
        loads=sum(tally.loading.count for tally in variants),
        unloads=sum(tally.unloading.count for tally in variants),
        evictions=sum(tally.evictions for tally in variants),
    )


def _recent(seconds: Iterable[_Second]) -> Recent:
    seconds = list(seconds)
    observed = observed_together(second.total for second in seconds)
    return Recent(
        requests=sum(second.requests for second in seconds),
        errors=sum(second.errors for second in seconds),
        hits=sum(second.hits for second in seconds),
        lookups=sum(second.lookups for second in seconds),
        p50_secs=observed.percentile(0.5),
        p90_secs=observed.percentile(0.9),
        p99_secs=observed.percentile(0.99),
    )


_SILENCE = _recent(())


def _recent_of(second: _Second, now: int) -> Recent:
    if second.moment == now:
        return _recent([second])
    if second.closed is None:
        second.closed = _recent([second])
    return second.closed
