"""
Sample models, small and seeded: house prices in ten cities, and one model of each other kind.

In a process of its own (`python -m polyhost.demo.models FOLDER`), so that no server holds the libraries that train.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import xgboost
from numpy.typing import NDArray
from polyhost_handlers.ndarray_file import write_params
from sklearn.compose import ColumnTransformer
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from polyhost.demo.houses import CITIES, FEATURES, HOUSES, SEED, houses, write

# Is there when all of them are.
COMPLETE = ".complete"


def main() -> None:
    models = Path(sys.argv[1])
    models.mkdir(parents=True, exist_ok=True)
    for city in CITIES:
        write(models, city, functools.partial(city_model, city=city))
    preprocessor, weight, bias = houses_with_deck()
    write(models, "house_preprocessor", lambda folder: joblib.dump(preprocessor, folder / "model.joblib"))
    write(models, "house_linear_learner", lambda folder: linear_learner(folder, weight, bias))
    if importlib.util.find_spec("onnx"):
        write(models, "house_network", onnx_network)
    write(models, "listing_tone", script_model)
    (models / COMPLETE).touch()


def city_model(folder: Path, city: str) -> None:
    features, price = houses(city)
    data = xgboost.DMatrix(features, price, nthread=1)
    parameters = {"max_depth": 5, "eta": 0.3, "objective": "reg:squarederror", "seed": SEED, "nthread": 1}
    xgboost.train(parameters, data, num_boost_round=25).save_model(folder / "xgboost-model.ubj")
    (folder / "xgboost-model.ubj").rename(folder / "xgboost-model")


def houses_with_deck() -> tuple[ColumnTransformer, NDArray[Any], float]:
    """A preprocessor for houses with two y/n columns (deck, front porch), and a linear model after it."""
    numbers, price = houses("houston")
    random = np.random.default_rng(SEED)
    deck, porch = random.choice(["y", "n"], (2, HOUSES))
    price = price + 15_000 * (deck == "y") + 9_000 * (porch == "y")
    table = np.column_stack([numbers.astype(object), deck, porch])
    preprocessor = ColumnTransformer(
        [
            ("numbers", StandardScaler(), list(range(len(FEATURES)))),
            ("yes_or_no", OneHotEncoder(drop="if_binary", categories=[["n", "y"]] * 2), [6, 7]),
        ],
    )
    ready = np.asarray(preprocessor.fit_transform(table), dtype=float)
    solution = np.linalg.lstsq(np.column_stack([ready, np.ones(HOUSES)]), price, rcond=None)[0]
    return preprocessor, solution[:-1], float(solution[-1])


def linear_learner(folder: Path, weight: NDArray[Any], bias: float) -> None:
    """The archive that SageMaker's linear learner leaves: a zip with an MXNet checkpoint and parameters."""
    parts = folder / "parts"
    parts.mkdir()
    arrays = {
        "arg:fc0_weight": weight.astype(np.float32).reshape(-1, 1),
        "arg:fc0_bias": np.array([[bias]], dtype=np.float32),
    }
    write_params(parts / "mx-mod-0000.params", arrays)
    (parts / "mx-mod-symbol.json").write_text(json.dumps(linear_symbol(len(weight))))
    params = {"predictor_type": "regressor", "loss_type": "squared_loss", "threshold": None}
    (parts / "additional-params.json").write_text(json.dumps(params))
    manifest = {"mx-mod": "mxnet_module", "additional-params.json": "json", "version": 1}
    (parts / "manifest.json").write_text(json.dumps(manifest))
    with zipfile.ZipFile(folder / "model_algo-1", "w", zipfile.ZIP_DEFLATED) as archive:
        for part in sorted(parts.iterdir()):
            archive.write(part, part.name)
    shutil.rmtree(parts)


def linear_symbol(features: int) -> dict[str, object]:
    """The graph that SageMaker's linear learner writes for a regressor: data · weight + bias."""

    def variable(name: str, **attributes: str) -> dict[str, object]:
        return {"op": "null", "name": name, "inputs": [], **({"attrs": attributes} if attributes else {})}

    def operator(op: str, name: str, *inputs: int) -> dict[str, object]:
        return {"op": op, "name": name, "inputs": [[number, 0, 0] for number in inputs]}

    nodes = [
        variable("data"),
        variable("fc0_weight", __shape__=f"({features}, 1)"),
        operator("dot", "dot0", 0, 1),
        variable("fc0_bias", __lr_mult__="10.0", __shape__="(1, 1)"),
        operator("broadcast_add", "broadcast_plus0", 2, 3),
        variable("out_label"),
        operator("LinearRegressionOutput", "linearregressionoutput0", 4, 5),
    ]
    return {
        "nodes": nodes,
        "arg_nodes": [0, 1, 3, 5],
        "node_row_ptr": list(range(len(nodes) + 1)),
        "heads": [[6, 0, 0]],
        "attrs": {"mxnet_version": ["int", 10301]},
    }


def onnx_network(folder: Path) -> None:
    """A small multi-layer perceptron for Denver's prices; scaling is part of its first layer."""
    import onnx

    features, price = houses("denver")
    scaler = StandardScaler().fit(features)
    target = StandardScaler().fit(price.reshape(-1, 1))
    network = MLPRegressor(hidden_layer_sizes=(16,), max_iter=3000, random_state=SEED, solver="lbfgs")
    network.fit(scaler.transform(features), target.transform(price.reshape(-1, 1)).ravel())
    first, second = network.coefs_
    first_scaled = first / scaler.scale_[:, None]
    arrays = {
        "w1": first_scaled,
        "b1": network.intercepts_[0] - scaler.mean_ @ first_scaled,
        "w2": second * target.scale_[0],
        "b2": network.intercepts_[1] * target.scale_[0] + target.mean_[0],
    }
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("Gemm", ["house", "w1", "b1"], ["hidden"]),
            node("Relu", ["hidden"], ["active"]),
            node("Gemm", ["active", "w2", "b2"], ["price"]),
        ],
        "house_network",
        [value("house", onnx.TensorProto.FLOAT, ["rows", len(FEATURES)])],
        [value("price", onnx.TensorProto.FLOAT, ["rows", 1])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    # Opset 17 and IR 8: old enough for any onnxruntime still in use.
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")


def script_model(folder: Path) -> None:
    source = Path(__file__).parent / "listing_tone"
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


if __name__ == "__main__":
    main()
