"""What a load names: a folder, a `.mar` or a tar, looked at before a worker is chosen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
from polyhost_handlers.artifacts import container_script, folder_bytes, kind_named, recognise
from polyhost_handlers.errors import LoadFailed

from polyhost.archives import staging_of
from polyhost.engine.building import EnvironmentBuilder
from polyhost.engine.environments import environment_of
from polyhost.engine.errors import BadRequest, EngineError, EnvironmentMissing, ModelNotFound
from polyhost.engine.protocol import Registration
from polyhost.service_errors import EndpointError
from polyhost.trees import remove_tree
from polyhost.unpacking import Unpacker

_AUTO = "polyhost_handlers.auto"
_SCRIPT = "polyhost_handlers.script_handler"
# It is read in the server itself, so an archive must not choose how much memory that takes.
_MANIFEST_BYTES = 1024**2


@dataclass(frozen=True, kw_only=True)
class Source:
    path: Path
    handler: str
    # The Python environment its workers need, "" for the server's own.
    environment: str
    # Whether the archive or the operator brings Python code to run.
    has_code: bool
    # Whether loading it runs what its file says, as unpickling does.
    is_pickle: bool
    artifact_bytes: int
    version: str | None = None
    engine: str | None = None
    manifest_name: str | None = None

    def model_name(self, registration: Registration) -> str:
        """As MMS names a model: as it was asked to, as the archive's manifest says, or by its file."""
        url = registration.url.rstrip("/")
        return registration.name or self.manifest_name or url.rpartition("/")[2].split(".")[0]


class Script(NamedTuple):
    """A container's own. `environment`: the Python environment that it needs, "" for the server's own."""

    path: Path
    environment: str


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """What of a server decides how an archive is served."""

    model_roots: tuple[Path, ...]
    default_handler: str
    environ: Mapping[str, str]
    # Where archives that are no folders are unpacked.
    run_folder: Path
    unpacker: Unpacker
    # What urls that are no absolute paths are relative to.
    model_store: Path = Path("/")
    # None where environments are not built while the server serves.
    builder: EnvironmentBuilder | None = None

    async def inspect(
        self, url: str, asked_handler: str, environ: Sequence[tuple[str, str]] = (), image: str = "",
    ) -> Source:  # fmt: skip
        """
        Whoever gets the source discards it. `environ`: besides the server's own. `image`: of the container,
        `REPOSITORY:TAG`.

        Raises BadRequest, ModelNotFound, EngineError.
        """
        with self._building():
            return await self._inspected(url, asked_handler, environ, image)

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        """An environment that is missing is built, where they are. Raises EngineError."""
        try:
            yield
        except EnvironmentMissing as missing:
            if self.builder is None:
                raise
            raise self.builder.refusal(missing) from missing

    def _is_built(self, name: str) -> bool:
        return self.builder is not None and self.builder.builds(name)

    async def _inspected(
        self, url: str, asked_handler: str, environ: Sequence[tuple[str, str]], image: str,
    ) -> Source:  # fmt: skip
        found = await asyncio.to_thread(self._look_at, url, asked_handler, environ, image)
        if isinstance(found, Source):
            return found
        folder = self.run_folder / f"model-{secrets.token_hex(8)}"
        try:
            await self.unpacker.unpack(found, folder)
            return await asyncio.to_thread(self._source_of, folder, asked_handler, environ, image)
        except BaseException as error:
            asyncio.get_running_loop().run_in_executor(None, _remove_unpacked, folder)
            if isinstance(error, EndpointError):
                raise EngineError(f"Unable to load model: {error.message}") from error
            raise

    @contextlib.contextmanager
    def empty_folder(self) -> Iterator[Path]:
        folder = self.run_folder / f"empty-{secrets.token_hex(8)}"
        folder.mkdir()
        try:
            yield folder
        finally:
            remove_tree(folder)

    def script_of(self, asked_handler: str, environ: Sequence[tuple[str, str]], image: str) -> Script | None:
        """The script of a container, where models that bring none are served by it. Raises EngineError."""
        module = (asked_handler or self.default_handler).partition(":")[0]
        told = {**self.environ, **dict(environ)}
        path = container_script(told)
        if path is None or module not in (_AUTO, _SCRIPT):
            return None
        with self._building():
            script = kind_named("script")
            chosen = environment_of(path.parent, asked_handler, script, told, image, is_built=self._is_built)
        return Script(path, chosen.environment)

    async def stop(self) -> None:
        if self.builder is not None:
            await self.builder.stop()
        await self.unpacker.stop()

    def _look_at(self, url: str, asked_handler: str, environ: Sequence[tuple[str, str]], image: str) -> Source | Path:
        """Blocking. A folder's source, or the archive that is to be unpacked."""
        path = _path_of(url, self.model_store, self.model_roots)
        return self._source_of(path, asked_handler, environ, image) if path.is_dir() else path

    def _source_of(self, folder: Path, asked_handler: str, environ: Sequence[tuple[str, str]], image: str) -> Source:
        told = {**self.environ, **dict(environ)} if environ else self.environ
        manifest = _manifest_in(folder)
        named = asked_handler or (manifest.model and manifest.model.handler) or ""
        if named != self.default_handler and is_outside(named, folder, self.model_roots):
            raise BadRequest(
                f"The handler {named[:200]} lies outside of the model and of the model roots: name a file of the "
                "model's, or start the server with --handler or --model-root for it."
            )
        return _source_of(folder, manifest, named or self.default_handler, told, image, self._is_built)

    def discard(self, source: Source) -> None:
        """Remove what was unpacked for it. Blocking."""
        if self.has_unpacked(source):
            remove_tree(source.path)

    def has_unpacked(self, source: Source) -> bool:
        return source.path.is_relative_to(self.run_folder)


