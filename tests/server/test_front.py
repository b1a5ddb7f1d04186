"""Our HTTP front and a client that goes on sending what nobody wants."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Iterator
from typing import cast

import pytest
from polyhost.api import deadlines
from polyhost.api.connection import Connection
from polyhost.api.http import App, Reply
from polyhost.api.listener import Listener
from polyhost.http_limits import HttpLimits
from support.fronts import front
from support.tree import wait_until

HEAD = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 64000000\r\n\r\n"


@pytest.fixture
def client() -> Iterator[socket.socket]:
    """A connection to a front that refuses large bodies."""
    with front(lambda _: Reply(b"ok", 200, ())) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=120) as client:
            yield client


def send_for_ever(client: socket.socket) -> None:
    while True:
        client.sendall(bytes(65_536))


def test_what_follows_a_refused_body_is_no_request(client: socket.socket) -> None:
    """The body is dropped unread, and a request behind it too: nobody can say where it begins."""
    client.sendall(HEAD + b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n" * 1000)
    answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("limit", ["_LINGER_SECS", "_LINGER_SILENT_SECS"])
def test_a_client_is_not_read_from_for_ever(client: socket.socket, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that sends and sends, nor one that is silent and stays."""
    monkeypatch.setattr(deadlines, limit, 0.001)
    client.sendall(HEAD)
    assert client.makefile("rb").read().startswith(b"HTTP/1.1 413 ")
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_for_ever(client)


def test_a_request_before_a_refused_one_is_answered_first(client: socket.socket) -> None:
    """Both on one connection, one after the other."""
    client.sendall(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n12" + HEAD)
    answer = client.makefile("rb").read()
    assert answer.index(b"HTTP/1.1 200 ") < answer.index(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"GET / HTTP/1.1", b"keep-alive"),
        (b"GET / HTTP/1.1\r\nConnection: close", b"close"),
        (b"POST / HTTP/1.1\r\nConnection: Close\r\nContent-Length: 0", b"close"),
        (b"GET / HTTP/1.0", b"close"),
        (b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0", b"close"),
    ],
)
def test_what_becomes_of_a_connection_is_said_once(client: socket.socket, line: bytes, said: bytes) -> None:
    """With a body and without: never that it stays and that it closes."""
    client.sendall(line + b"\r\nHost: here\r\n\r\n")
    head = client.recv(65_536)
    assert [field for field in head.split(b"\r\n") if field.startswith(b"connection:")] == [b"connection: " + said]


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def ask(where: tuple[str, int]) -> bytes:
    with socket.create_connection(where, timeout=120) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
        return client.makefile("rb").read()


def test_clients_that_never_finish_hold_nobody_up_and_end() -> None:
    """500 of them, in the header and in the body: others are answered, and each of them in its time."""
    limits = HttpLimits(header_timeout_secs=4, body_timeout_secs=4)
    begun = (b"POST / HTTP/1.1\r\nA", b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n1")
    with front(lambda _: Reply(b"ok", 200, ()), limits) as url, contextlib.ExitStack() as opened:
        where = address(url)
        slow = []
        for number in range(500):
            slow.append(opened.enter_context(socket.create_connection(where, timeout=120)))
            slow[-1].sendall(begun[number % 2])
        assert all(ask(where).startswith(b"HTTP/1.1 200 ") for _ in range(20))
        assert {client.makefile("rb").read()[:13] for client in slow} == {b"HTTP/1.1 408 "}


def test_of_two_that_have_much_to_read_each_has_its_turn() -> None:
    """And what else the loop has to do comes between two turns."""
    order: list[str] = []

    class Much:
        def __init__(self, name: str, listener: Listener) -> None:
            self.name, self.listener, self.turns = name, listener, 3

        def take_turn(self) -> None:
            order.append(self.name)
            self.turns -= 1
            if self.turns:
                self.listener.wait_for_turn(cast("Connection", self))

    async def test() -> None:
        listener = Listener(cast("App", None))
        for name in "ab":
            listener.wait_for_turn(cast("Connection", Much(name, listener)))
        for _ in range(10):
            await asyncio.sleep(0)
            order.append("other")

    asyncio.run(test())
    assert [name for name in order if name != "other"] == ["a", "b"] * 3
    assert all("other" in pair for pair in itertools.pairwise(order))


def test_connections_have_a_limit() -> None:
    with front(lambda _: Reply(b"ok", 200, ()), HttpLimits(max_connections=3)) as url, contextlib.ExitStack() as opened:
        where = address(url)
        kept = [opened.enter_context(socket.create_connection(where, timeout=120)) for _ in range(3)]
        for client in kept:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        with socket.create_connection(where, timeout=120) as further:
            assert further.makefile("rb").read().startswith(b"HTTP/1.1 503 ")
        kept[0].sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert kept[0].makefile("rb").read().startswith(b"HTTP/1.1 200 ")
        # A client sees the end of its connection an instant before the server has counted it.
        wait_until(lambda: ask(where).startswith(b"HTTP/1.1 200 "), 60, "there is room again")


def test_a_header_in_tiny_segments_is_refused_at_its_limit(client: socket.socket) -> None:
    """What is sent behind the limit is not kept; the client may go on, for a while."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(b"GET / HTTP/1.1\r\nA: ")
    for _ in range(2000):
        client.send(b"a" * 40)
    assert client.makefile("rb").read().startswith(b"HTTP/1.1 431 ")
