"""
Which Python environment serves a model: a pure function of what is said, of what the model needs and of what is there.

The first of these that applies decides:

1. A word: of the archive's own settings, of the container (or the server), of the handler or script itself. It counts
   for models that the environment serves; other models of the container go on as if nothing was said. A model whose
   environment is named and not installed is refused.
2. The container's image, where an environment that it means is installed, serves the model and has what it needs.
3. The server's own environment, where it has what the model needs.
4. The first environment that is installed and has it.
5. Nothing has it. Where the model cannot do without, it is refused, with the environment to build. Otherwise, as for a
   pickle of another release, the server's own environment tries it, and the log says which one to build.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from packaging.specifiers import SpecifierSet

from polyhost_handlers.environments.definitions import Definition, is_name, variable_of


class Need(NamedTuple):
    """A package that a model needs, as `said_by` says. `names`: wheels with the same import, any of which will do."""

    names: tuple[str, ...]
    release: SpecifierSet
    said_by: str
    # Whether the model cannot be served without it.
    is_vital: bool = True

    def __str__(self) -> str:
        return f"{self.names[0]}{self.release}"

    def is_met(self, pins: Mapping[str, str]) -> bool:
        found = next((pins[name] for name in self.names if name in pins), None)
        return found is not None and self.release.contains(found, prereleases=True)


class Word(NamedTuple):
    """An environment that somebody named, "" for nobody."""

    name: str
    said_by: str


@dataclass(frozen=True, kw_only=True)
class Question:
    # The model's kind, "" for a handler that is not ours.
    kind: str
    # The more special first.
    words: Sequence[Word] = ()
    # `REPOSITORY:TAG`, "" where no container names one.
    image: str = ""
    needs: Sequence[Need] = ()


@dataclass(frozen=True, kw_only=True)
class World:
    """`own`: versions of the packages that a question asks for, in the server's own environment."""

    shipped: Mapping[str, Definition]
    # Definitions of the environments that are installed, by name; None for one that was made by hand.
    installed: Mapping[str, Definition | None]
    own: Mapping[str, str]


class Choice(NamedTuple):
    """
    `environment`: "" for the server's own. `why`: for the log, "" where there is nothing to say. `missing`: one that
    would be better and can be built, "" for none.
    """

    environment: str
    why: str = ""
    missing: str = ""


class Refusal(NamedTuple):
    """`missing`: the environment that can be built and would help, "" for none."""

    sentence: str
    missing: str = ""


def choose(question: Question, world: World) -> Choice | Refusal:
    for word in question.words:
        if not word.name:
            continue
        if not is_name(word.name):
            return Refusal(f"{word.said_by} names the environment '{word.name[:80]}': write a name such as sklearn-1.2")
        known = world.installed.get(word.name) or world.shipped.get(word.name)
        if not (known.serves(question.kind) if known else question.kind in ("", "script")):
            continue
        if word.name in world.installed:
            return Choice(word.name, f"{word.said_by} names it")
        return _not_installed(word.name, f"which {word.said_by} names,", world)
    served = [one for one in world.installed.values() if one and one.serves(question.kind)]
    by_image = next((one for one in served if one.means(question.image) and _has_all(one.pins, question.needs)), None)
    if by_image is not None:
        return Choice(by_image.name, f"the container's image is {question.image}")
    return _by_needs(question, world, served)


def _by_needs(question: Question, world: World, served: Sequence[Definition]) -> Choice | Refusal:
    unmet = [need for need in question.needs if not need.is_met(world.own)]
    if unmet:
        said = ", ".join(f"{need.said_by} asks for {need}" for need in unmet)
        if (there := _first_with(served, question.needs)) is not None:
            return Choice(there.name, said)
        shipped = [one for one in world.shipped.values() if one.serves(question.kind)]
        if (missing := _first_with(shipped, question.needs)) is not None:
            if any(need.is_vital for need in unmet):
                return _not_installed(missing.name, f"which is needed because {said},", world)
            return _better(f"{said}, which {missing.name} has, and that", missing.name, world)
    elif question.image:
        meant = [one.name for one in world.shipped.values() if one.means(question.image)]
        if meant and meant[0] not in world.installed and world.shipped[meant[0]].serves(question.kind):
            return _better(f"{question.image} means {meant[0]}, which", meant[0], world)
    return Choice("")


def _first_with(definitions: Iterable[Definition], needs: Sequence[Need]) -> Definition | None:
    return next((one for one in definitions if _has_all(one.pins, needs)), None)


def _has_all(pins: Mapping[str, str], needs: Sequence[Need]) -> bool:
    return all(need.is_met(pins) for need in needs)


def _better(why: str, name: str, world: World) -> Choice:
    """The server's own, where an environment that is not installed, or not as it is defined now, would fit better."""
    missing = "" if name in world.installed else name
    return Choice("", f"{why} {_is_not_there(name, world)}", missing)


def _not_installed(name: str, why: str, world: World) -> Refusal:
    if name in world.shipped:
        missing = "" if name in world.installed else name
        return Refusal(f"the environment {name}, {why} {_is_not_there(name, world)}", missing)
    by_hand = f"build it from a file of yours, or name its Python in {variable_of(name)}"
    return Refusal(f"the environment {name}, {why} is not installed: {by_hand}")


def _is_not_there(name: str, world: World) -> str:
    state = "is installed as an older release defined it" if name in world.installed else "is not installed"
    return f"{state}: run polyhost env build {name}"