def _remove_unpacked(folder: Path) -> None:
    """Blocking. A process that was killed has left what it had written; one that was not may just finish it."""
    for left in (staging_of(folder), folder):  # in the order in which it comes
        remove_tree(left)


def _source_of(
    path: Path,
    manifest: _Manifest,
    handler: str,
    environ: Mapping[str, str],
    image: str,
    is_built: Callable[[str], bool],
) -> Source:
    model = manifest.model or _ManifestsModel()
    module = handler.partition(":")[0]
    kind = kind_named(module)
    if module == _AUTO:
        try:
            kind = recognise(path, environ)
        except LoadFailed as error:
            raise EngineError(error.message) from error
        handler, module = kind.handler_spec, kind.module
    chosen = environment_of(path, handler, kind, environ, image, is_built=is_built)
    is_data = module.startswith("polyhost_handlers.") and not (kind and kind.has_code)
    return Source(
        path=path,
        handler=handler,
        environment=chosen.environment,
        has_code=not is_data or manifest.is_there,
        is_pickle=kind is not None and kind.is_pickle,
        artifact_bytes=folder_bytes(path),
        version=None if model.model_version is None else str(model.model_version),
        engine=manifest.engine.engine_name if manifest.engine else None,
        manifest_name=model.model_name,
    )


def is_outside(handler: str, folder: Path, roots: Sequence[Path | str]) -> bool:
    """Whether a handler, `module:function` or `file.py:function`, is a file that no model or root holds."""
    module = handler.rpartition(":")[0] or handler
    if "/" not in module and not module.endswith(".py"):
        return False
    path = Path(os.path.realpath(folder / module))
    return not any(path.is_relative_to(os.path.realpath(place)) for place in (folder, *roots))


def _path_of(url: str, store: Path, roots: tuple[Path, ...]) -> Path:
    if "://" in url:
        raise BadRequest(f"Model url is not under a model root: {url}")
    if ".." in url:
        raise ModelNotFound(f"Relative path is not allowed in url: {url}")
    try:
        path = Path(os.path.realpath(store / url))
        path.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(f"Model not found in model store: {url}") from error
    except (OSError, ValueError) as error:
        raise BadRequest(f"The model's url cannot be a path: {_reason(error)}: {url[:200]}") from error
    if not any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        raise BadRequest(f"Model url is not under a model root: {url}")
    return path


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class _ManifestsModel(msgspec.Struct, rename="camel"):
    handler: str | None = None
    model_name: str | None = None
    model_version: str | int | float | None = None


class _ManifestsEngine(msgspec.Struct, rename="camel"):
    engine_name: str | None = None


class _Manifest(msgspec.Struct):
    """What counts of a `MANIFEST.json`; `is_there`: whether the archive has one."""

    model: _ManifestsModel | None = None
    engine: _ManifestsEngine | None = None
    is_there: bool = False


def _manifest_in(path: Path) -> _Manifest:
    """Raises EngineError."""
    try:
        with open(path / "MAR-INF" / "MANIFEST.json", "rb") as file:
            text = file.read(_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):  # most models have none
        return _Manifest()
    except OSError as error:
        raise EngineError(f"Unable to load model: MAR-INF/MANIFEST.json cannot be read: {error.strerror}") from error
    if len(text) > _MANIFEST_BYTES:
        raise EngineError(f"Unable to load model: MAR-INF/MANIFEST.json has more than {_MANIFEST_BYTES} bytes")
    try:
        document = json.loads(text)
        if not isinstance(document, dict):
            return _Manifest()
        return msgspec.convert({**document, "is_there": bool(document)}, _Manifest)
    except msgspec.ValidationError as error:
        raise EngineError(f"Unable to load model: MAR-INF/MANIFEST.json is not a manifest: {error}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"Unable to load model: MAR-INF/MANIFEST.json is not JSON: {error}") from error
