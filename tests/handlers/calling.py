"""
Our handlers called as MMS calls them: by its own Service and Context, in its own message format.

Nothing is started. The answer is read back from the bytes that MMS's worker would send to its front.
"""

from __future__ import annotations

import importlib
import io
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mms.metrics.metrics_store import MetricsStore
from mms.service import Service
from polyhost_handlers.base import entry_point


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The sentence of an error."""
        assert self.status >= 400, self
        return str(self.json()["message"])


@dataclass(frozen=True)
class Part:
    """A field of a request, as MMS's front hands it on."""

    name: str
    value: Any
    content_type: str = ""


class Model:
    """A model of one of our handlers; `load` it, then `ask` it."""

    def __init__(self, handler: str, model_dir: Path) -> None:
        module = importlib.import_module(f"polyhost_handlers.{handler}")
        # An entry point of its own, as each worker of MMS has: `module.handle` would keep the first model.
        self._handle = entry_point(module.HANDLER)
        self._service = Service("model", str(model_dir), None, self._handle, None, 1)
        self._service.context.metrics = MetricsStore({}, "model")

    @property
    def context(self) -> Any:
        return self._service.context

    def load(self) -> Model:
        assert self._handle(None, self._service.context) is None
        return self

    def ask(self, body: bytes | str = b"", content_type: str = "", accept: str = "", **headers: str) -> Answer:
        (answer,) = self.ask_batch([body], content_type, accept, **headers)
        return answer

    def ask_batch(
        self, bodies: Sequence[bytes | str], content_type: str = "", accept: str = "", **headers: str
    ) -> list[Answer]:
        headers = {**headers, **({"Content-Type": content_type} if content_type else {})}
        headers = {**headers, **({"Accept": accept} if accept else {})}
        return self.ask_parts([[Part("body", body, content_type)] for body in bodies], headers)

    def ask_parts(self, requests: Sequence[Sequence[Part]], headers: Mapping[str, str]) -> list[Answer]:
        batch = [
            {
                "requestId": f"id-{number}".encode(),
                "headers": [{"name": name.encode(), "value": value.encode()} for name, value in headers.items()],
                "parameters": [
                    {"name": part.name, "value": as_sent(part.value), "contentType": part.content_type}
                    for part in parts
                ],
            }
            for number, parts in enumerate(requests)
        ]
        return list(_answers(bytes(self._service.predict(batch))))


def as_sent(value: Any) -> Any:
    """MMS's codec makes bytearrays of all that it does not decode itself."""
    if isinstance(value, str):
        value = value.encode()
    return bytearray(value) if isinstance(value, bytes) else value


def _answers(message: bytes) -> Iterator[Answer]:
    reader = io.BytesIO(message)

    def integer() -> int:
        return int(struct.unpack("!i", reader.read(4))[0])

    def text() -> str:
        return reader.read(integer()).decode()

    code = integer()
    text()
    while (length := integer()) != -1:
        reader.read(length)
        content_type = text()
        status = integer()
        text()
        headers = {text(): text() for _ in range(integer())}
        yield Answer(status if code == 200 else code, content_type, reader.read(integer()), headers)
    assert reader.read() == b""


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array))
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy_header(header: str, data: bytes = b"") -> bytes:
    """A .npy file whose header is whatever an attacker likes."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def csv(rows: Any, delimiter: str = ",") -> bytes:
    return "\n".join(
        delimiter.join("" if np.isnan(value) else repr(float(value)) for value in row) for row in rows
    ).encode()
