"""Our HTTP front and a client that goes on sending what nobody wants."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from polyhost.api import http
from polyhost.api.http import Reply
from support.fronts import front

HEAD = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 64000000\r\n\r\n"


@pytest.fixture
def client() -> Iterator[socket.socket]:
    """A connection to a front that refuses large bodies."""
    with front(lambda _: Reply(b"ok", 200, ())) as url:
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            yield client


def send_for_ever(client: socket.socket) -> None:
    while True:
        client.sendall(bytes(65_536))


def test_what_follows_a_refused_body_is_no_request(client: socket.socket) -> None:
    """
    The body is dropped unread, and a request behind it too: nobody can say where it begins.
    """
    client.sendall(HEAD + b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n" * 1000)
    answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("limit", ["_LINGER_SECS", "_LINGER_SILENT_SECS"])
def test_a_client_is_not_read_from_for_ever(client: socket.socket, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Neither one that sends and sends, nor one that is silent and stays.
    """
    monkeypatch.setattr(http, limit, 0.001)
    client.sendall(HEAD)
    assert client.makefile("rb").read().startswith(b"HTTP/1.1 413 ")
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        send_for_ever(client)


def test_a_request_before_a_refused_one_is_answered_first(client: socket.socket) -> None:
    """
    Both on one connection, one after the other.
    """
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
    """
    On the short way and on the other: never that it stays and that it closes.
    """
    client.sendall(line + b"\r\nHost: here\r\n\r\n")
    head = client.recv(65_536)
    assert [field for field in head.split(b"\r\n") if field.startswith(b"connection:")] == [b"connection: " + said]
