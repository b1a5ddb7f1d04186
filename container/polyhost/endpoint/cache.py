"""
The model cache: which models are resident, how they come and how they go. One event loop, changed between two awaits.

A request names a container's shelf and a target. Ten requests for a cold model wait for one load; loads of different
models run side by side. When the engine says that memory is short, idle models are unloaded, least recently used first,
until the load succeeds: never one in use, never one that is pinned. What a user loaded by MMS's own routes is
the engine's alone, counts in what it measures, and is not ours to unload.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard, TypeVar

from polyhost.endpoint.artifacts import Artifact, ArtifactForbidden, Artifacts, Listed, split_archive_url
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.errors import (
    ArtifactMissing,
    DiskFull,
    EndpointError,
    ModelNotReady,
    ServiceUnavailable,
    ValidationError,
)
from polyhost.endpoint.measures import Measures
from polyhost.engine.errors import EngineError, ModelNotFound, OutOfMemory
from polyhost.engine.handlers import handler_spec
from polyhost.engine.protocol import Answer, Engine, Item, Registration
from polyhost.memory import mib

logger = logging.getLogger("polyhost.cache")

_SUBMIT_DIRECTORY = "SAGEMAKER_SUBMIT_DIRECTORY"
T = TypeVar("T")


Failure = EndpointError | EngineError | OSError


class ShelfClosed(ServiceUnavailable):
    """The endpoint was deleted or updated meanwhile: what is asked of it now goes elsewhere, or nowhere."""


@dataclass
class Timing:
    """How long a request waited for loads, and for models' answers, seconds."""

    wait_secs: float = 0.0
    model_secs: float = 0.0


@dataclass(eq=False)
class Loaded:
    """One version of a model in the engine. `name` is the engine's for it."""

    name: str
    artifact: Artifact
    users: int = 0
    # Whether what is on disk is not needed again either: it was overwritten or deleted.
    is_stale: bool = False


@dataclass(eq=False)
class Model:
    """A target of a shelf. While `loading` is under way, `loaded` may be an older version that still answers."""

    shelf: Shelf
    target: str
    loaded: Loaded | None = None
    loading: asyncio.Task[None] | None = None
    # Callers who wait for the load.
    waiting: int = 0
    is_pinned: bool = False
    uses: int = 0
    # By time.time(); 0.0 for never.
    last_used: float = 0.0
    # The version that needs more memory than there is, and the sentence that says so.
    too_large: tuple[str, str] | None = None

    @property
    def is_idle(self) -> bool:
        return self.loaded is not None and not self.loaded.users and not self.waiting


class ShelfKey(NamedTuple):
    """What makes a shelf another. `since`: when its variant was deployed, 0.0 where an update keeps it."""

    endpoint: str
    variant: str
    container: Container
    since: float


@dataclass(eq=False)
class Shelf:
    """The models of one container of a variant of an endpoint, in whose metrics they count."""

    container: Container
    source: str
    endpoint: str
    variant: str
    # By time.monotonic(). What a store was asked before is not believed: a new endpoint has the archives of now.
    made_at: float = field(default_factory=time.monotonic)
    models: dict[str, Model] = field(default_factory=dict)
    # Its container's variables, with local paths in the place of urls; and the code that these are of.
    environ: asyncio.Task[tuple[tuple[str, str], ...]] | None = None
    code: Artifact | None = None
    # Its result: why it cannot be served.
    preparing: asyncio.Task[Failure | None] | None = None
    # Versions that are in the engine, those that only their last users keep there too.
    versions: int = 0
    is_closed: bool = False
    is_forgotten: bool = False

    @property
    def only_target(self) -> str:
        """Of a single-model container; "" of one whose clients choose."""
        return "" if self.container.is_multi_model else split_archive_url(self.container.source)[1]

    def model(self, target: str) -> Model:
        if target not in self.models:
            self.models[target] = Model(self, target)
        return self.models[target]


