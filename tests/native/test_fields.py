"""A request's fields, whether its body is bytes or, as a worker gets a large one, an array of bytes."""

from __future__ import annotations

from typing import Any

import pytest
from polyhost.engine.native.fields import Field, fields_of
from polyhost.engine.protocol import Item

MULTIPART = (
    b'--b\r\nContent-Disposition: form-data; name="rows"\r\nContent-Type: text/csv\r\n\r\n1,2\r\n'
    b'--b\r\nContent-Disposition: form-data; name="more"\r\n\r\n\xff\r\n--b--\r\n'
)


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize(
    ("content_type", "body", "fields"),
    [
        ("text/csv", b"1,2", [Field("body", "text/csv", b"1,2")]),
        ("application/x-www-form-urlencoded", b"a=1&b=%20", [Field("a", "", b"1"), Field("b", "", b" ")]),
        ("multipart/form-data; boundary=b", MULTIPART, [Field("rows", "text/csv", b"1,2"), Field("more", "", b"\xff")]),
    ],
)
def test_the_fields_of_a_request(content_type: str, body: bytes, fields: list[Field], kind: Any) -> None:
    query = [Field("c", "", b"3")]
    assert fields_of(Item("id", {"content-type": content_type}, "c=3", kind(body))) == [*query, *fields]
