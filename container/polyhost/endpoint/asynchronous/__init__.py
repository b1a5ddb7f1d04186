"""Asynchronous calls: accepted at once, kept on the disk, answered by an object of a bucket or folder."""

from polyhost.endpoint.asynchronous.calls import AsyncCalls
from polyhost.endpoint.asynchronous.definitions import AsyncCall

__all__ = ["AsyncCall", "AsyncCalls"]