class ModelCache:
    def __init__(
        self,
        engine: Engine,
        artifacts: Artifacts,
        measures: Measures,
        *,
        ready_timeout_secs: float,
        load_timeout_secs: float,
        refresh_secs: float,
    ) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._measures = measures
        self._ready_timeout_secs = ready_timeout_secs
        self._load_timeout_secs = load_timeout_secs
        self._refresh_secs = refresh_secs
        self._shelves: dict[ShelfKey, Shelf] = {}
        # Resident, least recently used first.
        self._resident: OrderedDict[Model, None] = OrderedDict()
        self._numbers = itertools.count(1)
        # Loads that wait until something else changes.
        self._waiting_for_room: set[asyncio.Future[None]] = set()
        # Of those that are short of memory and have nothing to evict, one at a time tries.
        self._turn = asyncio.Lock()
        self._busy_loads = 0
        self._unloading = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        if self._refresh_secs:
            self._keep(self._refresh_again_and_again())

    async def stop(self) -> None:
        """Models stay in the engine, which ends with them."""
        loading = [model.loading for shelf in self._shelves.values() for model in shelf.models.values()]
        tasks = [*self._tasks, *(task for task in loading if task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Shelves

    def shelf(self, container: Container, endpoint: str, variant: str, since: float = 0.0) -> Shelf:
        """
        The models of a variant's container.

        `since` is when the variant was deployed. An update that keeps a container of many models keeps what is loaded
        of them; one with a single model, or with code of its own, is made anew.
        """
        is_kept = container.is_multi_model and not _code_of(container)
        key = ShelfKey(endpoint, variant, container, 0.0 if is_kept else since)
        shelf = self._shelves.get(key)
        if shelf is None:
            source = container.source if container.is_multi_model else split_archive_url(container.source)[0]
            shelf = self._shelves[key] = Shelf(container, source, endpoint, variant)
            shelf.preparing = self._keep(self._prepare(shelf))
        return shelf

    async def prepared(self, shelf: Shelf) -> Failure | None:
        """Returns when what can be done before its first request is done; why it was not, if it has failed."""
        assert shelf.preparing is not None
        await asyncio.wait({shelf.preparing})
        if shelf.preparing.cancelled():
            return ShelfClosed("The endpoint was deleted or updated meanwhile.")
        return shelf.preparing.result()

    def shelves(self) -> Collection[Shelf]:
        return self._shelves.values()

    async def _prepare(self, shelf: Shelf) -> Failure | None:
        """What can be done before the first request: start its workers, load its only model."""
        try:
            await self._engine.prepare(await self._environ_of(shelf))
            if shelf.only_target:
                with self._waiting(shelf.model(shelf.only_target)) as model:
                    await self._load_of(model)
        except (EndpointError, EngineError, OSError) as error:
            logger.warning("container of %s: %s", shelf.container.source, error)
            return error
        return None

    def keep_only(self, shelves: Collection[Shelf]) -> None:
        """The endpoints have changed: what is not needed any more is unloaded."""
        for key in [key for key, shelf in self._shelves.items() if shelf not in shelves]:
            self._keep(self._close(self._shelves.pop(key)))

    async def _close(self, shelf: Shelf) -> None:
        shelf.is_closed = True
        before = [task for task in (shelf.preparing, shelf.environ) if task is not None and not task.done()]
        for task in before:
            task.cancel()
        if before:
            await asyncio.wait(before)
        models, shelf.models = shelf.models, {}
        await asyncio.gather(*(self._remove(model, is_stale=False) for model in models.values()))
        if not shelf.versions:
            await self._forget_environ(shelf)

    async def _forget_environ(self, shelf: Shelf) -> None:
        """Of a closed shelf, once, when the last version has left the engine."""
        if shelf.is_forgotten:
            return
        shelf.is_forgotten = True
        if _is_good(shelf.environ):
            environ = shelf.environ.result()
            if not any(_is_good(other.environ) and other.environ.result() == environ for other in self.shelves()):
                await self._engine.forget(environ)
        code, shelf.code = shelf.code, None
        if code is not None:
            self._artifacts.release(code)

    # Using models

    async def invoke(self, shelf: Shelf, target: str, item: Item, timing: Timing) -> Answer:
        """
        Have a model answer, loading it first if it is not resident.

        Raises EngineError for what the engine or handler says, EndpointError for the rest.
        """
        model = shelf.model(target)
        while True:
            begin = time.perf_counter()
            with self._waiting(model):
                try:
                    await self._wait_until_loaded(model)
                finally:
                    sent = time.perf_counter()
                    timing.wait_secs += sent - begin
                assert model.loaded is not None
                loaded = model.loaded
                self._take(model, loaded)
            try:
                return await self._engine.invoke(loaded.name, item)
            except ModelNotFound:
                # Somebody unloaded it by MMS's own routes: it is loaded again.
                if loaded is not model.loaded:
                    continue
                self._drop(model)
            finally:
                timing.model_secs += time.perf_counter() - sent
                self._leave(model, loaded)

    def invoke_soon(
        self, model: Model, item: Item, done: Callable[[Answer], None], failed: Callable[[EngineError], None],
    ) -> bool:  # fmt: skip
        """As `invoke` for a model that is resident, without a task; False where something must be waited for."""
        loaded = model.loaded
        if loaded is None:
            return False

        def on_done(answer: Answer) -> None:
            self._leave(model, loaded)
            done(answer)

        def on_failed(error: EngineError) -> None:
            self._leave(model, loaded)
            failed(error)

        if not self._engine.invoke_soon(loaded.name, item, on_done, on_failed):
            return False
        self._take(model, loaded)
        return True

    @contextlib.contextmanager
    def _waiting(self, model: Model) -> Iterator[Model]:
        """Whoever waits for a model keeps it from being evicted before it was used."""
        model.waiting += 1
        try:
            yield model
        finally:
            model.waiting -= 1
            if model.is_idle:
                self._make_known_that_something_changed()

    async def _wait_until_loaded(self, model: Model) -> None:
        deadline = time.monotonic() + self._ready_timeout_secs
        while model.loaded is None:
            task = self._load_of(model)
            await asyncio.wait({task}, timeout=max(0.0, deadline - time.monotonic()))
            if not task.done():
                raise ModelNotReady(
                    f"The model {model.target} is not ready for inference yet: it is still being fetched or loaded. "
                    "Ask again."
                )
            if task.cancelled():
                raise ShelfClosed(f"The model {model.target} is no longer served here.")
            task.result()

    def _take(self, model: Model, loaded: Loaded) -> None:
        loaded.users += 1
        model.uses += 1
        model.last_used = time.time()
        if model in self._resident:
            self._resident.move_to_end(model)

    def _leave(self, model: Model, loaded: Loaded) -> None:
        loaded.users -= 1
        if loaded.users:
            return
        if loaded is not model.loaded:
            self._keep(self._unload(model, loaded, was_evicted=False))
        elif not model.shelf.container.is_cached and not model.waiting:
            loaded.is_stale = True
            self._keep(self._unload(model, self._drop(model), was_evicted=False))
        elif self._waiting_for_room:
            self._make_known_that_something_changed()

    # Loading

    def _load_of(self, model: Model) -> asyncio.Task[None]:
        """The load of a model that is under way, or a new one. Raises ShelfClosed."""
        if model.shelf.is_closed:
            raise ShelfClosed(f"The model {model.target} is no longer served here.")
        if model.loading is None:
            model.loading = asyncio.get_running_loop().create_task(self._load(model))
            model.loading.add_done_callback(_ignore_result)
        return model.loading

    async def _load(self, model: Model) -> None:
        """Fetch and load the current version; what was loaded before goes when it is idle."""
        try:
            await asyncio.wait_for(self._load_version(model), self._load_timeout_secs)
        except asyncio.TimeoutError:
            raise ModelNotReady(
                f"The model {model.target} was not fetched and loaded within {self._load_timeout_secs:g} s. Ask again."
            ) from None
        finally:
            model.loading = None
            self._forget_if_unknown(model)
            self._make_known_that_something_changed()

    def _forget_if_unknown(self, model: Model) -> None:
        """Names are the clients' choice: only models that exist are remembered."""
        if model.loaded is None and model.too_large is None and model.shelf.models.get(model.target) is model:
            del model.shelf.models[model.target]

    async def _load_version(self, model: Model) -> None:
        environ = await self._environ_of(model.shelf)
        artifact = await self._fetched(model)
        try:
            await self._load_artifact(model, artifact, environ)
        except BaseException:
            self._artifacts.release(artifact)
            raise

    async def _fetched(self, model: Model) -> Artifact:
        while True:
            try:
                return await self._artifacts.get(model.shelf.source, model.target, asked_after=model.shelf.made_at)
            except DiskFull:  # what is loaded holds its files: unloading gives them free
                if not await self._evicted_one():
                    raise

    async def _load_artifact(self, model: Model, artifact: Artifact, environ: tuple[tuple[str, str], ...]) -> None:
        self._refuse_the_too_large(model, artifact)
        name = f"{hashlib.sha256(f'{artifact.source}{artifact.key}'.encode()).hexdigest()[:24]}-{next(self._numbers)}"
        registration = Registration(
            url=str(artifact.path), name=name, handler=handler_spec(model.shelf.container.handler), environ=environ
        )
        async with contextlib.AsyncExitStack() as turn:
            has_turn = False
            while True:
                is_alone = self._is_empty() and not self._busy_loads
                self._busy_loads += 1
                begin = time.perf_counter()
                try:
                    await self._engine.load(registration)
                except asyncio.CancelledError:
                    self._keep(self._unload_quietly(name))
                    raise
                except OutOfMemory as error:
                    if is_alone and self._is_empty() and self._busy_loads == 1:
                        raise self._too_large(model, artifact, error) from error
                    reason = error
                else:
                    self._settle(model, Loaded(name, artifact), time.perf_counter() - begin)
                    return
                finally:
                    self._busy_loads -= 1
                    self._make_known_that_something_changed()
                # 1. Something idle can go. 2. Others wait for memory too: one at a time. 3. It may become free by
                # itself. 4. All that is resident stays.
                if await self._evicted_one():
                    continue
                if not has_turn:
                    await turn.enter_async_context(self._turn)
                    has_turn = True
                elif self._is_anything_going_on():
                    await self._change()
                elif self._resident:
                    raise self._no_room(model, reason) from reason

    def _is_empty(self) -> bool:
        return not self._resident and not self._unloading

    def _settle(self, model: Model, loaded: Loaded, secs: float) -> None:
        """A version is there; what was loaded before goes when it is idle."""
        shelf, artifact = model.shelf, loaded.artifact
        shelf.versions += 1
        if model.loaded is not None:
            self._retire(model, is_stale=True)
            self._measures.swapped(shelf.endpoint, shelf.variant, model.target, secs)
        model.loaded = loaded
        self._resident[model] = None
        self._measures.loaded(
            shelf.endpoint, shelf.variant, model.target, download_secs=artifact.fetch_secs, load_secs=secs
        )

    def _refuse_the_too_large(self, model: Model, artifact: Artifact) -> None:
        """Before anything is unloaded for it."""
        if model.too_large is not None and model.too_large[0] == artifact.version:
            raise ValidationError(model.too_large[1])
        budget_bytes = self._engine.budget_bytes
        if artifact.unpacked_bytes > budget_bytes:
            raise ValidationError(
                f"The model {model.target} can never be loaded: its files have {mib(artifact.unpacked_bytes)}, "
                f"all models together may use {mib(budget_bytes)}. Give more with --memory-budget."
            )

    def _too_large(self, model: Model, artifact: Artifact, error: OutOfMemory) -> EndpointError:
        """It had the server to itself, unless users' own models fill the memory."""
        if self._engine.names():
            return self._no_room(model, error)
        sentence = f"The model {model.target} can never be loaded: {error.message}."
        model.too_large = artifact.version, sentence
        return ValidationError(sentence)

    def _no_room(self, model: Model, error: OutOfMemory) -> EndpointError:
        return ServiceUnavailable(
            f"The model {model.target} cannot be loaded now: {error.message}. What is loaded by POST /models or pinned "
            "is never evicted."
        )

    async def _environ_of(self, shelf: Shelf) -> tuple[tuple[str, str], ...]:
        if shelf.environ is None or (shelf.environ.done() and not _is_good(shelf.environ)):
            shelf.environ = asyncio.get_running_loop().create_task(self._localised(shelf))
            shelf.environ.add_done_callback(_ignore_result)
        return await asyncio.shield(shelf.environ)

    async def _localised(self, shelf: Shelf) -> tuple[tuple[str, str], ...]:
        """The container's variables, with its code fetched."""
        environ = dict(shelf.container.environ)
        if not shelf.container.is_multi_model:
            environ["SAGEMAKER_MULTI_MODEL"] = "false"
        if code := _code_of(shelf.container):
            shelf.code = await self._artifacts.get(*split_archive_url(code), asked_after=shelf.made_at)
            environ[_SUBMIT_DIRECTORY] = str(shelf.code.path)
        return tuple(sorted(environ.items()))

    # Making room

    async def _evicted_one(self) -> bool:
        """Unload the idle model that was least recently used; False if there is none."""
        victim = next((model for model in self._resident if model.is_idle and not model.is_pinned), None)
        if victim is None:
            return False
        # Who wanted the room may be gone before it is there: the unload goes on.
        await asyncio.shield(self._keep(self._unload(victim, self._drop(victim), was_evicted=True)))
        return True

    def _is_anything_going_on(self) -> bool:
        """Whether memory may become free by itself."""
        may_become_idle = any(not model.is_pinned for model in self._resident)
        return bool(may_become_idle or self._busy_loads or self._unloading)

    async def _change(self) -> None:
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting_for_room.add(change)
        await change

    def _make_known_that_something_changed(self) -> None:
        waiting, self._waiting_for_room = self._waiting_for_room, set()
        for change in waiting:
            if not change.done():
                change.set_result(None)

    def _drop(self, model: Model) -> Loaded:
        """It is no longer resident: the next request loads it."""
        assert model.loaded is not None
        loaded, model.loaded = model.loaded, None
        self._resident.pop(model, None)
        return loaded

    def _retire(self, model: Model, *, is_stale: bool) -> None:
        """Nobody will ask this version any more; its last user unloads it, if there is one."""
        loaded = self._drop(model)
        loaded.is_stale = is_stale
        if not loaded.users:
            self._keep(self._unload(model, loaded, was_evicted=False))

    async def _unload(self, model: Model, loaded: Loaded, *, was_evicted: bool) -> None:
        begin = time.perf_counter()
        self._unloading += 1
        try:
            await self._unload_quietly(loaded.name)
        finally:
            self._unloading -= 1
            model.shelf.versions -= 1
            if model.shelf.is_closed and not model.shelf.versions:
                self._keep(self._forget_environ(model.shelf))
            (self._artifacts.discard if loaded.is_stale else self._artifacts.release)(loaded.artifact)
            self._make_known_that_something_changed()
        shelf, secs = model.shelf, time.perf_counter() - begin
        self._measures.unloaded(shelf.endpoint, shelf.variant, model.target, secs, was_evicted=was_evicted)

    async def _unload_quietly(self, name: str) -> None:
        with contextlib.suppress(ModelNotFound):  # somebody else has
            await self._engine.unload(name)

    # What operators do

    async def load(self, shelf: Shelf, target: str, *, pin: bool = False) -> None:
        """Have a model resident before anybody asks for it. Raises as `invoke`."""
        model = shelf.model(target)
        with self._waiting(model):
            await self._wait_until_loaded(model)
            model.is_pinned = model.is_pinned or pin

    async def unload(self, shelf: Shelf, target: str) -> None:
        """Once nobody uses it. The archive stays on disk."""
        model = shelf.models.get(target)
        if model is None or model.loaded is None:
            raise ValidationError(f"The model {target} is not loaded.")
        model.is_pinned = False
        loaded = self._drop(model)
        if not loaded.users:  # otherwise the last of them does it
            await self._unload(model, loaded, was_evicted=False)

    def pin(self, shelf: Shelf, target: str, *, is_pinned: bool) -> None:
        model = shelf.models.get(target)
        if model is None or model.loaded is None:
            raise ValidationError(f"The model {target} is not loaded: load it first.")
        model.is_pinned = is_pinned

    @property
    def resident_count(self) -> int:
        return len(self._resident)

    # Archives that change

    async def _refresh_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_secs)
            await self.refresh()

    async def refresh(self) -> None:
        """Look at what is in the buckets and folders now: swap what was overwritten, drop what was deleted."""
        for shelf in list(self._shelves.values()):
            try:
                await self._refresh(shelf)
            except EndpointError as error:
                logger.warning("%s cannot be listed: %s", shelf.source, error.message)

    async def _refresh(self, shelf: Shelf) -> None:
        if not shelf.models:
            return
        versions = {key: listed.version for key, listed in (await self._listed(shelf)).items()}
        for model in list(shelf.models.values()):
            version = versions.get(model.target) or await self._version_of_unlisted(model)
            if version is None and model.loading is None and shelf.models.get(model.target) is model:
                logger.info("%s: %s was deleted", shelf.source, model.target)
                del shelf.models[model.target]
                await self._remove(model, is_stale=True)
                self._measures.forget(shelf.endpoint, shelf.variant, model.target)
            elif model.loaded is not None and model.loaded.artifact.version != version and model.loading is None:
                logger.info("%s: %s was overwritten", shelf.source, model.target)
                self._keep(self._swap(model))

    async def _listed(self, shelf: Shelf) -> dict[str, Listed]:
        return await self._artifacts.list(shelf.source) if shelf.container.is_multi_model else {}

    async def _version_of_unlisted(self, model: Model) -> str | None:
        """A listing has only what looks like an archive by its name. None: it was deleted."""
        if model.loaded is None:
            return None
        try:
            return (await self._artifacts.look_up(model.shelf.source, model.target)).version
        except ArtifactForbidden:  # access may come back
            return model.loaded.artifact.version if model.loaded else None
        except ArtifactMissing:
            return None

    async def _swap(self, model: Model) -> None:
        try:
            await self._load_of(model)
        except (EndpointError, EngineError) as error:
            logger.warning("%s: the new version was not loaded, the old one stays: %s", model.target, error)

    async def _remove(self, model: Model, *, is_stale: bool) -> None:
        if model.loading is not None:
            model.loading.cancel()
            await asyncio.wait({model.loading})
        if model.loaded is not None:
            self._retire(model, is_stale=is_stale)

    def _keep(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Tasks are held weakly by asyncio; what goes wrong in them is told to those who wait, or the log."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("unexpected", exc_info=error)


def _code_of(container: Container) -> str:
    """Where the archive of the container's own code is, "" if it has none."""
    code = dict(container.environ).get(_SUBMIT_DIRECTORY, "").removeprefix("file://")
    return code if code.endswith(".tar.gz") else ""


def _is_good(task: asyncio.Task[Any] | None) -> TypeGuard[asyncio.Task[Any]]:
    return task is not None and task.done() and not task.cancelled() and task.exception() is None


def _ignore_result(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
