"""
Sample models of the frameworks that this Python has, of those that need an environment of their own.

All say what a house in Denver costs: by least squares, or by trees where the framework has nothing else.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from polyhost.demo.houses import FEATURES, SEED, houses, write

ROWS, PRICES = houses("denver")


def main() -> None:
    """The folder of models, then a file to leave when all are made."""
    models, done = Path(sys.argv[1]), Path(sys.argv[2])
    models.mkdir(parents=True, exist_ok=True)
    for name, (module, make) in MAKERS.items():
        if importlib.util.find_spec(module):
            write(models, name, make)
    done.touch()


def weights() -> tuple[np.ndarray, float]:
    """The price of each feature, and the one without any."""
    found = np.linalg.lstsq(np.column_stack([ROWS, np.ones(len(ROWS))]), PRICES, rcond=None)[0]
    return found[:-1], float(found[-1])


def lightgbm(folder: Path) -> None:
    import lightgbm

    data = lightgbm.Dataset(ROWS, PRICES, feature_name=list(FEATURES))
    options = {"objective": "regression", "num_leaves": 8, "seed": SEED, "num_threads": 1, "verbose": -1}
    lightgbm.train(options, data, num_boost_round=20).save_model(folder / "model.txt")


def catboost(folder: Path) -> None:
    import catboost

    model = catboost.CatBoostRegressor(
        iterations=20, depth=3, random_seed=SEED, thread_count=1, verbose=0, allow_writing_files=False
    )
    model.fit(ROWS, PRICES).save_model(str(folder / "model.cbm"))


def skops(folder: Path) -> None:
    import skops.io
    from sklearn.linear_model import LinearRegression

    skops.io.dump(LinearRegression().fit(ROWS, PRICES), folder / "model.skops")


def mlflow(folder: Path) -> None:
    import mlflow
    from mlflow.models import infer_signature

    weight, bias = weights()

    class Prices(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:  # noqa: ARG002 - MLflow calls it so
            return model_input @ weight + bias

    mlflow.pyfunc.save_model(folder, python_model=Prices(), signature=infer_signature(ROWS, PRICES))


def torchscript(folder: Path) -> None:
    import torch

    torch.jit.trace(torch_network(), torch.zeros(1, len(FEATURES))).save(str(folder / "model.pt"))


def torch_export(folder: Path) -> None:
    import torch

    rows = {"input": {0: torch.export.Dim("houses")}}
    program = torch.export.export(torch_network(), (torch.zeros(2, len(FEATURES)),), dynamic_shapes=rows)
    torch.export.save(program, folder / "model.pt2")


def torch_network() -> Any:
    import torch

    weight, bias = weights()
    network = torch.nn.Linear(len(FEATURES), 1).eval()
    network.load_state_dict({"weight": torch.tensor(weight[None]), "bias": torch.tensor([bias])})
    return network


def keras(folder: Path) -> None:
    keras_network().save(folder / "model.keras")


def saved_model(folder: Path) -> None:
    """As SageMaker's TensorFlow container finds it."""
    keras_network().export(folder / "export" / "Servo" / "1", verbose=False)


def keras_network() -> Any:
    import keras

    weight, bias = weights()
    network = keras.Sequential([keras.Input((len(FEATURES),), name="house"), keras.layers.Dense(1)])
    network.layers[0].set_weights([weight[:, None], np.array([bias])])
    return network


# By a model's name: the module that it needs, and what makes it.
MAKERS: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    "house_lightgbm": ("lightgbm", lightgbm),
    "house_catboost": ("catboost", catboost),
    "house_skops": ("skops", skops),
    "house_mlflow": ("mlflow", mlflow),
    "house_torchscript": ("torch", torchscript),
    "house_torch_export": ("torch", torch_export),
    "house_keras": ("tensorflow", keras),
    "house_saved_model": ("tensorflow", saved_model),
}


if __name__ == "__main__":
    main()
