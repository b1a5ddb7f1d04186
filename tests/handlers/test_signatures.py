"""What models take and answer: as their artifacts say it, and as they then do it, by the Open Inference Protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
import xgboost
from onnx import TensorProto, helper
from polyhost.api.open_inference.answers import outputs_of
from polyhost.api.open_inference.bodies import body_of
from polyhost.api.open_inference.requests import read_request
from polyhost_handlers.auto import AutoHandler
from polyhost_handlers.base import Handler, ModelSource, Request
from polyhost_handlers.signature import Signature, TensorSpec, bounded, inputs_of_table
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, OneHotEncoder, StandardScaler

RANDOM = np.random.default_rng(3)
ROWS = RANDOM.normal(size=(60, 3))
CLASSES = (ROWS[:, 0] > 0).astype(int) + (ROWS[:, 1] > 0)
FRAME = pd.DataFrame({"size": ROWS[:, 0], "floors": (ROWS[:, 1] > 0).astype(int), "town": ["yes", "Bonn", "Köln"] * 20})
PRICES = FRAME["size"] * 3 + FRAME["floors"]
TEXTS = ["a sunny house", "a dark house"] * 10


def table(datatype: str, width: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("input", datatype, (-1, width)),)


def predicts(datatype: str, *shape: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("predict", datatype, (-1, *shape)),)


def write_booster(folder: Path, names: list[str] | None = None, target: Any = CLASSES, **parameters: Any) -> None:
    data = xgboost.DMatrix(ROWS, target, feature_names=names)
    booster = xgboost.train({"max_depth": 2, "nthread": 1, "verbosity": 0, **parameters}, data, 2)
    booster.save_model(folder / "xgboost-model.json")
    (folder / "xgboost-model.json").rename(folder / "xgboost-model")


def write_estimator(folder: Path, estimator: Any, rows: Any, target: Any) -> None:
    joblib.dump(estimator.fit(rows, target), folder / "model.joblib")


def write_lightgbm(folder: Path, rows: Any, target: Any, **parameters: Any) -> None:
    quiet = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 3, "num_leaves": 4}
    lightgbm.train({**quiet, **parameters}, lightgbm.Dataset(rows, target), 2).save_model(folder / "model.txt")


def write_network(folder: Path, inputs: list[Any], outputs: list[Any], nodes: list[Any]) -> None:
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")


def columns() -> ColumnTransformer:
    return ColumnTransformer([("scaled", StandardScaler(), ["size", "floors"]), ("town", OneHotEncoder(), ["town"])])


def of_frame() -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("size", "FP64", (-1, 1)), TensorSpec("floors", "FP64", (-1, 1)), TensorSpec("town", "BYTES", (-1, 1))
    )  # fmt: skip


FLOAT, INT32, STRING = TensorProto.FLOAT, TensorProto.INT32, TensorProto.STRING
CASES: dict[str, tuple[Callable[[Path], None], Signature]] = {
    "xgboost": (write_booster, Signature(table("FP32", 3), predicts("FP64"))),
    "xgboost by names": (
        lambda folder: write_booster(folder, ["a", "b", "c"]),
        Signature(tuple(TensorSpec(name, "FP32", (-1, 1)) for name in "abc"), predicts("FP64")),
    ),
    "xgboost of classes": (
        lambda folder: write_booster(folder, objective="multi:softprob", num_class=3),
        Signature(table("FP32", 3), predicts("FP64", 3)),
    ),
    "scikit-learn": (
        lambda folder: write_estimator(folder, LinearRegression(), ROWS, ROWS[:, 0]),
        Signature(table("FP64", 3), predicts("FP64")),
    ),
    "scikit-learn of classes": (
        lambda folder: write_estimator(folder, LogisticRegression(), ROWS, CLASSES),
        Signature(table("FP64", 3), predicts("INT64")),
    ),
    "scikit-learn of texts as classes": (
        lambda folder: write_estimator(folder, LogisticRegression(), ROWS, np.array(["no", "some", "yes"])[CLASSES]),
        Signature(table("FP64", 3), predicts("BYTES")),
    ),
    "scikit-learn of two targets": (
        lambda folder: write_estimator(folder, LinearRegression(), ROWS, ROWS[:, :2]),
        Signature(table("FP64", 3), predicts("FP64", 2)),
    ),
    "scikit-learn of a frame": (
        lambda folder: write_estimator(folder, make_pipeline(columns(), LinearRegression()), FRAME, PRICES),
        Signature(of_frame(), predicts("FP64")),
    ),
    "scikit-learn that transforms": (
        lambda folder: write_estimator(folder, columns(), FRAME, None), Signature(of_frame(), predicts("FP64", 5)),
    ),
    "scikit-learn of texts": (
        lambda folder: write_estimator(folder, make_pipeline(CountVectorizer(), MultinomialNB()), TEXTS, [1, 0] * 10),
        Signature((TensorSpec("input", "BYTES", (-1,)),), predicts("INT64")),
    ),
    "scikit-learn of labels": (
        lambda folder: joblib.dump(LabelEncoder().fit(["no", "yes"]), folder / "model.joblib"),
        Signature((TensorSpec("input", "BYTES", (-1,)),), predicts("INT64")),
    ),
    "lightgbm": (
        lambda folder: write_lightgbm(folder, ROWS, ROWS[:, 0], objective="regression"),
        Signature(table("FP64", 3), predicts("FP64")),
    ),
    "lightgbm of classes": (
        lambda folder: write_lightgbm(folder, ROWS, CLASSES, objective="multiclass", num_class=3),
        Signature(table("FP64", 3), predicts("FP64", 3)),
    ),
    "lightgbm of a frame": (
        lambda folder: write_lightgbm(folder, FRAME.astype({"town": "category"}), PRICES, objective="regression"),
        Signature(of_frame(), predicts("FP64")),
    ),
    "onnx": (
        lambda folder: write_network(
            folder, [("x", FLOAT, ["rows", 3])], [("minus", FLOAT, ["rows", 3])],
            [helper.make_node("Neg", ["x"], ["minus"])],
        ),
        Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("minus", "FP64", (-1, 3)),)),
    ),
    "onnx of several": (
        lambda folder: write_network(
            folder, [("x", FLOAT, [None, 2, 2]), ("count", INT32, [None, 1]), ("word", STRING, [None, 1])],
            [("minus", FLOAT, [None, 2, 2]), ("less", INT32, [None, 1]), ("same", STRING, [None, 1])],
            [helper.make_node("Neg", ["x"], ["minus"]), helper.make_node("Neg", ["count"], ["less"]),
             helper.make_node("Identity", ["word"], ["same"])],
        ),
        Signature(
            (TensorSpec("x", "FP32", (-1, 2, 2)), TensorSpec("count", "INT32", (-1, 1)),
             TensorSpec("word", "BYTES", (-1, 1))),
            (TensorSpec("minus", "FP64", (-1, 2, 2)), TensorSpec("less", "INT64", (-1, 1)),
             TensorSpec("same", "BYTES", (-1, 1))),
        ),
    ),
}  # fmt: skip
SAMPLES = {"BYTES": "yes", "BOOL": True}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Handler, Signature]:
    write, expected = CASES[request.param]
    write(tmp_path)
    return AutoHandler.load(ModelSource(tmp_path, "m", {"SAGEMAKER_MULTI_MODEL": "true"})), expected


def test_models_say_what_they_take_and_answer(case: tuple[Handler, Signature]) -> None:
    handler, expected = case
    assert handler.signature() == expected


@pytest.mark.parametrize("rows", [1, 3])
def test_and_do_as_they_say(case: tuple[Handler, Signature], rows: int) -> None:
    """A request that is made of the inputs is answered by the outputs."""
    handler, _ = case
    taken, answered = handler.signature()
    inputs = [
        {"name": spec.name, "datatype": spec.datatype, "shape": (shape := [rows, *spec.shape[1:]]),
         "data": [SAMPLES.get(spec.datatype, 1)] * int(np.prod(shape))}
        for spec in taken
    ]  # fmt: skip
    body = body_of(read_request(json.dumps({"inputs": inputs}).encode(), None))
    response = handler.predict(Request(body.content, body.content_type, "application/json", body.headers))
    outputs = outputs_of(response.body, response.content_type)

    assert [TensorSpec(one.name, one.datatype, (-1, *one.shape[1:])) for one in outputs] == list(answered)
    assert {one.shape[0] for one in outputs} == {rows}


def test_a_single_models_answer_has_another_name(tmp_path: Path) -> None:
    """As it has with SageMaker."""
    write_booster(tmp_path)
    handler = AutoHandler.load(ModelSource(tmp_path, "m", {}))
    assert [spec.name for spec in handler.signature().outputs] == ["score"]


def test_chosen_parts_of_an_answer_are_not_told(tmp_path: Path) -> None:
    write_booster(tmp_path)
    handler = AutoHandler.load(ModelSource(tmp_path, "m", {"SAGEMAKER_INFERENCE_OUTPUT": "predicted_label"}))
    assert handler.signature() == Signature(table("FP32", 3))


@pytest.mark.parametrize(
    ("width", "names", "datatypes", "expected"),
    [
        (None, None, ["FP64"], ()),
        (2, None, ["FP64"], (TensorSpec("input", "FP64", (-1, 2)),)),
        (2, None, ["FP64", "FP64"], (TensorSpec("input", "FP64", (-1, 2)),)),
        (2, None, ["FP64", "BYTES"], ()),
        (2, None, ["FP64", None], ()),
        (2, ["a", "b"], ["FP64", None], ()),
        (2, ["a", "b"], ["FP64", "BYTES"], (TensorSpec("a", "FP64", (-1, 1)), TensorSpec("b", "BYTES", (-1, 1)))),
        (1001, [str(number) for number in range(1001)], ["FP32"], (TensorSpec("input", "FP32", (-1, 1001)),)),
    ],
)  # fmt: skip
def test_tables(width: int | None, names: Any, datatypes: Any, expected: tuple[TensorSpec, ...]) -> None:
    assert inputs_of_table(width, names, datatypes) == expected


def test_names_that_are_too_long_to_be_sent_are_not_told() -> None:
    """An artifact may hold anything, and what a worker sends has a limit."""
    short, long = (Signature((TensorSpec("x" * count, "FP32", (-1, 1)),)) for count in (1000, 2_000_000))
    assert bounded(short) == short
    assert bounded(long) == Signature()
