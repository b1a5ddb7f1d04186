"""Scripts written for AWS's containers run as they are: what they import, what they answer, what they have pickled."""

from __future__ import annotations

import importlib
import json
import logging
import pickle
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from polyhost_handlers import aws
from polyhost_handlers.errors import HandlerError, LoadFailed
from polyhost_handlers.media_types import media_type

from handlers.calling import Answer, Model

pytestmark = pytest.mark.usefixtures("restored_process")

DATA = ROOT / "tests" / "data"
EXPECTED = json.loads((DATA / "sagemaker_containers" / "expected.json").read_text())
HEAD = "def model_fn(model_dir):\n    return None\n"


@pytest.fixture(autouse=True)
def provided() -> Iterator[None]:
    aws.provide()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("sagemaker_containers", "shadow")]:
        del sys.modules[name]


@pytest.fixture
def serve(tmp_path: Path, load: Callable[..., Model]) -> Callable[..., Model]:
    def served(script: str, name: str = "code/inference.py", **environ: str) -> Model:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(script)
        return load("auto", tmp_path, **environ)

    return served


# The published preprocessor

ROWS = [["oslo", 1000.0, 0.5, 4.0], ["rome", 2000.0, 0.1, 2.0], ["oslo", 1500.0, 0.2, 5.0], ["bern", 800.0, 0.9, 1.0]]
PRICES = [100.0, 300.0, 200.0, 50.0]


