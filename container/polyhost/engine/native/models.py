"""
Models inside a worker: how a handler is found, loaded and called.

Our own handlers on archives of data are called as they are, many models in one process. Everything else, a
customer's module, a class, the inference toolkit's handler service, gets what MMS gives it (its own Context and
Service classes), in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from polyhost_handlers.base import SIGNATURE, Handler, ModelSource, Request, answered, load_guarded, request_of
from polyhost_handlers.compiled.rows import PlainRows, Way
from polyhost_handlers.signature import Signature

from polyhost.engine.mms_handlers import load_failure, loaded_service
from polyhost.engine.native.fields import fields_of, is_raw
from polyhost.engine.native.messages import MOST_COMPILED_BYTES, Failed, Load, TryScript
from polyhost.engine.native.segments import Readable
from polyhost.engine.protocol import Answer, HandlerMetric, Item

logger = logging.getLogger("polyhost.worker")


# The content type, and a part of the body.
SendPart = Callable[[str, bytes], None]


class LoadedModel(Protocol):
    """A loaded model: an answer for each item, or a status and a sentence for all of them."""

    @property
    def metrics(self) -> Sequence[HandlerMetric]:
        """What the last call added."""

    def plain_rows(self) -> PlainRows | None:
        """What answers a row of CSV exactly as the model does; None where nothing else can."""

    def way(self) -> Way | None:
        """What answers; None for a customer's code, which nobody looks into."""

    def signature(self) -> Signature:
        """What it takes and answers; nothing for a customer's code, which does not tell."""

    def predict(self, items: Sequence[Item], send_part: SendPart | None = None) -> list[Answer] | tuple[int, str]:
        """`send_part`: takes an answer in parts, of the one item."""


def load_model(order: Load, readable: Readable | None = None) -> LoadedModel:
    """
    `readable`: where compiled models can be read.

    Raises LoadFailed, MemoryError, OSError, or whatever a customer's code raises.
    """
    if not order.has_code:
        return PlainModel(order, readable)
    if not order.is_alone:
        return VisitedModel(order)
    os.chdir(order.path)
    return ServiceModel(order)


def handed_over(model: LoadedModel) -> PlainRows | None:
    """What the front keeps of a model in its place; None for a model that stays with its worker."""
    rows = model.plain_rows()
    return rows if rows is not None and len(rows.trees) + len(rows.names) <= MOST_COMPILED_BYTES else None


def failure(error: BaseException, order: Load | TryScript) -> Failed:
    """As the client will see it."""
    return Failed(order.id, *load_failure(error))


class PlainModel:
    """One of our handlers, without MMS's context around it."""

    def __init__(self, order: Load, readable: Readable | None) -> None:
        handler: type[Handler] = importlib.import_module(order.handler.partition(":")[0]).HANDLER
        source = ModelSource(Path(order.path), order.name, os.environ)
        self._name = order.name
        if order.compiled is None or readable is None:
            self._model = load_guarded(handler, source)
        else:
            place = order.compiled
            self._model = handler.of_compiled(
                readable.address_of(place.segment) + place.offset, place.count_bytes, source
            )
        self.metrics: Sequence[HandlerMetric] = ()

    def plain_rows(self) -> PlainRows | None:
        return self._model.plain_rows()

    def way(self) -> Way:
        return self._model.way()

    def signature(self) -> Signature:
        return self._model.signature()

    def predict(self, items: Sequence[Item], send_part: SendPart | None = None) -> list[Answer]:  # noqa: ARG002
        return [self._answer(item) for item in items]

    def _answer(self, item: Item) -> Answer:
        response = answered(self._model, lambda: self._request(item), self._name)
        headers = {"content-type": response.content_type}
        return Answer(response.status or 200, headers, as_bytes(response.body))

    def _request(self, item: Item) -> Request:
        headers = item.headers
        if is_raw(item):
            return Request(bytes(item.body), headers.get("content-type", ""), headers.get("accept", ""), headers)
        fields = fields_of(item)
        raw_headers: dict[str, Any] = {field.name: {"content-type": field.content_type} for field in fields}
        return request_of({field.name: field.value for field in fields}, {**raw_headers, **headers}, None)


