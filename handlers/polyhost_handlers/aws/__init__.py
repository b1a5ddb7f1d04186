"""
Modules of AWS's containers that scripts import, where the real ones are not installed.

Scripts that were written for AWS's scikit-learn and XGBoost containers import `sagemaker_containers` and
`sagemaker_xgboost_container`, and old ones `sklearn.externals.joblib`. Neither can be installed beside what is
current. `provide` makes these names importable, by modules of ours that do the same for serving. Python asks
our finder last, so whatever is installed, or lies in an archive, comes first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Where packages are that hold nothing but the modules below.
_PACKAGES = ("sagemaker_containers", "sagemaker_containers.beta", "sagemaker_xgboost_container")
_OURS = "polyhost_handlers.aws"
_MODULES = {
    "sagemaker_containers._content_types": f"{_OURS}.content_types",
    "sagemaker_containers._encoders": f"{_OURS}.encoders",
    "sagemaker_containers._env": f"{_OURS}.env",
    "sagemaker_containers._errors": f"{_OURS}.errors",
    "sagemaker_containers._transformer": f"{_OURS}.transformer",
    "sagemaker_containers._worker": f"{_OURS}.worker",
    "sagemaker_containers.beta.framework": f"{_OURS}.framework",
    # The name is in scripts although the container has only the other.
    "sagemaker_xgboost_container.decoder": f"{_OURS}.xgboost_encoder",
    "sagemaker_xgboost_container.encoder": f"{_OURS}.xgboost_encoder",
    # scikit-learn had copies of them until 0.23.
    "sklearn.externals.joblib": "joblib",
    "sklearn.externals.six": "six",
}
# One script often trains and serves: it imports these and calls them only when it trains.
_FOR_TRAINING = (
    "sagemaker_containers.entry_point",
    "sagemaker_xgboost_container.checkpointing",
    "sagemaker_xgboost_container.data_utils",
    "sagemaker_xgboost_container.distributed",
)
# Distributions whose modules these stand for.
DISTRIBUTIONS = ("sagemaker-containers", "sagemaker-xgboost-container")


def provide() -> None:
    """Make the names importable in this process. Nothing is imported before a script does."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


class ForTraining(ModuleType):
    """A module that a script may import. What it holds trains, and says so when it is called."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        what = f"{self.__name__}.{name}"

        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError(f"{what} is for training, and this is a server: call it only where the script trains")

        return refuse


class _Finder(MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the signature of finders
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        parent = sys.modules.get(fullname.rpartition(".")[0])
        # A package that is installed has all of its modules, or lacks them.
        if parent is not None and not _is_ours(parent) and not fullname.startswith("sklearn.externals."):
            return None
        if fullname in _PACKAGES:
            return ModuleSpec(fullname, _Loader(), is_package=True)
        if fullname in _MODULES or fullname in _FOR_TRAINING:
            return ModuleSpec(fullname, _Loader())
        return None


def _is_ours(module: ModuleType) -> bool:
    return isinstance(getattr(module.__spec__, "loader", None), _Loader)


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return ForTraining(spec.name) if spec.name in _FOR_TRAINING else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if name not in _MODULES:
            return
        original = _MODULES[name]
        # The same module under its other name: classes and errors stay the same ones.
        sys.modules[name] = importlib.import_module(original)
        # Those below it too, or Python would import them again from the same files: joblib's pickles need its own.
        for other in [other for other in sys.modules if other.startswith(f"{original}.")]:
            sys.modules[name + other.removeprefix(original)] = sys.modules[other]
