"""scikit-learn saved by skops: an estimator that is not a pickle. Types that skops does not know are refused."""

from __future__ import annotations

from pathlib import Path

from polyhost_handlers.artifacts import files_of, skops_models_in
from polyhost_handlers.base import ModelSource, entry_point
from polyhost_handlers.errors import LoadFailed, load_errors_named
from polyhost_handlers.sklearn_artifact import Unpickled
from polyhost_handlers.sklearn_handler import SklearnHandler
from polyhost_handlers.tables import listed

# Parts of scikit-learn's own estimators that skops leaves to whoever loads them: state, and no code of the file's.
_PARTS = frozenset(
    {
        "scipy.interpolate._bsplines.BSpline",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.feature_selection._univariate_selection.chi2",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.feature_selection._univariate_selection.f_regression",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.gaussian_process.kernels.Sum",
        "sklearn.gaussian_process.kernels.WhiteKernel",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
    }
)


class SkopsHandler(SklearnHandler):
    kind = "skops"

    @classmethod
    def read(cls, source: ModelSource) -> tuple[str, Unpickled]:
        path = _model_file(source.model_dir)
        with load_errors_named(path.name, path.stat().st_size):
            import skops.io

            unknown = skops.io.get_untrusted_types(file=path)
            if untrusted := [name for name in unknown if name not in _PARTS]:
                raise LoadFailed(
                    f"Unable to load model: {path.name} holds types that skops does not trust: {listed(untrusted)}. "
                    "Save it without them, or as model.joblib if you trust whoever wrote it."
                )
            return path.name, Unpickled(skops.io.load(path, trusted=unknown))


def _model_file(model_dir: Path) -> Path:
    found = skops_models_in(model_dir)
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found or files_of(model_dir)) or "nothing"
    raise LoadFailed(f"Unable to load model: one *.skops file belongs in the archive, found {names}.")


HANDLER = SkopsHandler
handle = entry_point(SkopsHandler)
