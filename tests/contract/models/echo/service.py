"""Tells what reached it: the body, the headers, the context."""

import json
import os


def handle(data, context):
    if data is None:
        return None
    return [json.dumps(told(item, context, index), default=str) for index, item in enumerate(data)]


def told(item, context, index):
    body = item.get("body", b"")
    return {
        "fields": {
            name: bytes(value).decode() if isinstance(value, (bytes, bytearray)) else value
            for name, value in item.items()
        },
        "body_type": type(body).__name__,
        "headers": {name.lower(): value for name, value in context.get_all_request_header(index).items()},
        "content_type": context.get_request_header(index, "Content-Type"),
        "request_id": context.get_request_id(index),
        "properties": context.system_properties,
        "model_name": context.model_name,
        "manifest": context.manifest,
        "cwd": os.getcwd(),
        "batch": len(item) and len(context.request_processor),
    }
