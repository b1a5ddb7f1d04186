"""
A script's `requirements.txt`, read as pip reads it and held against what is installed.

A server does not install packages while it serves. What is missing is named at the load, with the way to get it.
"""

from __future__ import annotations

import codecs
import functools
import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

from polyhost_handlers import aws
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.wheels import same_import

logger = logging.getLogger("polyhost.handlers")

# Packages without content that only require the real one; their versions say nothing about it.
_PLACEHOLDERS = {"bs4": "beautifulsoup4", "sklearn": "scikit-learn"}

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before the one of UTF-16, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CODING = re.compile(rb"coding[:=]\s*([-\w.]+)")
_COMMENT = re.compile(r"(^|\s)#.*$")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_OPTION = re.compile(r"(?:^|\s)(?=--?[A-Za-z])")
_NESTED = re.compile(r"(-r|--requirement|-c|--constraint)(?:\s*=\s*|\s+|(?<=-[rc]))(.+)")
_EDITABLE = re.compile(r"(-e|--editable)(?:\s*=\s*|\s+|(?<=-e))(.+)")
_EXTRAS = re.compile(r"\[[^][]*\]$")
_PROJECT_NAME = re.compile(r"""^[ \t]*name[ \t]*=[ \t]*["']?([A-Za-z0-9][A-Za-z0-9._-]*)""", re.MULTILINE)
_MOST_SHOWN = 20
_ARCHIVE_ENDINGS = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")


@dataclass(frozen=True)
class Line:
    """What a line asks for. `requirement` is None where nothing tells the distribution's name."""

    text: str
    requirement: Requirement | None
    url: str = ""
    is_constraint: bool = False


def check(path: Path, root: Path) -> None:
    """
    Do nothing where all is installed that `path` asks for; a file that is not there asks for nothing.

    Files that it names are read below `root` only. Raises LoadFailed.
    """
    if not path.is_file():
        return
    lines = list(_lines_in(path, root.resolve(), is_constraint=False, read=set()))
    constraints: dict[str, SpecifierSet] = {}
    for line in lines:
        if line.is_constraint and line.requirement is not None:
            name = canonicalize_name(line.requirement.name)
            constraints[name] = constraints.get(name, SpecifierSet()) & line.requirement.specifier
    installed = _Installed()
    missing = [
        (line.text, reason)
        for line in lines
        if not line.is_constraint and (reason := installed.why_missing(line, constraints)) is not None
    ]
    if missing:
        more = f" and {len(missing) - _MOST_SHOWN} more" if len(missing) > _MOST_SHOWN else ""
        asked = ", ".join(text + reason for text, reason in missing[:_MOST_SHOWN])
        what = f"-r {path.name}" if more else " ".join(shlex.quote(text) for text, _ in missing)
        raise LoadFailed(
            f"Unable to load model: {path.name} asks for {asked}{more}, which this server does not have. Run "
            f"pip install {what} in the environment of the server, or build an image with it.",
        )


# Reading


def _lines_in(path: Path, root: Path, *, is_constraint: bool, read: set[tuple[Path, bool]]) -> Iterator[Line]:
    file = path.resolve()
    if (file, is_constraint) in read:
        return
    read.add((file, is_constraint))
    for text in _logical_lines(_decoded(file.read_bytes())):
        if (nested := _NESTED.match(text)) is not None:
            yield from _nested_lines(path, nested, root, is_constraint=is_constraint, read=read)
            continue
        editable = _EDITABLE.match(text)
        asked = editable[2] if editable else text
        what = _OPTION.split(_VARIABLE.sub(lambda name: os.environ.get(name[1], name[0]), asked), maxsplit=1)[0].strip()
        if what:  # else options alone, which say where to find packages
            shown = _OPTION.split(asked, maxsplit=1)[0].strip()
            requirement, url = _parsed(what, shown, path, is_local=editable is not None)
            yield Line(shown, requirement, url, is_constraint)


def _nested_lines(
    path: Path, nested: re.Match[str], root: Path, *, is_constraint: bool, read: set[tuple[Path, bool]]
) -> Iterator[Line]:
    name = nested[2].strip().strip("\"'")
    if "://" in name:
        logger.warning("%s: %s is not fetched, what it asks for is not checked", path.name, name)
        return
    other = (path.parent / name).resolve()
    if not other.is_relative_to(root) or not other.is_file():
        raise LoadFailed(f"Unable to load model: {path.name} names {name}, which is not in the archive.")
    yield from _lines_in(other, root, is_constraint=is_constraint or nested[1] in ("-c", "--constraint"), read=read)


