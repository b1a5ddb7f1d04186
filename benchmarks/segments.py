"""
Load whose heads and bodies come in two segments each, as Python's http.client sends them, and so boto3.

`python -m benchmarks.segments`: reads one JSON object (`port`, `heads`, `body`, `connections`, `secs`), prints what
load.lua prints. wrk cannot do this: it writes a request as a whole.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RECEIVED_BYTES = 65_536
_OK = b"HTTP/1.1 200"


class _Connection:
    """Asks, and asks again when it has its answer."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answer = b""
        self.asked = 0.0

    def ask(self, head: bytes, body: bytes) -> None:
        self._answer = b""
        self.asked = time.perf_counter()
        self.socket.sendall(head)
        self.socket.sendall(body)

    def answer(self) -> bytes:
        """The whole of it once it has come, else b"". Raises ConnectionError if there will be none."""
        got = self.socket.recv(_RECEIVED_BYTES)
        if not got:
            raise ConnectionError("The server has closed the connection.")
        self._answer += got
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        return self._answer if end and length and len(body) >= int(length[1]) else b""


def main(told: dict[str, Any]) -> None:
    heads, body = cycle(head.encode() for head in told["heads"]), told["body"].encode()
    connections = {one.socket.fileno(): one for one in (_Connection(told["port"]) for _ in range(told["connections"]))}
    poll = select.epoll()
    begun = time.perf_counter()
    for number, connection in connections.items():
        poll.register(number, select.EPOLLIN)
        connection.ask(next(heads), body)
    took_ms, bad = [], 0
    for connection, answer in _answers(poll, connections, begun + told["secs"]):
        took_ms.append((time.perf_counter() - connection.asked) * 1000)
        bad += not answer.startswith(_OK)
        connection.ask(next(heads), body)
    secs = time.perf_counter() - begun
    p50_ms, p99_ms = np.percentile(took_ms or [0.0], [50, 99])
    figures = {"requests": len(took_ms), "secs": secs, "p50_ms": p50_ms, "p99_ms": p99_ms, "bad": bad, "broken": 0}
    print(f"JSON {json.dumps(figures)}")


def _answers(
    poll: select.epoll, connections: dict[int, _Connection], until: float
) -> Iterator[tuple[_Connection, bytes]]:
    while time.perf_counter() < until:
        for number, _ in poll.poll(1):
            if answer := connections[number].answer():
                yield connections[number], answer


if __name__ == "__main__":
    main(json.load(sys.stdin))
