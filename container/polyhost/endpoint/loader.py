"""Loads of models: fetched, then tried in the engine until there is room. What to do next is residency's to decide."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import time
from collections.abc import Iterator

from polyhost.artifacts import Artifact, Artifacts
from polyhost.endpoint.environs import Environs
from polyhost.endpoint.residency import (
    Evict,
    Fail,
    FetchAnew,
    Load,
    Reason,
    Shortage,
    Situation,
    TakeTurn,
    Wait,
    next_step,
)
from polyhost.endpoint.residents import Residents
from polyhost.endpoint.shelf import Environ, Loaded, Model, ShelfClosed
from polyhost.engine.errors import EngineError, NoProcess, OutOfMemory
from polyhost.engine.handlers import handler_spec
from polyhost.engine.protocol import Engine, Registration
from polyhost.memory import mib
from polyhost.service_errors import (
    ArtifactMissing,
    DiskFull,
    EndpointError,
    ModelNotReady,
    ServiceUnavailable,
    ValidationError,
)
from polyhost.tasks import FlightCancelled, FlightUnderWay, Tasks

logger = logging.getLogger("polyhost.endpoint")

# Errors of a load that all who wait for it are told.
_TOLD = (EndpointError, EngineError, OSError)

# How often a load tries to get room on a disk that others fill again at once.
_MAX_FETCHES = 10


class Loader:
    def __init__(
        self,
        engine: Engine,
        artifacts: Artifacts,
        environs: Environs,
        residents: Residents,
        tasks: Tasks,
        *,
        ready_timeout_secs: float,
        load_timeout_secs: float,
        response_timeout_secs: float | None,
    ) -> None:
        """`response_timeout_secs`: how long a model may take to answer; None for the engine's own limit."""
        self._engine = engine
        self._artifacts = artifacts
        self._environs = environs
        self._residents = residents
        self._tasks = tasks
        self._ready_timeout_secs = ready_timeout_secs
        self._load_timeout_secs = load_timeout_secs
        self._response_timeout_secs = response_timeout_secs
        self._numbers = itertools.count(1)
        # Loads that are short of memory and have nothing to evict try one at a time.
        self._turn = asyncio.Lock()
        # Loads that the engine is busy with.
        self._busy = 0
        self._is_stopping = False

    def stop_soon(self, models: Iterator[Model]) -> None:
        """From now on nothing is loaded that nobody waits for."""
        self._is_stopping = True
        for model in models:
            _give_up_if_unwanted(model)

    # Loads, and the calls that wait for them

    @contextlib.contextmanager
    def waiting(self, model: Model) -> Iterator[Model]:
        """A model that a call waits for is not evicted before that call has used it."""
        model.waiting += 1
        try:
            yield model
        finally:
            model.waiting -= 1
            if self._is_stopping:
                _give_up_if_unwanted(model)
            if model.is_idle:
                self._residents.changed()

    async def wait_until_loaded(self, model: Model) -> None:
        """Join the load of a model that is not resident, or begin it. Raises EndpointError, EngineError."""
        deadline = time.monotonic() + self._ready_timeout_secs
        while model.loaded is None:
            await self.load(model, max(0.0, deadline - time.monotonic()))

    async def load(self, model: Model, timeout_secs: float | None = None) -> None:
        """
        Load the current version, also where one is resident. Raises EndpointError, EngineError, OSError.

        Where it takes longer than `timeout_secs`, the load goes on.
        """
        if model.shelf.is_closed:
            raise ShelfClosed(f"The model {model.target} is no longer served here.")
        try:
            await model.loading.join(lambda: self._tasks.start(self._load(model), expected=_TOLD), timeout_secs)
        except FlightUnderWay:
            raise ModelNotReady(
                f"The model {model.target} is not ready for inference yet: it is still being fetched or loaded. "
                "Ask again."
            ) from None
        except FlightCancelled:
            raise ShelfClosed(f"The model {model.target} is no longer served here.") from None

    def tell(self, model: Model, version: str | None) -> None:
        """Its store has this version now, None for none: a load that waits for memory goes on with that one."""
        model.seen = version or ""
        self._residents.changed()

    async def remove(self, model: Model, *, is_stale: bool) -> None:
        """It is not served any more. `is_stale`: its files are not needed either."""
        model.loading.cancel()
        await model.loading.ended()
        if model.loaded is not None:
            self._residents.retire(model, is_stale=is_stale)

    # One load

    async def _load(self, model: Model) -> None:
        """Fetch and load the current version; what was loaded before goes when it is idle."""
        try:
            await asyncio.wait_for(self._load_version(model), self._load_timeout_secs)
        except ArtifactMissing:
            model.too_large = None  # of an archive that was deleted nothing is remembered
            raise
        except asyncio.TimeoutError:
            raise ModelNotReady(
                f"The model {model.target} was not fetched and loaded within {self._load_timeout_secs:g} s. Ask again."
            ) from None
        finally:
            _forget_if_unknown(model)
            self._residents.changed()

    async def _load_version(self, model: Model) -> None:
        environ = await self._environs.of(model.shelf)
        while True:
            model.seen = None
            artifact = await self._fetched(model)
            try:
                is_loaded = await self._load_artifact(model, artifact, environ)
            except BaseException:
                self._artifacts.release(artifact)
                raise
            if is_loaded:
                return
            self._artifacts.discard(artifact)

    async def _fetched(self, model: Model) -> Artifact:
        """What is loaded holds its files: unloading frees them. Others that load may take that room first."""
        for _ in range(_MAX_FETCHES - 1):
            try:
                return await self._get(model)
            except DiskFull as error:
                if await self._residents.evict_for_disk(error.missing_bytes):
                    continue
                if not self._busy and not self._residents.may_leave_the_disk(error.missing_bytes):
                    raise
                await self._residents.change()
        return await self._get(model)

    async def _get(self, model: Model) -> Artifact:
        shelf = model.shelf
        return await self._artifacts.get(shelf.source, model.target, asked_after=shelf.made_at)

    async def _load_artifact(self, model: Model, artifact: Artifact, environ: Environ) -> bool:
        """False where its archive has changed meanwhile."""
        registration = self._registration(model, artifact, environ)
        memory, shortage = None, None
        async with contextlib.AsyncExitStack() as turn:
            has_turn = False
            while True:
                step = next_step(self._situation(model, artifact, shortage, has_turn=has_turn))
                shortage = None
                match step:
                    case Load():
                        failure = await self._try(model, artifact, registration)
                        if failure is None:
                            return True
                        memory, shortage = failure
                    case FetchAnew():
                        return False
                    case Evict(victim):
                        await self._residents.evict([victim])
                    case TakeTurn():
                        await turn.enter_async_context(self._turn)
                        has_turn = True
                    case Wait():
                        await self._residents.change()
                    case Fail(reason):
                        failed = self._failure(model, artifact, reason, memory)
                        if memory is not None:
                            logger.warning("%s", failed)
                        raise failed from memory

    def _registration(self, model: Model, artifact: Artifact, environ: Environ) -> Registration:
        digest = hashlib.sha256(f"{artifact.source}{artifact.key}".encode()).hexdigest()[:24]
        return Registration(
            url=str(artifact.path),
            name=f"{digest}-{next(self._numbers)}",
            title=model.target,
            handler=handler_spec(model.shelf.container.handler),
            environ=environ,
            image=model.shelf.container.image,
            response_timeout_secs=model.shelf.container.response_timeout_secs or self._response_timeout_secs,
            load_timeout_secs=self._load_timeout_secs,
            compiled=self._artifacts.compiled(artifact),
        )

    def _situation(
        self, model: Model, artifact: Artifact, shortage: Shortage | None, *, has_turn: bool,
    ) -> Situation[Model]:  # fmt: skip
        return Situation(
            files_bytes=artifact.unpacked_bytes,
            budget_bytes=self._engine.budget_bytes,
            is_outdated=model.seen is not None and model.seen != artifact.version,
            is_known_too_large=model.too_large is not None and model.too_large[0] == artifact.version,
            shortage=shortage,
            has_turn=has_turn,
            residents=self._residents.models,
            leaving=self._residents.leaving,
            loading=self._busy,
        )

    async def _try(
        self, model: Model, artifact: Artifact, registration: Registration,
    ) -> tuple[OutOfMemory, Shortage] | None:  # fmt: skip
        """None where it has loaded. Raises EngineError for anything but a lack of memory."""
        was_alone = self._residents.is_empty and not self._busy
        self._busy += 1
        begin = time.perf_counter()
        try:
            await self._engine.load(registration)
        except asyncio.CancelledError:
            self._tasks.start(self._residents.unload_from_engine(registration.name))
            raise
        except OutOfMemory as error:
            was_alone = was_alone and self._residents.is_empty and self._busy == 1
            may_pass = isinstance(error, NoProcess) or (was_alone and bool(self._engine.names()))
            return error, Shortage(was_alone, may_pass)
        else:
            self._residents.add(model, Loaded(registration.name, artifact), time.perf_counter() - begin)
            return None
        finally:
            self._busy -= 1
            self._residents.changed()

    def _failure(self, model: Model, artifact: Artifact, reason: Reason, memory: OutOfMemory | None) -> EndpointError:
        """`memory`: what the engine said last."""
        match reason:
            case Reason.KNOWN_TOO_LARGE:
                assert model.too_large is not None
                return ValidationError(model.too_large[1])
            case Reason.FILES_TOO_LARGE:
                return ValidationError(
                    f"The model {model.target} can never be loaded: its files have {mib(artifact.unpacked_bytes)}, "
                    f"all models together may use {mib(self._engine.budget_bytes)}. Give more with --memory-budget."
                )
            case Reason.TOO_LARGE:
                assert memory is not None
                sentence = f"The model {model.target} can never be loaded: {memory.message}."
                model.too_large = artifact.version, sentence
                return ValidationError(sentence)
            case Reason.NO_ROOM:
                assert memory is not None
                return ServiceUnavailable(
                    f"The model {model.target} cannot be loaded now: {memory.message}. What is loaded by POST "
                    "/models or pinned is never evicted."
                )


def _forget_if_unknown(model: Model) -> None:
    """Names are the clients' choice: only models that exist are remembered."""
    if model.loaded is None and model.too_large is None and model.shelf.models.get(model.target) is model:
        del model.shelf.models[model.target]


def _give_up_if_unwanted(model: Model) -> None:
    if not model.waiting:
        model.loading.cancel()
