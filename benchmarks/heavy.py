"""Models that take longer than a row of a small booster."""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import onnx
import xgboost
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.artifacts import SEED, Artifacts

_TREES = 500
_FEATURES = 20
_ROWS = 1000
_UNITS = 64


def heavy_models(artifacts: Artifacts) -> list[tuple[str, Path, bytes]]:
    """A name, a folder and a body of CSV for each."""
    random = np.random.default_rng(SEED)
    rows = random.normal(size=(_ROWS, _FEATURES))
    labels = rows @ random.normal(size=_FEATURES) + random.normal(size=_ROWS)
    trees = artifacts.folder("heavy-trees")
    parameters = {"max_depth": 6, "eta": 0.1, "nthread": 1, "seed": SEED}
    booster = xgboost.train(parameters, xgboost.DMatrix(rows, labels, nthread=1), _TREES)
    (trees / "xgboost-model").write_bytes(booster.save_raw("ubj"))
    pipeline = artifacts.folder("heavy-pipeline")
    joblib.dump(make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels > 0), pipeline / "model.joblib")
    return [
        ("trees_1", trees, _csv(rows[:1])),
        ("trees_100", trees, _csv(rows[:100])),
        ("pipeline", pipeline, _csv(rows[:10])),
        ("network", _network(artifacts.folder("heavy-network"), random), _csv(rows[:10])),
    ]


def _network(folder: Path, random: np.random.Generator) -> Path:
    """Two layers of 64 and one number."""
    shapes = {"first": (_FEATURES, _UNITS), "second": (_UNITS, _UNITS), "third": (_UNITS, 1)}
    weights = [numpy_helper.from_array(random.normal(size=of).astype("f4"), name) for name, of in shapes.items()]
    nodes = [
        helper.make_node("MatMul", ["rows", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "third"], ["prices"]),
    ]
    told, answered = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["count", columns])
        for name, columns in (("rows", _FEATURES), ("prices", 1))
    )
    graph = helper.make_graph(nodes, "network", [told], [answered], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return folder


def _csv(rows: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> bytes:
    return "\n".join(",".join(f"{value:.6f}" for value in row) for row in rows).encode()
