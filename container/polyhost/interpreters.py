"""Which Pythons there are to run what models need: the server's own, and those of environments that are installed."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from polyhost_handlers.environments.definitions import (
    DEFINITION_FILE,
    BrokenDefinition,
    Definition,
    is_name,
    read,
    shipped,
    variable_of,
)

from polyhost.environment import ENVIRONMENTS

logger = logging.getLogger("polyhost.engine")


def installed_environments(environ: Mapping[str, str], named: Iterable[str]) -> dict[str, Definition | None]:
    """Environments with an interpreter: from the folder, from a variable, or from `named`. Looked up at each load."""
    root = folder_of(environ)
    try:
        there = sorted(entry.name for entry in os.scandir(root) if is_name(entry.name) and entry.is_dir())
    except OSError:
        there = []
    told = (name for name, variables in _variables().items() if any(variable in environ for variable in variables))
    names = dict.fromkeys((*there, *told, *named))
    return {name: _definition_of(root, name) for name in names if interpreter_of(name, environ) is not None}


@functools.cache
def _variables() -> Mapping[str, Sequence[str]]:
    """The variables that may name the Python of a shipped environment, by its name."""
    return {name: [variable_of(one) for one in (name, *shipped()[name].also)] for name in shipped()}


def _definition_of(root: Path, name: str) -> Definition | None:
    """The definition it was built from, else the one that comes with Polyhost."""
    file = root / name / DEFINITION_FILE
    try:
        return _read(file, name, file.stat().st_mtime_ns)
    except OSError:
        return shipped().get(name)


@functools.lru_cache(maxsize=64)
def _read(file: Path, name: str, mtime_ns: int) -> Definition | None:  # noqa: ARG001 - a file that changes is read again
    try:
        return read(file, name)
    except BrokenDefinition as error:
        logger.warning("environment %s: %s", name, error)
        return None


def variables_of(environment: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """What the processes of an environment are told besides."""
    definition = _definition_of(folder_of(environ), environment) if environment else None
    return definition.variables if definition else {}


def imports_of(environment: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What its template imports besides what all do."""
    definition = _definition_of(folder_of(environ), environment) if environment else None
    return definition.imports if definition else ()


def folder_of(environ: Mapping[str, str]) -> Path:
    return Path(environ.get(ENVIRONMENTS) or Path(sys.prefix, "envs"))


def interpreter_of(environment: str, environ: Mapping[str, str]) -> str | None:
    """The Python of an environment, None where it is not installed; "" is the server's own."""
    if not environment:
        return sys.executable
    told = map(environ.get, _variables().get(environment) or [variable_of(environment)])
    python = next(filter(None, told), None) or f"{folder_of(environ)}/{environment}/bin/python"
    return python if os.access(python, os.X_OK) else None
