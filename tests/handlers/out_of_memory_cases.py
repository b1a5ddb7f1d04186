"""
What tests/handlers/test_out_of_memory.py asks: `python out_of_memory_cases.py FOLDER`, in any of our environments.

Each case runs in a fork with a limit on its address space, so that libraries really run out of memory. Prints one
JSON object: for each case the classes that were raised, and their texts.

Each case takes its memory in blocks of many MiB, and memory ends within one of these, with MiBs left. What is small
has room enough then, wherever else memory lies in this process. Where nothing at all is left, libraries may end the
process: NumPy does, if a ufunc cannot have its buffer of 64 KiB. The server answers for a worker that has ended.
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
BLOCK_BYTES = 32 * MIB
# A request of one block in float32. Its answer is small: a number for each row.
NUMBERS = BLOCK_BYTES // 4
FEATURES = 1024
# So many that the booster is not compiled, and XGBoost itself is asked.
MANY_FEATURES = 2**17
# No case takes more blocks.
_MOST_BLOCKS = 20


def in_small_processes(prepare: Callable[[], Callable[[], Any]], block_bytes: int = BLOCK_BYTES) -> list[list[str]]:
    """What is raised where memory ends within the first block, within the second, and so on until nothing is raised."""
    raised: list[list[str]] = []
    for blocks in range(_MOST_BLOCKS):
        # Neither whole blocks nor halves and quarters, which there are, too, fill this room.
        raised.append(in_a_small_process(prepare, blocks * block_bytes + block_bytes * 5 // 8))
        if raised[-1][0] == "nothing":
            break
    return raised


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
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(said) if said else ["died", f"with {ended}"]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def load(handler: str, name: str) -> Any:
    return load_guarded(
        importlib.import_module(f"polyhost_handlers.{handler}").HANDLER, ModelSource(FOLDER / name, name, {})
    )


def loading(handler: str, name: str) -> Callable[[], Callable[[], Any]]:
    def prepare() -> Callable[[], Any]:
        load(handler, f"small-{name}")  # what a first load imports and begins is there already
        return lambda: load(handler, name)

    return prepare


def predicting(handler: str, name: str, features: int = FEATURES) -> Callable[[], Callable[[], Any]]:
    def prepare() -> Callable[[], Any]:
        model = load(handler, name)
        small, large = (
            Request(npy(np.ones((rows, features), "f4")), "application/x-npy") for rows in (1, NUMBERS // features)
        )
        model.predict(small)

        def predict() -> None:
            with memory_errors_translated():
                model.predict(large)

        return predict

    return prepare


def predicting_decoded(handler: str, name: str, features: int) -> Callable[[], Callable[[], Any]]:
    """Of rows that are decoded already, which may take more than the library itself."""

    def prepare() -> Callable[[], Any]:
        predict = predicting(handler, name, features)()
        rows = np.ones((NUMBERS // features, features))
        importlib.import_module(f"polyhost_handlers.{handler}").HANDLER._decode = lambda *_: rows
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
    make_boosters()
    make_networks()
    make_estimators()


def make_boosters() -> None:
    import xgboost

    def trained(booster: str, features: int) -> Any:
        random = np.random.default_rng(0)
        matrix = xgboost.DMatrix(random.normal(size=(10, features)), random.normal(size=10), nthread=1)
        return xgboost.train({"booster": booster, "nthread": 1}, matrix, 2)

    for name in ("small-xgboost", "xgboost", "wide-xgboost"):
        (FOLDER / name).mkdir()
    trained("gblinear", MANY_FEATURES).save_model(FOLDER / "wide-xgboost" / "model.ubj")
    trees = trained("gbtree", FEATURES)
    trees.save_model(FOLDER / "small-xgboost" / "model.ubj")
    trees.set_attr(ballast="x" * BLOCK_BYTES)
    trees.save_model(FOLDER / "xgboost" / "model.ubj")


def make_networks() -> None:
    """Four times each row, side by side, and a number of that: more memory than the request has taken before."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    copies = 4
    for name, columns in (("small-onnx", 1), ("onnx", NUMBERS // (copies * FEATURES))):
        (FOLDER / name).mkdir()
        weight = numpy_helper.from_array(np.zeros((copies * FEATURES, columns), "f4"), "w")
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", size])
            for name, size in (("x", FEATURES), ("y", columns))
        ]
        nodes = [
            helper.make_node("Concat", ["x"] * copies, ["wide"], axis=1),
            helper.make_node("MatMul", ["wide", "w"], ["y"]),
        ]
        graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
        network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(network, FOLDER / name / "model.onnx")


def make_estimators() -> None:
    import joblib
    import sklearn.tree

    # A tree: what multiplies matrices would have OpenBLAS map memory of its own.
    estimator = sklearn.tree.DecisionTreeRegressor().fit(np.eye(2, FEATURES), [0.0, 1.0])
    for name, numbers in (("small-sklearn", 0), ("sklearn", BLOCK_BYTES // 8)):
        (FOLDER / name).mkdir()
        estimator.ballast = np.zeros(numbers)
        joblib.dump(estimator, FOLDER / name / "model.joblib")


def main_cases() -> dict[str, list[list[str]]]:
    import joblib  # noqa: F401 - here once, not in each fork
    import onnxruntime  # noqa: F401
    import sklearn.tree  # noqa: F401
    import xgboost  # noqa: F401

    in_a_fork(make_models)
    return {
        "xgboost load": in_small_processes(loading("xgboost_handler", "xgboost")),
        "xgboost predict": in_small_processes(predicting_decoded("xgboost_handler", "wide-xgboost", MANY_FEATURES)),
        "compiled predict": in_small_processes(predicting("xgboost_handler", "small-xgboost")),
        "onnx load": in_small_processes(loading("onnx_handler", "onnx")),
        "onnx predict": in_small_processes(predicting("onnx_handler", "small-onnx")),
        "sklearn load": in_small_processes(loading("sklearn_handler", "sklearn")),
        "sklearn predict": in_small_processes(predicting("sklearn_handler", "small-sklearn")),
    }


def mxnet_cases() -> dict[str, list[list[str]]]:
    import mxnet as mx

    network = mx.sym.softmax(mx.sym.mean(mx.sym.var("data"), axis=(2, 3)))
    block_bytes = 4 * 3 * 4096 * 1024
    for name, height in (("small-mxnet", 1), ("mxnet", 4096)):
        (FOLDER / name).mkdir()
        mx.model.save_checkpoint(str(FOLDER / name / "net"), 0, network, {}, {})
        (FOLDER / name / "net-shapes.json").write_text(f'[{{"shape": [1, 3, {height}, 1024], "name": "data"}}]')
    return {"mxnet load": in_small_processes(loading("mxnet_handler", "mxnet"), block_bytes)}


print(json.dumps(mxnet_cases() if sys.argv[2:] == ["mxnet"] else main_cases()))  # noqa: T201
