"""What models do with the machine and mean no harm: each function runs inside a model, by its source."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def call_of(function: Callable[[], Any]) -> str:
    """Python that sets `answer` to what the function returns."""
    return f"{inspect.getsource(function)}\nanswer = {function.__name__}()\n"


def forked_pool() -> list[int]:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2])


def fresh_pool() -> list[int]:
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(abs, [-1, -2])


def futures() -> list[int]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(abs, [-1, -2]))


def manager() -> dict[str, int]:
    import multiprocessing

    with multiprocessing.Manager() as manager:
        return dict(manager.dict(one=1))


def shared_memory() -> int:
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(create=True, size=64)
    memory.buf[0] = 7
    value = memory.buf[0]
    memory.close()
    memory.unlink()
    return value


def program() -> str:
    import subprocess

    return subprocess.check_output(["echo", "hello"], text=True)


def ended_program() -> int:
    import subprocess

    process = subprocess.Popen(["sleep", "60"])
    process.terminate()
    return process.wait()


def asyncio_program() -> str:
    import asyncio

    async def hello() -> str:
        process = await asyncio.create_subprocess_exec("echo", "hello", stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0].decode()

    return asyncio.run(hello())


def temporary_copies() -> str:
    import pathlib
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        first = pathlib.Path(folder, "first")
        first.mkdir()
        (first / "one").write_text("hello")
        shutil.copy2(first / "one", first / "two")
        shutil.copytree(first, pathlib.Path(folder, "second"))
        return pathlib.Path(folder, "second", "two").read_text()


def cache_at_home() -> str:
    import pathlib

    file = pathlib.Path.home() / ".cache" / "library" / "file"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("hello")
    return file.read_text()


def forest() -> list[int]:
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    rows = np.arange(400.0).reshape(200, 2)
    classes = (rows[:, 0] > 200).astype(int)
    trained = RandomForestClassifier(8, n_jobs=-1, random_state=0).fit(rows, classes)
    return [int(value) for value in trained.predict(rows[[0, 199]])]


def joblib_processes() -> list[int]:
    import joblib
    import numpy as np

    arrays = [np.ones(9000), np.ones(8000)]  # too large for a pipe: they become files
    return list(joblib.Parallel(n_jobs=2, max_nbytes=1000)(joblib.delayed(len)(array) for array in arrays))


def xgboost_threads() -> float:
    import numpy as np
    import xgboost

    data = xgboost.DMatrix(np.arange(100.0).reshape(50, 2), label=np.ones(50))
    return round(float(xgboost.train({"nthread": 2}, data, 8).predict(data)[0]), 1)


def onnx_threads() -> list[float]:
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "negated", kinds[:1], kinds[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(onnx.ModelProto.SerializeToString(model), options)
    return [float(value) for value in session.run(None, {"x": np.array([1, 2], np.float32)})[0]]


def own_turn() -> str:
    import os

    os.sched_setaffinity(0, os.sched_getaffinity(0))
    os.nice(1)
    return "done"


ANSWERS: dict[Callable[[], Any], Any] = {
    forked_pool: [1, 2],
    fresh_pool: [1, 2],
    futures: [1, 2],
    manager: {"one": 1},
    shared_memory: 7,
    program: "hello\n",
    ended_program: -15,
    asyncio_program: "hello\n",
    temporary_copies: "hello",
    cache_at_home: "hello",
    forest: [0, 1],
    joblib_processes: [9000, 8000],
    xgboost_threads: 1.0,
    onnx_threads: [-1.0, -2.0],
    own_turn: "done",
}
