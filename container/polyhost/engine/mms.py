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
import functools
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from polyhost_handlers.artifacts import HANDLER_ENVIRONMENT
from yarl import URL

from polyhost.engine.errors import (
    BadRequest,
    Conflict,
    EngineError,
    ModelNotFound,
    OutOfMemory,
    PredictionFailed,
    Unavailable,
)
from polyhost.engine.handlers import handler_spec
from polyhost.engine.mms_handlers import usual_case
from polyhost.engine.mms_process import HOST, MmsProcess
from polyhost.engine.mms_service import IS_ANSWER, REQUEST_ID, failure_file, name_file
from polyhost.engine.protocol import Answer, Item, Registration
from polyhost.engine.source import Inspector, Source
from polyhost.limits import is_multi_model
from polyhost.memory import DEFAULT_SHARE, measure_session, memory_limit_bytes
from polyhost.plan import Plan

logger = logging.getLogger("polyhost.engine")

# What HTTP says of one hop and not of the request.
_NOT_PASSED_ON = frozenset(
    ("connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"),
)
# What MMS puts around every answer, a handler's too.
_NOT_A_HANDLERS = frozenset(
    (b"x-request-id", b"pragma", b"cache-control", b"expires", b"content-length", b"connection", IS_ANSWER.encode()),
)
_JSON = {"Content-Type": "application/json"}
_WORKER_DIED = "Worker died."