class ServiceModel:
    """A handler of MMS's contract, called through MMS's own Service."""

    def __init__(self, order: Load) -> None:
        self.metrics: Sequence[HandlerMetric] = ()
        self._is_ours = order.handler.startswith("polyhost_handlers.")
        self._service = loaded_service(order.name, order.path, order.handler, order.batch_size)

    def plain_rows(self) -> None:
        """A customer's code may do anything with a row."""

    def way(self) -> None:
        """Its own: the code is what answers."""

    def signature(self) -> Signature:
        """Of a handler of ours that brings code: MLflow's."""
        told = vars(self._service._entry_point).get(SIGNATURE) if self._is_ours else None  # noqa: SLF001 - MMS's own
        return told() if told is not None else Signature()

    def predict(self, items: Sequence[Item], send_part: SendPart | None = None) -> list[Answer] | tuple[int, str]:
        self._service.context.send_part = send_part
        encoded = self._service.predict([_as_mms(item) for item in items])
        self.metrics = [_metric(metric) for metric in self._service.context.metrics.store]
        return _from_mms(encoded)


class VisitedModel:
    """
    Code in a process that it shares (`--isolation shared`).

    Around each of its calls the working directory, `sys.path` and the modules under the model's folder are its
    own. What stays shared: the environment, threads, signal handlers, and whatever modules from elsewhere keep.
    """

    def __init__(self, order: Load) -> None:
        self._folder = order.path
        self._path = [order.path]
        self._modules: dict[str, ModuleType] = {}
        with self._visited():
            self._model = ServiceModel(order)

    @property
    def metrics(self) -> Sequence[HandlerMetric]:
        return self._model.metrics

    def plain_rows(self) -> None:
        """A customer's code may do anything with a row."""

    def way(self) -> None:
        """Its own: the code is what answers."""

    def signature(self) -> Signature:
        return self._model.signature()

    def predict(self, items: Sequence[Item], send_part: SendPart | None = None) -> list[Answer] | tuple[int, str]:
        with self._visited():
            return self._model.predict(items, send_part)

    @contextlib.contextmanager
    def _visited(self) -> Iterator[None]:
        outside = list(sys.path)
        os.chdir(self._folder)
        sys.path[:0] = self._path
        sys.modules.update(self._modules)
        try:
            yield
        finally:
            self._path = [entry for entry in sys.path if entry not in outside]
            self._modules |= {
                name: module for name, module in sys.modules.items() if _lies_in(module, [self._folder, *self._path])
            }
            for name in self._modules:
                sys.modules.pop(name, None)
            sys.path[:] = outside


def _lies_in(module: ModuleType, folders: Sequence[str]) -> bool:
    file = getattr(module, "__file__", None) or ""
    return any(file.startswith(f"{folder}/") for folder in folders)


def _metric(metric: Any) -> HandlerMetric:
    """One of mms.metrics.metric.Metric, whose value a handler may have made anything."""
    try:
        value = float(metric.value)
    except (TypeError, ValueError):
        value = 1.0  # `add_error` has a text
    return HandlerMetric(str(metric.name), str(metric.unit), value, metric.metric_method == "counter", str(metric))


def _as_mms(item: Item) -> dict[str, Any]:
    return {
        "requestId": item.request_id.encode(),
        "headers": [{"name": name.encode(), "value": value.encode()} for name, value in item.headers.items()],
        "parameters": [
            {"name": field.name, "contentType": field.content_type, "value": _as_array(field.value)}
            for field in fields_of(item)
        ],
    }


def _as_array(value: bytes | bytearray) -> bytearray:
    return value if isinstance(value, bytearray) else bytearray(value)


def _from_mms(encoded: bytearray) -> list[Answer] | tuple[int, str]:
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
    def __init__(self, data: bytearray) -> None:
        self._data = memoryview(data)
        self._offset = 0

    def integer(self) -> int:
        (value,) = struct.unpack_from("!i", self._data, self._offset)
        self._offset += 4
        return int(value)

    def text(self) -> str:
        return self.take(self.integer()).decode()

    def take(self, length: int) -> bytes:
        self._offset += length
        return bytes(self._data[self._offset - length : self._offset])


def as_bytes(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    return json.dumps(body, indent=2).encode()
