"""
The engine mms: our front before the real Multi Model Server.

    client ── HTTP ──> front ── HTTP on loopback ──> Multi Model Server ──> a worker of the model

This module owns which models there are. MMS knows each by a number, `m1`, `m2`, …, so that names are opaque, and is
given folders that we have checked and unpacked. Of what it answers, a handler's words pass unchanged; its own become
errors in the words of our engines. A model that did not load is taken out of MMS before the client hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyhost_handlers.script_trial import Fault
from polyhost_handlers.signature import Signature

from polyhost.engine.errors import (
    BadRequest,
    Conflict,
    EngineError,
    ModelNotFound,
    OutOfMemory,
    Unavailable,
)
from polyhost.engine.loads import loaded, log_failed_load
from polyhost.engine.mms_client import MmsAnswer, MmsClient, handlers_headers, mms_error
from polyhost.engine.mms_process import HOST, MmsProcess
from polyhost.engine.mms_service import IS_ANSWER, environment_file, failure_file, name_file
from polyhost.engine.protocol import PROCESSING, Answer, Item, Registration, Stream, WhenDone, report
from polyhost.engine.source import Inspector, Source
from polyhost.engine.start import handlers_environ, inspector_of
from polyhost.memory import default_budget_bytes, measure_session
from polyhost.plan import Plan
from polyhost.tasks import SingleFlight, Tasks

logger = logging.getLogger("polyhost.engine")

_WORKER_DIED = "Worker died."


@dataclass(eq=False)
class MmsModel:
    """`inner_name`: what MMS calls it."""

    name: str
    inner_name: str
    source: Source
    registration: Registration
    timeout_secs: int
    workers: int = 0
    loading: SingleFlight[None] = field(default_factory=SingleFlight)

    @property
    def inner_timeout_secs(self) -> int:
        """MMS has one limit for loads and calls: the longer one. A shorter one of calls is ours to keep."""
        return max(self.timeout_secs, round(self.registration.load_timeout_secs or 0))

    @property
    def own_timeout_secs(self) -> int | None:
        """The limit of a call that MMS does not keep; None where MMS keeps it."""
        return self.timeout_secs if self.timeout_secs < self.inner_timeout_secs else None


class MmsEngine:
    """`on_end` is called when MMS has ended by itself, after which nothing can be served."""

    def __init__(
        self, process: MmsProcess, inspector: Inspector, *, workers_per_model: int, response_timeout_secs: float,
        budget_bytes: int | None,
    ) -> None:  # fmt: skip
        """`budget_bytes`: None for a share of what there is; the workers' guard takes off what the server uses."""
        self.on_end: Callable[[], None] = lambda: None
        self.has_ended = False
        self._process = process
        self._inspector = inspector
        self._workers_per_model = workers_per_model
        self._timeout_secs = response_timeout_secs
        self.budget_bytes = default_budget_bytes() if budget_bytes is None else budget_bytes
        self._client = MmsClient(f"http://{HOST}:{process.port}")
        self._models: dict[str, MmsModel] = {}
        self._numbers = itertools.count(1)
        self._tasks = Tasks()

    # Start and stop

    async def start(self) -> None:
        """Raises MissingDependency, StartFailed."""
        await self._client.open()
        await self._process.start(self._client.answers)
        self._tasks.start(self._watch())

    async def _watch(self) -> None:
        await self._process.wait()
        logger.error("Multi Model Server ended by itself")
        self.has_ended = True
        self.on_end()

    async def stop(self) -> None:
        await self._tasks.stop()
        await self._inspector.stop()
        await self._client.close()
        await self._process.stop()

    # The verbs

    async def load(self, registration: Registration) -> str:
        """Load a model; the status text. Nothing is registered after an error."""
        try:
            model = await self._new_model(registration)
        except EngineError as error:
            log_failed_load(registration, error)
            raise
        workers = registration.initial_workers
        if workers is None:
            workers = self._workers_per_model
        loading = model.loading.begin(
            lambda: self._tasks.start(self._load(model, workers), expected=(EngineError,)),
        )
        if workers and not registration.is_synchronous:
            return PROCESSING
        await loaded(loading, model.name)
        return "Workers scaled" if workers else f'Model "{model.name}" registered'

    async def _new_model(self, registration: Registration) -> MmsModel:
        source = await self._inspector.inspect(
            registration.url, registration.handler, registration.environ, registration.image
        )
        name = source.model_name(registration)
        if name in self._models:
            await asyncio.to_thread(self._inspector.discard, source)
            raise Conflict(f"Model {name} is already registered.")
        inner_name = f"m{next(self._numbers)}"
        # MMS counts in whole seconds.
        timeout_secs = max(1, round(registration.response_timeout_secs or self._timeout_secs))
        model = MmsModel(name, inner_name, source, registration, timeout_secs)
        self._models[name] = model
        return model

    async def _load(self, model: MmsModel, workers: int) -> None:
        try:
            await self._register(model)
            if workers:
                await self._scale(model, workers, workers)
            self._require_wanted(model)
        except Exception as error:
            self._forget(model)
            if isinstance(error, EngineError):
                log_failed_load(model.registration, error)
            await self._remove(model)
            raise

    async def _register(self, model: MmsModel) -> None:
        """Make the model known to MMS, without a worker: only so is it certain what MMS keeps after a failed load."""
        logger.info("model %s: to Multi Model Server it is %s", model.name, model.inner_name)
        name_file(self._process.book, model.inner_name).write_bytes(model.name.encode("utf-8", "surrogatepass"))
        environment_file(self._process.book, model.inner_name).write_text(model.source.environment)
        registration = model.registration
        document = {
            "model_name": model.inner_name,
            "url": str(model.source.path),
            "handler": model.source.handler,
            "runtime": "python",
            "batch_size": registration.batch_size,
            "max_batch_delay": registration.max_batch_delay_ms,
            "initial_workers": 0,
            "synchronous": True,
            "response_timeout": model.inner_timeout_secs,
            "preload_model": str(registration.preload_model).lower(),
        }
        await self._bring_up(model, "POST", "/models", document)
        self._require_wanted(model)

    async def _scale(self, model: MmsModel, minimum: int, maximum: int) -> None:
        query = f"min_worker={minimum}&max_worker={maximum}&synchronous=true"
        await self._bring_up(model, "PUT", f"/models/{model.inner_name}?{query}")
        model.workers = minimum

    async def _bring_up(self, model: MmsModel, method: str, target: str, document: Any = None) -> None:
        """A call after which MMS may start processes. Raises EngineError with the handler's reason."""
        failure = failure_file(self._process.book, model.inner_name)
        failure.unlink(missing_ok=True)
        started = time.monotonic()
        try:
            await self._client.ask(method, target, document)
        except ModelNotFound:
            raise
        except EngineError as error:
            raise _load_error(model, failure, error, time.monotonic() - started) from error

    def _require_wanted(self, model: MmsModel) -> None:
        if self._models.get(model.name) is not model:
            raise ModelNotFound(f"Model not found: {model.name}")

    async def unload(self, name: str) -> None:
        """Returns when the memory has been given back."""
        model = self._get(name)
        self._forget(model)
        if model.loading.is_under_way:
            await self._client.unregister(model.inner_name)
            await model.loading.ended()
        await self._remove(model)

    async def _remove(self, model: MmsModel) -> None:
        """Take a model out of MMS, and wait until its processes are gone."""
        await self._client.unregister(model.inner_name)
        await asyncio.to_thread(self._process.end_workers, model.inner_name)
        for file in (name_file, environment_file, failure_file):
            file(self._process.book, model.inner_name).unlink(missing_ok=True)
        await asyncio.to_thread(self._inspector.discard, model.source)

    async def scale(self, name: str, minimum: int, maximum: int | None, is_synchronous: bool) -> str:
        """After an error the model has the workers that it had."""
        model = self._get(name)
        maximum = minimum if maximum is None else maximum
        if maximum < minimum:
            raise BadRequest("max_worker cannot be less than min_worker.")
        scaling = self._tasks.start(self._scale_back_if_in_vain(model, minimum, maximum), expected=(EngineError,))
        if not is_synchronous:
            return PROCESSING
        await loaded(scaling, model.name)
        return "Workers scaled"

    async def _scale_back_if_in_vain(self, model: MmsModel, minimum: int, maximum: int) -> None:
        await _loaded(model)
        before = model.workers
        try:
            await self._scale(model, minimum, maximum)
        except EngineError as error:
            logger.warning("model %s: not scaled to %d workers: %s", model.name, minimum, error.message)
            with contextlib.suppress(EngineError):
                await self._scale(model, before, before)
            raise

    def invoke(self, name: str, item: Item, done: WhenDone, stream: Stream | None = None) -> None:  # noqa: ARG002
        """MMS answers in one piece."""
        self._tasks.start(report(self._answer(name, item), done))

    async def _answer(self, name: str, item: Item) -> Answer:
        model = self._get(name)
        await _loaded(model)
        started = time.monotonic()
        try:
            answer = await self._client.predict(model.inner_name, item, total_secs=model.own_timeout_secs)
        except asyncio.TimeoutError as error:
            raise EngineError(f"Model {model.name} did not answer within {model.timeout_secs} s.") from error
        if IS_ANSWER not in answer.headers:
            raise _prediction_error(model, answer, time.monotonic() - started)
        return Answer(answer.status, handlers_headers(answer), answer.body)

    def names(self) -> list[str]:
        return sorted(self._models)

    def url_of(self, name: str) -> str:
        return self._models[name].registration.url

    def used_bytes(self) -> int:
        return measure_session(self._process.session).workers_bytes

    async def prepare(self, environ: tuple[tuple[str, str], ...]) -> None:
        pass  # MMS starts a worker when it loads, with the variables that the server was started with

    async def try_script(self, registration: Registration) -> Fault | None:  # noqa: ARG002 - another engine's
        return None  # no container definition has code of its own

    async def forget(self, environ: tuple[tuple[str, str], ...]) -> None:
        pass

    async def describe(self, name: str) -> dict[str, Any]:
        """As MMS describes a model, under the client's name and url."""
        model = self._get(name)
        try:
            described = await self._client.ask("GET", f"/models/{model.inner_name}")
        except ModelNotFound as error:
            if not model.loading.is_under_way:
                raise ModelNotFound(f"Model not found: {name}") from error
            described = _described_before_mms_does(model)
        return {**described, "modelName": name, "modelUrl": model.registration.url}

    async def signature(self, name: str) -> Signature:
        """MMS has no way to ask."""
        self._get(name)
        return Signature()

    # Small things

    def _get(self, name: str) -> MmsModel:
        if name not in self._models:
            raise ModelNotFound(f"Model not found: {name}")
        return self._models[name]

    def _forget(self, model: MmsModel) -> None:
        if self._models.get(model.name) is model:
            del self._models[model.name]


