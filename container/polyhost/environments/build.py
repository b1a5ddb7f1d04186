"""
Builds an environment: a virtual environment with the packages of its definition, and a link to the server's own code.

It is made beside its place and renamed when it is whole, so that a server never finds half of one. The server's own
packages, `polyhost` and `polyhost_handlers`, are linked, not copied: an environment stays with the server's release.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from polyhost_handlers.environments.definitions import (
    DEFINITION_FILE,
    BrokenDefinition,
    Definition,
    canonical,
    parse,
    shipped,
    shipped_text,
)

from polyhost.errors import EnvironmentFailed

# A distribution's own Python comes first: it is built with profiles.
_PYTHONS = ("/usr/bin/python3", sys.executable, "python3.11", "python3.12", "python3.13", "python3.10", "python3")
_VERSION = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
# Relative to the folder of the environment's packages.
_LINKS, _PATH_LINE = "server", "../../../server\n"
# One that is being built, or is being replaced.
_UNFINISHED = re.compile(r"\.[a-z0-9_.-]+-[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: Path
    # The folder that will hold the server's packages where the environment is used; None for those that run now.
    packages: Path | None = None
    python: str = ""
    # Folders or pages of wheels; with them alone, nothing is asked of an index.
    find_links: Sequence[str] = ()
    index_url: str = ""
    rebuild: bool = False


def definition_named(name: str) -> tuple[Definition, str]:
    """A shipped one by its name, or one of a file NAME.toml, with its text. Raises EnvironmentFailed."""
    try:
        if name.endswith(".toml"):
            text = Path(name).read_text(encoding="utf-8")
            return parse(Path(name).stem, text), text
        name = canonical(name)
        if name not in shipped():
            raise EnvironmentFailed(
                f"there is no environment '{name}': name one of {', '.join(shipped())}, or a file NAME.toml."
            )
        return shipped()[name], shipped_text(name)
    except (OSError, UnicodeDecodeError, BrokenDefinition) as error:
        raise EnvironmentFailed(f"{error}.") from error


def build(definition: Definition, text: str, options: Options, say: Callable[[str], None]) -> bool:
    """Whether there was anything to do. One is built at a time in a folder. Raises EnvironmentFailed."""
    try:
        with _alone_in(options.folder, say) as lock:
            return _build(definition, text, options, say, lock)
    except OSError as error:
        raise EnvironmentFailed(f"{definition.name} could not be built: {error}.") from error


@contextlib.contextmanager
def _alone_in(folder: Path, say: Callable[[str], None]) -> Iterator[int]:
    """
    Wait until nobody else builds in a folder, and clear what a build that was killed has left there.

    The descriptor is for what a build starts: until that has ended too, nobody else begins. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.iterdir():
            if _UNFINISHED.fullmatch(left.name):
                shutil.rmtree(left, ignore_errors=True)
        yield lock
    finally:
        os.close(lock)


