"""Ends its process when it predicts, unless it is told `stay`."""

import os


def handle(data, context):
    if data is None:
        return None
    if bytes(data[0].get("body", b"")) != b"stay":
        os._exit(3)
    return ["stayed"]