def _decoded(data: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace")
    for line in data.split(b"\n")[:2]:
        if line.startswith(b"#") and (coding := _CODING.search(line)) is not None:
            try:
                return data.decode(coding[1].decode(), "replace")
            except LookupError:
                break
    return data.decode("utf-8", "replace")


def _logical_lines(text: str) -> Iterator[str]:
    """Lines joined where one ends with a backslash, without comments and blanks."""
    begun = ""
    for line in text.splitlines():
        is_comment = line.lstrip().startswith("#")
        if line.endswith("\\") and not is_comment:
            begun += line.strip("\\")
            continue
        yield from _without_comment(begun + (f" {line}" if is_comment else line))
        begun = ""
    yield from _without_comment(begun)


def _without_comment(line: str) -> Iterator[str]:
    if text := _COMMENT.sub("", line).strip():
        yield text


def _parsed(what: str, shown: str, path: Path, *, is_local: bool) -> tuple[Requirement | None, str]:
    """The requirement, or what its url or path tells of it; and the url."""
    if not is_local:
        try:
            requirement = Requirement(what)
        except InvalidRequirement as error:
            if not _is_place(what, path):
                raise LoadFailed(
                    f"Unable to load model: {path.name}: '{shown}' is not a requirement that pip takes."
                ) from error
        else:
            if requirement.url or not _is_place(what, path):  # an archive's file name could be a package's
                return requirement, requirement.url or ""
    place, _, marker = what.partition(" ;")
    name = _name_at(place.strip(), path)
    if name is None:
        return None, place
    try:
        return Requirement(f"{name} ;{marker}" if marker else name), place
    except InvalidRequirement as error:
        raise LoadFailed(f"Unable to load model: {path.name}: '{shown}' does not name a package.") from error


def _is_place(what: str, path: Path) -> bool:
    """A url, or a path to an archive or a folder."""
    place = _EXTRAS.sub("", what)
    return (
        "://" in place
        or place.startswith((".", "/", "file:"))
        or place.lower().endswith(_ARCHIVE_ENDINGS)
        or ("/" in place and (path.parent / place).is_dir())
    )


def _name_at(place: str, path: Path) -> str | None:
    """The distribution's name: what `#egg=` says, a wheel's or an archive's file name, or a project's own files."""
    parts = urlsplit(place)
    if egg := re.search(r"(?:^|&)egg=([^&]+)", parts.fragment):
        return unquote(egg[1])
    file_name = _EXTRAS.sub("", unquote(parts.path)).rstrip("/").rpartition("/")[2]
    try:
        if file_name.endswith(".whl"):
            return parse_wheel_filename(file_name)[0]
        return parse_sdist_filename(file_name)[0]
    except (InvalidWheelFilename, InvalidSdistFilename):
        pass
    if parts.scheme in ("", "file"):
        folder = path.parent / _EXTRAS.sub("", unquote(parts.path))
        for name in ("pyproject.toml", "setup.cfg", "setup.py"):
            # Only an archive's own projects are read: its sender may not see what other folders hold.
            file = folder / name
            if file.resolve().is_relative_to(path.parent.resolve()) and file.is_file():
                found = _PROJECT_NAME.search(file.read_text(encoding="utf-8", errors="replace"))
                if found is not None:
                    return found[1]
    return None


# Holding against what is installed


class _Installed:
    """The distributions of this environment."""

    def why_missing(self, line: Line, constraints: Mapping[str, SpecifierSet]) -> str | None:
        """None where it is installed; else what to add to its text, "" where nothing of it is there."""
        if line.requirement is None:
            if not self._is_from(line.url):
                logger.warning("requirements.txt: %s does not tell its name, so it is not checked", line.text)
            return None
        name = canonicalize_name(line.requirement.name)
        return self._why_not(line.requirement, constraints.get(name, SpecifierSet()), seen=set())

    def _why_not(self, requirement: Requirement, constraint: SpecifierSet, seen: set[str]) -> str | None:
        if requirement.marker is not None and not requirement.marker.evaluate():
            return None
        name = canonicalize_name(requirement.name)
        if name in _PLACEHOLDERS and _first_of([_PLACEHOLDERS[name]]):
            return None
        found = _first_of(same_import(name)) or _first_of(self._imports.get(name, ()))
        if found is None:
            return None if name in aws.DISTRIBUTIONS else ""
        if not (requirement.specifier & constraint).contains(found.version, prereleases=True):
            return f" ({found.name} {found.version} is here)"
        for extra in sorted(requirement.extras):
            if (reason := self._why_not_extra(found, extra, seen)) is not None:
                return reason
        return None

    def _why_not_extra(self, found: metadata.Distribution, extra: str, seen: set[str]) -> str | None:
        """An extra is installed when what it adds is. One that a distribution does not have adds nothing."""
        key = f"{canonicalize_name(found.name)}[{canonicalize_name(extra)}]"
        if key in seen:
            return None
        seen.add(key)
        here = {name: str(value) for name, value in default_environment().items()}
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({**here, "extra": ""}):
                continue  # of the distribution itself
            if needed.marker.evaluate({**here, "extra": extra}):
                needed.marker = None
                if self._why_not(needed, SpecifierSet(), seen) is not None:
                    return f" ({needed} is missing)"
        return None

    @functools.cached_property
    def _imports(self) -> dict[str, list[str]]:
        """The distributions that bring an import, by its name. Looks into all of them, so it is the last resort."""
        brought = metadata.packages_distributions()
        return {canonicalize_name(package): list(names) for package, names in brought.items()}

    def _is_from(self, url: str) -> bool:
        """Whether pip wrote down that something was installed from there."""
        place = re.sub(r"@[^@/]*$", "", url.partition("+")[2].partition("#")[0] or url)
        return f'"{place}"' in self._urls

    @functools.cached_property
    def _urls(self) -> str:
        return "".join(distribution.read_text("direct_url.json") or "" for distribution in metadata.distributions())


def _first_of(names: Iterable[str]) -> metadata.Distribution | None:
    for name in names:
        try:
            return metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
    return None