@pytest.fixture
def preprocessor(tmp_path: Path) -> Path:
    """An archive as the published training leaves it: the script run as a program, then packed beside its model."""
    script = DATA / "scripts" / "preprocess_houses.py"
    train, archive = tmp_path / "train", tmp_path / "archive"
    train.mkdir()
    (archive / "code").mkdir(parents=True)
    lines = [",".join(map(str, [*row, price])) for row, price in zip(ROWS, PRICES, strict=True)]
    (train / "houses.csv").write_text("\n".join(lines) + "\n")
    argv = sys.argv
    sys.argv = [str(script), "--train", str(train), "--model-dir", str(archive)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = argv
    shutil.copy(script, archive / "code" / "inference.py")
    return archive


def features_of(rows: list[list[Any]]) -> list[list[float]]:
    """What the script's transformers compute, without scikit-learn: scaled numbers, then a column for each city."""
    numbers = np.array([[*row[1:], row[1] / row[3]] for row in ROWS])
    cities = sorted({row[0] for row in ROWS})
    asked = np.array([[*row[1:], row[1] / row[3]] for row in rows])
    scaled = (asked - numbers.mean(axis=0)) / numbers.std(axis=0)
    return [
        [*map(float, values), *(float(row[0] == city) for city in cities)]
        for row, values in zip(rows, scaled, strict=True)
    ]


def test_the_published_preprocessor(preprocessor: Path, load: Callable[..., Model]) -> None:
    """Pandas in, columns by name, a class of the script's own, `worker.Response` out; JSON for the next container."""
    model = load("auto", preprocessor)
    asked = [["rome", 1200.0, 0.3, 3.0], ["lima", 900.0, 0.2, 2.0]]
    body = "\n".join(",".join(map(str, row)) for row in asked)
    right = np.array(features_of(asked))

    answer = model.ask(body, "text/csv")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert np.allclose([row["features"] for row in answer.json()["instances"]], right)

    as_csv = model.ask(body, "text/csv", "text/csv")
    assert as_csv.content_type == "text/csv; charset=utf-8"
    assert np.allclose([[float(field) for field in line.split(b",")] for line in as_csv.body.split()], right)

    with_price = model.ask(f"{body.splitlines()[0]},777.5", "text/csv").json()["instances"][0]["features"]
    assert np.allclose(with_price, [777.5, *right[0]])
    assert model.ask(body, "text/csv", "image/png").message == (
        "Prediction failed: ValueError: image/png accept type is not supported by this script."
    )


def test_the_next_container_reads_what_it_answers(preprocessor: Path, load: Callable[..., Model]) -> None:
    """The linear learner's JSON, as AWS documents it."""
    from polyhost_handlers import codecs

    answer = load("auto", preprocessor).ask("rome,1200,0.3,3", "text/csv")
    name = media_type(answer.content_type)
    assert name == codecs.JSON
    assert np.allclose(codecs.decode_matrix(answer.body, codecs.JSON), features_of([["rome", 1200.0, 0.3, 3.0]]))


# The modules


@pytest.mark.parametrize(
    "line",
    [
        "from sagemaker_containers.beta.framework import content_types, encoders, env, modules, transformer, worker",
        "from sagemaker_containers.beta.framework import trainer, server, errors, mpi, files, runner, params",
        "import sagemaker_containers.beta.framework as framework; framework.worker.Response",
        "from sagemaker_containers import _content_types, _encoders, _env, _errors, _transformer, _worker",
        "from sagemaker_containers import entry_point",
        "import sagemaker_xgboost_container.encoder as xgb_encoders; xgb_encoders.csv_to_dmatrix",
        "from sagemaker_xgboost_container import encoder, decoder, distributed",
        "from sagemaker_xgboost_container.data_utils import get_dmatrix",
        "from sklearn.externals import joblib, six; joblib.load; six.text_type",
        "import sklearn.externals.joblib.numpy_pickle",
    ],
)
def test_lines_of_published_scripts(line: str, serve: Callable[..., Model]) -> None:
    assert serve(f"{line}\n{HEAD}def transform_fn(*_):\n    return 'fine'\n").ask(b"1").body == b"fine"


def test_one_module_under_all_of_its_names() -> None:
    """Or an error that one name raises would not be caught by the other, and joblib would miss its own arrays."""
    framework = importlib.import_module("sagemaker_containers.beta.framework")
    assert framework.errors is importlib.import_module("sagemaker_containers._errors")
    joblib = importlib.import_module("joblib")
    assert importlib.import_module("sklearn.externals.joblib") is joblib
    assert importlib.import_module("sklearn.externals.joblib.numpy_pickle") is joblib.numpy_pickle
    assert joblib.__spec__.name == "joblib"


def test_what_is_installed_comes_first(tmp_path: Path) -> None:
    """A real package, whole or not: ours fills no gap in it. Asked in a process that has imported nothing yet."""
    package = tmp_path / "sagemaker_containers"
    package.mkdir()
    (package / "__init__.py").write_text("REAL = True\n")
    program = (
        "from polyhost_handlers import aws\n"
        "aws.provide(); aws.provide()\n"
        "import sagemaker_containers\n"
        "assert sagemaker_containers.REAL\n"
        "try:\n    import sagemaker_containers.entry_point\n"
        "except ModuleNotFoundError:\n    print('whole')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "whole\n"


def test_what_is_for_training_says_so() -> None:
    data_utils = importlib.import_module("sagemaker_xgboost_container.data_utils")
    with pytest.raises(RuntimeError, match=r"sagemaker_xgboost_container.data_utils.get_dmatrix is for training"):
        data_utils.get_dmatrix("/opt/ml/input")
    framework = importlib.import_module("sagemaker_containers.beta.framework")
    with pytest.raises(RuntimeError, match=r"framework.modules.run_module is for training"):
        framework.modules.run_module("x")
    with pytest.raises(RuntimeError, match=r"framework.training_env is for training"):
        framework.training_env()
    assert not hasattr(framework, "nothing_like_this")


@pytest.mark.parametrize(("media_type", "body", "right"), EXPECTED["decode"])
def test_decoded_as_by_sagemaker_containers(media_type: str, body: str, right: dict[str, Any]) -> None:
    array = importlib.import_module("sagemaker_containers._encoders").decode(body, media_type)
    assert {"kind": array.dtype.kind, "shape": list(array.shape), "values": repr(array.tolist())} == right


@pytest.mark.parametrize(("media_type", "text", "right"), EXPECTED["encode"])
def test_encoded_as_by_sagemaker_containers(media_type: str, text: str, right: Any) -> None:
    encoders = importlib.import_module("sagemaker_containers._encoders")
    prediction = eval(text, {"np": np})
    if isinstance(right, dict):
        with pytest.raises(Exception) as raised:
            encoders.encode(prediction, media_type)
        assert type(raised.value).__name__ == right["raises"]
    else:
        assert encoders.encode(prediction, media_type) == right


def test_npy_goes_there_and_back_but_no_pickle() -> None:
    encoders = importlib.import_module("sagemaker_containers._encoders")
    body = encoders.encode([[1, 2]], "application/x-npy")
    assert encoders.decode(body, "application/x-npy").tolist() == [[1, 2]]
    with pytest.raises(HandlerError):
        encoders.decode(pickle.dumps([1]), "application/x-npy")
    with pytest.raises(HandlerError):
        encoders.decode("x" * 40_000 + "\n1" * 40_000, "text/csv")


@pytest.mark.parametrize(("arguments", "right"), EXPECTED["responses"])
def test_responses_as_of_sagemaker_containers(
    arguments: dict[str, Any], right: dict[str, Any], serve: Callable[..., Model]
) -> None:
    """The object's own attributes, and what a client gets of it."""
    worker = importlib.import_module("sagemaker_containers._worker")
    response = worker.Response(**arguments)
    assert {
        "status": response.status_code,
        "headers": response.headers,
        "mimetype": response.mimetype,
        "body": response.get_data().decode("latin-1"),
    } == right
    script = (
        f"from sagemaker_containers.beta.framework import worker\n{HEAD}"
        f"def transform_fn(*_):\n    return worker.Response(**{arguments!r})\n"
    )
    assert_answered(serve(script).ask(b"1"), right)


def assert_answered(answer: Answer, right: dict[str, Any]) -> None:
    assert answer.status == right["status"]
    assert answer.body.decode("latin-1") == right["body"]
    assert answer.content_type == right["headers"]["Content-Type"]
    others = {name: value for name, value in answer.headers.items() if name.lower() != "content-type"}
    assert others == {name: value for name, value in right["headers"].items() if name != "Content-Type"}


def test_the_serving_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of the real one's names, but for the count of GPUs, for which a script asks its framework."""
    env = importlib.import_module("sagemaker_containers._env")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAGEMAKER_PROGRAM", "serve.py")
    monkeypatch.setenv("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv")
    serving = env.ServingEnv()
    assert sorted(serving) == EXPECTED["serving_env"]
    assert (serving.module_name, serving.user_entry_point, serving["default_accept"]) == (
        "serve",
        "serve.py",
        "text/csv",
    )
    assert (env.model_dir, env.code_dir) == (str(tmp_path), str(tmp_path / "code"))


def test_functions_that_scripts_call_from_their_own() -> None:
    transformer = importlib.import_module("sagemaker_containers._transformer")
    errors = importlib.import_module("sagemaker_containers._errors")
    assert transformer.default_input_fn("1,2", "text/csv").tolist() == [1.0, 2.0]
    response = transformer.default_output_fn(np.array([1.5]), "text/csv")
    assert (response.get_data(as_text=True), response.mimetype) == ("1.5\n", "text/csv")
    with pytest.raises(errors.UnsupportedFormatError, match="Content type image/png"):
        transformer.default_input_fn("1", "image/png")
    with pytest.raises(NotImplementedError):
        transformer.default_model_fn("/opt/ml/model")
    with pytest.raises(NotImplementedError):
        transformer.default_predict_fn(1, 2)


@pytest.mark.parametrize(
    "package", ["sagemaker_containers.beta.framework import encoders as decoder", "sagemaker_inference import decoder"]
)
def test_a_format_that_they_do_not_know_is_a_415(package: str, serve: Callable[..., Model]) -> None:
    script = f"from {package}\n{HEAD}def input_fn(body, kind):\n    return decoder.decode(body, kind)\n"
    answer = serve(script).ask(b"1", "image/png")
    assert (answer.status, answer.message.partition(" is not")[0]) == (415, "Content type image/png")


@pytest.mark.parametrize(
    ("body", "kind", "rows"),
    [
        ("1,2.5\n3,", "text/csv", [[1, 2.5], [3, np.nan]]),
        (b"1;2", "text/csv; charset=utf-8", [[1, 2]]),
        ("7", "text/csv", [[7]]),
        (b"0 0:1 2:3\n1 1:2", "text/libsvm", [[1, np.nan, 3], [np.nan, 2, np.nan]]),
        (b"0 0:1", "text/x-libsvm", [[1]]),
    ],
)
def test_xgboosts_encoder(body: Any, kind: str, rows: Any) -> None:
    """The matrix is XGBoost's own of the same numbers."""
    import xgboost

    got = importlib.import_module("sagemaker_xgboost_container.encoder").decode(body, kind)
    right = xgboost.DMatrix(np.array(rows, dtype=float))
    assert (got.num_row(), got.num_col()) == (right.num_row(), right.num_col())
    assert got.get_data().toarray().tolist() == right.get_data().toarray().tolist()
    assert got.num_nonmissing() == right.num_nonmissing()


def test_xgboosts_encoder_of_records_and_lines() -> None:
    from support.records import encode_features

    encoder = importlib.import_module("sagemaker_xgboost_container.encoder")
    matrix = encoder.decode(encode_features([[1, 2], [3, 4]]), "application/x-recordio-protobuf")
    assert matrix.get_data().toarray().tolist() == [[1, 2], [3, 4]]
    assert encoder.json_to_jsonlines({"predictions": [{"score": 1}, 2]}) == b'{"score": 1}\n2\n'
    with pytest.raises(ValueError, match="not compatible"):
        encoder.json_to_jsonlines('{"a": [], "b": []}')
    errors = importlib.import_module("sagemaker_containers._errors")
    with pytest.raises(errors.UnsupportedFormatError):
        encoder.decode("[1]", "application/json")


# Responses of web frameworks


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("flask.Response('a', mimetype='text/csv')", (200, "text/csv; charset=utf-8", b"a", {})),
        ("flask.Response('{}', 503, {'X-Why': 'tired'}, 'application/json')",
         (503, "application/json", b"{}", {"X-Why": "tired"})),
        ("werkzeug.Response(b'\\xff', content_type='image/png')", (200, "image/png", b"\xff", {})),
        ("werkzeug.Response((part for part in ('a', 'b')), 201)", (201, "text/plain; charset=utf-8", b"ab", {})),
        ("(flask.Response('a', mimetype='text/csv'), 'text/html')", (200, "text/csv; charset=utf-8", b"a", {})),
        ("Content(200, {'content-type': 'text/html', 'x-a': 1}, b'body')", (200, "text/html", b"body", {"x-a": "1"})),
        ("Content(404, {}, b'')", (404, "application/json", b"", {})),
        ("Data(200, {}, b'1,2')", (200, "application/json", b"1,2", {})),
        ("{'status_code': 200}", (200, "application/json", b'{\n  "status_code": 200\n}', {})),
    ],
)  # fmt: skip
def test_web_responses_are_sent(
    response: str, right: tuple[int, str, bytes, dict[str, str]], serve: Callable[..., Model]
) -> None:
    """Flask's and werkzeug's, and what has a body as Starlette's, Django's or Falcon's; a dictionary is none."""
    script = (
        f"import flask, werkzeug\n{HEAD}"
        "class Content:\n"
        "    def __init__(self, *parts):\n        self.status_code, self.headers, self.content = parts\n"
        "class Data:\n"
        "    def __init__(self, *parts):\n        self.status_code, self.headers, self.data = parts\n"
        "def input_fn(body, kind):\n    return body\n"
        "def predict_fn(data, model):\n    return data\n"
        f"def output_fn(prediction, accept):\n    return {response}\n"
    )
    answer = serve(script).ask(b"1", "text/csv")
    others = {name: value for name, value in answer.headers.items() if name.lower() != "content-type"}
    assert (answer.status, answer.content_type, answer.body, others) == right


