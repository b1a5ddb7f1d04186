"""The memory in which large bodies are received: it serves one after the other, and none sees another's bytes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost.api.buffers import Buffers
from support.forms import examples
from support.wire import App, Wire

LARGE = 256 * 1024
# How long bodies are: small ones, those about the limit, and larger ones.
SIZES = st.sampled_from([1, 1000, LARGE - 1, LARGE, LARGE + 1, 2 * LARGE, 400_000, 999_999])


def body_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def received(buffers: Buffers, body: bytes) -> bytes:
    buffer = buffers.take()
    for at in range(0, len(body), 100_000):
        buffer.write(body[at : at + 100_000])
    return buffers.body_in(buffer)


@settings(max_examples=examples(25))
@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=12))
def test_a_body_stays_as_it_came_whatever_comes_later(bodies: list[tuple[int, bool]]) -> None:
    """Longer or shorter, and whether somebody still has it (`is_held`) or not."""
    buffers = Buffers()
    held = []
    for size, is_held in bodies:
        body = received(buffers, body_of(size))
        assert body == body_of(size)
        if is_held:
            held.append(body)
        del body
    assert all(body == body_of(len(body)) for body in held)


def test_a_buffer_serves_again_when_nobody_has_its_body() -> None:
    buffers = Buffers()
    first = buffers.take()
    first.write(bytes(LARGE))
    body = buffers.body_in(first)

    second = buffers.take()
    assert second is not first
    del body
    assert buffers.take() is first


def test_a_body_is_no_copy() -> None:
    """Of the same memory, written to twice: it lies where it lay."""
    buffers = Buffers()
    places = set()
    for _ in range(3):
        body = received(buffers, bytes(LARGE))
        places.add(id(body))
        del body
    assert len(places) == 1


def kept_bytes(buffers: Buffers) -> int:
    return sum(len(body) for _, body in buffers._kept)


def test_no_more_is_kept_than_a_few_bodies() -> None:
    buffers = Buffers()
    held = [received(buffers, bytes(10 * 1024**2)) for _ in range(5)]
    assert kept_bytes(buffers) == 30 * 1024**2
    held.append(received(buffers, bytes(40 * 1024**2)))
    assert kept_bytes(buffers) == 0


def test_what_no_body_needs_is_given_back() -> None:
    buffers = Buffers()
    received(buffers, bytes(LARGE))
    buffers.look()  # one has come since the look before
    assert kept_bytes(buffers) == LARGE
    buffers.look()
    assert kept_bytes(buffers) == 0


# Over a connection


def wire() -> Wire:
    app = App()
    app.max_request_bytes = 1_000_000
    return Wire(app)


def request(body: bytes) -> bytes:
    return b"POST /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def chunked(body: bytes) -> bytes:
    return b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("step", [3_000, 65_536, 262_144, 2_000_000])
def test_bodies_about_the_limit_come_whole(step: int) -> None:
    """One behind the other on a connection, of known length and in chunks, however they are cut."""
    sizes = [999_999, LARGE - 1, LARGE, LARGE + 1, 1, 600_000, LARGE + 1]
    data = b"".join(write(body_of(size)) for size in sizes for write in (request, chunked))
    one = wire().send(*(data[at : at + step] for at in range(0, len(data), step)))

    assert [asked.body for asked in one.app.asked] == [body_of(size) for size in sizes for _ in range(2)]


@pytest.mark.parametrize("come", [0, 1, 100_000, 599_999])
def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(come: int) -> None:
    one = wire().send(request(body_of(999_999)))
    one.app.asked.clear()
    data = request(body_of(600_000))
    one.send(data[: len(data) - 600_000], data[len(data) - 600_000 :][:come])
    one.connection.connection_lost(None)
    assert one.app.asked == []

    another = wire()
    another.connection._shared.buffers = one.shared.buffers  # type: ignore[misc]
    another.send(request(body_of(700_000))[:-1], body_of(700_000)[-1:])
    assert [asked.body for asked in another.app.asked] == [body_of(700_000)]


def test_a_body_that_does_not_come_takes_nothing() -> None:
    """However long it was said to be."""
    one = wire()
    received(one.shared.buffers, bytes(LARGE))
    one.send(request(bytes(900_000))[:-900_000])
    assert kept_bytes(one.shared.buffers) == LARGE
