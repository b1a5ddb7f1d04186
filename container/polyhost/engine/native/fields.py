"""A request's fields, as MMS's handlers get them: the raw body, a form's fields, the query's parameters."""

from __future__ import annotations

import email.parser
import email.policy
from dataclasses import dataclass
from urllib.parse import parse_qsl

from polyhost.engine.protocol import Item

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(frozen=True)
class Field:
    """`content_type` is "" where the client says none. The raw body is named `body`."""

    name: str
    content_type: str
    value: bytes


def is_raw(item: Item) -> bool:
    """Whether the request is its body and nothing else."""
    return not item.query and not item.headers.get("content-type", "").startswith(_FORMS)


def fields_of(item: Item) -> list[Field]:
    content_type = item.headers.get("content-type", "")
    fields = (
        _form(item.body, content_type) if content_type.startswith(_FORMS) else [Field("body", content_type, item.body)]
    )
    query = parse_qsl(item.query, keep_blank_values=True)
    return [*(Field(name, "", value.encode()) for name, value in query if name != "model_name"), *fields]


def _form(body: bytes, content_type: str) -> list[Field]:
    if content_type.startswith("application/x-www-form-urlencoded"):
        pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
        return [Field(name, "", value.encode()) for name, value in pairs]
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body)
    fields = []
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        kind = part.get_content_type() if part["content-type"] else ""
        fields.append(Field(str(name or "body"), kind, content if isinstance(content, bytes) else b""))
    return fields
