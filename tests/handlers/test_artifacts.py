"""Which kind an archive is; the default handler that follows from it."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import onnx
import pytest
import xgboost
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from polyhost_handlers.artifacts import KINDS, is_booster, kind_named, pickled_module, recognise, script_of
from polyhost_handlers.auto import AutoHandler
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.linear_learner_handler import LinearLearnerHandler
from polyhost_handlers.ndarray_file import write_params
from polyhost_handlers.onnx_handler import OnnxHandler
from polyhost_handlers.sklearn_handler import SklearnHandler
from polyhost_handlers.xgboost_handler import XGBoostHandler
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from handlers.calling import Model, csv

XGBOOST = ROOT / "tests" / "data" / "xgboost"
ROWS = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0], [5.0, 4.0]])


def put_script(folder: Path) -> None:
    (folder / "code").mkdir()
    (folder / "code" / "inference.py").write_text("def model_fn(model_dir):\n    return str.upper\n")


def put_linear_learner(folder: Path) -> None:
    with zipfile.ZipFile(ROOT / "tests" / "data" / "linear_learner" / "regressor.zip") as archive:
        archive.extractall(folder)


def put_mxnet(folder: Path) -> None:
    (folder / "net-symbol.json").write_text("{}")
    write_params(folder / "net-0007.params", {})


def put_onnx(folder: Path) -> None:
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node("Neg", ["x"], ["y"])],
        "g",
        [value("x", onnx.TensorProto.FLOAT, ["rows", 2])],
        [value("y", onnx.TensorProto.FLOAT, ["rows", 2])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "network.onnx")


def put_xgboost(folder: Path) -> None:
    (folder / "xgboost-model").write_bytes((XGBOOST / "ubj-3.0.ubj").read_bytes())


def put_sklearn(folder: Path) -> None:
    joblib.dump(LinearRegression().fit(ROWS, ROWS[:, 0]), folder / "model.joblib")


PUT: dict[str, Callable[[Path], None]] = {
    "script": put_script,
    "linear-learner": put_linear_learner,
    "mxnet": put_mxnet,
    "onnx": put_onnx,
    "xgboost": put_xgboost,
    "sklearn": put_sklearn,
}


def kind_of(folder: Path, **environ: str) -> str:
    return recognise(folder, environ).name


@pytest.mark.parametrize("kind", PUT)
def test_each_kind_is_recognised(kind: str, tmp_path: Path) -> None:
    """
    By what its training job leaves, among files that mean nothing.
    """
    for name in ("README.md", "._xgboost-model", "_SUCCESS"):
        (tmp_path / name).write_text('{"learner": "reg:squarederror with a gbtree"}')
    PUT[kind](tmp_path)

    assert kind_of(tmp_path) == kind


def test_the_first_kind_wins(tmp_path: Path) -> None:
    """
    Code before data, and then in the order of the table in the docs.
    """
    for kind in reversed(PUT):
        PUT[kind](tmp_path)
        assert kind_of(tmp_path) == kind
    assert list(PUT) == [kind.name for kind in KINDS]


@pytest.mark.parametrize(
    ("kind", "handler"),
    [
        ("linear-learner", LinearLearnerHandler),
        ("onnx", OnnxHandler),
        ("xgboost", XGBoostHandler),
        ("sklearn", SklearnHandler),
    ],
)
def test_the_default_handler_loads_with_the_one_that_fits(kind: str, handler: type, tmp_path: Path) -> None:
    """
    And the memory guard's book gets that kind's name.
    """
    PUT[kind](tmp_path)
    source = ModelSource(tmp_path, "m", {})

    assert type(AutoHandler.load(source)) is handler
    assert AutoHandler.kind_of(source) == handler.kind == kind


def test_kinds_are_found_by_name_and_by_module() -> None:
    """
    As `--handler` and MMS's manifests name them.
    """
    for kind in KINDS:
        assert kind_named(kind.name) is kind is kind_named(kind.handler_spec.partition(":")[0])
    assert kind_named("tensorflow") is None
    assert [kind.environment for kind in KINDS if kind.environment] == ["mxnet"]


@pytest.mark.parametrize("path", sorted(XGBOOST.glob("*-[0-9].*")), ids=lambda path: path.name)
def test_every_generation_of_xgboost_is_xgboost(path: Path, tmp_path: Path) -> None:
    """
    Whatever the file is called.
    """
    (tmp_path / "weights.bin").write_bytes(path.read_bytes())

    assert kind_of(tmp_path) == "xgboost"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"learner": "random forest", "framework": "sklearn"}',
        b'{"learners": [1]}',
        b"Trained with reg:squarederror; the booster is gbtree.\n",
        b"objective: binary:logistic\nbooster: dart\n",
        pickle.dumps({"a": 1}),
        b"\x80\x04\x95",
        b"PK\x03\x04",
    ],
)
def test_what_speaks_of_xgboost_is_not_a_booster(content: bytes, tmp_path: Path) -> None:
    """
    Or a README in the archive would be one of an ensemble.
    """
    path = tmp_path / "notes"
    path.write_bytes(content)

    assert not is_booster(path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pipeline_with_xgboost_inside_stays_scikit_learns(protocol: int, tmp_path: Path) -> None:
    """
    Its preprocessing would be lost otherwise.
    """
    pipeline = make_pipeline(StandardScaler(), xgboost.XGBRegressor(n_estimators=2, n_jobs=1)).fit(ROWS, ROWS[:, 0])
    (tmp_path / "pipeline.pkl").write_bytes(pickle.dumps(pipeline, protocol))

    assert kind_of(tmp_path) == "sklearn"
    answer = AutoHandler.load(ModelSource(tmp_path, "m", {})).predict(Request(csv(ROWS)))
    np.testing.assert_allclose(json.loads(answer.body), pipeline.predict(ROWS), rtol=1e-6)


def test_joblib_with_arrays_inside_is_scikit_learns(tmp_path: Path) -> None:
    """
    Only joblib finds the arrays that it puts between a pickle's opcodes; without any, the booster's bytes are enough.
    """
    model = xgboost.XGBRegressor(n_estimators=2, n_jobs=1).fit(ROWS, ROWS[:, 0])
    joblib.dump(model, tmp_path / "model.joblib")
    assert kind_of(tmp_path) == "xgboost"
    plain = AutoHandler.load(ModelSource(tmp_path, "m", {"SAGEMAKER_MULTI_MODEL": "true"})).predict(Request(csv(ROWS)))

    joblib.dump(model.set_params(random_state=np.random.RandomState(1)), tmp_path / "model.joblib")
    assert kind_of(tmp_path) == "sklearn"
    with_arrays = AutoHandler.load(ModelSource(tmp_path, "m", {})).predict(Request(csv(ROWS)))
    np.testing.assert_allclose(json.loads(plain.body), json.loads(with_arrays.body))


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "nothing, the archive is empty"),
        (["model/xgboost-model"], "only the folder model/ (pack the files themselves, not the folder they are in)"),
        (["notes.txt", "code/other.py"], "code/, notes.txt"),
        ([f"file{number:02}" for number in range(25)], "file19 and 5 more"),
    ],
)
def test_an_unknown_archive_is_told_what_was_looked_for_and_found(files: list[str], found: str, tmp_path: Path) -> None:
    """
    The whole sentence a user needs to pack it right.
    """
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hello\n")
    with pytest.raises(LoadFailed) as raised:
        recognise(tmp_path, {})

    assert raised.value.message.endswith(f"{found}.")
    for kind in KINDS:
        assert f"{kind.looked_for} ({kind.name})" in raised.value.message


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    """
    A file, or nothing at all.
    """
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(LoadFailed, match=r"is not a folder"):
            recognise(tmp_path / name, {})


@pytest.mark.timeout(10)
def test_pipes_and_links_do_not_hang(tmp_path: Path) -> None:
    """
    A pipe under any name that is looked for is no file; links to nowhere and in circles neither.
    """
    names = ["xgboost-model", "model_algo-1", "a-symbol.json", "a-0000.params", "x.onnx", "model.joblib", "x"]
    for name in names:
        os.mkfifo(tmp_path / name)
    (tmp_path / "code").mkdir()
    os.mkfifo(tmp_path / "code" / "inference.py")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "b-symbol.json").mkdir()

    with pytest.raises(LoadFailed, match=r"No handler knows this archive"):
        recognise(tmp_path, {})
    write_params(tmp_path / "c-0000.params", {})
    os.mkfifo(tmp_path / "c-symbol.json")
    with pytest.raises(LoadFailed, match=r"No handler knows this archive"):
        recognise(tmp_path, {})


def test_an_unreadable_file_is_a_failed_load(
    tmp_path: Path, load: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    One sentence here too; root, who may read everything, needs help to see it.
    """
    put_xgboost(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "xgboost-model")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(LoadFailed, match=r"Unable to load model: .*Permission denied"):
        load("auto", tmp_path)
    monkeypatch.setattr(Path, "open", refuse)
    (tmp_path / "xgboost-model").rename(tmp_path / "weights")
    with pytest.raises(LoadFailed, match=r"Unable to load model: .*Permission denied"):
        load("auto", tmp_path)