def test_a_response_without_a_known_body_is_not_sent_empty(serve: Callable[..., Model]) -> None:
    """Such as one that streams."""
    script = "class Streams:\n    status_code, headers, body_iterator = 200, {}, iter([b'a'])\n"
    answer = serve(f"{HEAD}{script}def transform_fn(*_):\n    return Streams()\n").ask(b"1")
    assert (answer.status, "what cannot be sent" in answer.message) == (500, True)


def test_a_tuple_of_three_is_the_first_two(serve: Callable[..., Model]) -> None:
    """As in the toolkit, which looks at no more."""
    answer = serve(f"{HEAD}def transform_fn(*_):\n    return 'a', 'text/csv', 3\n").ask(b"1")
    assert (answer.body, answer.content_type) == (b"a", "text/csv")


# Beside the model


def test_a_script_beside_the_model(serve: Callable[..., Model], caplog: pytest.LogCaptureFixture) -> None:
    """Where there is no folder `code`; and the log says so."""
    caplog.set_level(logging.INFO, "polyhost.handlers")
    model = serve(f"{HEAD}def transform_fn(*_):\n    return 'beside'\n", "inference.py")
    assert model.ask(b"1").body == b"beside"
    assert "model model: inference.py beside the model is its script, there is no code/" in caplog.messages