@dataclass(eq=False)
class Model:
    """`inner_name`: what MMS calls it. `loading`: while it is being loaded."""

    name: str
    inner_name: str
    source: Source
    registration: Registration
    timeout_secs: int
    predictions: str
    workers: int = 0
    loading: asyncio.Task[None] | None = None


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
        self.budget_bytes = int(memory_limit_bytes() * DEFAULT_SHARE) if budget_bytes is None else budget_bytes
        self._address = f"http://{HOST}:{process.port}"
        self._models: dict[str, Model] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    # Start and stop

    async def start(self) -> None:
        """Raises MissingDependency, StartFailed."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        await self._process.start(self._answers)
        self._keep(asyncio.create_task(self._watch()))

    async def _answers(self) -> bool:
        with contextlib.suppress(EngineError):
            await self._ask("GET", "/ping")
            return True
        return False

    async def _watch(self) -> None:
        await self._process.wait()
        logger.error("Multi Model Server ended by itself")
        self.has_ended = True
        self.on_end()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()
        await self._process.stop()

    # The verbs

    async def load(self, registration: Registration) -> str:
        """Load a model; the status text. Nothing is registered after an error."""
        try:
            model = await self._new_model(registration)
        except EngineError as error:
            _log_failed_load(registration.name, error)
            raise
        workers = registration.initial_workers
        if workers is None:
            workers = self._workers_per_model
        model.loading = self._keep(asyncio.create_task(self._load(model, workers)))
        if workers and not registration.is_synchronous:
            return "Processing worker updates..."
        await asyncio.shield(model.loading)
        return "Workers scaled" if workers else f'Model "{model.name}" registered'

    async def _new_model(self, registration: Registration) -> Model:
        source = await asyncio.to_thread(
            self._inspector.inspect, registration.url, registration.handler, registration.environ
        )
        name = (
            registration.name or source.manifest_name or registration.url.rstrip("/").rpartition("/")[2].split(".")[0]
        )
        if name in self._models:
            await asyncio.to_thread(self._inspector.discard, source)
            raise Conflict(f"Model {name} is already registered.")
        inner_name = f"m{next(self._numbers)}"
        # MMS counts in whole seconds.
        timeout_secs = max(1, round(registration.response_timeout_secs or self._timeout_secs))
        predictions = f"{self._address}/models/{inner_name}/invoke"
        model = Model(name, inner_name, source, registration, timeout_secs, predictions)
        self._models[name] = model
        return model

    async def _load(self, model: Model, workers: int) -> None:
        try:
            await self._register(model)
            if workers:
                await self._scale(model, workers, workers)
            self._require_wanted(model)
        except Exception as error:
            self._forget(model)
            if isinstance(error, EngineError):
                _log_failed_load(model.name, error)
            await self._remove(model)
            raise
        finally:
            model.loading = None

    async def _register(self, model: Model) -> None:
        """Make the model known to MMS, without a worker: only so is it certain what MMS keeps after a failed load."""
        logger.info("model %s: to Multi Model Server it is %s", model.name, model.inner_name)
        name_file(self._process.book, model.inner_name).write_bytes(model.name.encode("utf-8", "surrogatepass"))
        asked = model.registration
        document = {
            "model_name": model.inner_name,
            "url": str(model.source.path),
            "handler": model.source.handler,
            "runtime": "python",
            "batch_size": asked.batch_size,
            "max_batch_delay": asked.max_batch_delay_ms,
            "initial_workers": 0,
            "synchronous": True,
            "response_timeout": model.timeout_secs,
            "preload_model": str(asked.preload_model).lower(),
        }
        await self._bring_up(model, "POST", "/models", document)
        self._require_wanted(model)

    async def _scale(self, model: Model, minimum: int, maximum: int) -> None:
        query = f"min_worker={minimum}&max_worker={maximum}&synchronous=true"
        await self._bring_up(model, "PUT", f"/models/{model.inner_name}?{query}")
        model.workers = minimum

    async def _bring_up(self, model: Model, method: str, target: str, document: Any = None) -> None:
        """A call after which MMS may start processes. Raises EngineError with the handler's reason."""
        failure = failure_file(self._process.book, model.inner_name)
        failure.unlink(missing_ok=True)
        started = time.monotonic()
        try:
            await self._ask(method, target, document)
        except ModelNotFound:
            raise
        except EngineError as error:
            raise _load_error(model, failure, error, time.monotonic() - started) from error

    def _require_wanted(self, model: Model) -> None:
        if self._models.get(model.name) is not model:
            raise ModelNotFound(f"Model not found: {model.name}")

    async def unload(self, name: str) -> None:
        """Returns when the memory has been given back."""
        model = self._get(name)
        self._forget(model)
        if (loading := model.loading) is not None:
            await self._unregister(model)
            await asyncio.wait([loading])
        await self._remove(model)

    async def _remove(self, model: Model) -> None:
        """Take a model out of MMS, and wait until its processes are gone."""
        await self._unregister(model)
        await asyncio.to_thread(self._process.end_workers, model.inner_name)
        for file in (name_file, failure_file):
            file(self._process.book, model.inner_name).unlink(missing_ok=True)
        await asyncio.to_thread(self._inspector.discard, model.source)

    async def _unregister(self, model: Model) -> None:
        with contextlib.suppress(ModelNotFound):
            await self._ask("DELETE", f"/models/{model.inner_name}")

    async def scale(self, name: str, minimum: int, maximum: int | None, is_synchronous: bool) -> str:
        """After an error the model has the workers that it had."""
        model = self._get(name)
        maximum = minimum if maximum is None else maximum
        if maximum < minimum:
            raise BadRequest("max_worker cannot be less than min_worker.")
        scaling = self._keep(asyncio.create_task(self._scale_back_if_in_vain(model, minimum, maximum)))
        if not is_synchronous:
            return "Processing worker updates..."
        await asyncio.shield(scaling)
        return "Workers scaled"

    async def _scale_back_if_in_vain(self, model: Model, minimum: int, maximum: int) -> None:
        if model.loading is not None:
            await asyncio.shield(model.loading)
        before = model.workers
        try:
            await self._scale(model, minimum, maximum)
        except EngineError as error:
            logger.warning("model %s: not scaled to %d workers: %s", model.name, minimum, error.message)
            with contextlib.suppress(EngineError):
                await self._scale(model, before, before)
            raise

    def invoke_soon(self, *_: Any) -> bool:
        return False

    async def invoke(self, name: str, item: Item) -> Answer:
        model = self._get(name)
        if model.loading is not None:
            await asyncio.shield(model.loading)
        url = f"{model.predictions}?{_fields_of(item.query)}" if item.query else model.predictions
        headers = {
            _usual_case(key): _as_utf8(value) for key, value in item.headers.items() if key not in _NOT_PASSED_ON
        }
        headers[REQUEST_ID] = item.request_id
        started = time.monotonic()
        try:
            async with self._session.post(URL(url, encoded=True), data=item.body, headers=headers) as response:
                body = await response.read()
        except aiohttp.ClientError as error:
            raise _unreachable(error) from error
        if IS_ANSWER not in response.headers:
            raise _prediction_error(model, response.status, body, time.monotonic() - started)
        return Answer(response.status, _handlers_headers(response), body)

    def names(self) -> list[str]:
        return sorted(self._models)

    def url_of(self, name: str) -> str:
        return self._models[name].registration.url

    def used_bytes(self) -> int:
        return measure_session(self._process.session).workers_bytes

    async def prepare(self, environ: tuple[tuple[str, str], ...]) -> None:
        pass  # MMS starts a worker when it loads, with the variables that the server was started with

    async def forget(self, environ: tuple[tuple[str, str], ...]) -> None:
        pass

    async def describe(self, name: str) -> dict[str, Any]:
        """As MMS describes a model, under the client's name and url."""
        model = self._get(name)
        try:
            described = await self._ask("GET", f"/models/{model.inner_name}")
        except ModelNotFound as error:
            if model.loading is None:
                raise ModelNotFound(f"Model not found: {name}") from error
            described = _described_before_mms_does(model)
        return {**described, "modelName": name, "modelUrl": model.registration.url}

    # Asking MMS

    async def _ask(self, method: str, target: str, document: Any = None) -> dict[str, Any]:
        """What MMS answers. Raises EngineError in MMS's words."""
        try:
            url = URL(self._address + target, encoded=True)
            async with self._session.request(method, url, data=json.dumps(document), headers=_JSON) as response:
                body = await response.read()
        except aiohttp.ClientError as error:
            raise _unreachable(error) from error
        if response.status >= 400:
            raise _mms_error(response.status, body)
        answer: dict[str, Any] = json.loads(body)
        return answer

    # Small things

    def _get(self, name: str) -> Model:
        if name not in self._models:
            raise ModelNotFound(f"Model not found: {name}")
        return self._models[name]

    def _forget(self, model: Model) -> None:
        if self._models.get(model.name) is model:
            del self._models[model.name]

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Tasks are held weakly by asyncio, and what goes wrong in them is told to those who wait: here, the log."""
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, EngineError):
            logger.error("unexpected", exc_info=error)


def mms_engine(plan: Plan, run: Path) -> MmsEngine:
    """`run`: a folder of this run's own, with a short path."""
    config, environ, limits = plan.config, plan.environ, plan.limits
    told = {**environ, "SAGEMAKER_MULTI_MODEL": "true" if is_multi_model(environ) else "false"}
    if config.handler_environment:
        told[HANDLER_ENVIRONMENT] = config.handler_environment
    inspector = Inspector(
        model_roots=config.model_root,
        default_handler=handler_spec(config.handler),
        environ=told,
        run_folder=run,
        model_store=plan.model_store,
    )
    return MmsEngine(
        MmsProcess(config, environ, limits, run),
        inspector,
        workers_per_model=limits.workers_per_model,
        response_timeout_secs=limits.response_timeout_secs,
        budget_bytes=config.memory_budget,
    )


