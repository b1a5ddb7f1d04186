"""
A native engine with its workers and a disk cache with its fetcher, over a store of archives whose answers are known.

All of it is real, in this process and those that it starts, on an event loop of its own. `Watched` notes what is asked
of the engine, so that tests can say when nothing is under way any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from chaos.models import Model
from polyhost.artifacts import Artifact, Artifacts, Listed
from polyhost.engine.errors import OutOfMemory
from polyhost.engine.handlers import handler_spec
from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.native.pool import Worker
from polyhost.engine.protocol import Answer, Item, Registration, WhenDone
from polyhost.engine.source import Inspector
from polyhost.limits import Limits
from polyhost.metrics import Metrics
from polyhost.service_errors import DiskFull
from polyhost.unpacking import Unpacker

from support.adopting import adopting

T = TypeVar("T")

MIB = 1024**2
# Frameworks are imported meanwhile, perhaps on a machine that is busy with other tests.
_AT_REST_SECS = 120.0
# How often nothing must be under way, one pass of the event loop after the other.
_QUIET_PASSES = 20


class Store(Protocol):
    """Where archives are. `source` is what the server calls it."""

    source: str

    def write(self, key: str, archive: bytes) -> None: ...

    def delete(self, key: str) -> None: ...


class FolderStore:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.source = f"{folder}/"
        self._folder = folder

    def write(self, key: str, archive: bytes) -> None:
        new = self._folder.parent / f"{self._folder.name}.new"
        new.write_bytes(archive)
        new.rename(self._folder / key)

    def delete(self, key: str) -> None:
        (self._folder / key).unlink()


class BucketStore:
    """`client`: boto3's."""

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.source = f"s3://{bucket}/{prefix}/"
        self._client, self._bucket, self._prefix = client, bucket, prefix

    def write(self, key: str, archive: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}", Body=archive)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}")


