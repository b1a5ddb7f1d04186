"""The engines that route, as processes; and servers of a few lines behind them, which say who they are."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.server import Answer, free_port, request

from benchmarks import routers

_START_SECS = 120
Decide = Callable[[str, str], int]


class Stand:
    """
    What answers in the place of a Polyhost: its number, with the status that `decide` gives for a method and a path.

    A status of 0 closes the connection without an answer. `tls`: a folder with the certificate `tls.crt` and its key.
    """

    def __init__(self, number: int, tls: Path | None = None) -> None:
        self.number = number
        self._tls = tls
        self.is_ready = True
        self.decide: Decide = lambda _method, _path: 200
        self.asked: list[str] = []
        stand = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # an answer is one segment: the second of two would wait for the first one's acknowledgement

            def log_message(self, *_: object) -> None:
                pass

            def setup(self) -> None:
                super().setup()
                stand._connections.add(self.connection)

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.path == "/ready":
                    self.reply(200 if stand.is_ready else 503)
                    return
                stand.asked.append(self.path)
                stand.seen = dict(self.headers)
                status = stand.decide(self.command, self.path)
                if status:
                    self.reply(status)
                else:
                    self.close_connection = True

            def reply(self, status: int) -> None:
                body = str(stand.number).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = answer

        self.seen: dict[str, str] = {}
        self._connections: set[socket.socket] = set()
        self._handler = Handler
        self.port = free_port()
        self.start()

    def start(self) -> None:
        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass

        self._listener = Listener(("127.0.0.1", self.port), self._handler)
        if self._tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._tls / "tls.crt", self._tls / "tls.key")
            self._listener.socket = context.wrap_socket(
                self._listener.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def kill(self) -> None:
        """As a process that is killed: the socket and all connections close at once."""
        self._listener.shutdown()
        self._listener.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()


class Router(routers.Router):
    """One that is asked by tests."""

    def invoke(self, target: str, endpoint: str = "polyhost", body: bytes = b"1", **headers: str) -> Answer:
        sent = {"X-Amzn-SageMaker-Target-Model": target, **headers} if target else headers
        return self.request("POST", f"/endpoints/{endpoint}/invocations", body, sent)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        return request(self.port, method, path, body, headers)

    def home(self, target: str) -> str:
        answer = self.invoke(target)
        assert answer.status == 200, answer.text
        return answer.text


class SettledRouter(Router):
    """In front of stands: it waits until their answers show how many are asked."""

    def wait_for(self, count: int, secs: float = _START_SECS) -> None:
        """Envoy's statistics know it before its workers do: until the answers come from so many servers."""
        super().wait_for(count, secs)
        deadline = time.monotonic() + secs
        while True:
            answers = [self.invoke(f"probe-{number}") for number in range(20 * max(1, count))]
            if len({answer.text for answer in answers if answer.status == 200}) == count:
                return
            assert time.monotonic() < deadline, answers[:3]


def require(engine: str) -> None:
    """In CI an engine must be there."""
    if routers.installed(engine) is None and not os.environ.get("CI"):
        pytest.skip(f"{engine} is not installed: scripts/install-fleet does it")


def certify(folder: Path) -> Path:
    """A certificate of this machine's and its key, `tls.crt` and `tls.key`, in this folder."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=polyhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", folder / "tls.key",
         "-out", folder / "tls.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@contextlib.contextmanager
def stands(count: int, tls: Path | None = None) -> Iterator[list[Stand]]:
    made = [Stand(number, tls) for number in range(count)]
    try:
        yield made
    finally:
        for stand in made:
            stand.kill()
