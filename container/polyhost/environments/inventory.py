"""Which environments can be built, which are, and whether these are as their definitions say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from packaging.utils import canonicalize_name
from polyhost_handlers.environments.definitions import (
    DEFINITION_FILE,
    BrokenDefinition,
    canonical,
    read,
    shipped,
    shipped_text,
)

from polyhost.environments.build import check, is_current
from polyhost.errors import EnvironmentFailed

_INSTALLED = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"


class Entry(NamedTuple):
    name: str
    state: str
    about: str


def inventory(folder: Path) -> list[Entry]:
    there = built(folder)
    own = [name for name in there if name not in shipped()]
    return [
        *(Entry(name, _state(folder, name) if name in there else "-", one.about) for name, one in shipped().items()),
        *(Entry(name, "built", _about(folder / name / DEFINITION_FILE)) for name in own),
    ]


def _state(folder: Path, name: str) -> str:
    return "built" if is_current(folder / name, shipped_text(name)) else "built, is old"


def _about(file: Path) -> str:
    try:
        return read(file, file.parent.name).about
    except BrokenDefinition as error:
        return str(error)


def built(folder: Path) -> list[str]:
    """The names of those that `polyhost env build` has made in a folder."""
    return sorted(
        file.parent.name for file in folder.glob(f"*/{DEFINITION_FILE}") if not file.parent.name.startswith(".")
    )


def faults_of(folder: Path, name: str) -> list[str]:
    """What is wrong with an environment, in words."""
    place = folder / canonical(name)
    try:
        definition = read(place / DEFINITION_FILE, place.name)
        check(place, definition)
    except (BrokenDefinition, EnvironmentFailed, OSError) as error:
        return [str(error)]
    there = _versions_in(place)
    wrong = [(package, pin, there.get(package)) for package, pin in definition.pins.items()]
    return [f"{package} is {found or 'missing'}, not {pin}" for package, pin, found in wrong if found != pin]


def _versions_in(place: Path) -> dict[str, str]:
    done = subprocess.run([place / "bin" / "python", "-c", _INSTALLED], capture_output=True, text=True, check=True)
    return {canonicalize_name(name): version for name, version in json.loads(done.stdout)}
