"""
The contract of a handler, and the bridge to Multi Model Server's.

A handler is a class: `load` makes one loaded model from a folder, `predict` answers one request.
It holds no module-level state, so that one process may hold many models. `entry_point` turns the class
into the function that MMS calls (function style: in a class, MMS swallows what `initialize` raises).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from polyhost_handlers.artifacts import folder_bytes
from polyhost_handlers.compiled.rows import PlainRows, Way
from polyhost_handlers.errors import (
    BadInput,
    HandlerError,
    LoadFailed,
    NoContent,
    is_out_of_memory,
    memory_errors_translated,
    sentence_of,
)
from polyhost_handlers.signature import Signature

logger = logging.getLogger("polyhost.handlers")

JSON = "application/json"
# Of the function that MMS calls: what tells the model's signature.
SIGNATURE = "signature"
_LAST_WORDS_SECS = 0.05


@dataclass(frozen=True)
class ModelSource:
    """What a model is loaded from: an unpacked archive and its container's environment."""

    model_dir: Path
    model_name: str
    environ: Mapping[str, str]
    # MMS's own context object, for scripts whose functions ask for it.
    context: Any = None

    @property
    def is_multi_model(self) -> bool:
        return self.environ.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true"

    def default_accept(self, otherwise: str) -> str:
        return self.environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT") or otherwise


@dataclass(frozen=True)
class Request:
    """One request. `accept` is "" when the client does not say; header names are in lower case."""

    body: bytes
    content_type: str = ""
    accept: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    context: Any = None


@dataclass(frozen=True)
class Response:
    """An answer. `body` may be anything MMS can send: bytes, str, or what JSON can hold."""

    body: Any
    content_type: str = JSON
    # None leaves the status to a script that sets it on MMS's context itself.
    status: int | None = 200
    # Besides the Content-Type.
    headers: Mapping[str, str] = field(default_factory=dict)


class Handler(ABC):
    """One loaded model. `load` and `predict` are called on one thread, one call at a time."""

    # What this handler is called on the command line, in logs and in the memory guard's book.
    kind: ClassVar[str]

    @classmethod
    def kind_of(cls, source: ModelSource) -> str:  # noqa: ARG003 - AutoHandler looks into it
        return cls.kind

    @classmethod
    @abstractmethod
    def load(cls, source: ModelSource) -> Handler:
        """
        Load the model in `source.model_dir`.

        Raises `LoadFailed` with one sentence, or `MemoryError`, after which the server answers 507.
        """

    @classmethod
    def of_compiled(cls, address: int, count_bytes: int, source: ModelSource) -> Handler:
        """The model whose `plain_rows` lie at this address, trees and names, for as long as the process lives."""
        raise NotImplementedError(f"{cls.kind} has no compiled models")

    def plain_rows(self) -> PlainRows | None:
        """What answers one row of CSV exactly as `predict` does, without this object; None where nothing can."""
        return None

    def way(self) -> Way:
        """What `predict` asks."""
        return Way(is_compiled=False, why_not=f"models of {self.kind} are not compiled")

    def signature(self) -> Signature:
        """What `predict` takes and answers, as far as the artifact tells."""
        return Signature()

    @abstractmethod
    def predict(self, request: Request) -> Response:
        """Answer `request`. Raises `HandlerError` with the status to answer, or `MemoryError`."""


def entry_point(handler: type[Handler]) -> Callable[[Any, Any], list[Any] | None]:
    """The function MMS calls: with `data=None` to load the model, then with each batch of requests."""
    model: Handler | None = None

    def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any] | None:
        nonlocal model
        if model is None or data is None:
            try:
                model = load_guarded(handler, _source_of(context))
            except Exception:
                # After a failed load the worker ends, and MMS stops reading its output: let it read why first.
                time.sleep(_LAST_WORDS_SECS)
                raise
        if data is None:
            return None
        return [_answer(model, item, context, index) for index, item in enumerate(data)]

    handle.__dict__[SIGNATURE] = lambda: Signature() if model is None else model.signature()
    return handle


