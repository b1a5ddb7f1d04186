"""Which kind an archive is; the default handler that follows from it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
import skops.io
import xgboost
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from polyhost_handlers.artifacts import (
    KINDS,
    is_booster,
    kind_named,
    pickled_module,
    recognise,
    script_of,
)
from polyhost_handlers.auto import AutoHandler
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.knn_handler import KnnHandler
from polyhost_handlers.linear_learner_handler import LinearLearnerHandler
from polyhost_handlers.ndarray_file import write_params
from polyhost_handlers.network_files import chosen_saved_model, saved_models_in
from polyhost_handlers.onnx_handler import OnnxHandler
from polyhost_handlers.sklearn_handler import SklearnHandler
from polyhost_handlers.skops_handler import SkopsHandler
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


def put_knn(folder: Path) -> None:
    """With four features, as the bodies of other tests have them."""
    shutil.copy(ROOT / "tests" / "data" / "knn" / "1.8.0-flat-l2.index", folder / "model_algo-1")
    (folder / "model_algo-1.labels").write_bytes(np.arange(60, dtype="f4").tobytes())
    (folder / "model_algo-1.json").write_text('{"k": 3, "predictor_type": "classifier"}')


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


def put_mlflow(folder: Path) -> None:
    (folder / "MLmodel").write_text("flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n")
    (folder / "python_model.pkl").write_bytes(pickle.dumps(1))


def torch_zip(*more: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in ("data.pkl", *more, "version"):
            archive.writestr(f"archive/{name}", b"\x80\x02.")
    return stream.getvalue()


def put_all(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


PUT: dict[str, Callable[[Path], None]] = {
    "script": put_script,
    "knn": put_knn,
    "linear-learner": put_linear_learner,
    "mxnet": put_mxnet,
    "onnx": put_onnx,
    "xgboost": put_xgboost,
    "sklearn": put_sklearn,
    "skops": lambda folder: skops.io.dump(LinearRegression().fit(ROWS, ROWS[:, 0]), folder / "any.skops"),
    "lightgbm": lambda folder: (folder / "trees").write_bytes(b"tree\nversion=v4\n"),
    "catboost": lambda folder: (folder / "model.bin").write_bytes(b"CBM1@<\0\0"),
    "mlflow": put_mlflow,
    "pytorch": lambda folder: (folder / "any.bin").write_bytes(torch_zip("constants.pkl")),
    "tensorflow": lambda folder: put_all(folder, {"export/Servo/1/saved_model.pb": b"\x08\x01"}),
}


def kind_of(folder: Path, **environ: str) -> str:
    return recognise(folder, environ).name


@pytest.mark.parametrize("kind", PUT)
def test_each_kind_is_recognised(kind: str, tmp_path: Path) -> None:
    """By what its training job leaves, among files that mean nothing."""
    for name in ("README.md", "._xgboost-model", "_SUCCESS"):
        (tmp_path / name).write_text('{"learner": "reg:squarederror with a gbtree"}')
    PUT[kind](tmp_path)

    assert kind_of(tmp_path) == kind


def test_the_first_kind_wins(tmp_path: Path) -> None:
    """Code before data, and then in the order of the table in the docs."""
    for kind in reversed(PUT):
        PUT[kind](tmp_path)
        assert kind_of(tmp_path) == kind
    assert list(PUT) == [kind.name for kind in KINDS]


@pytest.mark.parametrize(
    ("kind", "handler"),
    [
        ("knn", KnnHandler),
        ("linear-learner", LinearLearnerHandler),
        ("onnx", OnnxHandler),
        ("xgboost", XGBoostHandler),
        ("sklearn", SklearnHandler),
        ("skops", SkopsHandler),
    ],
)
def test_the_default_handler_loads_with_the_one_that_fits(kind: str, handler: type, tmp_path: Path) -> None:
    """And the memory guard's book gets that kind's name."""
    PUT[kind](tmp_path)
    source = ModelSource(tmp_path, "m", {})

    assert type(AutoHandler.load(source)) is handler
    assert AutoHandler.kind_of(source) == handler.kind == kind


def test_kinds_are_found_by_name_and_by_module() -> None:
    """As `--handler` and MMS's manifests name them."""
    for kind in KINDS:
        assert kind_named(kind.name) is kind is kind_named(kind.handler_spec.partition(":")[0])
    assert kind_named("pmml") is None


