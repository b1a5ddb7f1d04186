"""Fails when it predicts."""


def handle(data, context):
    if data is not None:
        raise RuntimeError("something private")
