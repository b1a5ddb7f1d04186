"""
Handlers that need a framework, and scikit-learn's of an older release, in environments built by `polyhost env build`.

Building takes packages of hundreds of megabytes, so this is a long test: `make test LONG=1`. Those of PyTorch (3 GB)
and TensorFlow are built where POLYHOST_TESTS_LARGE is set, too, or used where POLYHOST_PYTORCH_PYTHON and
POLYHOST_TENSORFLOW_CPU_PYTHON name their Pythons, as the server takes them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from polyhost_handlers.environments.definitions import variable_of
from support.endpoint import EndpointServer
from support.forms import by_form

CASES = Path(__file__).parent
# Those that are there already. The fixture of all these tests clears what a container sets.
PYTHONS = {name: os.environ.get(variable_of(name)) for name in ("pytorch", "tensorflow-cpu")}
IS_LARGE = bool(os.environ.get("POLYHOST_TESTS_LARGE"))
pytestmark = [
    pytest.mark.skipif(
        not by_form(short=0, long=1), reason="environments of hundreds of megabytes are built in the long form alone"
    ),
    pytest.mark.timeout(1000),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("environments")


def build(folder: Path, name: str) -> Path:
    """The environment's Python."""
    if python := PYTHONS.get(name):
        return Path(python)
    if name in PYTHONS and not IS_LARGE:
        pytest.skip(f"{name} takes gigabytes: POLYHOST_TESTS_LARGE=1 builds it")
    command = [sys.executable, "-m", "polyhost", "env", "build", name, "--environments-folder", folder]
    subprocess.run(command, check=True, timeout=900)
    return folder / name / "bin" / "python"


def answers(folder: Path, name: str, cases: str, temp: Path) -> dict[str, Any]:
    command = [build(folder, name), "-W", "ignore", CASES / cases, temp]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_catboost(folder: Path, tmp_path: Path) -> None:
    """Its own numbers to the last bit; a damaged file ends in a sentence or in an answer, never in a crash."""
    found = answers(folder, "catboost", "catboost_cases.py", tmp_path)
    damaged = [found.pop(name) for name in [*found] if name.startswith("damaged")]

    assert len(found) == 10
    for name, (answer, expected) in found.items():
        assert answer == expected, name
    assert [code for code, _, _ in damaged] == [0] * 12
    assert sum(words.startswith("Unable to load model: model.cbm: ") for _, words, _ in damaged) >= 7


def test_mlflow(folder: Path, tmp_path: Path) -> None:
    """As its scoring server answers, in each of its forms; what does not fit the signature is a sentence."""
    found = answers(folder, "mlflow", "mlflow_cases.py", tmp_path)

    for form in (
        "dataframe_split",
        "turned",
        "dataframe_records",
        "instances",
        "inputs",
        "CSV",
        "tensors",
        "rows alone",
    ):
        assert found[form] == found["expected"], form
    for form in ("own", "own instances", "one tensor", "one row alone"):
        assert found[form] == {"predictions": [[2.0, 4.0]]}, form
    columns = [["a", "FP64", [-1, 1]], ["b", "FP64", [-1, 1]]], [["predict", "FP64", [-1]]]
    arrays = [["input", "FP64", [-1, 2]]], [["predict", "FP64", [-1, 2]]]
    assert found.pop("signature") == [[*columns], [*arrays]]
    assert found["own with params"] == {"predictions": [[5.0, 10.0]]}
    for case in (
        "missing column",
        "unknown tensor",
        "no rows alone",
        "text for a number",
        "no form",
        "two forms",
        "params that are no object",
        "no JSON",
    ):
        status, words = found[case]
        assert (status, bool(words)) == (400, True), case
    damaged = {name: words for name, words in found.items() if name.startswith("damaged")}
    assert len(damaged) == 6
    assert all(kind == "LoadFailed" and words.startswith("Unable to load model: ") for kind, words in damaged.values())


