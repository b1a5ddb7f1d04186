"""Clients that speak HTTP badly, on sockets of their own. All of them end by themselves."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Iterator

from chaos.oracle import Call


def request_of(call: Call, *more: str, length: str | None = None) -> bytes:
    """A request as bytes; `length`: what it says of its body, if that is not the truth. `more`: fields, as lines."""
    fields = [*(f"{name}: {value}" for name, value in call.headers.items()), *more]
    lines = [f"POST {call.path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length or len(call.body)}", *fields]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + call.body


@contextlib.contextmanager
def connected(port: int, timeout_secs: float = 60) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout_secs) as connection:
        yield connection


def vanish(port: int, data: bytes) -> None:
    """Send and reset the connection, without a look at the answer."""
    with contextlib.suppress(OSError), connected(port) as connection:
        connection.sendall(data)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def exchange(port: int, data: bytes, answers: int = 1, secs: float = 30) -> list[tuple[int, bytes]]:
    """
    Send in one segment, and read until so many answers have come, the connection ends, or time is over.

    More answers than that are looked for, too, for a quarter of a second.
    """
    with contextlib.suppress(OSError), connected(port, secs) as connection:
        with contextlib.suppress(OSError):  # it may be refused before all of it is sent
            connection.sendall(data)
        return _read(connection, answers, time.monotonic() + secs)
    return []


def _read(connection: socket.socket, answers: int, deadline: float) -> list[tuple[int, bytes]]:
    received = b""
    while True:
        got = parsed(received)
        left = min(deadline - time.monotonic(), 0.25) if len(got) >= answers else deadline - time.monotonic()
        if left <= 0:
            return got
        connection.settimeout(left)
        try:
            data = connection.recv(65_536)
        except OSError:
            return got
        if not data:
            return got
        received += data


def parsed(received: bytes) -> list[tuple[int, bytes]]:
    """The whole answers at the beginning of what was received: status and body. A 100 is none."""
    found = []
    while (end := received.find(b"\r\n\r\n")) >= 0:
        head, rest = received[:end], received[end + 4 :]
        status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
        if status is None:
            break
        if status[1] == b"100":
            received = rest
            continue
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            break
        found.append((int(status[1]), rest[:size]))
        received = rest[size:]
    return found


def dribble(port: int, data: bytes, connections: int, secs: float) -> None:
    """Many connections that send a byte each now and then, and never come to an end."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connected(port)) for _ in range(connections)]
        deadline = time.monotonic() + secs
        for place in range(len(data) - 1):
            if time.monotonic() > deadline:
                return
            for connection in sockets:
                with contextlib.suppress(OSError):
                    connection.sendall(data[place : place + 1])
            time.sleep(0.05)
