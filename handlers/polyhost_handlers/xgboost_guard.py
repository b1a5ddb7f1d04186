"""
Programs that load XGBoost models by themselves: customers' scripts, and boosters inside of scikit-learn's pickles.

XGBoost loads a model of a newer release without a word and predicts wrong values (see `xgboost_releases`). Our own
handler computes such models right; a program that calls XGBoost itself is told instead.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyhost_handlers.xgboost_releases import written

_CORE = "xgboost.core"


def refuse_newer_models() -> None:
    """
    From now on XGBoost refuses, in this process, to load or unpickle a model of a newer release than its own.

    Does not import XGBoost: where that is not imported yet, its import is waited for.
    """
    if _CORE in sys.modules:
        _watch(sys.modules[_CORE].Booster)
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


class _Waiting(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:  # noqa: ARG002 - the protocol's
        if name != _CORE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def execute_and_watch(module: Any) -> None:
                execute(module)
                _watch(module.Booster)

            loader.exec_module = execute_and_watch
        return spec


def _watch(booster: Any) -> None:
    if getattr(booster.load_model, "is_watched", False):
        return
    load_model, set_state = booster.load_model, booster.__setstate__

    def watched_load_model(self: Any, fname: Any) -> Any:
        _check(lambda: Path(fname).read_bytes() if isinstance(fname, (str, os.PathLike)) else bytes(fname))
        return load_model(self, fname)

    def watched_set_state(self: Any, state: Any) -> Any:
        _check(lambda: bytes(state["handle"]))
        return set_state(self, state)

    watched_load_model.is_watched = True  # type: ignore[attr-defined]
    booster.load_model, booster.__setstate__ = watched_load_model, watched_set_state


def _check(read: Callable[[], bytes]) -> None:
    from polyhost_handlers.xgboost_artifact import installed_release, release_of

    try:
        release = release_of(read())
    except Exception:  # noqa: BLE001 - what is no model, or not there, XGBoost itself says better
        return
    installed = installed_release()
    if release[:2] > installed[:2]:
        raise sys.modules[_CORE].XGBoostError(
            f"the model is of XGBoost {written(release)}, newer than XGBoost {written(installed)} here, "
            "which would predict wrong values. Put it alone into its archive, without a script or a pipeline, "
            f"or train it with XGBoost {written(installed[:2])} or an earlier one.",
        )