def test_a_script_beside_the_model_by_its_name(serve: Callable[..., Model]) -> None:
    model = serve(f"{HEAD}def transform_fn(*_):\n    return 'named'\n", "serve.py", SAGEMAKER_PROGRAM="serve.py")
    assert model.ask(b"1").body == b"named"


def test_code_and_the_containers_script_come_before_it(serve: Callable[..., Model], tmp_path: Path) -> None:
    answers = f"{HEAD}def transform_fn(*_):\n    return '%s'\n"
    submitted = tmp_path / "submitted"
    submitted.mkdir()
    (submitted / "inference.py").write_text(answers % "container")
    model = serve(answers % "beside", "inference.py", SAGEMAKER_SUBMIT_DIRECTORY=str(submitted))
    assert model.ask(b"1").body == b"container"
    (tmp_path / "code").mkdir()
    with pytest.raises(LoadFailed, match="No handler knows this archive"):
        serve(answers % "beside", "inference.py", SAGEMAKER_SUBMIT_DIRECTORY="")


# Classes that were pickled by the program that defined them

SHIFT = """
class Shift:
    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return x + self.by
"""
READ = """
import pathlib, pickle

def read():
    return pickle.loads(pathlib.Path("model.pkl").read_bytes())
"""
LOADS = READ + "def model_fn(folder):\n    return read()\n"
ASKS = "def transform_fn(model, body, *_):\n    return str(model(int(body)))\n"


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """`Shift(5)`, as a program of its own writes it."""
    (tmp_path / "train.py").write_text(
        f"import pathlib, pickle\n{SHIFT}\npathlib.Path('model.pkl').write_bytes(pickle.dumps(Shift(5)))\n"
    )
    subprocess.run([sys.executable, "train.py"], cwd=tmp_path, check=True)
    (tmp_path / "train.py").unlink()
    return tmp_path