@pytest.mark.parametrize("path", sorted(XGBOOST.glob("*-[0-9].*")), ids=lambda path: path.name)
def test_every_generation_of_xgboost_is_xgboost(path: Path, tmp_path: Path) -> None:
    """Whatever the file is called."""
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
    """Or a README in the archive would be one of an ensemble."""
    path = tmp_path / "notes"
    path.write_bytes(content)

    assert not is_booster(path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pipeline_with_xgboost_inside_stays_scikit_learns(protocol: int, tmp_path: Path) -> None:
    """Its preprocessing would be lost otherwise."""
    pipeline = make_pipeline(StandardScaler(), xgboost.XGBRegressor(n_estimators=2, n_jobs=1)).fit(ROWS, ROWS[:, 0])
    (tmp_path / "pipeline.pkl").write_bytes(pickle.dumps(pipeline, protocol))

    assert kind_of(tmp_path) == "sklearn"
    answer = AutoHandler.load(ModelSource(tmp_path, "m", {})).predict(Request(csv(ROWS)))
    np.testing.assert_allclose(json.loads(answer.body), pipeline.predict(ROWS), rtol=1e-6)


def test_joblib_with_arrays_inside_is_xgboosts_too(tmp_path: Path) -> None:
    """joblib puts arrays between a pickle's opcodes: they change neither the handler nor the answer."""
    model = xgboost.XGBRegressor(n_estimators=2, n_jobs=1).fit(ROWS, ROWS[:, 0])
    answers = []
    for random_state in (None, np.random.RandomState(1)):
        joblib.dump(model.set_params(random_state=random_state), tmp_path / "model.joblib")
        assert (b"NumpyArrayWrapper" in (tmp_path / "model.joblib").read_bytes()) == (random_state is not None)
        assert kind_of(tmp_path) == "xgboost"
        source = ModelSource(tmp_path, "m", {"SAGEMAKER_MULTI_MODEL": "true"})
        answers.append(AutoHandler.load(source).predict(Request(csv(ROWS))).body)
    assert answers[0] == answers[1]


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
    """The whole sentence a user needs to pack it right."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("hello\n")
    with pytest.raises(LoadFailed) as raised:
        recognise(tmp_path, {})

    assert raised.value.message.endswith(f"{found}.")
    for kind in KINDS:
        assert f"{kind.looked_for} ({kind.name})" in raised.value.message


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    """A file, or nothing at all."""
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(LoadFailed, match=r"is not a folder"):
            recognise(tmp_path / name, {})


def test_pipes_and_links_do_not_hang(tmp_path: Path) -> None:
    """A pipe under any name that is looked for is no file; links to nowhere and in circles neither."""
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
    """One sentence here too; root, who may read everything, needs help to see it."""
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
    """The archive's own before the container's; SAGEMAKER_PROGRAM names another; never one outside of `code/`."""
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


def test_a_container_with_a_script_is_never_answered_without_it(tmp_path: Path) -> None:
    """Where its code lacks the script, whose name may be misspelled, the model's own answers would be others."""
    archive, code = tmp_path / "archive", tmp_path / "code"
    archive.mkdir()
    code.mkdir()
    (archive / "xgboost-model").write_bytes(b'{"learner": {')
    of_container = {"SAGEMAKER_SUBMIT_DIRECTORY": str(code)}
    in_archive = {"SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code"}

    for environ, program in (
        (of_container, "inference.py"),
        (of_container | {"SAGEMAKER_PROGRAM": "serve.py"}, "serve.py"),
        (in_archive | {"SAGEMAKER_PROGRAM": "serve.py"}, "serve.py"),
    ):
        with pytest.raises(
            LoadFailed, match=rf"the container's script {program} is neither in the archive's code/ nor"
        ):
            recognise(archive, environ)
    for environ in ({}, in_archive, {"SAGEMAKER_SUBMIT_DIRECTORY": "", "SAGEMAKER_PROGRAM": ""}):
        assert recognise(archive, environ).name == "xgboost"
    (code / "serve.py").touch()
    assert recognise(archive, of_container | {"SAGEMAKER_PROGRAM": "serve.py"}).name == "script"


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda tail: b"\x80\x04\x95" + tail))
def test_any_bytes_have_a_module_or_none(head: bytes) -> None:
    """A pickle's beginning is read without being run, and may be anything."""
    assert isinstance(pickled_module(head), str)


