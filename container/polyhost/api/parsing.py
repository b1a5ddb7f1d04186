"""
What a request's bytes mean: its head, and a body that comes in chunks.

httptools (llhttp, in its strict mode) parses. A head is given to it whole, so that each field comes in one piece,
and each request gets a parser of its own, so that nothing of one request can change what the next one means. Where a
body begins and ends is decided here and nowhere else.
"""

from __future__ import annotations

import io
import re
from typing import Any

import httptools

from polyhost.api.buffers import Buffers
from polyhost.engine.errors import EngineError
from polyhost.http_limits import HttpLimits

# The empty line behind it.
END_OF_HEAD = b"\r\n\r\n"
_CHUNKED_HEAD = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
# A method and a space, or the beginning of it.
_METHOD = re.compile(rb"[A-Z-]{1,32}(?: |\Z)")
# What another server may take the first of, and we the last. Of other fields that decide, httptools refuses two.
_ONCE = re.compile(rb"(?i)\n(?:host|authorization):")
# From here on a body is received in memory of its own pages.
_LARGE_BODY_BYTES = 256 * 1024
# Chunks of one byte take six: what takes more than this for a byte of the body are extensions and trailers.
_BYTES_A_CHUNKED_BYTE = 8
_MAX_CHUNKED_EXTRA_BYTES = 64 * 1024

# Fields whose lines together are one list, and which decide what becomes of a request.
_LISTS = ("connection", "expect", "transfer-encoding")

TYPES = {
    400: "BadRequestException",
    405: "MethodNotAllowedException",
    408: "RequestTimeoutException",
    414: "UriTooLongException",
    417: "ExpectationFailedException",
    431: "HeadersTooLargeException",
    501: "NotImplementedException",
    503: "ServiceUnavailableException",
    505: "VersionNotSupportedException",
}


class Refused(EngineError):
    """A request that no application sees. The connection ends with the answer."""

    advice = "The request breaks a rule or limit of HTTP, so its connection ends. Change what the text names."

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message, status)
        self.type = TYPES[status]


class BodyTooLong(Exception):
    """The body is over the limit."""


class Head:
    """
    What stands before a body; also what httptools calls.

    `length`: of the body; None if it comes in chunks. `closes`: whether the connection ends after this request.
    `expects`: whether the client waits for `100 Continue` before it sends the body.
    """

    url = b""
    method = ""
    path = ""
    query = ""
    length: int | None = 0
    closes = False
    expects = False

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        field, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if field in _LISTS and field in self.fields:
            text = f"{self.fields[field]}, {text}"
        self.fields[field] = text


def check_unfinished(data: bytes | bytearray, checked: int, limits: HttpLimits) -> None:
    """
    Raises Refused where no further byte could make a request of a head whose end has not come.

    Of `data`, the first `checked` bytes have been looked at before.
    """
    if not _METHOD.match(data):
        raise Refused(400, "The connection does not begin with an HTTP request: speak HTTP/1.1 to this port.")
    # What lies further behind is too long in any case: it need not be looked through.
    if _has_bare_line_feed(data, checked, limits.max_request_line_bytes + limits.max_header_bytes):
        raise _not_http("a line ends with LF alone")
    line_end = data.find(b"\r\n", 0, limits.max_request_line_bytes + 2)
    if line_end < 0:
        line_end = len(data)
    _check_size(line_end, len(data) - line_end, limits)


def _has_bare_line_feed(data: bytes | bytearray, begin: int, end: int) -> bool:
    """By counting, which takes a thirtieth of the time that a regular expression does."""
    line_feeds = data.count(b"\n", begin, end)
    return line_feeds > 0 and line_feeds != data.count(b"\r\n", max(0, begin - 1), end)


def read_head(data: bytes, limits: HttpLimits) -> Head:
    """`data` ends with the empty line. Raises Refused."""
    line_end = data.find(b"\r\n")
    if line_end > limits.max_request_line_bytes or len(data) > limits.max_header_bytes:
        _check_size(line_end, len(data) - line_end, limits)
    fields = data.count(b"\r\n") - 2
    if fields > limits.max_header_fields:
        raise Refused(
            431,
            f"The request has more than {limits.max_header_fields} header fields: send fewer, or raise "
            "--max-header-fields.",
        )
    head = Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # It need not be followed: the request is answered in the protocol in which it came.
    except httptools.HttpParserError as error:
        raise _not_http(str(error)) from error
    head.method = parser.get_method().decode()
    if data[line_end - 9 : line_end] != b" HTTP/1.1":
        _read_old_version(head, data[line_end - 9 : line_end])
    _read_target(head)
    if b" \r\n" in data or b"\t\r\n" in data:
        head.fields = {name: value.rstrip(" \t") for name, value in head.fields.items()}
    if len(head.fields) < fields:
        _refuse_doubled(data)
    if fields:
        _read_framing(head)
    return head


def _check_size(line_bytes: int, fields_bytes: int, limits: HttpLimits) -> None:
    if line_bytes > limits.max_request_line_bytes:
        raise Refused(
            414,
            f"The request line has more than {limits.max_request_line_bytes} bytes: send a shorter URL, or raise "
            "--max-request-line-bytes.",
        )
    if fields_bytes > limits.max_header_bytes:
        raise Refused(
            431,
            f"The header has more than {limits.max_header_bytes} bytes: send less in its fields, or raise "
            "--max-header-bytes.",
        )


def _refuse_doubled(data: bytes) -> None:
    names = [name.strip(b"\n:").decode().title() for name in _ONCE.findall(data)]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise _not_http(f"there is more than one {doubled}")