def test_whose_script(tmp_path: Path) -> None:
    """
    The archive's own before the container's; SAGEMAKER_PROGRAM names another; never one outside of `code/`.
    """
    archive, container = tmp_path / "archive", tmp_path / "container"
    archive.mkdir()
    container.mkdir()
    (container / "inference.py").touch()
    (container / "serve.py").touch()
    put_script(archive)
    own, shared = archive / "code" / "inference.py", container / "inference.py"

    assert script_of(archive, {}) == own
    assert script_of(archive, {"SAGEMAKER_SUBMIT_DIRECTORY": str(container)}) == own
    assert script_of(tmp_path, {"SAGEMAKER_SUBMIT_DIRECTORY": str(container)}) == shared
    assert script_of(tmp_path, {"SAGEMAKER_SUBMIT_DIRECTORY": f"file://{container}"}) == shared
    assert script_of(tmp_path, {"SAGEMAKER_SUBMIT_DIRECTORY": "s3://bucket/sourcedir.tar.gz"}) is None
    for program in ("serve.py", "serve"):
        environ = {"SAGEMAKER_SUBMIT_DIRECTORY": str(container), "SAGEMAKER_PROGRAM": program}
        assert script_of(archive, environ) == container / "serve.py"
    for program in ("../../container/serve.py", str(container / "serve.py")):
        assert script_of(archive, {"SAGEMAKER_PROGRAM": program}) is None
    own.unlink()
    own.symlink_to(container / "serve.py")
    assert script_of(archive, {}) is None


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"\x80\x04\x95" + tail))
def test_any_bytes_have_a_module_or_none(head: bytes) -> None:
    """
    A pickle's beginning is read without being run, and may be anything.
    """
    assert isinstance(pickled_module(head), str)
