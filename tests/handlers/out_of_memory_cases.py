"""
What tests/handlers/test_out_of_memory.py asks: `python out_of_memory_cases.py FOLDER`, in any of our environments.

Each case runs in a fork with a limit on its address space, so that libraries really run out of memory. Prints one
JSON object: for each case the class that was raised, and its text.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
from polyhost_handlers.base import ModelSource, Request, load_guarded  # noqa: E402
from polyhost_handlers.errors import memory_errors_translated  # noqa: E402

MIB = 1024**2
FOLDER = Path(sys.argv[1])


def in_small_processes(prepare: Callable[[], Callable[[], Any]], *rooms_mib: int) -> list[list[str]]:
    """Wherever memory ends: at the first allocation of a library, or somewhere deep in it."""
    return [in_a_small_process(prepare, room_mib * MIB) for room_mib in rooms_mib]


def in_a_small_process(prepare: Callable[[], Callable[[], Any]], room_bytes: int) -> list[str]:
    """What the function that `prepare` makes raises where only so much more can be had."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            function = prepare()
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            limits = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + room_bytes, limits[1]))
            try:
                function()
                told = ["nothing", ""]
            except Exception as error:  # noqa: BLE001 - it is what the tests are about
                told = [type(error).__name__, str(error)]
            resource.setrlimit(resource.RLIMIT_AS, limits)
            os.write(writer, json.dumps(told).encode()[:60_000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said or b'["died", ""]')


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def load(handler: str, name: str) -> Any:
    return load_guarded(
        importlib.import_module(f"polyhost_handlers.{handler}").HANDLER, ModelSource(FOLDER / name, name, {})
    )


def loading(handler: str, name: str) -> Callable[[], Callable[[], Any]]:
    return lambda: lambda: load(handler, name)


def predicting(handler: str, name: str, rows: tuple[int, int]) -> Callable[[], Callable[[], Any]]:
    def prepare() -> Callable[[], Any]:
        model = load(handler, name)
        request = Request(npy(np.ones(rows, "f4")), "application/x-npy")

        def predict() -> None:
            with memory_errors_translated():
                model.predict(request)

        return predict

    return prepare


def in_a_fork(function: Callable[[], Any]) -> None:
    """So that it leaves no free memory in this process, which the cases would then use up first."""
    pid = os.fork()
    if pid == 0:
        function()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def make_models() -> None:
    import joblib
    import onnx
    import sklearn.linear_model
    import xgboost
    from onnx import TensorProto, helper, numpy_helper

    for name in ("xgboost", "onnx", "sklearn"):
        (FOLDER / name).mkdir()
    source = np.random.default_rng(0)
    matrix = xgboost.DMatrix(source.normal(size=(2000, 10)), source.normal(size=2000), nthread=1)
    booster = xgboost.train({"max_depth": 12, "min_child_weight": 0, "nthread": 1}, matrix, 40)
    booster.save_model(FOLDER / "xgboost" / "model.ubj")
    weight = numpy_helper.from_array(np.zeros((1000, 4000), "f4"), "w")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
        for name, size in (("x", 1000), ("y", 4000))
    ]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(network, FOLDER / "onnx" / "model.onnx")
    estimator = sklearn.linear_model.LinearRegression().fit([[0.0, 1.0]], [1.0])
    estimator.ballast = np.zeros(4 * MIB)
    joblib.dump(estimator, FOLDER / "sklearn" / "model.joblib")


def main_cases() -> dict[str, list[list[str]]]:
    import joblib  # noqa: F401 - here once, not in each fork
    import onnxruntime  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import xgboost  # noqa: F401

    in_a_fork(make_models)
    return {
        "xgboost load": in_small_processes(loading("xgboost_handler", "xgboost"), 1, 4, 5, 6),
        "xgboost predict": in_small_processes(predicting("xgboost_handler", "xgboost", (100_000, 10)), 2, 9, 20),
        "onnx load": in_small_processes(loading("onnx_handler", "onnx"), 2, 20, 30),
        "onnx predict": in_small_processes(predicting("onnx_handler", "onnx", (2000, 1000)), 2, 10, 20),
        "sklearn load": in_small_processes(loading("sklearn_handler", "sklearn"), 1, 20),
        "sklearn predict": in_small_processes(predicting("sklearn_handler", "sklearn", (500_000, 2)), 1, 5, 10),
        "room": in_small_processes(loading("sklearn_handler", "sklearn"), 900),
    }


def mxnet_cases() -> dict[str, list[list[str]]]:
    import mxnet as mx

    (FOLDER / "mxnet").mkdir()
    network = mx.sym.softmax(mx.sym.mean(mx.sym.var("data"), axis=(2, 3)))
    mx.model.save_checkpoint(str(FOLDER / "mxnet" / "net"), 0, network, {}, {})
    (FOLDER / "mxnet" / "net-shapes.json").write_text('[{"shape": [1, 3, 4000, 4000], "name": "data"}]')
    return {
        "mxnet load": in_small_processes(loading("mxnet_handler", "mxnet"), 5, 60, 150),
        "room": in_small_processes(loading("mxnet_handler", "mxnet"), 6000),
    }


print(json.dumps(mxnet_cases() if sys.argv[2:] == ["mxnet"] else main_cases()))  # noqa: T201
