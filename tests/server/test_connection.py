"""The HTTP protocol without sockets: each input whole, cut at every byte, and byte by byte."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhost.api import parsing
from polyhost.api.deadlines import End, Phase, end_of, expires_at
from polyhost.api.http import Reply, Request
from polyhost.api.parsing import ChunkedBody
from polyhost.http_limits import HttpLimits
from support.wire import App, Wire, reply_to

HEAD = b"POST /x HTTP/1.1\r\nHost: here\r\n"
NEXT = b"POST /smuggled HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


def segmentations(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]
    yield [data[n : n + 1] for n in range(len(data))]
    yield [data[n : n + 7] for n in range(0, len(data), 7)]


GOOD = {
    "a body": (HEAD + b"Content-Length: 5\r\n\r\n12345", [b"POST /x 12345"]),
    "no body": (HEAD + b"Content-Length: 0\r\n\r\n", [b"POST /x "]),
    "no length": (HEAD + b"\r\n", [b"POST /x "]),
    "spaces around a length": (HEAD + b"Content-Length: \t 2 \t\r\n\r\nhi", [b"POST /x hi"]),
    "a body that looks like a request": (
        HEAD + b"Content-Length: %d\r\n\r\n" % len(NEXT) + NEXT, [b"POST /x " + NEXT],
    ),
    "chunks": (CHUNKED + b"3\r\nabc\r\n2;a=b\r\nde\r\n0\r\n\r\n", [b"POST /x abcde"]),
    "chunks with empty lines in them": (CHUNKED + b"8\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", [b"POST /x \r\n\r\n\r\n\r\n"]),
    "chunks and a trailer": (CHUNKED + b"3\r\nabc\r\n0\r\nA: b\r\n\r\n" + NEXT, [b"POST /x abc", b"POST /smuggled hi"]),
    "chunks that look like the end": (CHUNKED + b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", [b"POST /x 0\r\n\r\n"]),
    "chunks in capitals": (
        HEAD + b"Transfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n", [b"POST /x 0123456789"],
    ),
    "pipelined": (NEXT * 3, [b"POST /smuggled hi"] * 3),
    "pipelined of both kinds": (
        NEXT + CHUNKED + b"1\r\na\r\n0\r\n\r\n" + NEXT, [b"POST /smuggled hi", b"POST /x a", b"POST /smuggled hi"],
    ),
    "an empty line too many": (NEXT + b"\r\n" + NEXT, [b"POST /smuggled hi"] * 2),
    "an upgrade": (HEAD + UPGRADE + b"Content-Length: %d\r\n\r\n" % len(NEXT) + NEXT, [b"POST /x " + NEXT]),
    "an upgrade with chunks": (
        HEAD + UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" + NEXT,
        [b"POST /x ab", b"POST /smuggled hi"],
    ),
    "an upgrade without a body": (
        b"GET /d HTTP/1.1\r\n" + UPGRADE + b"\r\n" + NEXT, [b"GET /d ", b"POST /smuggled hi"],
    ),
    "a proxy's form": (b"POST http://here:80/x?a=b HTTP/1.1\r\nContent-Length: 1\r\n\r\na", [b"POST /x a"]),
    "a proxy's form without a path": (b"GET http://here HTTP/1.1\r\n\r\n", [b"GET / "]),
    "a query": (b"GET /a?b=/c?d HTTP/1.1\r\n\r\n", [b"GET /a "]),
    "everything": (b"OPTIONS * HTTP/1.1\r\n\r\n", [b"OPTIONS * "]),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_a_request_is_the_same_however_it_comes(case: str) -> None:
    data, bodies = GOOD[case]
    for segments in segmentations(data):
        wire = Wire().send(*segments)
        assert wire.replies() == [(200, body) for body in bodies], segments


HOSTILE = {
    "two lengths": b"Content-Length: 2\r\nContent-Length: %d\r\n\r\nhi" % (2 + len(NEXT)),
    "a length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "a list of lengths": b"Content-Length: 2, 2\r\n\r\nhi",
    "length and chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "+2": b"Content-Length: +2\r\n\r\nhi",
    "-2": b"Content-Length: -2\r\n\r\nhi",
    "0x2": b"Content-Length: 0x2\r\n\r\nhi",
    "2_0": b"Content-Length: 2_0\r\n\r\nhi",
    "a digit of Latin-1": b"Content-Length: \xb2\r\n\r\nhi",
    "no digits": b"Content-Length: \r\n\r\nhi",
    "two numbers": b"Content-Length: 1 2\r\n\r\nhi",
    "2 to the 64th": b"Content-Length: 18446744073709551618\r\n\r\nhi",
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunks, but not last": b"Transfer-Encoding: chunked, gzip\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "a vertical tab": b"Transfer-Encoding:\x0bchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\nContent-Length: 2\r\n\r\nhi",
    "a folded field": b"A: b\r\n Content-Length: 99\r\nContent-Length: 2\r\n\r\nhi",
    "a folded coding": b"Transfer-Encoding:\r\n chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "a bare LF": b"A: b\nContent-Length: 50\r\nContent-Length: 2\r\n\r\nhi",
    "a bare CR": b"A: b\rContent-Length: 50\r\nContent-Length: 2\r\n\r\nhi",
    "LFs alone": b"Content-Length: 2\n\nhi",
    "NUL": b"A: a\0b\r\nContent-Length: 2\r\n\r\nhi",
    "a name that is none": b"\xc3\xa4: b\r\nContent-Length: 2\r\n\r\nhi",
    "no name": b": b\r\nContent-Length: 2\r\n\r\nhi",
    "two hosts": b"Host: evil\r\nContent-Length: 2\r\n\r\nhi",
    "two callers": b"Authorization: Bearer a\r\nauthorization: Bearer b\r\nContent-Length: 2\r\n\r\nhi",
    "two hosts, one small": b"host: evil\r\nContent-Length: 2\r\n\r\nhi",
    "a chunk's size 0x2": b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
    "a chunk's size -2": b"Transfer-Encoding: chunked\r\n\r\n-2\r\nhi\r\n0\r\n\r\n",
    "a chunk's size of 17 digits": b"Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\nhi",
    "a chunk longer than its size": b"Transfer-Encoding: chunked\r\n\r\n2\r\nhiXX0\r\n\r\n",
    "chunks with LFs alone": b"Transfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n",
    "an extension with LF": b"Transfer-Encoding: chunked\r\n\r\n2;a\nhi\r\n0\r\n\r\n",
    "a length in the trailer": b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nContent-Length: 5\r\n\r\n",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_could_be_read_in_two_ways_is_refused(case: str) -> None:
    """In one reply, and nothing of it or behind it reaches a model."""
    data = HEAD + HOSTILE[case] + NEXT
    for segments in segmentations(data):
        wire = Wire().send(*segments)
        [(status, body)] = wire.replies()
        assert status == 400, (segments, body)
        assert json.loads(body)["type"] == "BadRequestException"
        assert b"connection: close\r\n" in wire.transport.written
        assert wire.app.asked == []
        assert wire.transport.is_eof


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"POST / HTTP/2.0", 505),
        (b"POST / HTTP/0.9", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"OPTIONS * RTSP/1.0", 505),
        (b"POST / HTTP/9.9", 400),
        (b"CONNECT a:1 HTTP/1.1", 405),
        (b"FOO / HTTP/1.1", 400),
        (b"post / HTTP/1.1", 400),
        (b"GET ping HTTP/1.1", 400),
        (b"GET /\xff HTTP/1.1", 400),
        (b"GET /\0 HTTP/1.1", 400),
        (b"GET /ping#part HTTP/1.1", 400),
        (b"GET /models?limit=1#part HTTP/1.1", 400),
        (b"GET http://here/ping?a#part HTTP/1.1", 400),
        (b"OPTIONS *x HTTP/1.1", 400),
        (b"OPTIONS *?x HTTP/1.1", 400),
        (b"GET http://[::1/x HTTP/1.1", 400),
        (b"GET http://a:99999/x HTTP/1.1", 400),
        (b"GET /", 505),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: identity, chunked", 501),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: a miracle", 417),
        (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: a miracle\r\nExpect: 100-continue", 417),
        (b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03", 400),
    ],
)
def test_another_protocol_is_refused_in_words(line: bytes, status: int) -> None:
    for segments in segmentations(line + b"\r\n\r\n" + NEXT):
        wire = Wire().send(*segments)
        assert [reply[0] for reply in wire.replies()] == [status], segments
        assert wire.app.asked == []


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Some requests behind each other, with some bytes of them changed, cut out or put in."""
    requests = st.sampled_from([*(data for data, _ in GOOD.values()), *(HEAD + data for data in HOSTILE.values())])
    stream = bytearray(b"".join(draw(st.lists(requests, min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(stream)))
        put_in = st.sampled_from([b"", b"\r", b"\n", b" ", b"\0", b",", b"0", b"9", b":", b"\r\n", NEXT]) | st.binary(
            max_size=3
        )
        stream[start : start + draw(st.integers(0, 3))] = draw(put_in)
    return bytes(stream)


@given(stream=streams(), cuts=st.lists(st.integers(0, 400), max_size=4).map(sorted))
def test_any_stream_has_one_reply_for_each_request(stream: bytes, cuts: list[int]) -> None:
    """And one more at the end if it was refused. It is the same however it is cut."""
    whole = Wire().send(stream)
    cut = Wire().send(*(stream[start:end] for start, end in zip([0, *cuts], [*cuts, None], strict=True)))
    statuses = [status for status, _ in whole.replies()]

    assert [body for status, body in whole.replies() if status == 200] == [
        reply_to(request).body for request in whole.app.asked
    ]
    assert all(status == 200 for status in statuses[:-1])
    assert statuses[-1:] in ([], [200]) or whole.transport.is_eof
    assert cut.app.asked == whole.app.asked
    assert [status for status, _ in cut.replies()] == statuses


SMALL = HttpLimits(max_request_line_bytes=100, max_header_bytes=1000, max_header_fields=10)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 80 + b" HTTP/1.1\r\n\r\n", 200),
        (b"GET /" + b"a" * 100 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /" + b"a" * 5000, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 900 + b"\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 1000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 5000, 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10 + b"\r\n", 200),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 11 + b"\r\n", 431),
    ],
)
def test_a_header_has_limits(data: bytes, status: int) -> None:
    for size in (len(data), 1, 50):
        wire = Wire(limits=SMALL).send(*(data[n : n + size] for n in range(0, len(data), size)))
        assert [reply[0] for reply in wire.replies(["GET"])] == [status], size


