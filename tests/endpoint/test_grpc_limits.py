"""gRPC's port and clients that mean harm: it has the limits of HTTP's."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from polyhost.api.open_inference.grpc_messages import CLASSES, SERVICE
from support.server import Process, free_port
from support.tree import wait_until

LIVE = f"/{SERVICE}/ServerLive"
MIB = 1024**2
# The port alone, where anybody may call: nothing of these tests comes to a model.
SERVE = """
import asyncio, json, logging, sys
from types import SimpleNamespace
from polyhost.api.open_inference.grpc_server import Address, GrpcServer
from polyhost.http_limits import HttpLimits

logging.basicConfig(level=logging.INFO)
limits = HttpLimits(**json.loads(sys.argv[2]))
address = Address("127.0.0.1", int(sys.argv[1]), None)
api = SimpleNamespace(admit=lambda request: None)
asyncio.run(GrpcServer(api, address, max_request_bytes=6 * 1024**2, limits=limits, drain_secs=0.0).serve())
"""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_SETTINGS = struct.pack(">I", 0)[1:] + b"\4\0" + struct.pack(">I", 0)
MOST_STREAMS = 3


class Port:
    def __init__(self, **limits: Any) -> None:
        self.number = free_port()
        self._process = Process([sys.executable, "-c", SERVE, str(self.number), json.dumps(limits)], os.environ)
        self._process.wait_for_line("ready for gRPC on")

    def stop(self) -> None:
        self._process.kill_tree()

    def channel(self, **options: Any) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.number}", **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.number), timeout=60)

    def peak_mib(self) -> int:
        """What it has had of memory at most."""
        told = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self._process.pid}/status").read_text())
        assert told is not None
        return int(told[1]) // 1024


StartPort = Callable[..., Port]


@pytest.fixture
def start_port() -> Iterator[StartPort]:
    ports: list[Port] = []

    def start_one(**limits: Any) -> Port:
        ports.append(Port(**limits))
        return ports[-1]

    yield start_one
    for port in ports:
        port.stop()


def is_live(channel: grpc.Channel) -> bool:
    """False where it has no room for one more call."""
    try:
        answer = channel.unary_unary(LIVE)(b"", timeout=60, wait_for_ready=True)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:  # type: ignore[attr-defined]
            return False
        raise
    return bool(CLASSES["ServerLiveResponse"].FromString(answer).live)


def read_settings(connection: socket.socket) -> dict[int, int]:
    """Of a server's first frame."""
    stream = connection.makefile("rb")
    head = stream.read(9)
    assert head[3] == 4
    content = stream.read(int.from_bytes(head[:3], "big"))
    return dict(struct.unpack_from(">HI", content, at) for at in range(0, len(content), 6))


def read_to_the_end(connection: socket.socket) -> None:
    """Until the server has closed it."""
    while connection.recv(65536):
        pass


def test_a_small_message_does_not_become_a_large_one(start_port: StartPort) -> None:
    """It is compressed to a thousandth of its length, and not unpacked beyond the limit."""
    port = start_port()
    with port.channel(compression=grpc.Compression.Gzip) as channel, port.channel() as plain:
        assert is_live(plain)
        before = port.peak_mib()
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(LIVE)(bytes(128 * MIB), timeout=60)
        error: Any = refused.value
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in error.details()
        assert port.peak_mib() - before < 64
        assert is_live(plain)


def test_calls_whose_message_never_comes_keep_no_place(start_port: StartPort) -> None:
    """They end in the time of a body; then others are answered, though there is room for two calls only."""
    port = start_port(max_connections=2, body_timeout_secs=0.5)
    is_over = threading.Event()

    def nothing() -> Iterator[bytes]:
        is_over.wait(60)
        yield from ()

    with port.channel() as channel:
        try:
            held = [channel.stream_unary(LIVE).future(nothing(), timeout=60) for _ in range(2)]
            for one in held:
                assert one.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert "did not come within 0.5 s" in one.details()
            wait_until(lambda: is_live(channel), 60, "there is room again")
        finally:
            is_over.set()


def test_a_call_that_ends_without_a_message_is_answered(start_port: StartPort) -> None:
    with start_port().channel() as channel:
        refused = channel.stream_unary(LIVE).future(iter(()), timeout=60)
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "has no message" in refused.details()


@pytest.mark.parametrize(
    ("limit", "first"), [("header_timeout_secs", b""), ("keep_alive_secs", PREFACE + NO_SETTINGS)]
)  # fmt: skip
def test_connections_without_calls_end(start_port: StartPort, limit: str, first: bytes) -> None:
    with start_port(**{limit: 0.5}).connect() as connection:
        connection.sendall(first)
        read_to_the_end(connection)


def test_connections_and_the_calls_of_each_have_a_limit(start_port: StartPort) -> None:
    port = start_port(max_connections=2)
    with port.connect() as first, port.connect() as second, port.connect() as third:
        for held in (first, second):
            held.sendall(PREFACE + NO_SETTINGS)
            assert read_settings(held)[MOST_STREAMS] == 100
        read_to_the_end(third)