@pytest.fixture(scope="module")
def of_pytorch(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answers(folder, "pytorch", "pytorch_cases.py", tmp_path_factory.mktemp("pytorch"))


def test_pytorch(of_pytorch: dict[str, Any]) -> None:
    """TorchScript and torch.export, in the formats of SageMaker's container: its own numbers to the last bit."""
    right = of_pytorch["right"]

    assert len(right) == 25
    for case, (answer, expected) in right.items():
        assert answer == expected, case


def test_what_pytorch_cannot_take(of_pytorch: dict[str, Any]) -> None:
    """A sentence for each: what does not fit, what would run code, what is damaged."""
    words = {case: answer[1] for case, answer in of_pytorch["refused"].items()}
    assert "mat1 and mat2 shapes cannot be multiplied" in words["width"]
    assert "Expected tensor for argument #1 'indices'" in words["float for words"]
    assert words["exported: width"] == "Input x has shape [any, 3], the request [1, 2]."
    assert words["exported: rows"] == "Input tokens has shape [2, 3], the request [1, 3]."
    expected = {"no row": 204, "image": 415, "several as CSV": 415, "complex": 500}
    assert {case: status for case, (status, _) in of_pytorch["refused"].items() if status != 400} == expected

    refused = of_pytorch["not loaded"]
    assert refused.pop("touched") is False
    assert "forward takes xs as List[Tensor]" in refused["lists"]
    assert "has weights that are no plain tensors" in refused["pickled"]
    assert "which is code or a pickle" in refused["object"]

    assert [code for code, _, _ in of_pytorch["damaged"].values()] == [0] * 16
    assert sum(said.startswith("Unable to load model: ") for _, said, _ in of_pytorch["damaged"].values()) >= 10


def test_pytorch_on_a_cuda_device(of_pytorch: dict[str, Any]) -> None:
    if of_pytorch["cuda"] is None:
        pytest.skip("no CUDA device is here")
    is_there, found, expected = of_pytorch["cuda"]
    assert is_there
    np.testing.assert_allclose(found, [expected] * 2, rtol=1e-3)


def test_tensorflow(folder: Path, tmp_path: Path) -> None:
    """SavedModels and Keras models, in TensorFlow Serving's forms and those of SageMaker's container."""
    found = answers(folder, "tensorflow-cpu", "tensorflow_cases.py", tmp_path)

    assert len(found["right"]) == 22
    for case, (answer, expected) in found["right"].items():
        assert answer == expected, case

    expected = {"no rows": 204, "several as CSV": 415, "image": 415}
    assert {case: status for case, (status, _) in found["refused"].items() if status != 400} == expected
    assert found["refused"]["width"][1] == "Input x has shape [any, 3], the request [1, 2]."
    assert "name one of serving_default, several, texts, total" in found["refused"]["no signature"][1]

    refused = found["not loaded"]
    assert "lambda.keras has a Lambda layer, which is Python code" in refused["lambda.keras"]
    assert "lambda.h5 has a Lambda layer" in refused["lambda.h5"]
    assert "has no signatures" in refused["no signatures"]
    assert "found a, b. Name one of them in SAGEMAKER_TFS_DEFAULT_MODEL_NAME" in refused["two models"]

    code, lines, errors = found["damaged"]
    assert code == 0, errors
    assert len(lines) == 30
    assert sum(line.startswith("Unable to load model: ") for line in lines) >= 24


_SAVE = """
import json, sys
import numpy as np
import tensorflow as tf
tf.keras.utils.set_random_seed(3)
of = tf.keras.layers
layers = [tf.keras.Input((4,)), of.Dense(8, activation="relu"), of.Dense(3, activation="softmax")]
tf.keras.Sequential(layers).export(sys.argv[1], verbose=False)
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
rows = tf.constant([[1, 2, 3, 4], [0.5, -1, 2, 0]], tf.float32)
print(json.dumps(next(iter(serve(rows).values())).numpy().tolist()))
"""
_AROUND = """
import json

def input_handler(data, context):
    if context.request_content_type == "application/json":
        return data.read().decode("utf-8")
    lines = data.read().decode("utf-8").splitlines()
    return json.dumps({"instances": [[float(x) for x in line.split(",")] for line in lines]})

def output_handler(response, context):
    if response.status_code != 200:
        raise ValueError(response.content.decode("utf-8"))
    return response.content, context.accept_header
"""
_BY_ITSELF = """
import requests

def handler(data, context):
    response = requests.post(context.rest_uri, data=data.read().decode("utf-8"))
    response.raise_for_status()
    return response.content, context.accept_header
"""


def test_scripts_around_a_tensorflow_model(folder: Path, tmp_path: Path) -> None:
    """As they were written for SageMaker's container: they name no environment. The numbers are TensorFlow's own."""
    python = build(folder, "tensorflow-cpu")
    if not python.is_relative_to(folder):
        pytest.skip("an environment that was made by hand is not chosen by what it has")
    told = subprocess.run(
        [python, "-c", _SAVE, tmp_path / "1"], capture_output=True, text=True, check=True, timeout=300
    )
    right = json.loads(told.stdout.splitlines()[-1])
    for name, script in (("around", _AROUND), ("by_itself", _BY_ITSELF)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "inference.py").write_text(script)
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "1", "export/Servo/1")
            archive.add(tmp_path / name, "code")
    rows = '{"instances": [[1, 2, 3, 4], [0.5, -1, 2, 0]]}'
    server = EndpointServer("native", f"{tmp_path}/", "--environments-folder", str(folder))
    try:
        calls = (
            ("around", "application/json", rows),
            ("around", "text/csv", "1,2,3,4\n0.5,-1,2,0"),
            ("by_itself", "application/json", rows),
        )
        for name, content_type, body in calls:
            answer = server.client("sagemaker-runtime").invoke_endpoint(
                EndpointName="polyhost", TargetModel=f"{name}.tar.gz", Body=body, ContentType=content_type,
                Accept="application/json",
            )  # fmt: skip
            assert json.loads(answer["Body"].read()) == {"predictions": right}, (name, content_type)
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("catboost", {"house_catboost": "catboost"}),
        ("mlflow", {"house_mlflow": "mlflow", "house_lightgbm": "lightgbm", "house_skops": "skops"}),
        ("pytorch", {"house_torchscript": "pytorch", "house_torch_export": "pytorch"}),
        ("tensorflow-cpu", {"house_keras": "tensorflow", "house_saved_model": "tensorflow"}),
    ],
)
def test_the_sample_models(name: str, kinds: dict[str, str], folder: Path, tmp_path: Path) -> None:
    prices = answers(folder, name, "sample_cases.py", tmp_path)

    assert {model: kind for model, (kind, _) in prices.items()} == kinds
    assert all(abs(price - 817_000) < 20_000 for _, price in prices.values()), prices  # by the houses' formula


