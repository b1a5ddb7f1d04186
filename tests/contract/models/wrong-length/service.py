"""Answers twice what it was asked."""


def handle(data, context):
    return None if data is None else ["a"] * (2 * len(data))
