"""Frames between front and worker: whatever way the bytes are cut, and whatever a broken worker writes."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost.engine.native.messages import Predict, ToWorker, parts_of, with_body
from polyhost.engine.protocol import Item
from polyhost.framing import MAX_FRAME_BYTES, BrokenFrame, Deframer, FrameTooLong, Inbox, frame
from support.forms import examples


class Message(msgspec.Struct, array_like=True):
    number: int
    body: bytes


MESSAGES = st.lists(st.builds(Message, st.integers(0, 2**63), st.binary(max_size=300)), max_size=8)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(bounds)]


def deframed(pieces: list[bytes]) -> list[Message]:
    deframer = Deframer(Message)
    return [message for piece in pieces for message in deframer.feed(piece)]


@settings(max_examples=examples(50))
@given(MESSAGES, st.lists(st.integers(0, 3000), max_size=12))
def test_messages_cut_anywhere_are_the_messages(messages: list[Message], places: list[int]) -> None:
    data = b"".join(map(bytes, map(frame, messages)))

    assert deframed(cut(data, places)) == messages
    assert deframed([data[at : at + 1] for at in range(len(data))]) == messages


@settings(max_examples=examples(50))
@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_are_messages_or_a_broken_frame(data: bytes, places: list[int]) -> None:
    """Cut or whole: the same messages, and the same end."""

    def outcome(pieces: list[bytes]) -> tuple[list[Message], bool]:
        seen: list[Message] = []
        try:
            deframer = Deframer(Message)
            for piece in pieces:
                seen.extend(deframer.feed(piece))
        except BrokenFrame:
            return seen, True
        return seen, False

    assert outcome(cut(data, places)) == outcome([data])


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, 2**31, 2**32 - 1])
def test_a_hostile_length_is_refused_before_anything_is_kept(length: int) -> None:
    with pytest.raises(BrokenFrame, match=f"a frame of {length} bytes"):
        deframed([struct.pack("<I", length)])


def test_a_large_frame_in_small_pieces_costs_linear_time() -> None:
    """10 MB in pieces of 1 kB: were each piece to copy all before it, 50 GB would be moved."""
    message = Message(1, bytes(10_000_000))
    data = bytes(frame(message))
    begun = time.process_time()

    assert deframed([data[at : at + 1000] for at in range(0, len(data), 1000)]) == [message]
    assert time.process_time() - begun < 2


def test_many_messages_in_one_piece_cost_linear_time() -> None:
    message = Message(1, b"x")
    begun = time.process_time()

    assert len(deframed([bytes(frame(message)) * 100_000])) == 100_000
    assert time.process_time() - begun < 2


@contextlib.contextmanager
def sent(pieces: Iterable[bytes]) -> Iterator[socket.socket]:
    """The other end of a socket to which they are written, one after the other, and which is closed then."""
    front, worker = socket.socketpair()

    def send() -> None:
        with front:
            for piece in pieces:
                front.sendall(piece)

    thread = threading.Thread(target=send)
    with worker:
        thread.start()
        yield worker
        thread.join()


def received_by_a_worker(pieces: Iterable[bytes]) -> list[Any]:
    with sent(pieces) as worker:
        return list(Inbox(worker, Message))


# About the size of a worker's buffer, and beyond.
SIZES = st.sampled_from([0, 10, 60_000, 65_520, 65_536, 200_000])


@settings(max_examples=examples(30))
@given(
    st.lists(st.builds(Message, st.integers(0, 9), SIZES.map(bytes)), max_size=5),
    st.lists(st.integers(0, 300_000), max_size=5),
)
def test_a_worker_receives_what_was_sent(messages: list[Message], places: list[int]) -> None:
    """Sizes about its buffer's: those are read in a piece of their own."""
    data = b"".join(map(bytes, map(frame, messages)))

    assert received_by_a_worker(cut(data, places)) == messages


def test_a_frame_has_the_limit_that_holds_when_it_begins() -> None:
    limits = iter([9, 19, 18])
    deframer = Deframer(Message, lambda: next(limits))
    seen: list[Message] = []
    data = b"".join(bytes(frame(Message(1, bytes(length)))) for length in (5, 15, 15))
    with pytest.raises(FrameTooLong) as caught:
        seen += list(deframer.feed(data[: len(data) - 15]))
    assert caught.value.length_bytes == 19


def calls_of(inbox: Inbox) -> Iterator[Predict]:
    """As a worker has them."""
    for call in inbox:
        body = bytearray(call.body_bytes)
        inbox.read_into(body)
        yield with_body(call, body) if body else call


@pytest.mark.parametrize("behind", [(), (900.5,), (None, True), (1e300, True)])
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 5_000_000])
def test_a_large_body_follows_its_frame(size: int, behind: tuple[Any, ...]) -> None:
    """Uncopied, and nothing else that is said of the request is lost."""
    body = random.Random(size).randbytes(size)
    call = Predict(1, 2, [Item("id", {"content-type": "text/csv"}, "a=b", body, *behind)])
    assert any(part is body for part in parts_of(call)) == (size >= 65_536)
    with sent(parts_of(call) * 2) as worker:
        assert list(calls_of(Inbox(worker, ToWorker))) == [call] * 2


@settings(max_examples=examples(30))
@given(
    st.lists(st.sampled_from([0, 10, 65_535, 65_536, 65_537, 131_072, 200_000]), max_size=5),
    st.lists(st.integers(0, 800_000), max_size=6),
)
def test_calls_cut_anywhere_are_the_calls(sizes: list[int], places: list[int]) -> None:
    calls = [Predict(at, 2, [Item("id", {}, "", random.Random(at).randbytes(size))]) for at, size in enumerate(sizes)]
    data = b"".join(part for call in calls for part in parts_of(call))
    with sent(cut(data, places)) as worker:
        assert list(calls_of(Inbox(worker, ToWorker))) == calls


@pytest.mark.parametrize("missing", [1, 65_536, 199_999])
def test_a_front_that_ends_in_the_middle_of_a_body_is_an_error(missing: int) -> None:
    data = b"".join(parts_of(Predict(1, 2, [Item("id", {}, "", bytes(200_000))])))
    with sent([data[:-missing]]) as worker, pytest.raises(ConnectionResetError):
        list(calls_of(Inbox(worker, ToWorker)))


def test_an_inbox_knows_whether_the_next_message_is_there() -> None:
    """Also behind a body, whose bytes are no message."""
    small, large = Predict(1, 2, [Item("id", {}, "", b"a")]), Predict(2, 2, [Item("id", {}, "", bytes(100_000))])
    front, worker = socket.socketpair()
    with front, worker:
        front.sendall(b"".join((*parts_of(small), *parts_of(small))))
        inbox = Inbox(worker, ToWorker)
        calls = calls_of(inbox)
        assert [(next(calls), inbox.has_next) for _ in range(2)] == [(small, True), (small, False)]
        front.sendall(b"".join(parts_of(large)))
        assert (next(calls), inbox.has_next) == (large, False)


def test_a_batch_is_written_as_one_frame() -> None:
    call = Predict(1, 2, [Item("id", {}, "", bytes(100_000))] * 2)
    (whole,) = parts_of(call)
    with sent([whole]) as worker:
        assert list(calls_of(Inbox(worker, ToWorker))) == [call]
