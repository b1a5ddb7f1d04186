"""Streamed answers without a server: events as botocore reads them, and what becomes of each end of a call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from polyhost.api import streaming
from polyhost.api.eventstream import failure, payload_parts
from polyhost.api.http import Reply
from polyhost.api.runtime import error_reply
from polyhost.api.streaming import Streamed
from polyhost.engine.protocol import Stream
from polyhost.service_errors import EndpointError, ModelError, ServiceUnavailable

BROKEN = ModelError('Received server error (500) from model with message "broken".', 500, "broken")
WHOLE = Reply(
    b"whole", 200, ((b"content-type", b"text/csv"), (b"x-amzn-invoked-production-variant", b"v")), b"id: 1\r\n"
)


def events(stream: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """As botocore reads them, which checks lengths and checksums."""
    buffer = EventStreamBuffer()
    buffer.add_data(stream)
    return [(event.headers, event.payload) for event in buffer]


class Client:
    """What a client is sent: a reply, and the parts behind it."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.parts: list[bytes] = []
        self.ends: list[bool] = []

    def done(self, reply: Reply) -> None:
        self.replies.append(reply)
        if reply.parts is not None:
            reply.parts.attach(self.parts.append, self.ends.append)

    @property
    def last(self) -> tuple[dict[str, Any], bytes]:
        return events(b"".join(self.parts))[-1]


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def streamed(client: Client) -> Streamed:
    return Streamed(client.done, b"id: 1\r\n")


def test_parts_are_events_of_botocores_form() -> None:
    one, *_, last = events(payload_parts(b"one") + payload_parts(bytes(range(256)) * 5000))

    assert one == (
        {":message-type": "event", ":event-type": "PayloadPart", ":content-type": "application/octet-stream"},
        b"one",
    )
    assert last[1].endswith(b"\xfe\xff")
    assert payload_parts(b"") == b""


def test_a_failure_is_an_exception_with_its_members() -> None:
    ((headers, payload),) = events(failure("ModelStreamError", Message="é", ErrorCode="StreamBroken"))

    assert headers[":message-type"] == "exception"
    assert headers[":exception-type"] == "ModelStreamError"
    assert json.loads(payload) == {"Message": "é", "ErrorCode": "StreamBroken"}


def test_what_comes_in_one_piece_is_one_part(client: Client, streamed: Streamed) -> None:
    streamed.concluded(WHOLE)

    (reply,) = client.replies
    assert (reply.status, reply.body, reply.own_headers) == (200, b"", b"id: 1\r\n")
    assert dict(reply.headers) == {
        b"content-type": b"application/vnd.amazon.eventstream",
        b"x-amzn-sagemaker-content-type": b"text/csv",
        b"x-amzn-invoked-production-variant": b"v",
    }
    assert [payload for _, payload in events(b"".join(client.parts))] == [b"whole"]
    assert client.ends == [True]


def test_an_empty_answer_has_no_part(client: Client, streamed: Streamed) -> None:
    streamed.concluded(WHOLE._replace(body=b""))

    assert (len(client.replies), client.parts, client.ends) == (1, [], [True])


def test_each_part_is_passed_on_as_it_comes(client: Client, streamed: Streamed) -> None:
    for count, part in enumerate((b"one", b"two"), 1):
        streamed.part("v", "text/plain", part)
        assert [payload for _, payload in events(b"".join(client.parts))] == [b"one", b"two"][:count]
    streamed.concluded(WHOLE._replace(body=b""))

    assert len(client.replies) == 1
    assert client.ends == [True]


def test_an_error_before_the_first_part_is_the_reply(client: Client, streamed: Streamed) -> None:
    reply = error_reply(BROKEN, "1")

    streamed.concluded(reply)

    assert client.replies == [reply]
    assert client.parts == []


@pytest.mark.parametrize(
    ("error", "kind", "members"),
    [
        (BROKEN, "ModelStreamError", {"Message": BROKEN.message, "ErrorCode": "StreamBroken"}),
        (ServiceUnavailable("gone"), "InternalStreamFailure", {"Message": "gone"}),
        (EndpointError("internal"), "InternalStreamFailure", {"Message": "internal"}),
    ],
)
def test_an_error_after_a_part_is_an_event(
    error: EndpointError, kind: str, members: dict[str, str], client: Client, streamed: Streamed
) -> None:
    streamed.part("v", "text/plain", b"one")

    streamed.concluded(error_reply(error, "1"))

    headers, payload = client.last
    assert (headers[":exception-type"], json.loads(payload)) == (kind, members)
    assert (len(client.replies), client.ends) == (1, [True])


def test_a_model_whose_time_is_over(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "TIMEOUT_SECS", 0.0)
    streamed = Streamed(client.done, b"")
    streamed.part("v", "text/plain", b"one")

    streamed.concluded(error_reply(BROKEN, "1"))

    assert json.loads(client.last[1])["ErrorCode"] == "ModelInvocationTimeExceeded"


def test_a_stream_that_was_left_takes_no_more() -> None:
    """Whenever that was: before or after somebody makes it."""
    taken: list[bytes] = []
    abandoned: list[int] = []

    stream = Stream(lambda _, part: taken.append(part))

    stream.comes_from(lambda: abandoned.append(1))
    stream.take("text/plain", b"one")
    stream.leave()
    stream.comes_from(lambda: abandoned.append(2))
    stream.take("text/plain", b"two")

    assert (taken, abandoned) == ([b"one"], [1, 2])