def ndarrays(**arrays: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_params(Path(folder, "a"), {name: np.array(array, "f4") for name, array in arrays.items()})
        return Path(folder, "a").read_bytes()


FOREIGN: dict[str, tuple[dict[str, bytes], str, str]] = {
    "Keras in parts": ({"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": b"x"},
                       "a Keras model in parts", "model.save('model.keras')"),
    "HDF5": ({"model": b"\x89HDF\r\n\x1a\n"}, "an HDF5 file", "model.h5"),
    "TensorFlow Lite": ({"m.tflite": b"\x1c\0\0\0TFL3"}, "a TensorFlow Lite model", "code/inference.py"),
    "CatBoost in a folder": ({"model/model.cbm": b"x"}, "a CatBoost model below", "at the top"),
    "PMML": ({"model.pmml": b"x"}, "a PMML document", "code/inference.py"),
    "PMML in XML": ({"model.xml": b'<?xml version="1.0"?>\n<PMML version="4.4">'}, "a PMML document", "pypmml"),
    "PyTorch": ({"model.pth": torch_zip()}, "a PyTorch model without its program", "torch.jit.script"),
    "PyTorch called a pickle": ({"model.pkl": torch_zip()}, "a PyTorch model", "code/inference.py"),
    "PyTorch before 1.6": ({"model": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."}, "a PyTorch model", "build pytorch"),
    "PyTorch not packed": ({"model/data.pkl": b"\x80\x02.", "model/version": b"3"}, "a PyTorch model", "torch"),
    "Hugging Face": ({"config.json": b"{}", "model.safetensors": b"x"}, "a model in safetensors", "transformers"),
    "MLflow with its folder": ({"model/MLmodel": b"", "model/model.pkl": b"x"}, "an MLflow folder", "at the top"),
    "BlazingText": ({"vectors.txt": b"2 3\n", "vectors.bin": b"x"}, "a fastText model", "code/inference.py"),
    "Spark": ({"metadata/part-00000": b"{}", "stages/0_x/metadata/part-00000": b""}, "a Spark ML pipeline", "pyspark"),
    "H2O": ({"model.ini": b"[info]"}, "an H2O MOJO", "h2o"),
    "R": ({"model.RDS": b"x"}, "an R object", "a container of your own"),
    "k-means": ({"model_algo-1": ndarrays(centroids=[[1, 2]])}, "model_algo-1, a list of MXNet arrays", "k-means"),
    "PCA": ({"model_algo-1": ndarrays(mean=[1], s=[1], v=[[1]])}, "model_algo-1, a list of MXNet arrays", "PCA"),
    "random cut forest": ({"model_algo-1": b"\x82\xa5trees"}, "model_algo-1 of a built-in", "random cut forest"),
    "factorization machines": ({"model_algo-1": torch_zip().replace(b"archive/data.pkl", b"symbol.json.....")},
                               "model_algo-1 of a built-in algorithm", "factorization machines"),
    "k-NN's index alone": ({"model_algo-1": b"IxF2\x04\0\0\0"}, "model_algo-1 of SageMaker's k-NN", "all three"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_a_model_of_another_framework_is_called_by_its_name(case: str, tmp_path: Path) -> None:
    """One sentence: what it is, that it is not served, and a way to serve it."""
    files, what, cure = FOREIGN[case]
    with pytest.raises(LoadFailed) as raised:
        recognise(put_all(tmp_path, files), {})

    assert raised.value.message.startswith(f"The archive holds {what}")
    assert ", which no handler here serves: " in raised.value.message
    assert cure in raised.value.message
    assert raised.value.message.endswith(".")


@pytest.mark.parametrize("case", FOREIGN)
def test_a_script_serves_every_framework(case: str, tmp_path: Path) -> None:
    """As the sentences say; no name of a file stands in its way."""
    put_script(put_all(tmp_path, FOREIGN[case][0]))

    assert kind_of(tmp_path) == "script"


NETWORKS: dict[str, tuple[dict[str, bytes], str]] = {
    "TorchScript": ({"model.pt": torch_zip("constants.pkl")}, "pytorch"),
    "called a pickle": ({"model.pkl": torch_zip("constants.pkl")}, "pytorch"),
    "TorchScript that is cut off": ({"model.pth": torch_zip("constants.pkl")[:150]}, "pytorch"),
    "torch.export": ({"model.pt2": torch_zip("archive_format")}, "pytorch"),
    "torch.export before 2.8": ({"model.pt2": torch_zip("serialized_exported_program.json")}, "pytorch"),
    "Keras": ({"model.keras": b"PK\x03\x04"}, "tensorflow"),
    "Keras in HDF5": ({"my.h5": b"\x89HDF\r\n\x1a\n", "my.weights.h5": b"x"}, "tensorflow"),
    "SavedModel at the top": ({"saved_model.pb": b"\x08\x01"}, "tensorflow"),
    "SavedModel as text": ({"1/saved_model.pbtxt": b""}, "tensorflow"),
    "SavedModel of a name": ({"model/1/saved_model.pb": b"", "model/1/variables/variables.index": b""}, "tensorflow"),
    "MLflow's": ({"MLmodel": b"", "data/model/saved_model.pb": b"", "data/model.pth": torch_zip()}, "mlflow"),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_networks_of_pytorch_and_tensorflow(case: str, tmp_path: Path) -> None:
    files, kind = NETWORKS[case]

    assert kind_of(put_all(tmp_path, files)) == kind


def test_one_of_several_saved_models(tmp_path: Path) -> None:
    """The newest version of the one that is named."""
    for folder in ("a/2", "a/10", "b", "c/x"):
        put_all(tmp_path, {f"{folder}/saved_model.pb": b""})
    found = saved_models_in(tmp_path)

    chosen = {name: chosen_saved_model(found, tmp_path, name).relative_to(tmp_path) for name in ("a", "b", "x")}
    assert chosen == {"a": Path("a/10"), "b": Path("b"), "x": Path("c/x")}
    for name in ("", "nobody's"):
        with pytest.raises(LoadFailed, match=re.escape("found a, b, c/x. Name one of them")):
            chosen_saved_model(found, tmp_path, name)


def test_the_sample_models_of_what_is_installed(tmp_path: Path) -> None:
    """Of the other frameworks in their environments: test_built_environments.py."""
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("sample_cases.py"), tmp_path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    prices = json.loads(done.stdout.splitlines()[-1])

    assert {name: kind for name, (kind, _) in prices.items()} == {"house_lightgbm": "lightgbm", "house_skops": "skops"}
    assert all(abs(price - 817_000) < 20_000 for _, price in prices.values()), prices  # by the houses' formula


def test_mlflow_files_beside_a_model_that_is_served_do_no_harm(tmp_path: Path) -> None:
    """scikit-learn's flavour has its pickle at the top, where it is served as it is."""
    put_all(
        tmp_path, {"MLmodel": b"flavors:\n  sklearn:\n    pickled_model: model.pkl\n", "conda.yaml": b"", "x.txt": b""}
    )
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(LinearRegression().fit(ROWS, ROWS[:, 0])))

    assert kind_of(tmp_path) == "sklearn"


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["xgboost-model", "model.joblib", "model.pkl", "net.onnx", "model_algo-1", "weights"])
@pytest.mark.parametrize(
    ("content", "what"), [(LFS, "a pointer of Git LFS: run git lfs pull"), (b"", "empty: an upload")]
)
def test_a_file_that_only_stands_for_a_model(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    """
    Refused before a library says something strange of it. An empty file of any other name is a mark, as `_SUCCESS` is.
    """
    (tmp_path / name).write_bytes(content)
    if name == "weights" and not content:
        what = "No handler knows this archive."
    with pytest.raises(LoadFailed, match=re.escape(what)):
        recognise(tmp_path, {})

    put_script(tmp_path)
    assert kind_of(tmp_path) == "script"