def _described_before_mms_does(model: Model) -> dict[str, Any]:
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


def _log_failed_load(name: str, error: EngineError) -> None:
    logger.warning("model %s: %d: %s", name, error.status, error.message)


def _load_error(model: Model, failure: Path, error: EngineError, took_secs: float) -> EngineError:
    """Why a load failed: what the worker wrote down, else what can be told from outside."""
    with contextlib.suppress(FileNotFoundError):
        status, message = json.loads(failure.read_text())
        failure.unlink()
        return OutOfMemory(message) if status == OutOfMemory.status else EngineError(message, status)
    if error.status == OutOfMemory.status:
        return OutOfMemory("Out of memory while loading the model.")
    if took_secs >= model.timeout_secs:
        return EngineError(f"Model {model.name} was not loaded within {model.timeout_secs} s.")
    if error.message == "Failed to start workers":
        return EngineError(f"The worker of model {model.name} ended while it loaded the model.")
    return error


def _prediction_error(model: Model, status: int, body: bytes, took_secs: float) -> EngineError:
    """What MMS answers in a handler's stead, with the client's name for the model."""
    error = _mms_error(status, body)
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


_KINDS = (BadRequest, ModelNotFound, Conflict, Unavailable, OutOfMemory, PredictionFailed)


def _mms_error(status: int, body: bytes) -> EngineError:
    try:
        document = json.loads(body)
        kind_name, message = document["type"], document["message"]
    except (ValueError, TypeError, KeyError):
        return EngineError(f"Multi Model Server answered {status}.", status)
    for kind in _KINDS:
        if (kind.status, kind.type) == (status, kind_name):
            return kind(message)
    error = EngineError(message, status)
    error.type = kind_name
    return error


def _unreachable(error: aiohttp.ClientError) -> EngineError:
    return Unavailable(f"Multi Model Server does not answer: {error}.")


def _fields_of(query: str) -> str:
    """A query without the model's name, which is no field of the request."""
    return "&".join(pair for pair in query.split("&") if not pair.startswith("model_name="))


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {_usual_case(name): _as_utf8(value) for name, value in headers.items() if name not in _NOT_PASSED_ON}


@functools.lru_cache(maxsize=1000)
def _usual_case(name: str) -> str:
    return usual_case(name)


def _as_utf8(value: str) -> str:
    """Bytes that were taken as Latin-1 on the way in, as the HTTP library writes them in UTF-8 on the way out."""
    return value if value.isascii() else value.encode("latin-1").decode("utf-8", "replace")


def _handlers_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in response.raw_headers
        if name.lower() not in _NOT_A_HANDLERS
    }
