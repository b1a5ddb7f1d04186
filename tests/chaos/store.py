"""
A bucket that fails as buckets do: a proxy on loopback before moto's S3 server.

Every request is carried to moto on a connection of its own. `fault` decides what becomes of the answers to GETs of
archives; listings and HEADs meet only "status" and "hang".
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import urlsplit

import boto3
from support.moto import moto_server

from chaos.models import Model

BUCKET = "chaos"
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}
# However long a fault says to hang: no thread of ours outlives a run.
_MAX_HANG_SECS = 120.0


@dataclass(frozen=True)
class StoreFault:
    """
    `kind`: status (every answer has `number` as status), hang, slow (`number` bytes a second), cut and reset (the
    connection ends after `number` bytes, in order or by a reset), corrupt (one bit of byte `number` is another),
    garbage (as many bytes, none of them right), short (a Content-Length that is `number` too small).
    """

    kind: str = ""
    number: int = 0


class Store:
    def __init__(self, moto_url: str) -> None:
        self.fault = StoreFault()
        # How many requests have met a fault.
        self.met = 0
        # Called with the key when an archive's GET comes, before moto is asked.
        self.on_get: Callable[[str], None] = lambda key: None
        self._resume = threading.Event()
        self._moto = urlsplit(moto_url).netloc
        self._s3 = client_of(moto_url)
        self._s3.create_bucket(Bucket=BUCKET)
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.05), daemon=True)
        self._thread.start()

    def put(self, prefix: str, model: Model) -> None:
        self._s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{model.key}", Body=model.archive())

    def copy(self, prefix: str, model: Model, data: bytes) -> None:
        self._s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{model.key}", Body=data)

    @contextlib.contextmanager
    def failing(self, kind: str, number: int = 0) -> Iterator[None]:
        self._resume.clear()
        self.fault = StoreFault(kind, number)
        try:
            yield
        finally:
            self.fault = StoreFault()
            self._resume.set()

    def wait_hanging(self) -> None:
        self._resume.wait(_MAX_HANG_SECS)

    def close(self) -> None:
        self._resume.set()
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()
        self._s3.close()

    def fetch(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, list[Any], bytes]:
        connection = http.client.HTTPConnection(self._moto, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has had enough is what a fault is for."""


class _Handler(BaseHTTPRequestHandler):
    store: ClassVar[Store]
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        is_archive = self.command == "GET" and urlsplit(self.path).path.endswith(".tar.gz")
        if is_archive:
            self.store.on_get(urlsplit(self.path).path.rpartition("/")[2])
        fault = self.store.fault
        if fault.kind in {"status", "hang"}:
            self.store.met += 1
        if fault.kind == "status":
            self._send(fault.number, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        if fault.kind == "hang":
            self.close_connection = True
            self.store.wait_hanging()
            return
        status, headers, data = self.store.fetch(self.command, self.path, body, dict(self.headers.items()))
        fails = is_archive and status in {200, 206} and fault.kind
        self.store.met += bool(fails)
        getattr(self, f"_{fault.kind}" if fails else "_send")(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _head(self, status: int, headers: list[Any], length: int) -> None:
        self.send_response_only(status)
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        # A HEAD has the length of what it does not send.
        self.send_header("Content-Length", lengths[0] if self.command == "HEAD" and lengths else str(length))
        self.end_headers()

    def _send(self, status: int, headers: list[Any], data: bytes) -> None:
        self._head(status, headers, len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _slow(self, status: int, headers: list[Any], data: bytes) -> None:
        self._head(status, headers, len(data))
        step = max(1, self.store.fault.number // 10)
        for start in range(0, len(data), step):
            self.wfile.write(data[start : start + step])
            if self.store.fault.kind == "slow":  # the rest of it at once when the fault is over
                time.sleep(0.1)

    def _cut(self, status: int, headers: list[Any], data: bytes) -> None:
        self.close_connection = True
        self._head(status, headers, len(data))
        self.wfile.write(data[: self.store.fault.number])

    def _reset(self, status: int, headers: list[Any], data: bytes) -> None:
        self._cut(status, headers, data)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _corrupt(self, status: int, headers: list[Any], data: bytes) -> None:
        place = min(self.store.fault.number, len(data) - 1)
        self._send(status, headers, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])

    def _garbage(self, status: int, headers: list[Any], data: bytes) -> None:
        self._send(status, headers, b"\xff" * len(data))

    def _short(self, status: int, headers: list[Any], data: bytes) -> None:
        self.close_connection = True
        self._head(status, headers, len(data) - self.store.fault.number)
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


def client_of(url: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="chaos", aws_secret_access_key="chaos"
    )


@contextlib.contextmanager
def failing_store() -> Iterator[Store]:
    with moto_server() as url:
        store = Store(url)
        try:
            yield store
        finally:
            store.close()
