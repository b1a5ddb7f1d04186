"""
Where clients come in who speak TLS.

A client counts as a connection from the beginning, and has the time of a header for the handshake: whoever opens
thousands and says nothing holds no more of them than over plain HTTP.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from polyhost.api.connection import Connection

# The rest is accepted when others have had their turn.
_ACCEPTED_AT_ONCE = 16
# Without descriptors or memory nobody can be accepted: it is tried again after this time.
_PAUSE_SECS = 0.2
# A close waits for the client's goodbye, and for all that was sent before it, and this would cut that off. Connections
# look themselves whether a client takes what it was sent.
_SHUTDOWN_SECS = 24 * 3600.0


class Door:
    def __init__(
        self,
        new_connection: Callable[[], Connection],
        has_room: Callable[[], bool],
        tls: Callable[[], ssl.SSLContext],
        handshake_secs: float,
        sockets: Sequence[socket.socket],
    ) -> None:
        """`sockets`: they listen."""
        self._new_connection = new_connection
        self._has_room = has_room
        self._tls = tls
        self._handshake_secs = handshake_secs
        self._sockets = sockets
        # Clients whose handshake is not done.
        self._entering: set[asyncio.Task[None]] = set()

    @property
    def entering(self) -> int:
        return len(self._entering)

    def open(self) -> None:
        for listening in self._sockets:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """For good. Those who have not come in yet stay outside."""
        for listening in self._sockets:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        for task in self._entering:
            task.cancel()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                client, _address = listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._pause(listening)
                return
            if self._has_room():
                self._let_in(client)
            else:
                client.close()  # it cannot be told why: that would need the handshake

    def _pause(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        loop.call_later(_PAUSE_SECS, self._go_on, listening)

    def _go_on(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _let_in(self, client: socket.socket) -> None:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.get_running_loop().create_task(self._secure(client))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)

    async def _secure(self, client: socket.socket) -> None:
        timeouts: Any = {"ssl_handshake_timeout": self._handshake_secs, "ssl_shutdown_timeout": _SHUTDOWN_SECS}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._new_connection, client, ssl=self._tls(), **timeouts
            )
        except OSError:
            return  # it speaks no TLS, is too slow, or has gone
