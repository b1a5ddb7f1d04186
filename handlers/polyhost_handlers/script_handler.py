"""
Customers' own scripts: `code/inference.py` in the archive, as SageMaker's inference toolkit calls them.

`model_fn(model_dir)`, then `input_fn(body, content_type)`, `predict_fn(data, model)`,
`output_fn(prediction, accept)`, or `transform_fn(model, body, content_type, accept)` in their place;
`pre_model_fn(model_dir)` and `model_warmup_fn(model_dir, model)` around the load. Each may take a last
`context`. What the toolkit gets wrong in multi-model mode is right here: each model imports its own script and
the modules beside it, and a failure is one sentence, never a traceback.

A script is code: it changes `sys.path` and the working directory, so a process holds one such model.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from polyhost_handlers import codecs
from polyhost_handlers.artifacts import script_of
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.codecs import CSV, JSON, NPY
from polyhost_handlers.errors import HandlerError, LoadFailed, NoContent, Unparseable, is_out_of_memory, sentence_of

_TEXT_TYPES = (JSON, CSV)
_DEFAULT_FORMATS = (JSON, CSV, NPY)


class ScriptHandler(Handler):
    kind = "script"

    def __init__(self, script: ModuleType, model: Any, source: ModelSource) -> None:
        self._model = model
        self._context = source.context
        self._default_accept = source.default_accept(JSON)
        self._transform = getattr(script, "transform_fn", None)
        self._input = getattr(script, "input_fn", None) or default_input_fn
        self._predict = getattr(script, "predict_fn", None) or default_predict_fn
        self._output = getattr(script, "output_fn", None) or default_output_fn

    @classmethod
    def load(cls, source: ModelSource) -> ScriptHandler:
        path = script_of(source.model_dir, source.environ)
        if path is None:
            program = source.environ.get("SAGEMAKER_PROGRAM") or "inference.py"
            raise LoadFailed(f"Unable to load model: the archive has no code/{program}.")
        _check_requirements(path.parent / "requirements.txt")
        # Scripts open the files beside the model by bare names, as under MMS.
        os.chdir(source.model_dir)
        script = _import_script(path)
        _check_functions(script, path.name)
        return cls(script, _load_model(script, path.name, source), source)

    def predict(self, request: Request) -> Response:
        accept = request.accept if request.accept not in ("", "*/*") else self._default_accept
        content_type = request.content_type or JSON
        body = _body_for(request.body, content_type)
        with _chosen_status():
            answer = self._answer(body, content_type, accept, request.context or self._context)
        if isinstance(answer, tuple) and len(answer) == 2:
            answer, accept = answer
        return Response(_sendable(answer), str(accept), status=None)

    def _answer(self, body: bytes | str, content_type: str, accept: str, context: Any) -> Any:
        if self._transform is not None:
            return _call(self._transform, context, self._model, body, content_type, accept)
        data = _call(self._input, context, body, content_type)
        prediction = _call(self._predict, context, data, self._model)
        return _call(self._output, context, prediction, accept)


def default_input_fn(body: Any, content_type: str) -> Any:
    """What `input_fn` does where a script has none: the toolkit's formats, but never a pickle."""
    raw = body.encode() if isinstance(body, str) else body
    if not raw:
        raise NoContent("The request has no body.")
    name = codecs.decoder_for(content_type, _DEFAULT_FORMATS, default=JSON)
    if name == NPY:
        return codecs.decode_array_npy(raw)
    if name == CSV:
        return codecs.decode_csv(raw)
    try:
        return np.array(codecs.parse_json(raw))
    except (ValueError, OverflowError) as error:
        raise Unparseable(f"The rows differ in length: {error}.") from error


def default_predict_fn(data: Any, model: Any) -> Any:
    predict = getattr(model, "predict", None) or (model if callable(model) else None)
    if predict is None:
        raise HandlerError(f"The script has no predict_fn, and its {type(model).__name__} cannot predict.")
    return predict(data)


def default_output_fn(prediction: Any, accept: str) -> tuple[bytes, str]:
    name = codecs.choose_accept(accept, _DEFAULT_FORMATS, JSON)
    values = prediction.detach().numpy() if hasattr(prediction, "detach") else prediction
    if name == JSON:
        return codecs.encode_json(values), name
    if name == CSV:
        return codecs.encode_csv_rows(np.atleast_1d(values).tolist()), name
    return codecs.encode_npy(np.asarray(values)), name


def _import_script(path: Path) -> ModuleType:
    """The script as a module of its own name, and its folder first on the path for the modules beside it."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise LoadFailed(f"Unable to load model: {path.name} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    with _failure_named(f"{path.name} cannot be imported"):
        spec.loader.exec_module(module)
    return module


def _check_functions(script: ModuleType, name: str) -> None:
    if getattr(script, "transform_fn", None):
        others = [other for other in ("input_fn", "predict_fn", "output_fn") if getattr(script, other, None)]
        if others:
            raise LoadFailed(f"Unable to load model: {name} has transform_fn and {', '.join(others)}: keep one way.")
    if not getattr(script, "model_fn", None):
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
        raise LoadFailed(f"Unable to load model: {what}: {type(error).__name__}: {sentence_of(error)}") from error


@contextlib.contextmanager
def _chosen_status() -> Iterator[None]:
    """A status that the script chose by MMS's `PredictionException` or the toolkit's errors; nothing else is known."""
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
        raise


def _check_requirements(path: Path) -> None:
    """A server does not install packages while it serves: what is missing is named instead."""
    if not path.is_file():
        return
    from packaging.requirements import InvalidRequirement, Requirement

    missing = []
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        text = line.partition(" #")[0].strip()
        if not text or text.startswith(("#", "-")):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise LoadFailed(f"Unable to load model: requirements.txt: '{text}' is not a requirement.") from error
        if (requirement.marker is None or requirement.marker.evaluate()) and not _is_installed(requirement):
            missing.append(text)
    if missing:
        raise LoadFailed(
            f"Unable to load model: requirements.txt asks for {', '.join(missing)}, which this server does not have: "
            "install it where the server runs, or build an image with it.",
        )


def _is_installed(requirement: Any) -> bool:
    try:
        return bool(requirement.specifier.contains(metadata.version(requirement.name), prereleases=True))
    except metadata.PackageNotFoundError:
        return False


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


def _sendable(answer: Any) -> Any:
    """MMS sends bytes and str as they are and the rest as this JSON, but does not know numpy's arrays and numbers."""
    if isinstance(answer, (bytes, bytearray, str)):
        return answer
    try:
        return codecs.encode_json(answer, indent=2)
    except (TypeError, ValueError, RecursionError) as error:
        raise HandlerError(f"The script answered what cannot be sent: {error}.") from error


HANDLER = ScriptHandler
handle = entry_point(ScriptHandler)