def _build(definition: Definition, text: str, options: Options, say: Callable[[str], None], lock: int) -> bool:
    place = options.folder / definition.name
    if is_current(place, text) and not options.rebuild:
        say(f"{definition.name} is there already: {place}")
        return False
    python = find_python(definition.python, (options.python,) if options.python else _PYTHONS)
    if python is None:
        where = options.python or ", ".join(_PYTHONS)
        raise EnvironmentFailed(
            f"{definition.name} needs a Python {definition.python}, and none of these is one: {where}. Install one, or "
            "name it by --python."
        )
    say(f"building {definition.name} in {place} with {python}; it takes about {definition.size or 'what it takes'}")
    unfinished = options.folder / f".{definition.name}-{secrets.token_hex(4)}"
    try:
        unfinished.mkdir()
        _make(unfinished, python, definition, options, lock)
        (unfinished / DEFINITION_FILE).write_text(text, encoding="utf-8")
        _link(unfinished, options.packages)
        check(unfinished, definition)
        _put(unfinished, place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    say(f"{definition.name} is built: {place}")
    return True


def is_current(place: Path, text: str) -> bool:
    """Whether an environment was built from this definition."""
    file = place / DEFINITION_FILE
    return file.is_file() and file.read_text(encoding="utf-8") == text and (place / "bin" / "python").exists()


def find_python(wanted: str, candidates: Iterable[str]) -> str | None:
    """The first of the candidates that is of a wanted release."""
    for candidate in candidates:
        path = shutil.which(candidate)
        if path is None:
            continue
        done = subprocess.run([path, "-IS", "-c", _VERSION], capture_output=True, text=True, check=False)
        if done.returncode == 0 and SpecifierSet(wanted).contains(done.stdout.strip()):
            return path
    return None


def _make(place: Path, python: str, definition: Definition, options: Options, lock: int) -> None:
    requirements, constraints = place / "requirements.txt", place / "constraints.txt"
    requirements.write_text("\n".join(definition.requirements) + "\n")
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in definition.pins.items()))
    for command in commands(find_uv(), place, python, arguments_of(options)):
        environ = {"UV_PYTHON_DOWNLOADS": "never", **os.environ}
        done = subprocess.run(command, env=environ, pass_fds=[lock], check=False)
        if done.returncode:
            raise EnvironmentFailed(
                f"{definition.name} could not be built: '{' '.join(command[:3])} …' ended with {done.returncode}; its "
                "own words are above. Packages come from the index of pip's and uv's settings, through HTTPS_PROXY; "
                "without a network name a folder of wheels by --find-links."
            )


def find_uv() -> str | None:
    """Where uv is, which installs in seconds what takes pip minutes: on the PATH, or beside this Python."""
    beside = Path(sys.executable).with_name("uv")
    return shutil.which("uv") or (str(beside) if beside.exists() else None)


def arguments_of(options: Options) -> list[str]:
    """What pip and uv are told of where packages are."""
    told = [word for place in options.find_links for word in ("--find-links", place)]
    if options.index_url:
        told += ["--index-url", options.index_url]
    elif options.find_links:
        told.append("--no-index")
    return told


def commands(uv: str | None, place: Path, python: str, arguments: Sequence[str]) -> list[list[str]]:
    """What makes an environment, by uv or, without it, by Python itself."""
    files = ["-r", str(place / "requirements.txt"), "-c", str(place / "constraints.txt")]
    own = str(place / "bin" / "python")
    if uv:
        return [
            [uv, "venv", "--quiet", "--allow-existing", "--relocatable", "--python", python, str(place)],
            [uv, "pip", "install", "--python", own, *files, *arguments],
        ]
    return [
        [python, "-m", "venv", str(place)],
        [own, "-m", "pip", "install", "--disable-pip-version-check", *files, *arguments],
    ]


def _link(place: Path, packages: Path | None) -> None:
    """The server's code, without the packages beside it, which are of the server's own environment."""
    links = place / _LINKS
    links.mkdir()
    for name in ("polyhost", "polyhost_handlers"):
        own = importlib.util.find_spec(name)
        running = Path(own.origin).parent if own and own.origin else Path(name)
        (links / name).symlink_to(packages / name if packages else running)
    for folder in (place / "lib").glob("python3*/site-packages"):
        (folder / "polyhost.pth").write_text(_PATH_LINE)


def check(place: Path, definition: Definition) -> None:
    """What its workers import can be imported, where the server's code is there. Raises EnvironmentFailed."""
    own = ["polyhost.engine.native.worker"] if (place / _LINKS / "polyhost" / "engine").exists() else []
    modules = [*own, *(name for name in definition.imports if own or not name.startswith("polyhost"))]
    code = "\n".join(f"import {name}" for name in modules)
    done = subprocess.run(
        [place / "bin" / "python", "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
        raise EnvironmentFailed(f"{definition.name} does not work: {words[0]}. Build it again with --rebuild.")


def _put(made: Path, place: Path) -> None:
    """In the place of an older one, whose processes keep what they have open."""
    if place.exists():
        old = place.with_name(f".old-{secrets.token_hex(4)}")
        place.rename(old)
        made.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    else:
        made.rename(place)