@pytest.mark.parametrize(
    "script",
    [
        SHIFT + LOADS + ASKS,
        LOADS + ASKS + SHIFT,
        f"{SHIFT}{READ}MODEL = read()\ndef model_fn(_):\n    return MODEL\n{ASKS}",
        SHIFT + READ + HEAD + "def transform_fn(_, body, *__):\n    return str(read()(int(body)))\n",
        "from shapes import Shift\n" + LOADS + ASKS,
    ],
    ids=["before", "after", "while it is imported", "at the call", "imported from beside it"],
)
def test_a_class_of_main_is_looked_for_in_the_script(script: str, pickled: Path, serve: Callable[..., Model]) -> None:
    (pickled / "code").mkdir()
    (pickled / "code" / "shapes.py").write_text(SHIFT)
    main = dict(vars(sys.modules["__main__"]))
    assert serve(script).ask(b"2", "text/csv").body == b"7"
    assert vars(sys.modules["__main__"]) == main


MISSING = (
    "Shift was pickled by the program that defined it (as __main__.Shift): define Shift in the archive's "
    "code/inference.py, or import it there"
)


def test_a_class_of_main_that_the_script_lacks_is_named(pickled: Path, serve: Callable[..., Model]) -> None:
    with pytest.raises(LoadFailed) as raised:
        serve(LOADS + ASKS)
    assert MISSING in raised.value.message
    answer = serve(READ + HEAD + "def transform_fn(*_):\n    read()\n").ask(b"1")
    assert (answer.status, MISSING in answer.message) == (500, True)


def test_a_class_of_main_without_a_script_is_named(pickled: Path, load: Callable[..., Model]) -> None:
    with pytest.raises(LoadFailed) as raised:
        load("auto", pickled)
    assert MISSING in raised.value.message


def test_a_module_that_a_pickle_needs_is_named(tmp_path: Path, serve: Callable[..., Model]) -> None:
    (tmp_path / "model.pkl").write_bytes(b"cfeatures\nShift\n.")
    with pytest.raises(LoadFailed) as raised:
        serve(LOADS + ASKS)
    assert raised.value.message.endswith(
        "ModuleNotFoundError: No module named 'features'. Install what brings it in the environment of the server, "
        "or put the module into code/"
    )
