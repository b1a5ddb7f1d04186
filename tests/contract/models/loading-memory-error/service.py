"""Runs out of memory while it is loaded."""


def handle(data, context):
    raise MemoryError("for the test")
