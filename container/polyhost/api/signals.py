"""What InvokeEndpoint's answers tell routers and clients besides the answer: when to ask again, who has answered."""

from __future__ import annotations

import math
import socket

from polyhost.api.http import again_line
from polyhost.endpoint.events import ModelLoaded, Publisher

# Statuses of a request that may be sent again later: the model is not there yet, or the server has no room for it.
_AGAIN_LATER = frozenset((429, 503))
_LOADED = {True: b"x-polyhost-loaded: hit\r\n", False: b"x-polyhost-loaded: miss\r\n", None: b""}
# What the newest load counts for in the mean of all.
_SHARE = 0.1
_LONGEST_SECS = 60


class Signals:
    def __init__(self, server_name: str | None) -> None:
        """`server_name`: None where answers are to be as the contract has them."""
        self.name = server_name or socket.gethostname()
        self._server = b"" if server_name is None else b"x-polyhost-server: %b\r\n" % server_name.encode()
        # How long loads take, with their downloads.
        self._load_secs = 0.0

    def subscribe_to(self, events: Publisher) -> None:
        events.subscribe((ModelLoaded,), self.loaded)

    def loaded(self, event: ModelLoaded) -> None:
        secs = event.download_secs + event.load_secs
        self._load_secs += (secs - self._load_secs) * (_SHARE if self._load_secs else 1.0)

    def lines(self, status: int, was_hit: bool | None, again_secs: int | None = None) -> bytes:
        """
        Header lines. `was_hit`: whether the model was in memory; None where that was not looked at.

        `again_secs`: when to ask again, None for as long as a load takes.
        """
        named = self._server + _LOADED[was_hit] if self._server else b""
        return named + again_line(again_secs or self._again_secs()) if status in _AGAIN_LATER else named

    def _again_secs(self) -> int:
        return min(_LONGEST_SECS, max(1, math.ceil(self._load_secs)))