def test_a_connection_keeps_no_more_than_the_limit_of_a_header() -> None:
    wire = Wire(limits=SMALL).send(b"GET / HTTP/1.1\r\n")
    for _ in range(1000):
        wire.send(b"A: " + b"a" * 100)
        assert len(wire.connection._incoming.data) < 1200
    assert [status for status, _ in wire.replies()] == [431]


def test_a_body_that_is_too_large_is_not_read() -> None:
    length = HEAD + b"Content-Length: 100001\r\n\r\n"
    chunks = CHUNKED + (b"ffff\r\n" + bytes(0xFFFF) + b"\r\n") * 2
    many = CHUNKED + b"1\r\na\r\n" * 100_001
    for data in (length, length + bytes(100_001), chunks, many):
        for size in (len(data), 4096):
            wire = Wire().send(*(data[n : n + size] for n in range(0, len(data), size)), NEXT)
            assert wire.replies() == [(413, b"too large for /x")]
            assert wire.app.asked == []


def test_a_body_that_is_as_large_as_it_may_be() -> None:
    for data in (
        HEAD + b"Content-Length: 100000\r\n\r\n" + b"1" * 100_000,
        CHUNKED + b"186A0\r\n" + b"1" * 100_000 + b"\r\n0\r\n\r\n",
        CHUNKED + b"1\r\n1\r\n" * 100_000 + b"0\r\n\r\n",
    ):
        for size in (len(data), 1000, 5000, 3):
            wire = Wire().send(*(data[n : n + size] for n in range(0, len(data), size)))
            assert wire.replies() == [(200, b"POST /x " + b"1" * 100_000)]