def load_guarded(handler: type[Handler], source: ModelSource) -> Handler:
    """
    Load a model if memory allows.

    The guard raises `MemoryError` before the harm is done. It works only where the server that started
    this worker keeps its book; under a stock MMS there is none, and only what libraries say about memory
    becomes a `MemoryError`.
    """
    try:
        with memory_errors_translated(), _guard(source, handler.kind_of(source)):
            return handler.load(source)
    except MemoryError as error:
        logger.error("model %s: 507: %s", source.model_name, error)  # noqa: TRY400
        raise
    except HandlerError as error:
        logger.error("model %s: %s", source.model_name, error.message)  # noqa: TRY400
        raise
    except Exception as error:
        logger.exception("model %s: loading failed", source.model_name)
        raise LoadFailed(f"Unable to load model: {type(error).__name__}: {sentence_of(error)}") from error


@contextlib.contextmanager
def _guard(source: ModelSource, kind: str) -> Iterator[None]:
    book = source.environ.get("POLYHOST_MEMORY_BOOK")
    if not book:
        yield
        return
    from polyhost.memory import Guard

    with Guard.from_environ(source.environ).admit(kind, folder_bytes(source.model_dir)):
        yield


def _source_of(context: Any) -> ModelSource:
    properties = context.system_properties
    return ModelSource(
        model_dir=Path(properties["model_dir"]),
        model_name=context.model_name,
        environ=dict(os.environ),
        context=context,
    )


def _answer(model: Handler, item: Mapping[str, Any], context: Any, index: int) -> Any:
    """One request's answer, set on MMS's context."""
    raw_headers = context.get_all_request_header(index)
    response = answered(model, lambda: request_of(item, raw_headers, context), context.model_name)
    # MMS counts characters and sends bytes: one letter beyond ASCII, from a client's Accept, would garble its answer.
    context.set_response_content_type(index, "".join(filter(_is_plain, response.content_type)))
    if response.status is not None:
        context.set_response_status(code=response.status, phrase="", idx=index)
    for name, value in response.headers.items():
        context.set_response_header(index, "".join(filter(_is_plain, name)), "".join(filter(_is_plain, value)))
    return response.body


def _is_plain(character: str) -> bool:
    return " " <= character <= "~"


def answered(model: Handler, make_request: Callable[[], Request], model_name: str) -> Response:
    """
    The answer to a request; what goes wrong becomes a status and a sentence, never a traceback.

    Raises MemoryError, which the server answers with 507.
    """
    try:
        return model.predict(make_request())
    except MemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        if isinstance(error, HandlerError):
            logger.info("model %s: answered %d: %s", model_name, error.status, error.message)
            return error_response(error)
        logger.exception("model %s: prediction failed", model_name)
        return error_response(HandlerError(f"Prediction failed: {type(error).__name__}: {sentence_of(error)}"))


def error_response(error: HandlerError) -> Response:
    """The same JSON as MMS's own errors, so that clients parse one form."""
    if isinstance(error, NoContent):
        return Response(b"", status=error.status)
    message = " ".join(error.message.split())
    body = json.dumps({"code": error.status, "type": error.type, "message": message}, indent=2) + "\n"
    return Response(body.encode(), status=error.status)


def request_of(item: Mapping[str, Any], raw_headers: Mapping[str, Any], context: Any) -> Request:
    """
    A request of MMS's: `item` has the fields by name; `raw_headers` the headers, and by a field's name its own.

    Raises BadInput.
    """
    headers = {name.lower(): value for name, value in raw_headers.items() if isinstance(value, str)}
    field_name, value = _payload(item)
    part = raw_headers.get(field_name)
    content_type = headers.get("content-type", "")
    if content_type.startswith("application/x-www-form-urlencoded") and len(item) == 1 and not value:
        value = field_name  # `curl -d 1,2,3` says that it sends a form, and sends none
    if content_type.startswith(("multipart/", "application/x-www-form-urlencoded")) and isinstance(part, dict):
        content_type = part.get("content-type", "")
    return Request(
        body=_as_bytes(value),
        content_type=content_type,
        accept=headers.get("accept", ""),
        headers=headers,
        context=context,
    )


def _payload(item: Mapping[str, Any]) -> tuple[str, Any]:
    """The request's body: named `body` when sent raw, else the one field of a form or of the query."""
    for name in ("body", "data"):
        if name in item:
            return name, item[name]
    if len(item) == 1:
        return next(iter(item.items()))
    if not item:
        return "body", b""
    raise BadInput(f"Send one field, or name one of them 'body': the request has {', '.join(sorted(item))}.")


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    # A stock MMS decodes JSON and text itself (decode_input_request=true).
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()
