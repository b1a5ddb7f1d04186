"""Scripts of SageMaker's TensorFlow Serving container, around a model that is numpy: TensorFlow takes gigabytes."""

from __future__ import annotations

import gc
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import HandlerError, LoadFailed
from polyhost_handlers.script_handler import ScriptHandler, ServingScriptHandler, imported
from polyhost_handlers.tensorflow_handler import Signature, TensorFlowHandler
from polyhost_handlers.tensors import Spec

pytestmark = pytest.mark.usefixtures("restored_process")

AROUND = """
import json

def input_handler(data, context):
    if context.request_content_type == "text/csv":
        rows = [list(map(float, line.split(","))) for line in data.read().decode().splitlines()]
        return json.dumps({"instances": rows})
    if context.request_content_type == "application/json":
        return data.read()
    raise ValueError("no such type: " + context.request_content_type)

def output_handler(response, context):
    if response.status_code != 200:
        raise ValueError(response.content.decode("utf-8"))
    return response.content, context.accept_header
"""
BY_ITSELF = """
import requests

def handler(data, context):
    response = requests.post(context.rest_uri, data=data.read())
    return response.content, "status/" + str(response.status_code)
"""
TELLER = """
import json

def handler(data, context):
    return json.dumps(context._asdict()), "text/plain"
"""


def doubled(feed: Any) -> dict[str, np.ndarray]:
    return {"y": feed["x"] * 2}


Serve = Callable[..., ServingScriptHandler]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    def served(script: str) -> ServingScriptHandler:
        (tmp_path / "code").mkdir()
        path = tmp_path / "code" / "inference.py"
        path.write_text(script)
        model = TensorFlowHandler({"serving_default": Signature([Spec("x", np.dtype("float32"), (None, 2))], doubled)},
                                  "application/json")  # fmt: skip
        return ServingScriptHandler(imported(path, tmp_path), model, ModelSource(tmp_path, "doubler", {}))

    return served


def ask(model: ServingScriptHandler, body: str, content_type: str = "", accept: str = "", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return model.predict(Request(body.encode(), content_type, accept, named))


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        ("1,2\n3,4.5", "text/csv", {"predictions": [[2.0, 4.0], [6.0, 9.0]]}),
        ('{"instances": [[1, 2]]}', "application/json", {"predictions": [[2.0, 4.0]]}),
        ('{"inputs": [[1, 2]]}', "", {"outputs": [[2.0, 4.0]]}),
    ],
)
@pytest.mark.parametrize(
    ("accept", "its"), [("", "application/json"), ("*/*", "application/json"), ("my/type", "my/type")]
)
def test_a_script_around_the_model(
    serve: Serve, body: str, content_type: str, expected: Any, accept: str, its: str
) -> None:
    answer = ask(serve(AROUND), body, content_type, accept)
    assert json.loads(answer.body) == expected
    assert answer.content_type == its


def test_the_models_errors_are_the_scripts_to_judge(serve: Serve) -> None:
    """As TensorFlow Serving's: a status and JSON with an error."""
    with pytest.raises(ValueError, match=r'"error": "Input x takes float32|"error": .*shape') as refused:
        ask(serve(AROUND), '{"instances": [[1, 2, 3]]}')
    assert isinstance(json.loads(str(refused.value))["error"], str)


def test_what_a_script_raises_is_an_error(serve: Serve) -> None:
    with pytest.raises(ValueError, match="no such type: image/png"):
        ask(serve(AROUND), "1", "image/png")


def test_a_handler_asks_by_itself(serve: Serve) -> None:
    pytest.importorskip("requests")
    model = serve(BY_ITSELF)
    right = ask(model, '{"instances": [[1, 2]]}')
    assert (json.loads(right.body), right.content_type) == ({"predictions": [[2.0, 4.0]]}, "status/200")
    wrong = ask(model, '{"instances": [[1]]}')
    assert wrong.content_type == "status/400"
    assert json.loads(wrong.body).keys() == {"error"}
    assert ask(model, "{").content_type == "status/400"


def test_the_context_is_the_containers(serve: Serve) -> None:
    attributes = "mine,tfs-model-name=other,tfs-model-version=3,tfs-method=predict"
    answer = ask(serve(TELLER), "12345", "text/csv", "a/b", x_amzn_sagemaker_custom_attributes=attributes)
    told = json.loads(answer.body)

    uri = told.pop("rest_uri")
    assert uri.startswith("http://127.0.0.1:")
    assert uri.endswith("/v1/models/other/versions/3:predict")
    assert told == {
        "model_name": "other", "model_version": "3", "method": "predict", "grpc_port": None, "channel": None,
        "custom_attributes": attributes, "request_content_type": "text/csv", "accept_header": "a/b",
        "content_length": 5,
    }  # fmt: skip


def posted(uri: str, body: bytes = b'{"instances": [[1, 2]]}') -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(uri, body), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_else_finds_the_model(serve: Serve) -> None:
    """Other processes of this machine see the port, and not the path. It is there as long as its script."""
    model = serve(TELLER)
    uri = json.loads(ask(model, "").body)["rest_uri"]
    scheme, _, host, secret, rest = uri.split("/", 4)
    assert posted(uri) == 200
    assert posted(f"{scheme}//{host}/{rest}") == 404
    assert posted(f"{scheme}//{host}/{secret[:-1]}x/{rest}") == 404
    assert posted(uri.replace(":predict", ":classify")) == 400
    del model
    gc.collect()
    with pytest.raises(OSError):
        urllib.request.urlopen(urllib.request.Request(uri, b"{}"), timeout=60)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("def input_handler(data, context): ...", "has no output_handler: it takes input_handler"),
        ("def output_handler(response, context): ...", "has no input_handler: it takes input_handler"),
        ("handler = 1", r"has no model_fn\(model_dir\)"),
        (AROUND, "has no SavedModel and no Keras model"),
    ],
)
def test_scripts_that_are_not_whole(tmp_path: Path, script: str, sentence: str) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(script)
    with pytest.raises(LoadFailed, match=sentence):
        ScriptHandler.load(ModelSource(tmp_path, "m", {}))


def test_without_tensorflow_its_environment_is_named(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(AROUND)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(LoadFailed, match="polyhost env build tensorflow-cpu"):
        ScriptHandler.load(ModelSource(tmp_path, "m", {}))


def test_a_script_of_the_toolkit_may_have_a_function_handler(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    script = "def model_fn(folder):\n    return len\n\ndef handler(*_): ...\n"
    (tmp_path / "code" / "inference.py").write_text(script)
    assert isinstance(ScriptHandler.load(ModelSource(tmp_path, "m", {})), ScriptHandler)


@pytest.mark.parametrize("answer", ["b'1'", "None", "(b'1',)", "(b'1', 'a/b', 3)"])
def test_an_answer_is_a_body_and_its_type(serve: Serve, answer: str) -> None:
    with pytest.raises(HandlerError, match="must answer a body and its media type"):
        ask(serve(f"def handler(data, context):\n    return {answer}\n"), "1")