_SCRIPT = """
import sklearn

def model_fn(model_dir):
    return None

def input_fn(body, content_type):
    return body

def predict_fn(data, model):
    return sklearn.__version__

def output_fn(prediction, accept):
    return prediction
"""


def test_the_image_of_a_container_chooses_the_environment(folder: Path, tmp_path: Path) -> None:
    """And a script's own word wins over what the server has."""
    build(folder, "sklearn-1.2")
    for name, first in (("by_image", ""), ("by_word", 'POLYHOST_ENVIRONMENT = "sklearn-1.2"')):
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / "inference.py").write_text(first + _SCRIPT)
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "code", "code")
    server = EndpointServer("native", f"{tmp_path}/", "--environments-folder", str(folder))
    try:
        image = "683313688378.dkr.ecr.us-east-1.amazonaws.com/sagemaker-scikit-learn:1.2-1-cpu-py3"
        server.deploy("pinned", "by_image.tar.gz", Image=image, Mode="SingleModel")
        runtime = server.client("sagemaker-runtime")
        by_image = runtime.invoke_endpoint(EndpointName="pinned", Body=b"x", ContentType="text/plain")
        by_word = runtime.invoke_endpoint(
            EndpointName="polyhost", TargetModel="by_word.tar.gz", Body=b"x", ContentType="text/plain"
        )
        assert [answer["Body"].read() for answer in (by_image, by_word)] == [b"1.2.2"] * 2
    finally:
        server.kill()


_PREDICT = """
import json, sys
from pathlib import Path
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.sklearn_handler import SklearnHandler
body = json.dumps(json.loads(sys.argv[2])).encode()
model = SklearnHandler.load(ModelSource(Path(sys.argv[1]), "m", {}))
print(model.predict(Request(body, "application/json")).body.decode())
"""


def test_scikit_learn_of_the_release_that_wrote_a_model(folder: Path, tmp_path: Path) -> None:
    """Among them what the server's own release refuses."""
    python = build(folder, "sklearn-1.2")
    written = json.loads((ROOT / "tests" / "data" / "sklearn" / "predictions.json").read_text())
    of_it = {name: case for name, case in written.items() if "-1.2.2." in name}

    assert len(of_it) >= 6
    for name, case in of_it.items():
        model = tmp_path / name
        model.mkdir()
        (model / f"model{Path(name).suffix}").write_bytes((ROOT / "tests" / "data" / "sklearn" / name).read_bytes())
        command = [python, "-c", _PREDICT, model, json.dumps(case["row"])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        np.testing.assert_allclose(json.loads(done.stdout), case["right"], err_msg=name)