def test_endless_chunk_extensions_and_trailers_end() -> None:
    for begin, piece in ((b"", b"1;" + b"a" * 50_000 + b"\r\na\r\n"), (b"1\r\n1\r\n0\r\n", b"A: b\r\n" * 1000)):
        wire = Wire().send(CHUNKED, begin)
        sent_bytes = 0
        while not wire.replies():
            wire.send(piece)
            sent_bytes += len(piece)
        assert [status for status, _ in wire.replies()] == [431]
        assert sent_bytes <= 64 * 1024 + 8 + len(piece)


@pytest.mark.parametrize("chunk", [b"1\r\na\r\n", b"20\r\n" + b"\r\n" * 16 + b"\r\n"])
def test_a_body_in_tiny_chunks_is_read_in_turns(chunk: bytes) -> None:
    """Each costs time: one segment may hold tens of thousands of them, and others wait meanwhile."""
    count = 250_000 // len(chunk)
    wire = Wire()
    wire.app.max_request_bytes = 1_000_000
    wire.send(CHUNKED)
    body = wire.connection._body
    assert isinstance(body, ChunkedBody)
    wire.connection.data_received(chunk * count)
    assert body.steps < 2000
    assert not wire.transport.is_reading_now
    assert wire.take_turns() > 20
    assert wire.transport.is_reading_now
    assert wire.send(b"0\r\n\r\n" + NEXT).replies()[1:] == [(200, b"POST /smuggled hi")]
    assert len(wire.app.asked[0].body) == count * int(chunk[: chunk.index(b"\r")], 16)


