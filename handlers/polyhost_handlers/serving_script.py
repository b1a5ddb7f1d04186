"""
Scripts of SageMaker's TensorFlow Serving container: `input_handler(data, context)` and `output_handler(response,
context)` around the model, or one `handler(data, context)` in place of both.

TensorFlow Serving is not there: our handler of TensorFlow answers as its REST API does. A `handler`, which asks by
itself, finds that API at `context.rest_uri`, on a port of this machine, behind a path that nobody else knows.
"""

from __future__ import annotations

import hmac
import io
import json
import re
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import ModuleType
from typing import Any, NamedTuple

from polyhost_handlers.base import Handler, Request
from polyhost_handlers.errors import HandlerError, LoadFailed
from polyhost_handlers.media_types import JSON

_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_ATTRIBUTE = re.compile(r"(tfs-[a-z-]+)=([^,]+)")
_LOWEST_ERROR = 400


class Context(NamedTuple):
    """What the container's scripts find, by its names. There is no gRPC: `grpc_port` and `channel` are None."""

    model_name: str
    model_version: str | None
    method: str | None
    rest_uri: str
    grpc_port: None
    channel: None
    custom_attributes: str | None
    request_content_type: str
    accept_header: str
    content_length: int


class Answered:
    """What TensorFlow Serving answers, as `requests` has it."""

    def __init__(self, status_code: int, content: bytes) -> None:
        self.status_code = status_code
        self.content = content
        self.headers = {"Content-Type": JSON}

    @property
    def ok(self) -> bool:
        return self.status_code < _LOWEST_ERROR

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json.loads(self.content)

    def raise_for_status(self) -> None:
        if not self.ok:
            raise HandlerError(f"The model refused what the script made of the request: {self.text}", self.status_code)


def is_of_serving(script: ModuleType) -> bool:
    """Whether it is such a script, and none of the inference toolkit's."""
    names = ("handler", "input_handler", "output_handler")
    return not getattr(script, "model_fn", None) and any(callable(getattr(script, name, None)) for name in names)


def check_functions(script: ModuleType, name: str) -> None:
    """Raises LoadFailed."""
    if callable(getattr(script, "handler", None)):
        return
    missing = [one for one in ("input_handler", "output_handler") if not callable(getattr(script, one, None))]
    if missing:
        raise LoadFailed(
            f"Unable to load model: {name} has no {missing[0]}: it takes input_handler(data, context) and "
            "output_handler(response, context) together, or handler(data, context)."
        )


class ServingScript:
    """A script and the model that it is around."""

    def __init__(self, script: ModuleType, model: Handler, model_name: str) -> None:
        self._handler = getattr(script, "handler", None)
        self._input = getattr(script, "input_handler", None)
        self._output = getattr(script, "output_handler", None)
        self._model = model
        self._model_name = model_name
        # Of a handler, which asks the model by itself.
        self._base = _listening(self) if self._handler else "http://127.0.0.1"

    def answer(self, request: Request, accept: str) -> tuple[Any, str]:
        """The body and its media type. Raises what the script raises."""
        context = self._context(request, accept)
        data = io.BytesIO(request.body)
        if self._handler is not None:
            answer = self._handler(data, context)
        else:
            assert self._input is not None
            assert self._output is not None
            answer = self._output(self.ask(_as_bytes(self._input(data, context))), context)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise HandlerError("The script must answer a body and its media type: return body, context.accept_header.")
        return answer

    def ask(self, body: bytes) -> Answered:
        """What the model answers to TensorFlow Serving's JSON. Raises MemoryError."""
        try:
            return Answered(200, self._model.predict(Request(body, JSON, JSON)).body)
        except HandlerError as error:
            status = max(error.status, _LOWEST_ERROR)
            return Answered(status, json.dumps({"error": error.message}).encode())

    def _context(self, request: Request, accept: str) -> Context:
        attributes = request.headers.get(_ATTRIBUTES)
        named = dict(_ATTRIBUTE.findall(attributes or ""))
        name, version, method = (named.get(f"tfs-{one}") for one in ("model-name", "model-version", "method"))
        uri = f"{self._base}/v1/models/{name or self._model_name}{f'/versions/{version}' if version else ''}"
        return Context(
            name or self._model_name, version, method, f"{uri}:{method or 'predict'}", None, None, attributes,
            request.content_type or JSON, accept, len(request.body),
        )  # fmt: skip


def _as_bytes(body: Any) -> bytes:
    """What `requests` would send; a document as JSON, too, which it would send as a form."""
    if isinstance(body, (bytes, bytearray)):
        return bytes(body)
    if isinstance(body, str):
        return body.encode()
    if hasattr(body, "read"):
        return _as_bytes(body.read())
    return json.dumps(body).encode()


def _listening(script: ServingScript) -> str:
    """Answer TensorFlow Serving's REST API for as long as the script lives. Where: a url without its path's end."""
    ask = weakref.WeakMethod(script.ask)
    secret = secrets.token_urlsafe(24)

    def answered(path: str, body: bytes) -> Answered:
        first, _, rest = path.removeprefix("/").partition("/")
        asking = ask()
        if asking is None or not hmac.compare_digest(first.encode(), secret.encode()):
            return Answered(404, b'{"error": "Not found"}')
        if not rest.startswith("v1/models/") or not rest.endswith(":predict"):
            return Answered(400, b'{"error": "There is predict alone: POST /v1/models/NAME:predict."}')
        return asking(body)

    server = HTTPServer(("127.0.0.1", 0), _requests_to(answered))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    weakref.finalize(script, _end, server)
    return f"http://127.0.0.1:{server.server_port}/{secret}"


def _end(server: HTTPServer) -> None:
    server.shutdown()
    server.server_close()


def _requests_to(answered: Callable[[str, bytes], Answered]) -> type[BaseHTTPRequestHandler]:
    class Asking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                answer = answered(self.path, body)
            except Exception as error:  # noqa: BLE001 - the script is told, and says what it makes of it
                answer = Answered(500, json.dumps({"error": str(error)}).encode())
            self._send(answer, answer.headers)

        def log_message(self, *_: Any) -> None:
            """The path is a secret."""

        def _send(self, answer: Answered, headers: Mapping[str, str]) -> None:
            self.send_response(answer.status_code)
            for name, value in {**headers, "Content-Length": str(len(answer.content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

    return Asking
