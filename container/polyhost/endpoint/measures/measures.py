"""
What an endpoint's callers and its model cache were seen to do: for `GET /metrics`, the access log, CloudWatch and the
dashboard.

One owner, one event loop. Recording is plain numbers; whoever wants them in another form pays when asking.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from polyhost.endpoint.measures import emf
from polyhost.endpoint.measures.exposition import families
from polyhost.endpoint.measures.histogram import Histogram, observed_together
from polyhost.endpoint.measures.tallies import NO_GAUGES, UNKNOWN, Gauges, ModelTally, Tallies, VariantTally
from polyhost.log import Structured

__all__ = ["AccessLine", "Call", "Event", "EventKind", "Gauges", "Measures", "Recent", "Snapshot", "Totals"]

access_logger = logging.getLogger("polyhost.access")
emf_logger = logging.getLogger("polyhost.emf")

EVENTS_KEPT = 200
SECONDS_KEPT = 60
HISTORY_SECS = 300
_PERIOD_SECS = 60
_PLAIN = re.compile(r"[\w./:@+,()~$-]+", re.ASCII)

EventKind = Literal["load", "evict", "unload", "swap"]


class Call(NamedTuple):
    """
    An InvokeEndpoint that was answered.

    `variant` is "" where there is no such endpoint, `target` where none was named; `model_secs` is 0.0 if no model
    was asked; `was_hit` is None unless a model was looked up in the cache. `model_status`, where a model has
    answered, says whose error a 424 is: it counts as the model's status.
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
    model_status: int = 0


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
    """Of the endpoints there are, since the server started."""

    invocations: int
    errors: int
    hits: int
    lookups: int
    loads: int
    unloads: int
    evictions: int


@dataclass(frozen=True)
class Recent:
    """Of a second, or of the last minute. Latency is the whole request's."""

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


class Measures(Collector):
    """
    One per server; all calls on its event loop. `gauges` is whoever knows them.

    Raises ValueError if a customer may not write into `emf_namespace`.
    """

    gauges: Callable[[], Gauges]

    def __init__(self, *, access_log: bool, emf_namespace: str | None, max_models: int = 1000) -> None:
        self.gauges = lambda: NO_GAUGES
        self._access_log = access_log
        self._emf_namespace = None if emf_namespace is None else emf.parse_namespace(emf_namespace)
        self._tallies = Tallies(max_models)
        self._seconds: deque[_Second] = deque([_Second(-1)], maxlen=HISTORY_SECS)
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._events_ever = 0
        self._period_began_secs = time.time()

    # What happened

    def invocation(self, call: Call) -> None:
        _, endpoint, name, target, status, _, _, total_secs, model_secs, was_hit, model_status = call
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
        if model is not None:
            model.invocations += 1
            model.errors += is_error
            if was_hit:
                model.hits += 1
            if model_secs > 0:
                model.answered += 1
                model.answered_secs += model_secs
        self._this_second().add(total_secs, is_error, was_hit)
        if self._access_log and access_logger.isEnabledFor(logging.INFO):
            # As info() does, without its search for the caller's line of code.
            record = logging.LogRecord(access_logger.name, logging.INFO, __file__, 0, AccessLine(call), (), None)
            access_logger.handle(record)

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

    def loading_wait(self, endpoint: str, variant: str, secs: float) -> None:
        """A request has waited until its model was fetched and loaded."""
        self._tallies.variant(endpoint, variant).loading_wait.add(secs)

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
        """The endpoint was deleted: all its series end, after CloudWatch has the last of it."""
        if self._emf_namespace is not None:
            self._emit(self._emf_namespace, self._tallies.of_endpoint(endpoint))
        self._tallies.forget_endpoint(endpoint)

    # Who asks

    def collect(self) -> Iterator[Metric]:
        return families(self._tallies.variants.values(), self.gauges())

    async def emit_every_minute(self) -> None:
        """Until cancelled, and then once more what is left. Returns at once if CloudWatch is not to be told."""
        if self._emf_namespace is None:
            return
        try:
            while True:
                # By the clock: so are CloudWatch's minutes.
                await asyncio.sleep(_PERIOD_SECS - time.time() % _PERIOD_SECS)
                self._emit_all(self._emf_namespace)
        finally:
            self._emit_all(self._emf_namespace)

    def _emit_all(self, namespace: str) -> None:
        for endpoint, variant in self.gauges().loaded_models:
            self._tallies.variant(endpoint, variant)
        self._emit(namespace, self._tallies.variants.values())
        self._period_began_secs = time.time()

    def _emit(self, namespace: str, variants: Collection[VariantTally]) -> None:
        gauges = self.gauges()
        for tally in variants:
            metrics = emf.take_metrics(tally, gauges)
            if metrics and tally.endpoint != UNKNOWN:
                emf_logger.info(emf.Document(namespace, tally.endpoint, tally.name, self._period_began_secs, metrics))

    def snapshot(self) -> Snapshot:
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
        """Of the last HISTORY_SECS, the seconds after `after` that are over and had requests, with their numbers."""
        now = int(time.monotonic())
        first = max(after + 1, now - HISTORY_SECS)
        return [(second.moment, _recent_of(second, now)) for second in self._seconds if first <= second.moment < now]

    @property
    def invocations_ever(self) -> int:
        """Of the endpoints there are."""
        return sum(tally.invocations for tally in self._tallies.variants.values())

    @property
    def events_ever(self) -> int:
        return self._events_ever

    def models(self, endpoint: str, variant: str) -> Mapping[str, ModelTally]:
        """Of those that have numbers of their own, by target; a live view, to be read and not kept."""
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


class AccessLine(Structured):
    """A line of the access log. Names are a client's: one that is not plain is quoted, with escapes."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __str__(self) -> str:
        call = self._call
        return (
            f"{_quoted(call.request_id)} InvokeEndpoint "
            f"endpoint={_quoted_once(call.endpoint)} variant={_quoted_once(call.variant)} "
            f"target={_quoted_once(call.target)} status={call.status} "
            f"bytes_in={call.bytes_in} bytes_out={call.bytes_out} total_ms={call.total_secs * 1000:.3f} "
            f"model_ms={call.model_secs * 1000:.3f} loaded={_hit_or_miss(call.was_hit) or '-'}"
        )

    def members(self) -> dict[str, Any]:
        call = self._call
        return {
            "message": "InvokeEndpoint",
            "request_id": call.request_id,
            "endpoint": call.endpoint,
            "variant": call.variant,
            "target": call.target,
            "status": call.status,
            "bytes_in": call.bytes_in,
            "bytes_out": call.bytes_out,
            "total_ms": round(call.total_secs * 1000, 3),
            "model_ms": round(call.model_secs * 1000, 3),
            "loaded": _hit_or_miss(call.was_hit),
        }


def _quoted(name: str) -> str:
    if not name:
        return "-"
    return name if _PLAIN.fullmatch(name) and name != "-" else json.dumps(name)


# For names that come again and again.
_quoted_once = functools.lru_cache(maxsize=1024)(_quoted)


def _hit_or_miss(was_hit: bool | None) -> str | None:
    return None if was_hit is None else "hit" if was_hit else "miss"
