"""Fails while it is loaded."""


def handle(data, context):
    raise ValueError("the weights do not fit the network")
