"""A model that does whatever Python a request holds, as one whose author means harm would."""

from __future__ import annotations

import builtins
import json
import pickle
from pathlib import Path
from typing import Any

from support.endpoint import EndpointServer, packed

_SCRIPT = """
import json

def model_fn(model_dir):
    return model_dir

def input_fn(body, content_type):
    return body if isinstance(body, str) else body.decode()

def predict_fn(source, model_dir):
    scope = {"model_dir": model_dir, "answer": None}
    try:
        exec(source, scope)
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"answer": scope["answer"]}

def output_fn(prediction, accept):
    return json.dumps(prediction)
"""


class HardenedServer(EndpointServer):
    """Its workers of data may read all model roots, so these must not be the whole disk."""

    def __init__(self, models: Path | None, *arguments: str, **more: Any) -> None:
        super().__init__("native", models, "--hardened", *arguments, model_root="/opt/ml/models", **more)


class _Payload:
    """Unpickled, it is what this Python expression gives."""

    def __init__(self, expression: str) -> None:
        self._expression = expression

    def __reduce__(self) -> tuple[Any, ...]:
        return builtins.eval, (self._expression,)


def pack_hostile(folder: Path, archive: Path, **files: str) -> Path:
    """An archive of the script, and of further files by name."""
    (folder / "code").mkdir(parents=True)
    (folder / "code" / "inference.py").write_text(_SCRIPT)
    for name, text in files.items():
        (folder / name).write_text(text)
    return packed(folder, archive)


def pack_hostile_pickle(folder: Path, archive: Path, expression: str) -> Path:
    """An archive whose `model.pkl` runs a Python expression when it is loaded."""
    folder.mkdir(parents=True)
    (folder / "model.pkl").write_bytes(pickle.dumps(_Payload(expression)))
    return packed(folder, archive)


def done_by(server: EndpointServer, target: str, source: str, **more: Any) -> Any:
    """What `answer` is after the model has run `source`. Raises AssertionError with what the model met instead."""
    reply = attempted_by(server, target, source, **more)
    assert "answer" in reply, reply["error"]
    return reply["answer"]


def refused_to(server: EndpointServer, target: str, source: str, **more: Any) -> str:
    """The error that `source` met in the model. Raises AssertionError where it met none."""
    reply = attempted_by(server, target, source, **more)
    assert "error" in reply, f"the model was let do it, and got {reply}"
    return str(reply["error"])


def attempted_by(server: EndpointServer, target: str, source: str, **more: Any) -> dict[str, Any]:
    reply: dict[str, Any] = json.loads(server.predict(target, source, "text/plain", **more))
    return reply
