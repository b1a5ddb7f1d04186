from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handlers.calling import Model

# As the server sets it for its workers; libgomp reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def container(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A multi-model container, with nothing of SageMaker's else in its environment."""
    for name in list(os.environ):
        if name.startswith(("SAGEMAKER_", "POLYHOST_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SAGEMAKER_MULTI_MODEL", "true")
    # Nobody reads our output here: no need to wait for it.
    monkeypatch.setattr("polyhost_handlers.base._LAST_WORDS_SECS", 0)
    return monkeypatch


@pytest.fixture
def load(container: pytest.MonkeyPatch) -> Callable[..., Model]:
    """`load("xgboost_handler", folder, SAGEMAKER_BATCH="true")`"""

    def loaded(handler: str, model_dir: Path, **environ: str) -> Model:
        for name, value in environ.items():
            container.setenv(name, value)
        return Model(handler, model_dir).load()

    return loaded


@pytest.fixture
def restored_process(tmp_path: Path) -> Iterator[None]:
    """A script changes what belongs to the process; here the process has other tests to run."""
    cwd, path, modules = os.getcwd(), list(sys.path), dict(sys.modules)
    yield
    os.chdir(cwd)
    sys.path[:] = path
    # The script's own modules only: libraries of C do not bear a second import.
    for name in set(sys.modules) - set(modules):
        if str(getattr(sys.modules[name], "__file__", None)).startswith(f"{tmp_path}/"):
            del sys.modules[name]
    sys.modules.update(modules)