def test_requests_that_come_together_are_answered_in_turns() -> None:
    """Each is work, and one segment may hold thousands. Whatever else happens, the rest waits for its turn."""
    wire = Wire()
    wire.connection.data_received(NEXT * 2000)
    first = len(wire.app.asked)
    assert 0 < first < 10
    assert not wire.transport.is_reading_now
    wire.connection.data_received(NEXT)
    wire.connection.resume_writing()
    assert len(wire.app.asked) == first
    assert wire.take_turns() > 200
    assert wire.replies(["POST"] * 2001) == [(200, b"POST /smuggled hi")] * 2001
    assert wire.transport.is_reading_now


def test_a_body_that_waits_for_its_turn_ends_in_time() -> None:
    wire = Wire().send(CHUNKED)
    wire.connection.data_received(b"1\r\na\r\n" * 10_000)
    wire.later(61)
    assert wire.take_turns() == 1
    assert [status for status, _ in wire.replies()] == [408]
    assert wire.app.asked == []


# Expect


def test_a_client_that_asks_whether_to_send_is_told() -> None:
    expects = HEAD + b"Content-Length: 2\r\nExpect: 100-Continue\r\n\r\n"
    wire = Wire().send(expects)
    assert bytes(wire.transport.written) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert wire.send(b"hi").replies() == [(200, b"POST /x hi")]


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\nhi",
        HEAD + b"Content-Length: 0\r\nExpect: 100-continue\r\n\r\n",
        b"POST /x HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        HEAD + b"Content-Length: 100001\r\nExpect: 100-continue\r\n\r\n",
    ],
)
def test_nobody_is_told_to_send_what_has_come_or_is_refused(data: bytes) -> None:
    assert b" 100 " not in Wire().send(data).transport.written


# Order