def mms_engine(plan: Plan, run: Path) -> MmsEngine:
    """`run`: a folder of this run's own, with a short path."""
    config, limits = plan.config, plan.limits
    return MmsEngine(
        MmsProcess(config, plan.environ, limits, run),
        inspector_of(plan, handlers_environ(plan), run),
        workers_per_model=limits.workers_per_model,
        response_timeout_secs=limits.response_timeout_secs,
        budget_bytes=config.memory_budget,
    )


async def _loaded(model: MmsModel) -> None:
    """Returns when its load is over. Raises what the load raises."""
    if (loading := model.loading.task) is not None:
        await loaded(loading, model.name)


def _described_before_mms_does(model: MmsModel) -> dict[str, Any]:
    described: dict[str, Any] = {
        "modelName": model.name,
        "modelVersion": model.source.version,
        "modelUrl": model.registration.url,
        "engine": model.source.engine,
        "runtime": "python",
        "minWorkers": 0,
        "maxWorkers": 0,
        "batchSize": model.registration.batch_size,
        "maxBatchDelay": model.registration.max_batch_delay_ms,
        "loadedAtStartup": model.registration.is_startup,
        "workers": [],
    }
    return {key: value for key, value in described.items() if value is not None}


def _load_error(model: MmsModel, failure: Path, error: EngineError, took_secs: float) -> EngineError:
    """Why a load failed: what the worker wrote down, else what can be told from outside."""
    with contextlib.suppress(FileNotFoundError):
        status, message = json.loads(failure.read_text())
        failure.unlink()
        return OutOfMemory(message) if status == OutOfMemory.status else EngineError(message, status)
    if error.status == OutOfMemory.status:
        return OutOfMemory("Out of memory while loading the model.")
    if took_secs >= model.inner_timeout_secs:
        return EngineError(f"Model {model.name} was not loaded within {model.inner_timeout_secs} s.")
    if error.message == "Failed to start workers":
        return EngineError(f"The worker of model {model.name} ended while it loaded the model.")
    return error


def _prediction_error(model: MmsModel, answer: MmsAnswer, took_secs: float) -> EngineError:
    """What MMS answers in a handler's stead, with the client's name for the model."""
    error = mms_error(answer.status, answer.body)
    if isinstance(error, ModelNotFound):
        return ModelNotFound(f"Model not found: {model.name}")
    if isinstance(error, Unavailable):
        return Unavailable(
            f"No worker is available to serve request for model: {model.name}. Consider increasing job queue size.",
        )
    if error.message != _WORKER_DIED:
        return error
    if took_secs >= model.timeout_secs:
        return EngineError(f"Model {model.name} did not answer within {model.timeout_secs} s: its worker was ended.")
    return EngineError(f"The worker of model {model.name} ended while it answered this request.")
