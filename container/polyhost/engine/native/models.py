"""
Models inside a worker: how a handler is found, loaded and called.

Our own handlers on archives of data are called as they are, many models in one process. Everything else, a
customer's module, a class, the inference toolkit's handler service, gets what MMS gives it (its own Context and
Service classes), in a process of its own.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from polyhost_handlers.base import Handler, ModelSource, Request, answered, load_guarded, request_of

from polyhost.engine.mms_handlers import load_failure, loaded_service
from polyhost.engine.native.fields import fields_of, is_raw
from polyhost.engine.native.messages import Failed, Load
from polyhost.engine.protocol import Answer, Item

logger = logging.getLogger("polyhost.worker")

_OURS = "polyhost_handlers."


class Model(Protocol):
    """A loaded model: an answer for each item, or a status and a sentence for all of them."""

    metrics: list[str]

    def predict(self, items: Sequence[Item]) -> list[Answer] | tuple[int, str]: ...


def load_model(order: Load) -> Model:
    """Raises LoadFailed, MemoryError, or whatever a customer's code raises."""
    if order.is_alone:
        os.chdir(order.path)
        return MmsModel(order)
    return PlainModel(order)


def failure(error: BaseException, order: Load) -> Failed:
    """As the client will see it."""
    return Failed(order.id, *load_failure(error))


class PlainModel:
    """One of our handlers, without MMS's context around it."""

    def __init__(self, order: Load) -> None:
        handler: type[Handler] = importlib.import_module(order.handler.partition(":")[0]).HANDLER
        source = ModelSource(Path(order.path), order.name, os.environ)
        self._name = order.name
        self._model = load_guarded(handler, source)
        self.metrics: list[str] = []

    def predict(self, items: Sequence[Item]) -> list[Answer]:
        return [self._answer(item) for item in items]

    def _answer(self, item: Item) -> Answer:
        response = answered(self._model, lambda: self._request(item), self._name)
        headers = {"content-type": response.content_type}
        return Answer(response.status or 200, headers, as_bytes(response.body))

    def _request(self, item: Item) -> Request:
        headers = item.headers
        if is_raw(item):
            return Request(item.body, headers.get("content-type", ""), headers.get("accept", ""), headers)
        fields = fields_of(item)
        raw_headers: dict[str, Any] = {field.name: {"content-type": field.content_type} for field in fields}
        return request_of({field.name: field.value for field in fields}, {**raw_headers, **headers}, None)


class MmsModel:
    """A handler of MMS's contract, called through MMS's own Service."""

    def __init__(self, order: Load) -> None:
        self.metrics: list[str] = []
        self._service = loaded_service(order.name, order.path, order.handler, order.batch_size)

    def predict(self, items: Sequence[Item]) -> list[Answer] | tuple[int, str]:
        encoded = self._service.predict([_as_mms(item) for item in items])
        self.metrics = [str(metric) for metric in self._service.context.metrics.store]
        return _from_mms(bytes(encoded))


def _as_mms(item: Item) -> dict[str, Any]:
    return {
        "requestId": item.request_id.encode(),
        "headers": [{"name": name.encode(), "value": value.encode()} for name, value in item.headers.items()],
        "parameters": [
            {"name": field.name, "contentType": field.content_type, "value": bytearray(field.value)}
            for field in fields_of(item)
        ],
    }


def _from_mms(encoded: bytes) -> list[Answer] | tuple[int, str]:
    """MMS's answer to its front (otf_message_handler): code, message, then a block for each request."""
    reader = _Reader(encoded)
    code, message = reader.integer(), reader.text()
    answers = []
    while (length := reader.integer()) != -1:
        reader.take(length)  # the request's id
        reader.text()  # the content type, which is among the headers too
        status = reader.integer()
        reader.text()  # the reason phrase
        headers = {reader.text(): reader.text() for _ in range(reader.integer())}
        answers.append(Answer(status, headers, reader.take(reader.integer())))
    return answers if code == 200 else (code, message)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def integer(self) -> int:
        (value,) = struct.unpack_from("!i", self._data, self._offset)
        self._offset += 4
        return int(value)

    def text(self) -> str:
        return self.take(self.integer()).decode()

    def take(self, length: int) -> bytes:
        self._offset += length
        return self._data[self._offset - length : self._offset]


def as_bytes(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    return json.dumps(body, indent=2).encode()
