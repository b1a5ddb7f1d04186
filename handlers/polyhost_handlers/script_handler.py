"""
Customers' own scripts: `code/inference.py` in the archive, as SageMaker's inference toolkit calls them.

`model_fn(model_dir)`, then `input_fn(body, content_type)`, `predict_fn(data, model)`,
`output_fn(prediction, accept)`, or `transform_fn(model, body, content_type, accept)` in their place;
`pre_model_fn(model_dir)` and `model_warmup_fn(model_dir, model)` around the load. Each may take a last
`context`. A function that a script leaves out is the toolkit's (script_defaults). Scripts of the TensorFlow Serving
container have other functions (serving_script). What the toolkit gets wrong in
multi-model mode is right here: each model imports its own script and the modules beside it, and a failure is one
sentence, never a traceback.

A script is code: it changes `sys.path` and the working directory, so a process holds one such model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from polyhost_handlers import aws, script_defaults, serving_script
from polyhost_handlers.artifacts import keras_models_in, script_of
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.errors import (
    HandlerError,
    LoadFailed,
    Unparseable,
    UnsupportedMediaType,
    is_out_of_memory,
    sentence_of,
)
from polyhost_handlers.media_types import CSV, JSON
from polyhost_handlers.network_files import saved_models_in
from polyhost_handlers.xgboost_guard import refuse_newer_models

logger = logging.getLogger("polyhost.handlers")

_TEXT_TYPES = (JSON, CSV)
# What frameworks call the body of a response.
_BODY_NAMES = ("body", "content", "data", "text")
# Of a response these are the connection's, or the Content-Type, which has its own place.
_NOT_COPIED = ("content-type", "content-length", "connection", "keep-alive", "transfer-encoding")


class ScriptHandler(Handler):
    kind = "script"

    def __init__(self, script: ModuleType, model: Any, source: ModelSource) -> None:
        self._script = script
        self._model = model
        self._context = source.context
        self._default_accept = source.default_accept(JSON)
        is_booster = script_defaults.is_booster(model)
        default_input = script_defaults.booster_input_fn if is_booster else script_defaults.input_fn
        default_predict = script_defaults.booster_predict_fn if is_booster else script_defaults.predict_fn
        self._transform = getattr(script, "transform_fn", None)
        self._input = getattr(script, "input_fn", None) or default_input
        self._predict = getattr(script, "predict_fn", None) or default_predict
        self._output = getattr(script, "output_fn", None) or script_defaults.output_fn

    @classmethod
    def load(cls, source: ModelSource) -> Handler:
        path = script_of(source.model_dir, source.environ)
        if path is None:
            program = source.environ.get("SAGEMAKER_PROGRAM") or "inference.py"
            raise LoadFailed(f"Unable to load model: the archive has no code/{program}.")
        if path.parent == source.model_dir:
            logger.info("model %s: %s beside the model is its script, there is no code/", source.model_name, path.name)
        script = imported(path, source.model_dir)
        if serving_script.is_of_serving(script):
            return ServingScriptHandler(script, _tensorflow_model(source, path.name), source)
        with _seen_by_pickles(script):
            return cls(script, _load_model(script, path.name, source), source)

    def predict(self, request: Request) -> Response:
        accept = request.accept if request.accept not in ("", "*/*") else self._default_accept
        content_type = request.content_type or JSON
        body = _body_for(request.body, content_type)
        with _chosen_status(), _seen_by_pickles(self._script):
            answer = self._answer(body, content_type, accept, request.context or self._context)
            if isinstance(answer, tuple) and len(answer) >= 2:  # the toolkit looks at no more than two
                answer, accept = answer[:2]
            if isinstance(answer, Iterator):
                answer = _in_pieces(answer, str(accept), getattr(request.context, "send_part", None))
        return _web_response(answer) or Response(_sendable(answer), str(accept), status=None)

    def _answer(self, body: bytes | str, content_type: str, accept: str, context: Any) -> Any:
        if self._transform is not None:
            return _call(self._transform, context, self._model, body, content_type, accept)
        data = _call(self._input, context, body, content_type)
        prediction = _call(self._predict, context, data, self._model)
        if isinstance(prediction, Iterator) and not hasattr(self._script, "output_fn"):
            return prediction
        return _call(self._output, context, prediction, accept)


class ServingScriptHandler(Handler):
    """A script around a TensorFlow model, which it does not load itself."""

    kind = "script"

    def __init__(self, script: ModuleType, model: Handler, source: ModelSource) -> None:
        self._script = serving_script.ServingScript(script, model, source.model_name)
        self._default_accept = source.default_accept(JSON)

    @classmethod
    def load(cls, source: ModelSource) -> Handler:
        return ScriptHandler.load(source)

    def predict(self, request: Request) -> Response:
        accept = request.accept if request.accept not in ("", "*/*") else self._default_accept
        with _chosen_status():
            body, content_type = self._script.answer(request, accept)
        return Response(_sendable(body), str(content_type or accept))


def _tensorflow_model(source: ModelSource, name: str) -> Handler:
    """`name`: the script's. Raises LoadFailed."""
    if not keras_models_in(source.model_dir) and not saved_models_in(source.model_dir):
        raise LoadFailed(
            f"Unable to load model: {name} has the functions of SageMaker's TensorFlow container, and the archive has "
            "no SavedModel and no Keras model: add it, or write model_fn(model_dir) for another framework."
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise LoadFailed(
            f"Unable to load model: {name} is around a TensorFlow model, and this environment has no TensorFlow: write "
            'POLYHOST_ENVIRONMENT = "tensorflow-cpu" into it, and run polyhost env build tensorflow-cpu.'
        )
    from polyhost_handlers.tensorflow_handler import TensorFlowHandler

    return TensorFlowHandler.load(source)


def imported(path: Path, model_dir: Path) -> ModuleType:
    """A script that has what it must have, imported for the model in `model_dir`. Raises LoadFailed, MemoryError."""
    _check_requirements(path.parent / "requirements.txt", model_dir)
    # Scripts open the files beside the model by bare names, as under MMS.
    os.chdir(model_dir)
    aws.provide()
    refuse_newer_models()
    script = _new_module(path)
    with _seen_by_pickles(script):
        _run(script, path)
    _check_functions(script, path.name)
    return script


def _check_requirements(path: Path, model_dir: Path) -> None:
    if path.is_file():
        # Few archives have one, and what reads it takes a while to import.
        from polyhost_handlers import script_requirements

        script_requirements.check(path, model_dir if path.is_relative_to(model_dir) else path.parent)


def _new_module(path: Path) -> ModuleType:
    """The script as a module of its own name, not run yet; its folder first on the path for the modules beside it."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise LoadFailed(f"Unable to load model: {path.name} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    return module


def _run(script: ModuleType, path: Path) -> None:
    with _failure_named(f"{path.name} cannot be imported"):
        script.__spec__.loader.exec_module(script)  # type: ignore[union-attr]


@contextlib.contextmanager
def _seen_by_pickles(script: ModuleType) -> Iterator[None]:
    """
    Let pickles find in `script` what they name in `__main__`.

    A script that trains is run, and pickles its own classes as `__main__.Name`. Here it is imported.
    """
    main = sys.modules["__main__"].__dict__
    before = main.get("__getattr__")

    def from_script(name: str) -> Any:
        if name.startswith("__") or name not in script.__dict__:
            raise AttributeError(f"module '__main__' has no attribute '{name}'")
        return script.__dict__[name]

    main["__getattr__"] = from_script
    try:
        yield
    finally:
        if before is None:
            main.pop("__getattr__", None)
        else:
            main["__getattr__"] = before


def _check_functions(script: ModuleType, name: str) -> None:
    if getattr(script, "transform_fn", None):
        others = [other for other in ("input_fn", "predict_fn", "output_fn") if getattr(script, other, None)]
        if others:
            raise LoadFailed(f"Unable to load model: {name} has transform_fn and {', '.join(others)}: keep one way.")
    if serving_script.is_of_serving(script):
        serving_script.check_functions(script, name)
    elif not getattr(script, "model_fn", None):
        raise LoadFailed(f"Unable to load model: {name} has no model_fn(model_dir).")


def _load_model(script: ModuleType, name: str, source: ModelSource) -> Any:
    model_dir, context = str(source.model_dir), source.context
    if getattr(script, "pre_model_fn", None):
        with _failure_named(f"pre_model_fn of {name} failed"):
            _call(script.pre_model_fn, context, model_dir)
    with _failure_named(f"model_fn of {name} failed"):
        model = _call(script.model_fn, context, model_dir)
    if getattr(script, "model_warmup_fn", None):
        with _failure_named(f"model_warmup_fn of {name} failed"):
            _call(script.model_warmup_fn, context, model_dir, model)
    return model


@contextlib.contextmanager
def _failure_named(what: str) -> Iterator[None]:
    """Whatever customers' code raises while loading becomes one sentence; memory errors stay what they are."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        cure = ""
        if isinstance(error, ModuleNotFoundError):
            cure = ". Install what brings it in the environment of the server, or put the module into code/"
        raise LoadFailed(f"Unable to load model: {what}: {type(error).__name__}: {sentence_of(error)}{cure}") from error


@contextlib.contextmanager
def _chosen_status() -> Iterator[None]:
    """The status that a script chose by MMS's `PredictionException` or the toolkit's errors, or that is plain."""
    try:
        yield
    except SystemExit as error:
        raise HandlerError(f"Prediction failed: the script exited: {error}") from error
    except HandlerError:
        raise
    except Exception as error:
        status = getattr(error, "status_code", getattr(error, "error_code", None))
        if isinstance(status, int) and 400 <= status <= 599:
            raise HandlerError(str(getattr(error, "message", error)), status) from error
        if type(error).__name__ == "UnsupportedFormatError":  # the toolkit's and that of sagemaker_containers
            raise UnsupportedMediaType(sentence_of(error)) from error
        raise


def _call(function: Callable[..., Any], context: Any, *arguments: Any) -> Any:
    """Call with `context` as one more argument where the function has room for it, as the toolkit does."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    takes = sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)
    if takes == len(arguments) or inspect.Parameter.VAR_POSITIONAL in kinds:
        return function(*arguments)
    if takes == len(arguments) + 1:
        return function(*arguments, context)
    name = getattr(function, "__name__", type(function).__name__)
    raise HandlerError(f"{name} takes {takes} arguments, {len(arguments)} (or one more, context) are due.")


def _body_for(body: bytes, content_type: str) -> bytes | str:
    """Text formats reach a script as str, all else as bytes: the toolkit's rule, which knows no parameters."""
    if content_type not in _TEXT_TYPES:
        return body
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Unparseable(f"The body is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def _web_response(answer: Any) -> Response | None:
    """The answer of a script that makes Flask's, werkzeug's or another framework's response; None if it is none."""
    status, headers = getattr(answer, "status_code", None), getattr(answer, "headers", None)
    if not isinstance(status, int) or headers is None or not hasattr(headers, "items"):
        return None
    if callable(getattr(answer, "get_data", None)):
        body = answer.get_data()
    else:
        bodies = [getattr(answer, name) for name in _BODY_NAMES if hasattr(answer, name)]
        if not bodies:
            return None
        body = next(filter(None, bodies), b"")
    pairs = [(str(name), str(value)) for name, value in headers.items()]
    content_type = next((value for name, value in pairs if name.lower() == "content-type"), JSON)
    others = {name: value for name, value in pairs if name.lower() not in _NOT_COPIED}
    return Response(_sendable(body), content_type, int(status), others)


def _in_pieces(pieces: Iterator[Any], content_type: str, send: Callable[[str, bytes], None] | None) -> bytes:
    """What a script yields: each piece is sent as it comes, where somebody takes it. Otherwise it is one answer."""
    try:
        if send is None:
            return b"".join(map(_piece, pieces))
        for piece in pieces:
            send(content_type, _piece(piece))
    finally:
        if callable(close := getattr(pieces, "close", None)):
            close()
    return b""


def _piece(piece: Any) -> bytes:
    if isinstance(piece, (bytes, bytearray)):
        return bytes(piece)
    if isinstance(piece, str):
        return piece.encode()
    raise HandlerError(f"The script yielded a {type(piece).__name__}: yield bytes or text.")


def _sendable(answer: Any) -> Any:
    """MMS sends bytes and str as they are and the rest as this JSON, but does not know numpy's arrays and numbers."""
    if isinstance(answer, (bytes, bytearray, str)):
        return answer
    try:
        return json.dumps(answer, default=script_defaults.plain, indent=2).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise HandlerError(f"The script answered what cannot be sent: {error}.") from error


HANDLER = ScriptHandler
handle = entry_point(ScriptHandler)
