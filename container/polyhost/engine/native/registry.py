"""Which models there are, and in which workers their copies live. The one owner of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from polyhost_handlers.compiled.rows import PlainRows, Way
from polyhost_handlers.signature import Signature

from polyhost.engine.errors import ModelNotFound
from polyhost.engine.native.batcher import Batcher
from polyhost.engine.native.freezing import SteadyFreezing
from polyhost.engine.native.leases import Leases
from polyhost.engine.native.messages import Borrowed
from polyhost.engine.native.pool import Environment, Worker
from polyhost.engine.native.rows import RowModel, RowModels
from polyhost.engine.native.variables import environment_for
from polyhost.engine.native.ways import Ways
from polyhost.engine.protocol import Item, Registration, WhenDone
from polyhost.engine.source import Source
from polyhost.metrics import Metrics
from polyhost.tasks import SingleFlight


@dataclass(eq=False)
class Copy:
    """One loaded instance of a model. `worker` is None while it is being loaded, also when it is loaded again."""

    number: int
    worker: Worker | None = None
    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    grown_bytes: int = 0
    # The bytes of its archive, as far as its worker has them.
    held_bytes: int = 0
    # Whether it was loaded before. If it loses its worker it is loaded again without being admitted again.
    is_admitted: bool = False
    loading: SingleFlight[None] = field(default_factory=SingleFlight)
    # What its worker reads of the front's memory.
    borrowed: RowModel | None = None


@dataclass(eq=False)
class Model:
    key: int
    name: str
    source: Source
    registration: Registration
    timeout_secs: float
    load_timeout_secs: float
    is_dedicated: bool
    copies: list[Copy] = field(default_factory=list)
    in_flight: int = 0
    # When it ended a worker, by time.monotonic().
    deaths: list[float] = field(default_factory=list)
    max_workers: int = 0
    # Known when it was loaded for the first time; never of a model that brings its own code.
    way: Way | None = None
    # What it takes and answers, once somebody has asked.
    signature: Signature | None = None
    # The front's part of a compiled model. Copies in workers are loaded when a request holds more than a row.
    rows: RowModel | None = None
    # Collects the calls of a model that takes several at a time.
    batcher: Batcher[tuple[Item, WhenDone]] | None = None

    @property
    def title(self) -> str:
        """What those who read logs and errors call it."""
        return self.registration.title or self.name

    @property
    def environment(self) -> Environment:
        return environment_for(self.source.environment, self.registration.environ, has_code=self.source.has_code)


class Registry:
    def __init__(self, metrics: Metrics, *, has_readers: bool) -> None:
        """`has_readers`: whether workers may read the front's compiled models."""
        self._metrics = metrics
        self._models: dict[str, Model] = {}
        self._by_key: dict[int, Model] = {}
        # By name. Each call asks, so this is the dictionary's own method.
        self.find: Callable[[str], Model | None] = self._models.get
        self.ways = Ways()
        metrics.add(self.ways)
        self._row_models = RowModels(has_readers=has_readers)
        self._freezing = SteadyFreezing()

    def names(self) -> list[str]:
        return sorted(self._models)

    def get(self, name: str) -> Model:
        """Raises ModelNotFound."""
        if name not in self._models:
            raise ModelNotFound(f"Model not found: {name}")
        return self._models[name]

    def of_key(self, key: int) -> Model | None:
        return self._by_key.get(key)

    def of_keys(self, keys: Iterable[int]) -> list[Model]:
        return [self._by_key[key] for key in sorted(keys) if key in self._by_key]

    def has(self, model: Model) -> bool:
        """False for one that was unloaded, also where there is another of its name."""
        return self._models.get(model.name) is model

    def add(self, model: Model) -> None:
        self._models[model.name] = model
        self._by_key[model.key] = model

    def loaded(self) -> None:
        self._freezing.loaded()

    def forget(self, model: Model) -> None:
        if self.has(model):
            del self._models[model.name], self._by_key[model.key]
            if model.way is not None:
                self.ways.end(model.way)
            self.forget_rows(model)
            self._metrics.forget(model.name)

    def leave(self, worker: Worker, *, but: Model | None = None) -> list[tuple[Model, Copy]]:
        """The copies that lived in a worker, which they no longer do."""
        orphans = []
        for model in self.of_keys(worker.models):
            for copy in model.copies:
                if copy.worker is worker and model is not but:
                    copy.worker = None
                    orphans.append((model, copy))
        return orphans

    def goes(self, model: Model, way: Way) -> None:
        """Which way a model goes it says each time that it is loaded; the first time counts."""
        if model.way is None and self.has(model):
            model.way = way
            self.ways.begin(model.title, way, in_front=_is_in_front(model))

    # Compiled models

    @property
    def rows_bytes(self) -> int:
        return self._row_models.used_bytes

    @property
    def leases(self) -> Leases:
        return self._row_models.leases

    def adopt_rows(self, model: Model, rows: PlainRows) -> bool:
        """Whether the front keeps the compiled model from now on."""
        model.rows = self._row_models.adopt(rows, model.title)
        return model.rows is not None

    def forget_rows(self, model: Model) -> None:
        rows, model.rows = model.rows, None
        if rows is not None:
            self._row_models.drop(rows)

    def lend_rows(self, model: Model, copy: Copy, worker: Worker) -> Borrowed | None:
        """What a worker that is to load the copy can read in the front's memory, until it is given back."""
        if model.rows is None or model.is_dedicated:
            return None
        borrowed = self._row_models.lend(model.rows, worker)
        copy.borrowed = model.rows if borrowed else None
        return borrowed

    def give_back_rows(self, copy: Copy, worker: Worker) -> None:
        """The worker has dropped the copy."""
        borrowed, copy.borrowed = copy.borrowed, None
        if borrowed is not None:
            self._row_models.give_back(borrowed, worker)

    def give_back_all_rows(self, worker: Worker, but: RowModel | None = None) -> None:
        """The worker has ended, or has dropped all models but one."""
        self._row_models.give_back_all(worker, but)


