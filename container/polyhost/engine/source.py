"""
What a load names: a folder, a `.mar` or a tar, looked at before a worker is chosen. Blocking; run in a thread.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhost_handlers.artifacts import environment_of, folder_bytes, kind_named, recognise
from polyhost_handlers.errors import LoadFailed

from polyhost.archives import unpack
from polyhost.engine.errors import BadRequest, EngineError, ModelNotFound
from polyhost.errors import ArchiveRefused
from polyhost.trees import remove_tree

_AUTO = "polyhost_handlers.auto"


@dataclass(frozen=True, kw_only=True)
class Source:
    path: Path
    handler: str
    # The Python environment its workers need, "" for the server's own.
    environment: str
    # Whether the archive or the operator brings Python code to run.
    has_code: bool
    artifact_bytes: int
    version: str | None = None
    engine: str | None = None
    manifest_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """What of a server decides how an archive is served."""

    model_roots: tuple[Path, ...]
    default_handler: str
    environ: Mapping[str, str]
    # Where archives that are no folders are unpacked.
    run_folder: Path
    # What urls that are no absolute paths are relative to.
    model_store: Path = Path("/")

    def inspect(self, url: str, asked_handler: str, environ: Sequence[tuple[str, str]] = ()) -> Source:
        """
        Whoever gets it discards it. `environ`: besides the server's own.

        Raises BadRequest, ModelNotFound, EngineError.
        """
        told = {**self.environ, **dict(environ)} if environ else self.environ
        path = _folder_of(url, self.model_store, self.model_roots, self.run_folder)
        try:
            return _source_of(path, _manifest(path), asked_handler or "", self.default_handler, told)
        except BaseException:
            self._remove_unpacked(path)
            raise

    def discard(self, source: Source) -> None:
        """Remove what was unpacked for it. Blocking, as `inspect` is."""
        self._remove_unpacked(source.path)

    def has_unpacked(self, source: Source) -> bool:
        return source.path.is_relative_to(self.run_folder)

    def _remove_unpacked(self, path: Path) -> None:
        if path.is_relative_to(self.run_folder):
            remove_tree(path)


def _source_of(
    path: Path, manifest: Mapping[str, Any], asked_handler: str, default_handler: str, environ: Mapping[str, str],
) -> Source:  # fmt: skip
    model = manifest.get("model", {})
    handler = asked_handler or model.get("handler") or default_handler
    module = handler.partition(":")[0]
    try:
        kind = kind_named(module)
        if module == _AUTO:
            kind = recognise(path, environ)
            handler, module = kind.handler_spec, kind.module
        environment = environment_of(kind, environ)
    except LoadFailed as error:
        raise EngineError(error.message) from error
    if (kind is None or not kind.environment) and interpreter_of(environment, environ) is None:
        raise EngineError(
            f"Unable to load model: the Python environment {environment} is not installed. Make it in "
            f"{sys.prefix}/envs/{environment}, or name its Python in POLYHOST_{environment.upper()}_PYTHON.",
        )
    is_data = module.startswith("polyhost_handlers.") and module != "polyhost_handlers.script_handler"
    return Source(
        path=path,
        handler=handler,
        environment=environment,
        has_code=not is_data or bool(manifest),
        artifact_bytes=folder_bytes(path),
        version=model.get("modelVersion"),
        engine=(manifest.get("engine") or {}).get("engineName"),
        manifest_name=model.get("modelName"),
    )


def interpreter_of(environment: str, environ: Mapping[str, str]) -> str | None:
    """The Python of an environment, None where it is not installed; "" is the server's own."""
    if not environment:
        return sys.executable
    python = environ.get(f"POLYHOST_{environment.upper()}_PYTHON") or f"{sys.prefix}/envs/{environment}/bin/python"
    return python if os.access(python, os.X_OK) else None


def _folder_of(url: str, store: Path, roots: tuple[Path, ...], run_folder: Path) -> Path:
    if "://" in url:
        raise BadRequest(f"Model url is not under a model root: {url}")
    if ".." in url:
        raise ModelNotFound(f"Relative path is not allowed in url: {url}")
    path = Path(os.path.realpath(store / url))
    if not path.exists():
        raise ModelNotFound(f"Model not found in model store: {url}")
    if not any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        raise BadRequest(f"Model url is not under a model root: {url}")
    return path if path.is_dir() else _unpacked(path, run_folder)


def _unpacked(archive: Path, run_folder: Path) -> Path:
    to = Path(tempfile.mkdtemp(dir=run_folder, prefix="model-"))
    to.rmdir()
    try:
        unpack(archive, to)
    except (ArchiveRefused, OSError) as error:
        remove_tree(to)
        raise EngineError(f"Unable to load model: {error}") from error
    return to


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "MAR-INF" / "MANIFEST.json"
    try:
        document = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):  # most models have none
        return {}
    except ValueError as error:
        raise EngineError(f"Unable to load model: MAR-INF/MANIFEST.json is not JSON: {error}") from error
    return document if isinstance(document, dict) else {}