def test_one_request_is_answered_at_a_time_and_reading_stops_behind_it() -> None:
    wire = Wire(App(answers_later=True)).send(NEXT * 5000)
    assert len(wire.app.asked) == 1
    assert not wire.transport.is_reading_now
    for _ in range(5000):
        assert len(wire.app.waiting) == 1
        wire.app.answer_next()
    assert wire.replies(["POST"] * 5000) == [(200, b"POST /smuggled hi")] * 5000
    assert wire.transport.is_reading_now


def test_replies_come_in_the_order_of_requests() -> None:
    wire = Wire(App(answers_later=True))
    for number in range(20):
        wire.send(b"POST /%d HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % number)
    for _ in range(20):
        wire.app.answer_next()
    assert [body for _, body in wire.replies()] == [b"POST /%d " % number for number in range(20)]


def test_a_request_is_answered_once() -> None:
    wire = Wire(App(answers_later=True)).send(NEXT)
    [done] = wire.app.waiting
    for _ in range(3):
        done(Reply(b"a", 200, ()))
    wire.send(NEXT)
    done(Reply(b"of the first", 200, ()))
    assert wire.replies() == [(200, b"a")]


def test_a_client_that_has_gone_is_not_answered() -> None:
    wire = Wire(App(answers_later=True)).send(NEXT)
    wire.connection.connection_lost(None)
    wire.app.answer_next()
    assert wire.replies() == []


def test_a_client_that_does_not_read_is_not_answered_on() -> None:
    """Or a pipeline of small requests would fill the memory with large answers."""
    wire = Wire()
    wire.connection.pause_writing()
    wire.send(*[NEXT] * 10_000)
    assert wire.app.asked == []
    assert not wire.transport.is_reading_now
    wire.connection.resume_writing()
    wire.take_turns()
    assert len(wire.app.asked) == wire.transport.written.count(b"HTTP/1.1 200") == 10_000
    assert wire.transport.is_reading_now


# The end of a connection


@pytest.mark.parametrize(
    ("data", "is_kept"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: foo, Close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
    ],
)
def test_a_connection_is_kept_where_the_client_can(data: bytes, is_kept: bool) -> None:
    wire = Wire().send(data)
    assert wire.transport.is_closed is not is_kept
    assert (b"connection: keep-alive" in wire.transport.written) is is_kept


def test_head_has_the_length_and_no_body() -> None:
    wire = Wire().send(b"HEAD /x HTTP/1.1\r\n\r\n" + NEXT)
    assert b"content-length: 8\r\n" in wire.transport.written
    assert wire.replies(["HEAD", "POST"]) == [(200, b""), (200, b"POST /smuggled hi")]


@pytest.mark.parametrize(("status", "sent"), [(204, 204), (304, 304), (100, 500), (101, 500), (0, 500), (1000, 500)])
def test_no_status_of_a_handler_makes_its_body_another_reply(status: int, sent: int) -> None:
    app = App(answers_later=True)
    wire = Wire(app).send(NEXT + NEXT)
    app.waiting.pop(0)(Reply(b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n", status, ()))
    app.waiting.pop(0)(Reply(b"second", 200, ()))
    assert [reply[0] for reply in wire.replies()] == [sent, 200]


def test_a_connection_too_many_is_told_so() -> None:
    wire = Wire(is_full=True)
    [(status, body)] = wire.replies()
    assert status == 503
    assert b"--max-connections" in body
    assert wire.transport.is_closed
    assert wire.send(NEXT).app.asked == []


# Time

LIMITS = HttpLimits(keep_alive_secs=75, header_timeout_secs=20, body_timeout_secs=60)


@pytest.mark.parametrize(
    ("phase", "since", "last_data_at", "stopping_since", "expected"),
    [
        (Phase.IDLE, 10, 10, None, 85),
        (Phase.CLOSING, 10, 10, None, 85),
        (Phase.HEAD, 10, 29, None, 30),
        (Phase.BODY, 10, 69, None, 70),
        (Phase.BODY, 10, 20, 20, 20.5),
        (Phase.BODY, 10, 20, 40, 20.5),
        (Phase.BODY, 10, 41.9, 40, 42),
        (Phase.BODY, 10, 69.9, 69.8, 70),
        (Phase.LINGERING, 10, 12, None, 17),
        (Phase.LINGERING, 10, 39, None, 40),
        (Phase.ANSWERING, 10, 10, None, None),
        (Phase.ANSWERING, 10, 10, 10, None),
    ],
)
def test_each_phase_has_its_time(
    phase: Phase, since: float, last_data_at: float, stopping_since: float | None, expected: float | None
) -> None:
    assert expires_at(phase, since, last_data_at, LIMITS, stopping_since=stopping_since) == expected


@pytest.mark.parametrize(
    ("phase", "is_over", "expected"),
    [(Phase.CLOSING, True, 10.2), (Phase.CLOSING, False, 85), (Phase.IDLE, True, 85), (Phase.LINGERING, True, 15)],
)
def test_a_client_of_tls_says_goodbye_in_little_time(phase: Phase, is_over: bool, expected: float) -> None:
    assert expires_at(phase, 10, 10, LIMITS, stopping_since=None, is_over=is_over) == expected


@pytest.mark.parametrize(
    ("phase", "is_stuck", "is_stopping", "expected"),
    [
        (Phase.IDLE, False, False, End.CLOSE),
        (Phase.IDLE, True, False, End.ABORT),
        (Phase.HEAD, False, False, End.REFUSE),
        (Phase.HEAD, True, False, End.REFUSE),
        (Phase.HEAD, False, True, End.CLOSE),
        (Phase.BODY, False, False, End.REFUSE),
        (Phase.BODY, False, True, End.CLOSE),
        (Phase.BODY, True, True, End.ABORT),
        (Phase.CLOSING, False, False, End.CLOSE),
        (Phase.CLOSING, True, False, End.ABORT),
        (Phase.LINGERING, False, False, End.CLOSE),
        (Phase.LINGERING, True, True, End.ABORT),
    ],
)
def test_what_a_connection_comes_to(phase: Phase, is_stuck: bool, is_stopping: bool, expected: End) -> None:
    assert end_of(phase, is_stuck=is_stuck, is_stopping=is_stopping) is expected


def test_a_header_is_read_to_its_limit() -> None:
    """Reading was paused where a request line and a header just under its limit had 64 KiB together."""
    wire = Wire().send(b"GET / HTTP/1.1\r\nA: " + b"a" * 65520)
    assert wire.transport.is_reading_now
    assert [status for status, _ in wire.send(b"a" * 100).replies()] == [431]


def test_a_client_that_goes_before_its_answer_is_told_of_once() -> None:
    wire = Wire(App(answers_later=True)).send(NEXT)
    wire.connection.connection_lost(None)
    assert len(wire.app.left) == 1
    wire.app.answer_next()
    assert wire.replies() == []

    answered = Wire(App(answers_later=True)).send(NEXT)
    answered.app.answer_next()
    answered.connection.connection_lost(None)
    assert answered.app.left == []


class FirstAtOnce(App):
    """Answers its first request at once, and the others later."""

    def answer(self, request: Request, done: Callable[[Reply], None]) -> Callable[[], None]:
        self._answers_later = bool(self.asked)
        return super().answer(request, done)


def test_the_next_request_is_told_of_its_client_too() -> None:
    """It came in one piece with the end of the body before, and so was begun while that was being answered."""
    wire = Wire(FirstAtOnce()).send(HEAD + b"Content-Length: 2\r\n\r\nh", b"i" + NEXT)
    wire.connection.connection_lost(None)
    assert [request.path for request in wire.app.left] == ["/smuggled"]


@given(
    st.text("\r\na", max_size=12).map(str.encode), st.integers(0, 12), st.integers(0, 16),
)  # fmt: skip
def test_line_feeds_alone_are_found_as_a_regular_expression_finds_them(data: bytes, begin: int, end: int) -> None:
    """Without the time that it takes, which others waited for: a millisecond for each 256 KB of a header."""
    begin = min(begin, len(data))
    assert parsing._has_bare_line_feed(data, begin, end) == any(
        begin <= found.start() < end for found in re.finditer(rb"(?<!\r)\n", data)
    )


def test_what_lies_behind_the_longest_header_is_not_looked_at() -> None:
    most = LIMITS.max_request_line_bytes + LIMITS.max_header_bytes
    [(status, _)] = Wire(limits=LIMITS).send((b"GET / HTTP/1.1\r\nA: " + bytes(most)) + b"\n").replies()
    assert status == 431


def test_a_header_that_dribbles_ends_in_time() -> None:
    wire = Wire(limits=LIMITS).send(b"GET / HTTP/1.1\r\n")
    for _ in range(19):
        wire.send(b"A")
        wire.later(1)
        assert wire.replies() == []
    wire.later(1)
    [(status, body)] = wire.replies()
    assert (status, json.loads(body)["type"]) == (408, "RequestTimeoutException")
    assert wire.send(b": b\r\n\r\n").app.asked == []


@pytest.mark.parametrize("begun", [HEAD + b"Content-Length: 1000\r\n\r\n", CHUNKED + b"fff\r\n"])
def test_a_body_that_dribbles_ends_in_time(begun: bytes) -> None:
    wire = Wire(limits=LIMITS).send(begun)
    for _ in range(59):
        wire.send(b"1")
        wire.later(1)
        assert wire.replies() == []
    wire.later(1)
    assert [status for status, _ in wire.replies()] == [408]


def test_an_idle_connection_ends_and_a_busy_one_does_not() -> None:
    wire = Wire(App(answers_later=True), LIMITS)
    wire.later(74)
    wire.send(NEXT)
    wire.later(1000)
    assert not wire.transport.is_closed
    wire.app.answer_next()
    wire.later(74)
    assert not wire.transport.is_closed
    wire.later(1)
    assert wire.transport.is_closed
    assert not wire.transport.is_aborted


def test_a_client_that_never_reads_its_answer_is_let_go() -> None:
    wire = Wire(limits=LIMITS).send(NEXT)
    wire.transport.unsent_bytes = 1000
    wire.later(75)
    assert wire.transport.is_aborted


# Stopping


def test_what_has_not_come_whole_is_not_waited_for() -> None:
    for begun in (b"", b"POST / HT", NEXT):
        wire = Wire().send(begun)
        wire.connection.end_soon()
        assert wire.transport.is_closed
    wire = Wire().send(HEAD + b"Content-Length: 5\r\n\r\n12")
    wire.shared.stopping_since = wire.shared.now
    wire.connection.end_soon()
    assert not wire.transport.is_closed
    wire.later(0.4)
    wire.send(b"345")
    assert wire.replies() == [(200, b"POST /x 12345")]
    assert wire.transport.is_closed


def test_a_body_that_never_comes_does_not_hold_a_stop() -> None:
    wire = Wire().send(HEAD + b"Content-Length: 5\r\n\r\n12")
    wire.shared.stopping_since = wire.shared.now
    wire.later(0.6)
    assert wire.transport.is_closed


def test_a_body_that_had_stopped_coming_is_not_waited_for_at_all() -> None:
    wire = Wire().send(HEAD + b"Content-Length: 5\r\n\r\n12")
    wire.later(1)
    wire.shared.stopping_since = wire.shared.now
    wire.connection.end_soon()
    assert wire.transport.is_closed


def test_a_body_that_dribbles_does_not_hold_a_stop() -> None:
    wire = Wire().send(HEAD + b"Content-Length: 1000\r\n\r\n12")
    wire.shared.stopping_since = wire.shared.now
    wire.connection.end_soon()
    for _ in range(5):
        assert not wire.transport.is_closed
        wire.later(0.45)
        wire.send(b"1")
    assert wire.transport.is_closed
