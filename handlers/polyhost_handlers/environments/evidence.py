"""What a model's own files say of the environment that it needs. Reads names and the first bytes; loads nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from polyhost_handlers.artifacts import Kind, estimators_in, first_module, keras_models_in, script_of
from polyhost_handlers.environments.choice import Need, Word
from polyhost_handlers.environments.definitions import canonical
from polyhost_handlers.network_files import saved_models_in
from polyhost_handlers.pickled_release import release_in_beginning
from polyhost_handlers.wheels import same_import

ENVIRONMENT = "POLYHOST_ENVIRONMENT"
# What it was called when only handlers and scripts could have one.
OLD_ENVIRONMENT = "POLYHOST_HANDLER_ENVIRONMENT"
# The archive's own settings: a file of one line, environment = "NAME".
SETTINGS_FILE = "polyhost.toml"
_SCIKIT_LEARN = "scikit-learn"
_MAX_TEXT_BYTES = 64 * 1024
_MAX_LINE = 200
# Without quotes it is no TOML, but nothing else can be meant: what is passed over would be served by other releases.
_SETTING = re.compile(r"""^[ \t]*environment[ \t]*=[ \t]*["']?([^"'#\s]*)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)
_OWN_WORD = re.compile(r"""^POLYHOST_ENVIRONMENT[ \t]*(?::[^=\n]*)?=[ \t]*["']([^"'\n]*)["']""", re.MULTILINE)
# The functions of a script of SageMaker's TensorFlow container, and the one that makes it a script of the others'.
_OF_SERVING = re.compile(
    r"^(?:def[ \t]+|from[ \t].*\bimport\b.*\b|)(?:input_|output_)?handler\b[ \t]*[(=,\n]", re.MULTILINE
)
_MODEL_FN = re.compile(r"\bmodel_fn\b")
# Modules whose pickles need more than scikit-learn, and the distributions that bring them.
_PICKLED = {"lightgbm": "lightgbm", "catboost": "catboost", "xgboost": "xgboost"}


def words_of(folder: Path, code: Path | None, environ: Mapping[str, str]) -> list[Word]:
    """Who names an environment, the more special first. `code`: the handler's file, or the script."""
    archive = _named_in(folder / SETTINGS_FILE, _SETTING)
    container = environ.get(ENVIRONMENT, "")
    words = [Word(archive, f"{SETTINGS_FILE} of the archive"), Word(container, ENVIRONMENT)]
    if code is not None:
        words.append(Word(_named_in(code, _OWN_WORD), code.name))
    return [Word(canonical(word.name), word.said_by) for word in words if word.name]


def code_of(folder: Path, handler: str, kind: Kind | None, environ: Mapping[str, str]) -> Path | None:
    """The file of a handler of others, or of a script. `handler`: as an engine is told it."""
    if kind is not None:
        return script_of(folder, environ) if kind.name == "script" else None
    file = handler.rpartition(":")[0] or handler
    return folder / file if file.endswith(".py") else None


def _named_in(path: Path, pattern: re.Pattern[str]) -> str:
    found = pattern.search(_text_of(path))
    return found[1] if found else ""


def _text_of(path: Path) -> str:
    """The beginning of a small text file, "" where there is none: what is no regular file is not opened."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        text = file.read(_MAX_TEXT_BYTES).decode("utf-8-sig", "replace")  # Windows' editors begin it with a mark
    return "\n".join(text.splitlines())


def needs_of(folder: Path, kind: Kind | None, code: Path | None, *, looks_into_pickles: bool) -> list[Need]:
    """`looks_into_pickles`: whether there is more than one environment for them, so that it matters what they say."""
    if kind is None:
        return []
    if kind.name == "script":
        return (
            [] if code is None else [*_required_by(code.with_name("requirements.txt")), *_needs_of_code(folder, code)]
        )
    if kind.package:
        return [_need(kind.package, f"the handler {kind.name}")]
    return list(_needs_of_pickles(folder)) if kind.is_pickle and looks_into_pickles else []


def _need(package: str, said_by: str) -> Need:
    return Need(same_import(package), SpecifierSet(), said_by)


def _needs_of_code(folder: Path, code: Path) -> Iterator[Need]:
    """A script around a TensorFlow model does not import TensorFlow: the server loads the model."""
    text = _text_of(code)
    is_of_serving = _OF_SERVING.search(f"{text}\n") and not _MODEL_FN.search(text)
    if is_of_serving and (keras_models_in(folder) or saved_models_in(folder)):
        yield _need("tensorflow", code.name)


def _needs_of_pickles(folder: Path) -> Iterator[Need]:
    found = estimators_in(folder)
    path = next((one for one in found if one.name.startswith("model.")), found[0] if found else None)
    if path is None:
        return
    if package := _PICKLED.get(first_module(path).partition(".")[0]):
        yield _need(package, path.name)
    if release := release_in_beginning(path):
        line = ".".join(release.split(".")[:2])
        yield Need((_SCIKIT_LEARN,), SpecifierSet(f"=={line}.*"), path.name, is_vital=False)


def _required_by(path: Path) -> Iterator[Need]:
    """
    The lines of a `requirements.txt` that are plain names and releases.

    The rest (options, urls, other files) is left to the script's handler, which reads the file as pip does.
    """
    for line in _text_of(path).splitlines():
        text = line.partition(" #")[0].strip()
        if not text or text.startswith(("#", "-")) or len(text) > _MAX_LINE or "/" in text:
            continue
        try:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate():
                yield Need(same_import(requirement.name), requirement.specifier, path.name)
        except (InvalidRequirement, ValueError):  # pip's own sentence comes from the handler
            continue


def packages_in(needs: Collection[Need]) -> set[str]:
    return {canonicalize_name(name) for need in needs for name in need.names}
