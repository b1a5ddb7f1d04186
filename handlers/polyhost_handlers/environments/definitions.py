"""
What a named environment is made of, and which images and models mean it: the files NAME.toml beside this one.

An environment that was built keeps its definition in its folder, so one that was made from a file of the operator's own
is known too.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from polyhost_handlers.wheels import same_import

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - of Python 3.10
    import tomli as tomllib

# What every worker needs besides its framework; multi-model-server brings the worker that MMS starts.
WORKER_REQUIREMENTS = ("msgspec", "packaging", "psutil", "protobuf", "multi-model-server")
DEFINITION_FILE = "polyhost-environment.toml"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_MAX_BYTES = 256 * 1024


class BrokenDefinition(Exception):
    """The text says what is wrong with which file."""


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    about: str
    python: str
    requirements: list[str]
    kinds: list[str]
    size: str = ""
    also: list[str] = []
    constraints: list[str] = []
    images: list[str] = []
    imports: list[str] = []
    variables: dict[str, str] = {}


class Definition(msgspec.Struct, frozen=True):
    name: str
    about: str
    # What it takes on disk, in words.
    size: str
    # Which Pythons it can be built with.
    python: str
    # Other names that mean it.
    also: tuple[str, ...]
    requirements: tuple[str, ...]
    # Exact versions of all that is installed, by canonical names.
    pins: Mapping[str, str]
    # The handlers that work in it. Those of others work in any.
    kinds: frozenset[str]
    # Patterns of images, `REPOSITORY:TAG`.
    images: tuple[str, ...]
    # What its template imports besides what all do.
    imports: tuple[str, ...]
    # Variables of its processes, where the server's own environment does not set them.
    variables: Mapping[str, str]

    def means(self, image: str) -> bool:
        """Whether it is what a container's image, `REPOSITORY:TAG`, has."""
        return any(fnmatch.fnmatchcase(image, pattern) for pattern in self.images)

    def serves(self, kind: str) -> bool:
        """`kind`: of a model, "" for a handler of others."""
        return not kind or kind in self.kinds


def is_name(text: str) -> bool:
    """Whether an environment may be called so. It becomes a part of a path."""
    return _NAME.fullmatch(text) is not None


def parse(name: str, text: str) -> Definition:
    """Raises BrokenDefinition."""
    if not is_name(name):
        raise BrokenDefinition(f"'{name[:80]}' is not the name of an environment: use small letters, digits, - and .")
    try:
        document = msgspec.convert(tomllib.loads(text), _Document)
        SpecifierSet(document.python)
        for requirement in document.requirements:
            Requirement(requirement)
        pins = dict(_pin(line) for line in document.constraints)
    except (ValueError, InvalidRequirement, InvalidSpecifier, RecursionError) as error:
        raise BrokenDefinition(f"the definition of {name} cannot be read: {error}") from error
    return Definition(
        name=name,
        about=document.about,
        size=document.size,
        python=document.python,
        also=tuple(document.also),
        requirements=(*document.requirements, *WORKER_REQUIREMENTS),
        pins=pins,
        kinds=frozenset(document.kinds),
        images=tuple(document.images),
        imports=tuple(document.imports),
        variables=document.variables,
    )


def _pin(line: str) -> tuple[str, str]:
    """Raises ValueError for what is no exact version."""
    name, separator, version = line.partition("==")
    if not separator or not version.strip():
        raise ValueError(f"the constraint '{line}' is not NAME==VERSION")
    return canonicalize_name(name.strip()), version.strip()


def read(path: Path, name: str = "") -> Definition:
    """Raises BrokenDefinition."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise BrokenDefinition(f"{path} has more than {_MAX_BYTES} bytes")
        return parse(name or path.stem, data.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenDefinition(f"{path} cannot be read: {error}") from error


@functools.cache
def shipped() -> Mapping[str, Definition]:
    """The definitions that come with Polyhost, by name."""
    return {path.stem: read(path) for path in sorted(Path(__file__).parent.glob("*.toml"))}


def shipped_text(name: str) -> str:
    return Path(__file__).with_name(f"{name}.toml").read_text(encoding="utf-8")


def canonical(name: str) -> str:
    """The name that an environment has now: `mxnet` became `mxnet-1.9`."""
    return next((one.name for one in shipped().values() if name in one.also), name)


def variable_of(name: str) -> str:
    """The variable that names an environment's Python, wherever that is."""
    return f"POLYHOST_{re.sub('[^A-Z0-9]', '_', name.upper())}_PYTHON"


def with_release(package: str, release: str) -> str:
    """The shipped environment that has a package of the same release, to its second number; "" where none has."""
    wanted = release.split(".")[:2]
    names: Sequence[str] = [
        one.name for one in shipped().values() if one.pins.get(package, "").split(".")[:2] == wanted
    ]
    return names[0] if names else ""


def with_module(module: str, kind: str) -> str:
    """The shipped environment that has a Python module and serves a kind; "" where none does."""
    package = canonicalize_name(module.partition(".")[0])
    names = [one.name for one in shipped().values() if one.serves(kind) and one.pins.keys() & {*same_import(package)}]
    return names[0] if names else ""
