"""A bucket over real HTTP that fails as buckets do."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit


class FaultyBucket:
    """
    Serves `objects` (paths `/bucket/key`) to HEAD and GET.

    The next requests meet `faults`, one each, the following ones `last_fault`: a status (`"503"`); in the middle of
    a body `"reset"` (a TCP reset), `"cut"` (the connection ends) or `"hang"` (nothing more until `resume` is set);
    `"mute"`: nothing at all until then. Requests for `muted` paths meet that each time.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: deque[str] = deque()
        self.last_fault = ""
        self.muted: set[str] = set()
        self.requests: list[str] = []
        self.is_halfway = threading.Event()
        self.resume = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(poll_interval=0.02))
        self._thread.start()

    def stop(self) -> None:
        self.resume.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def next_fault(self, method: str) -> str:
        if self.faults:
            return self.faults.popleft()
        # Half of a HEAD's body is no fault.
        return "" if method == "HEAD" and not self.last_fault.isdigit() else self.last_fault


class _Handler(BaseHTTPRequestHandler):
    bucket: ClassVar[FaultyBucket]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def _serve(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.bucket.requests.append(f"{self.command} {path}")
        fault = "mute" if path in self.bucket.muted else self.bucket.next_fault(self.command)
        data = self.bucket.objects.get(path)
        etag = f'"{hashlib.md5(data or b"").hexdigest()}"'
        if fault == "mute":
            self.bucket.resume.wait()
            self.close_connection = True
        elif fault.isdigit():
            self._answer(int(fault), b"", etag, with_body)
        elif data is None:
            self._answer(404, b"", etag, with_body)
        elif self.headers.get("If-Match", etag) != etag:
            self._answer(412, b"", etag, with_body)
        elif fault:
            self._answer_half(fault, data, etag)
        else:
            self._answer(200, data, etag, with_body)

    def _answer(self, status: int, data: bytes, etag: str, with_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", etag)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def _answer_half(self, fault: str, data: bytes, etag: str) -> None:
        self._answer(200, data, etag, with_body=False)
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        self.bucket.is_halfway.set()
        self.close_connection = True
        if fault == "hang":
            self.bucket.resume.wait()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: Any) -> None: ...


@contextlib.contextmanager
def faulty_bucket() -> Iterator[FaultyBucket]:
    bucket = FaultyBucket()
    try:
        yield bucket
    finally:
        bucket.stop()