def described(model: Model) -> dict[str, Any]:
    """As MMS does."""
    wanted = len(model.copies)
    described = {
        "modelName": model.name,
        "modelVersion": model.source.version,
        "modelUrl": model.registration.url,
        "engine": model.source.engine,
        "runtime": "python",
        "minWorkers": wanted,
        "maxWorkers": max(wanted, model.max_workers),
        "batchSize": model.registration.batch_size,
        "maxBatchDelay": model.registration.max_batch_delay_ms,
        "loadedAtStartup": model.registration.is_startup,
        "workers": [_described_copy(model, copy) for copy in model.copies],
        **_described_way(model),
    }
    return {key: value for key, value in described.items() if value is not None}


def _is_in_front(model: Model) -> bool:
    return model.rows is not None and model.rows.answers_rows


def _described_way(model: Model) -> dict[str, Any]:
    """What MMS does not say; its clients pass over it."""
    if model.way is None:
        return {}
    return {
        "answeredBy": "compiled" if model.way.is_compiled else "framework",
        "rowsInFront": _is_in_front(model),
        "whyNotCompiled": model.way.why_not or None,
    }


def _described_copy(model: Model, copy: Copy) -> dict[str, Any]:
    if copy.worker is not None and copy.worker.is_dedicated:
        memory = copy.worker.models_bytes
    elif model.rows is not None and not copy.held_bytes:
        memory = model.rows.blob.length_bytes + copy.grown_bytes
    else:
        memory = max(copy.grown_bytes, model.source.artifact_bytes)  # it may not be loaded yet
    return {
        "id": str(copy.number),
        "startTime": copy.started.strftime("%Y-%m-%dT%H:%M:%S.") + f"{copy.started.microsecond // 1000:03d}Z",
        "status": "READY",  # MMS says so from when a worker is started
        "gpu": False,
        "memoryUsage": memory,
    }