def _read_old_version(head: Head, version: bytes) -> None:
    if version != b" HTTP/1.0":
        raise Refused(505, "This server speaks HTTP/1.1 and HTTP/1.0: send the request in one of them.")
    head.closes = True
    if "transfer-encoding" in head.fields:
        raise _not_http("HTTP/1.0 has no Transfer-Encoding")


def _read_target(head: Head) -> None:
    target = head.url.decode("latin-1")
    if "#" in target:
        raise _not_http("there is a # in its URL, which must be written %23")
    if target[0] == "/" or target == "*":
        head.path, _, head.query = target.partition("?")
        return
    if head.method == "CONNECT":
        raise Refused(405, "This server is no proxy: it has no CONNECT.")
    if target[0] == "*":
        raise _not_http("the URL cannot be read")
    try:
        url = httptools.parse_url(head.url)
    except httptools.HttpParserInvalidURLError as error:
        raise _not_http("the URL cannot be read") from error
    head.path = (url.path or b"/").decode("latin-1")
    head.query = (url.query or b"").decode("latin-1")


def _read_framing(head: Head) -> None:
    fields = head.fields
    if "connection" in fields:
        tokens = fields["connection"].lower().split(",")
        head.closes = head.closes or any(token.strip() == "close" for token in tokens)
    if "content-length" in fields:
        head.length = int(fields["content-length"])  # httptools has checked that these are digits
    elif "transfer-encoding" in fields:
        if fields["transfer-encoding"].lower() != "chunked":
            raise Refused(501, "This server supports no Transfer-Encoding but chunked: send the body without another.")
        head.length = None
    if "expect" in fields:
        if fields["expect"].lower() != "100-continue":
            raise Refused(417, "This server supports no expectation but 100-continue: leave the field Expect out.")
        head.expects = not head.closes


def _not_http(reason: str) -> Refused:
    return Refused(400, f"The request is not valid HTTP/1.1 ({reason}), and was not carried out: mend the client.")


class SizedBody:
    """A body whose length was said, as its bytes come. Whoever says much and sends little takes little memory."""

    def __init__(self, length: int, buffers: Buffers) -> None:
        """`buffers`: for a large one."""
        self._missing = length
        self._buffers = buffers if length > _LARGE_BODY_BYTES else None
        self._buffer: io.BytesIO | None = None

    def feed(self, data: bytes) -> int | None:
        """How many bytes of `data` belong to the body, None if it goes on."""
        if self._buffer is None:
            self._buffer = self._buffers.take() if self._buffers else io.BytesIO()
        taken = data[: self._missing]
        self._buffer.write(taken)
        self._missing -= len(taken)
        return None if self._missing else len(taken)

    def whole(self) -> bytes:
        """When all of it has come. It is not kept here any more."""
        assert self._buffer is not None
        buffer, self._buffer = self._buffer, None
        return self._buffers.body_in(buffer) if self._buffers else buffer.getvalue()


class _Chunks:
    """What httptools calls."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.count = 0
        self.is_complete = False

    def on_body(self, data: bytes) -> None:
        self.body += data
        self.count += 1

    def on_message_complete(self) -> None:
        self.is_complete = True


class ChunkedBody:
    """A body in chunks, as its bytes come."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken_bytes = 0
        self._parsed = 0
        self._chunks = _Chunks()
        self._tail = b""
        self._parser: Any = httptools.HttpRequestParser(self._chunks)
        self._parser.feed_data(_CHUNKED_HEAD)

    def whole(self) -> bytes:
        """When all of it has come. It is not kept here any more."""
        body, self._chunks.body = bytes(self._chunks.body), bytearray()
        return body

    @property
    def steps(self) -> int:
        """How often something was done for it so far: for each chunk, and for each piece that the parser was given."""
        return self._chunks.count + self._parsed

    def feed(self, data: bytes) -> int | None:
        """
        How many bytes of `data` belong to the body, None if it goes on. Raises Refused, BodyTooLong.

        httptools does not tell where a body ends. But it ends behind an empty line, so the parser is given one
        piece for each of them.
        """
        start = 0
        seen, self._tail = self._tail, (self._tail + data[-3:])[-3:]
        for end in _ends_of_lines(seen, data):
            self._feed(data[start:end])
            start = end
            if self._chunks.is_complete:
                return end
        self._feed(data[start:])
        return None

    def _feed(self, piece: bytes) -> None:
        self._taken_bytes += len(piece)
        self._parsed += 1
        try:
            self._parser.feed_data(piece)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            raise _not_http(f"in the chunks of its body: {error}") from error
        if len(self._chunks.body) > self._max_bytes:
            raise BodyTooLong
        if self._taken_bytes > len(self._chunks.body) * _BYTES_A_CHUNKED_BYTE + _MAX_CHUNKED_EXTRA_BYTES:
            raise Refused(
                431,
                f"The chunks of the request's body carry more than {_MAX_CHUNKED_EXTRA_BYTES} bytes of extensions and "
                "trailers: leave them out.",
            )


def _ends_of_lines(seen: bytes, data: bytes) -> list[int]:
    """Behind each empty line that ends in `data`, of which `seen` are the three bytes before."""
    both = seen + data
    ends = []
    found = both.find(END_OF_HEAD)
    while found >= 0:
        ends.append(found + len(END_OF_HEAD) - len(seen))
        found = both.find(END_OF_HEAD, found + 2)
    return [end for end in ends if end > 0]
