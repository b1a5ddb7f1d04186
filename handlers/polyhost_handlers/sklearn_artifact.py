"""
A pickled estimator, and the release of scikit-learn that wrote it.

scikit-learn promises nothing for pickles of another release: some do not load, some load and fail at each call, some
work. Each estimator's state has the release in it, so that what goes wrong can name both.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from polyhost_handlers.environments.definitions import with_module, with_release
from polyhost_handlers.errors import LoadFailed, load_errors_named
from polyhost_handlers.pickled_release import release_in

# scikit-learn's own warning, of any release.
_TOLD = re.compile(r"unpickle estimator \S+ from version (\S+) when using version")


@dataclass(frozen=True)
class Unpickled:
    estimator: Any
    # The release that wrote it, where it is not the one that runs here.
    version: str | None = None


def installed_version() -> str:
    return metadata.version("scikit-learn")


def versions_differ(version: str) -> str:
    """The sentences that name both releases and what to do."""
    environment = with_release("scikit-learn", version)
    there = f"where scikit-learn {version} is installed"
    build = f"in the environment {environment}, which polyhost env build {environment} makes" if environment else there
    return (
        f"The model was written by scikit-learn {version}, this server has {installed_version()}: train or save it "
        f"again with {installed_version()}, or serve it {build}."
    )


def unpickle(path: Path) -> Unpickled:
    """
    The estimator in `path`, by joblib or pickle, compressed or not.

    Raises LoadFailed; where the pickle is of another release of scikit-learn, with both releases in its sentence.
    """
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            estimator = _load(path)
    except LoadFailed as error:
        version = release_in(path)
        if version is None or version == installed_version():
            raise
        raise LoadFailed(f"{error.message.rstrip('.:')}. {versions_differ(version)}") from error
    versions = [_TOLD.search(str(warning.message)) for warning in told]
    return Unpickled(estimator, next((found[1] for found in versions if found), None))


def _load(path: Path) -> Any:
    import joblib

    with load_errors_named(f"{path.name} cannot be unpickled", path.stat().st_size):
        try:
            return joblib.load(path)
        except ModuleNotFoundError as error:
            environment = with_module(error.name or "", "sklearn")
            cure = (
                f" The environment {environment} has it: run polyhost env build {environment}." if environment else ""
            )
            raise LoadFailed(f"Unable to load model: {path.name} needs the Python module {error.name}, "
                             f"which is not installed here.{cure}") from error  # fmt: skip
