"""
Whatever a client sends, each handler answers it: with a prediction or a 4xx, soon, and for little memory.

Bodies are good ones with bytes changed, cut out or repeated, and any bytes at all; every Content-Type and Accept
that any handler knows goes to each of them.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from polyhost_handlers.auto import AutoHandler
from polyhost_handlers.base import Handler, ModelSource, Request, answered, load_guarded
from polyhost_handlers.script_handler import ScriptHandler
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from support.forms import examples
from support.records import encode_features

from handlers.calling import npy, npy_header, npz
from handlers.test_artifacts import put_knn, put_linear_learner, put_onnx
from handlers.test_onnx import write
from handlers.test_recordio import record
from handlers.test_xgboost import FIXTURES

# numpy warns of headers and casts, onnxruntime of nothing: what a request makes them say is no error of ours.
pytestmark = pytest.mark.filterwarnings("ignore")

CONTENT_TYPES = (
    "text/csv", "text/libsvm", "application/json", "application/jsonlines", "application/x-npy",
    "application/x-recordio-protobuf", "application/x-image", "application/x-npz", "", "text/plain", "x",
)  # fmt: skip
ACCEPTS = ("", "*/*", "application/json", "text/csv", "application/jsonlines", "application/x-npy",
           "application/x-recordio-protobuf", "image/png")  # fmt: skip
ROW = [1.0, 2.0, 3.0, 4.0]
GOOD = [
    b"1,2,3,4\n5,,nan,8\n",
    b"1;2;3;4",
    b'1,2,"y"\n3,4,n',
    b"a good day\nbad",
    b"1 0:1 1:2.5 3:4\n0 2:1e3\n",
    b"[[1, 2], [3, null]]",
    b'{"instances": [{"features": [1, 2, 3, 4]}, {"data": {"features": {"values": [5, 6, 7, 8]}}}]}',
    b'{"instances": [{"data": {"features": {"keys": [0, 3], "shape": [4], "values": [1, 2.5]}}}]}',
    b'{"inputs": {"a": [[1, 2]], "b": [[3, 4]]}}',
    b'[["y", 1, true], ["n", -1.5e300, null]]',
    b'{"features": [1, 2]}\n[3, 4]\n',
    b"b,c,a\ny,1,2\nn,3,4",
    b'[{"a": 1, "b": "y", "c": 2}, {"c": 3, "a": 1, "b": "n"}]',
    b'{"columns": ["c", "b", "a"], "data": [[1, "y", 2]]}',
    b'{"a": {"0": 1}, "b": {"0": "y"}, "c": {"0": 2}}',
    b'{"data": {"names": ["a", "b", "c"], "ndarray": [[1, "n", 2]]}}',
    b'{"inputs": [{"name": "a", "shape": [1], "data": [1]}, {"name": "b", "shape": [1, 1], "data": [2]}]}',
    b"1 2 3 4\n5 6 7 8",
    b"# a b c d\n1 2 3 4",
    npy([ROW, ROW]),
    npz(a=[1.0, 2.0], c=[3.0, 4.0], b=["y", "n"]),
    npz(arr_0=[ROW]),
    npy(np.array([[1, 2]], ">i2")),
    npy([["a", "b"]]),
    npy(np.array([["a", "b", "c"]], ">U2")),
    npy(np.array([["a", "b", "c"]], "S2")),
    npy(np.array([["a", "b", "c", "d"]])),
    npy(np.array([[True, False, True, True]])),
    npy(np.array([ROW], "longdouble")),
    b'[["\\u0041", "\\ud83d\\ude00", "b"]]',
    encode_features([ROW, ROW]),
    record([1, 2], [0, 3], [4]),
    record([1, 2], kind="i"),
]
PIECES = [
    b"std::bad_alloc",
    b"inf",
    b"NaN",
    b"1e999",
    b"99999999999999999999",
    b"[" * 50,
    b'"',
    b"\xff",
    b"\x00",
    b"-",
    b",,,,",
    b"\n\n",
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    body = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 8)))
        body[start:end] = draw(st.sampled_from(PIECES) | st.binary(max_size=4) | st.just(bytes(body[start:end]) * 2))
    return bytes(body)


def array_file(descr: str, data: bytes, shape: tuple[int, ...]) -> bytes:
    """A .npy file of any bytes; `descr` as its header has it."""
    return npy_header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}", data)


# What no text is, as bytes of numpy's U: beyond the last code point, below the first, half of a pair.
NO_TEXTS = [b"\xff\xff\xff\xff", b"\x00\x00\x11\x00", b"\x00\x00\x00\x80", b"\x00\xd8\x00\x00", b"\xff\xdf\x00\x00"]
BROKEN_TEXTS = [
    *(array_file("'<U1'", point * width, (1, width)) for point in NO_TEXTS for width in (1, 3, 4)),
    *(array_file("'>U1'", point[::-1] * 4, (4,)) for point in NO_TEXTS),
    *(array_file("'<U2'", b"a\0\0\0" + point, (1,)) for point in NO_TEXTS),
    array_file("'|S2'", b"a\xffb\xc3", (1, 2)),
    array_file("[('a', '<U1'), ('b', '<f8')]", b"\xff" * 12, (1,)),
    array_file("[('a', '<U1', (2,))]", b"\xff" * 8, (1,)),
]

BODIES = damaged() | damaged() | st.binary(max_size=80)


def sample(kind: str, folder: Path) -> None:
    if kind == "xgboost":
        shutil.copy(FIXTURES / "ubj-3.0.ubj", folder)
    elif kind == "ensemble":
        shutil.copy(FIXTURES / "ubj-3.0.ubj", folder)
        shutil.copy(FIXTURES / "old-binary-0.90.model", folder)
    elif kind == "linear":
        put_linear_learner(folder)
        with zipfile.ZipFile(folder / "model_algo-1", "w") as archive:
            for path in sorted(folder.iterdir()):
                if path.name != "model_algo-1":
                    archive.write(path, path.name)
    elif kind == "knn":
        put_knn(folder)
    elif kind == "onnx":
        put_onnx(folder)
    elif kind == "onnx texts":
        text = ("x", TensorProto.STRING, ["rows", 3])
        write(folder / "model.onnx", [helper.make_node("Identity", ["x"], ["y"])], [text], [("y", *text[1:])])
    elif kind == "script":
        (folder / "code").mkdir()
        (folder / "code" / "inference.py").write_text("def model_fn(model_dir):\n    return lambda data: data\n")
    else:
        joblib.dump(estimator(kind), folder / "model.joblib")


def estimator(kind: str) -> Any:
    if kind == "regression":
        return LinearRegression().fit(np.eye(4), ROW)
    if kind == "passed on":
        return FunctionTransformer().fit(np.array([["a", 1, True]], dtype=object))
    if kind == "texts":
        return make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
            ["a good day", "a bad night"], ["good", "bad"]
        )
    if kind == "named":
        frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["y", "n"], "c": [1, 2]})
        encoder = OneHotEncoder(handle_unknown="ignore")
        return ColumnTransformer([("numbers", StandardScaler(), ["c", "a"]), ("yes_or_no", encoder, ["b"])]).fit(frame)
    table = np.array([[1, 2, "y"], [3, 5, "n"]], dtype=object)
    columns = [("numbers", StandardScaler(), [0, 1]), ("yes_or_no", OneHotEncoder(handle_unknown="ignore"), [2])]
    return ColumnTransformer(columns).fit(table)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Handler]]:
    loaded: dict[str, Handler] = {}
    cwd, path = os.getcwd(), list(sys.path)
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        sample(kind, folder)
        source = ModelSource(folder, kind, {"SAGEMAKER_MULTI_MODEL": "true"})
        loaded[kind] = load_guarded(AutoHandler, source)
    os.chdir(cwd)
    sys.path[:] = path
    yield loaded
    del sys.modules["inference"]


KINDS = ("xgboost", "ensemble", "linear", "knn", "onnx", "regression", "preprocessor", "named", "texts",
         "passed on", "onnx texts", "script")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_are_none(kind: str, models: dict[str, Handler]) -> None:
    """numpy reads any four bytes as a character, and fails only when it has to make a text of them."""
    model = models[kind]
    bodies = [(body, "application/x-npy") for body in BROKEN_TEXTS]
    bodies += [(packed(a=body), "application/x-npz") for body in BROKEN_TEXTS]
    bodies += [(packed(a=body, b=body, c=body), "application/x-npz") for body in BROKEN_TEXTS]
    bodies += [(b'[["\\udfff", "\\ud800", "a"]]', "application/json"), (b'["\\uDEAD"]', "application/jsonlines")]

    for body, content_type in bodies:
        response = answered(model, partial(Request, body, content_type), kind)

        # A script is given what numpy can hold, as the inference toolkit gives it.
        assert response.status in ({400, 415, None} if kind == "script" else {400, 415}), (body, response.body)


def packed(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, file in files.items():
            archive.writestr(f"{name}.npy", file)
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_any_body(kind: str, models: dict[str, Handler]) -> None:
    """200, 204, 400 or 415; a 500 only where it is a script's or an estimator's own; never a MemoryError."""
    model = models[kind]
    # A script that is the identity fails by itself.
    allowed = {200, 204, 400, 415} | ({500} if isinstance(model, ScriptHandler) else set())

    @settings(max_examples=examples(75), suppress_health_check=list(HealthCheck))
    @example(array_file("'<U1'", b"\xff\xff\xff\xff", (1, 1)), "application/x-npy", "application/json")
    @given(body=BODIES, content_type=st.sampled_from(CONTENT_TYPES), accept=st.sampled_from(ACCEPTS))
    def answers(body: bytes, content_type: str, accept: str) -> None:
        tracemalloc.start()
        begun = time.process_time()
        response = answered(model, lambda: Request(body, content_type, accept), kind)
        secs = time.process_time() - begun
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert (response.status or 200) in allowed, response.body
        assert secs < 2
        assert peak < 20_000_000
        if response.status is not None and response.status >= 400:
            assert set(json.loads(response.body)) == {"code", "type", "message"}

    answers()
