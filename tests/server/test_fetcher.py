"""The fetcher's loop over its orders, without its process."""

from __future__ import annotations

import socket
import threading

from polyhost.artifacts.fetcher import _Fetcher
from polyhost.artifacts.transfers import Cancel, Settings


class OrderThatEnds(dict[int, threading.Event]):
    """It ends as soon as somebody has looked whether it is there."""

    def __contains__(self, order: object) -> bool:
        return self.pop(7, None) is not None


def test_an_order_that_ends_while_it_is_cancelled() -> None:
    """The fetcher ended, and with it all that others had asked."""
    settings = Settings({}, connect_secs=0, read_secs=0, fetch_secs=0, unpack_secs=60, expects_buckets=False)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fetcher = _Fetcher(theirs, settings)
        fetcher._cancelled = OrderThatEnds({7: threading.Event()})
        fetcher.serve(iter([Cancel(7), Cancel(7)]))
