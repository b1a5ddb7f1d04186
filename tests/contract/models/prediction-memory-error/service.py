"""Runs out of memory when it predicts."""


def handle(data, context):
    if data is not None:
        raise MemoryError("for the test")
