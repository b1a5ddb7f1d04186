"""
What is counted, by variant and by model: plain numbers, and a bound on how many models have numbers of their own.

Endpoints and variants exist only if the operator has made them; models are chosen by clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from polyhost.endpoint.measures.histogram import Histogram

# The label under which models are summed that have no numbers of their own.
OTHER = "(other)"
# The endpoint of calls whose endpoint does not exist: clients choose such names.
UNKNOWN = "(unknown)"
# Room is made for this share of all at a time, so that a stream of new models costs each of them little.
_FOLDED_SHARE = 16


class Gauges(NamedTuple):
    """
    What is so now. `loaded_models` by endpoint and variant; a CPU utilization of 1.0 is one whole core.

    `backlogs`: how many calls of each asynchronous endpoint wait or are under way. `throttled`: how many requests of
    each caller were refused by its rate limit.
    """

    loaded_models: Mapping[tuple[str, str], int]
    memory_utilization: float
    disk_utilization: float
    cpu_utilization: float
    backlogs: Mapping[str, int] = MappingProxyType({})
    throttled: Mapping[str, int] = MappingProxyType({})


NO_GAUGES = Gauges({}, 0.0, 0.0, 0.0)


class Counts(NamedTuple):
    invocations: int = 0
    errors_4xx: int = 0
    errors_5xx: int = 0
    lookups: int = 0
    hits: int = 0


@dataclass(slots=True)
class ModelTally:
    invocations: int = 0
    errors: int = 0
    # Calls that the model has answered.
    answered: int = 0
    answered_secs: float = 0.0
    hits: int = 0
    loads: int = 0
    evictions: int = 0
    # How much it is used, halved at times; and how many invocations are in that already.
    aged_use: float = 0.0
    aged_invocations: int = 0

    @property
    def use(self) -> float:
        return self.aged_use + self.invocations - self.aged_invocations

    def age(self) -> None:
        self.aged_use, self.aged_invocations = self.use / 2, self.invocations

    def absorb(self, other: ModelTally) -> None:
        self.invocations += other.invocations
        self.errors += other.errors
        self.answered += other.answered
        self.answered_secs += other.answered_secs
        self.hits += other.hits
        self.loads += other.loads
        self.evictions += other.evictions


class VariantTally:
    """`models` by target; what has no entry there is in `other`, which is there too: nothing else can have its name."""

    __slots__ = (
        "_taken", "capture_dropped", "captured", "downloading", "endpoint", "errors_4xx", "errors_5xx", "evictions",
        "hits", "invocations", "loading", "loading_wait", "lookups", "model_latency", "models", "name", "other",
        "overhead_latency", "shadow_different", "shadow_dropped", "shadow_same", "unloading",
    )  # fmt: skip

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint = endpoint
        self.name = name
        self.invocations = self.errors_4xx = self.errors_5xx = self.lookups = self.hits = self.evictions = 0
        self.captured = self.capture_dropped = 0
        # Of a shadow variant: answers that were those of the production variants, and requests that it was not sent.
        self.shadow_same = self.shadow_different = self.shadow_dropped = 0
        self.model_latency = Histogram()
        self.overhead_latency = Histogram()
        self.loading_wait = Histogram()
        self.unloading = Histogram()
        self.downloading = Histogram()
        self.loading = Histogram()
        self.other = ModelTally()
        self.models = {OTHER: self.other}
        self._taken = Counts()

    @property
    def counts(self) -> Counts:
        return Counts(self.invocations, self.errors_4xx, self.errors_5xx, self.lookups, self.hits)

    def take_counts(self) -> Counts:
        """What was added since the last time."""
        then, self._taken = self._taken, self.counts
        return Counts(*(now - before for now, before in zip(self._taken, then, strict=True)))


class Tallies:
    """All there are. At most `max_models` models, over all variants, have numbers of their own: the most used."""

    def __init__(self, max_models: int) -> None:
        self.variants: dict[tuple[str, str], VariantTally] = {}
        self._max_models = max_models
        self._model_count = 0

    def variant(self, endpoint: str, name: str) -> VariantTally:
        """`name` is "" where the endpoint does not exist."""
        names = (endpoint, name) if name else (UNKNOWN, "")
        if names not in self.variants:
            self.variants[names] = VariantTally(*names)
        return self.variants[names]

    def model(self, variant: VariantTally, target: str) -> ModelTally:
        return variant.models.get(target) or self._new_model(variant, target)

    def forget(self, endpoint: str, name: str, target: str) -> None:
        variant = self.variants.get((endpoint, name))
        if variant is not None and target in variant.models and target != OTHER:
            self._fold(variant, target)

    def forget_endpoint(self, endpoint: str) -> None:
        for variant in self.of_endpoint(endpoint):
            del self.variants[variant.endpoint, variant.name]
            self._model_count -= len(variant.models) - 1

    def of_endpoint(self, endpoint: str) -> list[VariantTally]:
        return [variant for variant in self.variants.values() if variant.endpoint == endpoint]

    def _new_model(self, variant: VariantTally, target: str) -> ModelTally:
        if self._model_count >= self._max_models:
            self._make_room()
        self._model_count += 1
        model = variant.models[target] = ModelTally()
        return model

    def _make_room(self) -> None:
        """The least used lose their own numbers. Use fades: what is asked for today outlasts what once was."""
        own = [
            (model, variant, target)
            for variant in self.variants.values()
            for target, model in variant.models.items()
            if model is not variant.other
        ]
        own.sort(key=lambda entry: entry[0].use)
        for _, variant, target in own[: max(1, self._max_models // _FOLDED_SHARE)]:
            self._fold(variant, target)
        for model, _, _ in own:
            model.age()

    def _fold(self, variant: VariantTally, target: str) -> None:
        """Into the others, so that sums over all models stay what they are."""
        variant.other.absorb(variant.models.pop(target))
        self._model_count -= 1
