"""Answers something that is not a list."""


def handle(data, context):
    return None if data is None else "not a list"
