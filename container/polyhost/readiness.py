"""
Whether requests should be sent to this server, and why not: what /ready answers, and what systemd is told.

A server that is not ready answers all the same. Whoever sends requests here is asked to send them elsewhere.
"""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger("polyhost")

NOTIFY_SOCKET = "NOTIFY_SOCKET"


class Readiness:
    """
    `reason` is a sentence that anybody may read, without names of models; None once the server is ready.

    `notify_socket`: systemd's, "" where nobody asks.
    """

    def __init__(self, notify_socket: str = "") -> None:
        self.reason: str | None = "The server is being started."
        self._notify_socket = notify_socket
        self._is_leaving = False

    def wait(self, reason: str) -> None:
        """It is not ready yet."""
        if not self._is_leaving:
            self.reason = reason

    def reached(self) -> None:
        """All that it waited for is there."""
        if not self._is_leaving:
            self.reason = None
            logger.info("ready for requests: GET /ready answers 200")
            tell_systemd(self._notify_socket, "READY=1")

    def leave(self) -> None:
        """For good: the server was told to stop."""
        self._is_leaving = True
        self.reason = "The server stops."
        tell_systemd(self._notify_socket, "STOPPING=1")


def tell_systemd(notify_socket: str, state: str) -> None:
    """As sd_notify(3) does it: a datagram to the socket that the service manager has named."""
    if not notify_socket:
        return
    address = "\0" + notify_socket[1:] if notify_socket.startswith("@") else notify_socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.sendto(state.encode(), address)
    except OSError as error:
        logger.warning("systemd was not told %s: %s", state, os.strerror(error.errno or 0))