class Lock:
    """What calls of scripts wait for, in their worker, until it is opened: `order` is the body of such a call."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self.order = f"wait_for_lock {path}".encode()
        self.is_open = False

    def open(self) -> None:
        if not self.is_open:
            self.is_open = True
            os.close(self._descriptor)


@dataclass(eq=False)
class Version:
    """What the engine was asked to load, as its own files say: one model, one version of it."""

    name: str
    model: Model
    calls: int = 0
    # While they were answered, how often their worker was killed.
    kills: int = 0


class Trace(Protocol):
    """Who is told what the cache asks of the engine, in order."""

    def loading(self, model: Model) -> None: ...

    def load_ended(self, model: Model) -> None: ...

    def loaded(self, version: Version) -> None: ...

    def out_of_memory(self) -> None: ...

    def called(self, version: Version, item: Item) -> None: ...

    def unloaded(self, version: Version) -> None: ...


@dataclass(eq=False)
class Watched:
    """The engine, as the cache sees it. `versions` are in it now, by name."""

    engine: NativeEngine
    trace: Trace
    model_of: Callable[[Path], Model]
    versions: dict[str, Version] = field(default_factory=dict)
    # Loads, unloads and calls that have not ended; of calls, the bodies.
    under_way: list[object] = field(default_factory=list)
    loads: int = 0
    unloads: int = 0

    @property
    def budget_bytes(self) -> int:
        return self.engine.budget_bytes

    def names(self) -> list[str]:
        return self.engine.names()

    async def prepare(self, environ: tuple[tuple[str, str], ...]) -> None:
        with self._under_way(environ):
            await self.engine.prepare(environ)

    async def try_script(self, registration: Registration) -> Any:
        with self._under_way(registration):
            return await self.engine.try_script(registration)

    async def forget(self, environ: tuple[tuple[str, str], ...]) -> None:
        with self._under_way(environ):
            await self.engine.forget(environ)

    async def load(self, registration: Registration) -> str:
        model = self.model_of(Path(registration.url))
        self.trace.loading(model)
        with self._under_way(registration):
            try:
                text = await self.engine.load(registration)
            except OutOfMemory:
                self.trace.out_of_memory()
                raise
            finally:
                self.trace.load_ended(model)
        self.loads += 1
        version = self.versions[registration.name] = Version(registration.name, model)
        self.trace.loaded(version)
        return text

    async def unload(self, name: str) -> None:
        with self._under_way(name):
            await self.engine.unload(name)
        self.unloads += 1
        self.trace.unloaded(self.versions.pop(name))

    def invoke(self, name: str, item: Item, done: WhenDone) -> None:
        version = self.versions[name]
        version.calls += 1
        self.trace.called(version, item)
        self.under_way.append(item)

        def ended(outcome: Answer | Exception) -> None:
            version.calls -= 1
            self.under_way.remove(item)
            done(outcome)

        self.engine.invoke(name, item, ended)

    @contextlib.contextmanager
    def _under_way(self, what: object) -> Iterator[None]:
        self.under_way.append(what)
        try:
            yield
        finally:
            self.under_way.remove(what)

    def worker_of(self, name: str) -> Worker | None:
        """Where it is; None while it is nowhere."""
        return self.engine._registry.get(name).copies[0].worker


class Fetching(Artifacts):
    """Notes what is under way, too."""

    under_way = 0
    on_full: Callable[[], None] = staticmethod(lambda: None)

    async def get(self, source: str, key: str, *, asked_after: float = 0.0) -> Artifact:
        with self._counted():
            try:
                return await super().get(source, key, asked_after=asked_after)
            except DiskFull:
                self.on_full()
                raise

    async def list(self, source: str, after: str = "") -> dict[str, Listed]:
        with self._counted():
            return await super().list(source, after)

    async def look_up(self, source: str, key: str) -> Listed:
        with self._counted():
            return await super().look_up(source, key)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    @property
    def holds(self) -> int:
        """How often archives are held, all together."""
        return sum(entry.holds for entry in self._disk._by_path.values())

    def release_all(self) -> None:
        for entry in list(self._disk._by_path.values()):
            for _ in range(entry.holds):
                super().release(entry.artifact)


class Stack:
    """`environ`: of the fetcher, with AWS's variables. `disk_bytes`: what unpacked archives may take."""

    def __init__(self, folder: Path, environ: dict[str, str], disk_bytes: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = folder
        self._adopting = adopting()  # workers are their template's grandchildren: they come to us
        self._adopting.__enter__()
        self.artifacts, self.engine = self.run(self._make(folder, environ, disk_bytes))

    async def _make(self, folder: Path, environ: dict[str, str], disk_bytes: int) -> tuple[Fetching, NativeEngine]:
        artifacts = Fetching(folder / "cache", budget_bytes=disk_bytes, environ=environ, refresh_secs=0.0)
        run_folder = folder / "run"
        run_folder.mkdir()
        inspector = Inspector(
            model_roots=(folder,), default_handler=handler_spec("auto"), environ=environ, run_folder=run_folder,
            unpacker=Unpacker(environ, 60.0),
        )  # fmt: skip
        engine = NativeEngine(
            inspector=inspector, environ=environ, shared_workers=1, isolation="auto", budget_bytes=1024 * MIB,
            limits=Limits.of({"default_workers_per_model": "1"}), metrics=Metrics(), imports_late=True,
        )  # fmt: skip
        await artifacts.start()
        await engine.start()
        return artifacts, engine

    async def sweep(self) -> None:
        """Unload and release what a test has left that went wrong."""
        for name in self.engine.names():
            await self.engine.unload(name)
        self.artifacts.release_all()

    def stop(self) -> None:
        self.run(self.engine.stop())
        self.run(self.artifacts.stop())
        self.loop.close()
        self._adopting.__exit__(None, None, None)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 2 * _AT_REST_SECS))

    async def rest(self, watched: Watched, may_go_on: Callable[[object], bool]) -> None:
        """Returns when nothing is under way any more but what may go on."""
        deadline = time.monotonic() + _AT_REST_SECS
        quiet = 0
        while quiet < _QUIET_PASSES:
            is_quiet = not self.artifacts.under_way and all(map(may_go_on, watched.under_way))
            quiet = quiet + 1 if is_quiet else 0
            await asyncio.sleep(0 if is_quiet else 0.001)
            assert time.monotonic() < deadline, f"not at rest: {watched.under_way} {self.artifacts!r}"


def send(worker: Worker, number: signal.Signals) -> None:
    signal.pidfd_send_signal(worker._pidfd, number)
