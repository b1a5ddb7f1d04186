"""
Models behind FastAPI, as a data scientist would write it: uvicorn runs `benchmarks.fastapi_app:app`.

`MODELS` is a folder with one model a folder in it. Each process loads a model when it is first asked, and keeps it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request, Response

_FOLDER = Path(os.environ["MODELS"])

app = FastAPI()


@app.get("/ping")
async def ping() -> Response:
    return Response()


@app.post("/models/{name}/invoke")
async def invoke(name: str, request: Request) -> Response:
    return Response(_model(name)(await request.body()), media_type="text/csv")


@cache
def _model(name: str) -> Callable[[bytes], str]:
    folder = _FOLDER / name
    if (folder / "xgboost-model").exists():
        return _booster(folder / "xgboost-model")
    if (folder / "model.joblib").exists():
        return _estimator(folder / "model.joblib")
    if (folder / "model.onnx").exists():
        return _network(folder / "model.onnx")
    return lambda body: str(len(body))


def _booster(file: Path) -> Callable[[bytes], str]:
    import xgboost

    booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(file.read_bytes()))
    return lambda body: _lines(booster.inplace_predict(_rows(body)))


def _estimator(file: Path) -> Callable[[bytes], str]:
    import joblib

    estimator = joblib.load(file)
    return lambda body: _lines(estimator.predict(_rows(body)))


def _network(file: Path) -> Callable[[bytes], str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options)
    (told,) = session.get_inputs()
    return lambda body: _lines(session.run(None, {told.name: _rows(body)})[0].ravel())


def _rows(body: bytes) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array([line.split(",") for line in body.decode().splitlines()], np.float32)


def _lines(numbers: np.ndarray[tuple[int], np.dtype[np.float32]]) -> str:
    return "\n".join(map(str, numbers.tolist()))
