"""Answers with what it was sent: the header fields and the body, as far as a client chose them."""

import hashlib
import json


def handle(data, context):
    if data is None:
        return None
    return [json.dumps(seen(item, context, index), sort_keys=True) for index, item in enumerate(data)]


def seen(item, context, index):
    fields = {name: bytes(value) if isinstance(value, (bytes, bytearray)) else value for name, value in item.items()}
    headers = {name.lower(): value for name, value in context.get_all_request_header(index).items()}
    return {"fields": {name: shown(value) for name, value in fields.items()}, "headers": headers}


def shown(value):
    if not isinstance(value, bytes):
        return value
    return (
        value.decode("latin-1") if len(value) <= 60 else f"{len(value)} bytes, {hashlib.sha256(value).hexdigest()[:8]}"
    )
