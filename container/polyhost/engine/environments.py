"""Which Python environment serves a model: the question is put together here, and decided by `choice`."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

from polyhost_handlers.artifacts import Kind
from polyhost_handlers.environments.choice import Choice, Question, Refusal, World, choose
from polyhost_handlers.environments.definitions import shipped
from polyhost_handlers.environments.evidence import code_of, needs_of, packages_in, words_of

from polyhost.engine.errors import EngineError, EnvironmentMissing
from polyhost.interpreters import installed_environments

logger = logging.getLogger("polyhost.engine")


def environment_of(
    folder: Path,
    handler: str,
    kind: Kind | None,
    environ: Mapping[str, str],
    image: str = "",
    *,
    is_built: Callable[[str], bool] = lambda _: False,
) -> Choice:
    """
    The Python environment that serves a model, "" for the server's own, and why.

    `kind`: None for a handler of others. `image`: `REPOSITORY:TAG` of its container. `is_built`: whether an environment
    that is missing will be built, so that models which could do without it wait for it. Raises EngineError, and
    EnvironmentMissing where one that can be built is missing.
    """
    code = code_of(folder, handler, kind, environ)
    words = words_of(folder, code, environ)
    if kind is not None and not (words or image or kind.package or kind.is_pickle or kind.has_code):
        return Choice("")  # as most models: nothing else is looked for
    name = kind.name if kind else ""
    installed = installed_environments(environ, (word.name for word in words))
    looks_into_pickles = any(one and one.serves(name) for one in installed.values())
    needs = needs_of(folder, kind, code, looks_into_pickles=looks_into_pickles)
    own = {package: version for package in packages_in(needs) if (version := _own_version(package))}
    question = Question(kind=name, words=words, image=image, needs=needs)
    chosen = choose(question, World(shipped=shipped(), installed=installed, own=own))
    if isinstance(chosen, Refusal):
        sentence = f"Unable to load model: {chosen.sentence}."
        raise EnvironmentMissing(sentence, chosen.missing) if chosen.missing else EngineError(sentence)
    if chosen.missing and is_built(chosen.missing):
        raise EnvironmentMissing(f"Unable to load model: {chosen.why}.", chosen.missing)
    if chosen.why:
        logger.info("%s: the environment is %s: %s", folder, chosen.environment or "the server's own", chosen.why)
    return chosen


@functools.cache
def _own_version(package: str) -> str | None:
    """The version of a package in the server's own environment. It does not change while the server runs."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
