"""A server's socket and its connections: they begin here, are looked at for those that take too long, and drain."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from polyhost.api.buffers import Buffers
from polyhost.api.connection import Connection
from polyhost.api.door import Door
from polyhost.api.http import App
from polyhost.api.sockets import BACKLOG, listening_sockets
from polyhost.http_limits import HttpLimits

# How often connections are looked at, and once the server stops.
_SWEEP_SECS = 0.5
_STOPPING_SWEEP_SECS = 0.1
# How many of them in one turn of the loop. Each takes a microsecond or two.
_LOOKS_A_TURN = 64


class Crowd(Protocol):
    """How many connections a server has in its other processes."""

    def others(self) -> int: ...

    def tell(self, own: int) -> None:
        """How many this process has."""


class Alone:
    """The crowd of a server of one process."""

    def others(self) -> int:
        return 0

    def tell(self, own: int) -> None: ...


class Guest(Protocol):
    """Somebody who passes on the requests of clients that are connected elsewhere. A stop waits for it to go."""

    def abort(self) -> None: ...


class Listener:
    """
    An HTTP server: `start`, then `serve`, which ends after `stop`.

    `drain_secs`: how long what is in flight may then take.
    """

    def __init__(
        self,
        app: App,
        *,
        limits: HttpLimits | None = None,
        drain_secs: float = 0.0,
        tls: Callable[[], ssl.SSLContext] | None = None,
        crowd: Crowd | None = None,
    ) -> None:
        self.app = app
        self.limits = limits or HttpLimits()
        self.buffers = Buffers()
        self.now = 0.0
        self.stopping_since: float | None = None
        # Whether each connection ends with its next answer, so that its client goes elsewhere.
        self.is_leaving = False
        self.port = 0
        self._drain_secs = drain_secs
        self._tls = tls
        self._crowd = crowd or Alone()
        # Either of them: the door is for TLS.
        self._servers: list[asyncio.Server] = []
        self._door: Door | None = None
        self._guests: set[Guest] = set()
        self._connections: set[Connection] = set()
        # They have been answered for the last time.
        self._lingering: set[Connection] = set()
        # Those that are still to be looked at, of which some have gone.
        self._unlooked: list[Connection] = []
        # They have more to read than one turn allows. One of them has a turn each time round the loop.
        self._waiting: collections.deque[Connection] = collections.deque()
        self._is_giving_turns = False
        self._stop = asyncio.Event()
        self._is_drained = asyncio.Event()

    async def start(self, host: str, port: int) -> None:
        """Raises OSError."""
        await self.start_on(await listening_sockets(host, port))

    async def start_on(self, sockets: Sequence[socket.socket]) -> None:
        """They listen already, and are this server's own from now on."""
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        self.port = sockets[0].getsockname()[1]
        new = lambda: Connection(self)  # noqa: E731
        if self._tls is None:
            for listening in sockets:
                self._servers.append(await loop.create_server(new, sock=listening, backlog=BACKLOG))
        else:
            self._door = Door(new, self._has_room, self._tls, self.limits.header_timeout_secs, sockets)
            self._door.open()
        self._sweep()

    def leave(self) -> None:
        """The server will stop soon. Requests that arrive before it does are answered."""
        self.is_leaving = True

    def stop(self) -> None:
        self._stop.set()

    async def serve(self) -> None:
        await self._stop.wait()
        self._close_doors()
        self.is_leaving = True
        self.now = self.stopping_since = asyncio.get_running_loop().time()
        for connection in [*self._connections]:
            connection.end_soon()
        self._sweeping.cancel()
        self._sweep()  # from now on it looks more often
        self.app.stop_soon()
        if self._connections or self._guests:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._is_drained.wait(), self._drain_secs)
        await self._end()

    async def _end(self) -> None:
        for connection in (*self._connections, *self._lingering, *self._guests):
            connection.abort()
        await self.app.stop()
        self._sweeping.cancel()
        for server in self._servers:
            await server.wait_closed()

    def _close_doors(self) -> None:
        for server in self._servers:
            server.close()
        if self._door is not None:
            self._door.close()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        every = _STOPPING_SWEEP_SECS if self.stopping_since is not None else _SWEEP_SECS
        self._sweeping = loop.call_later(every, self._sweep)
        self.buffers.look()
        if not self._unlooked:
            self._unlooked.extend((*self._connections, *self._lingering))
            self._look_at_some()

    def _look_at_some(self) -> None:
        """As many as one turn of the loop allows: nobody shall wait until thousands have been looked at."""
        some = [self._unlooked.pop() for _ in range(min(_LOOKS_A_TURN, len(self._unlooked)))]
        if self._unlooked:  # first: a fault with one of them must not keep the rest from being looked at
            asyncio.get_running_loop().call_soon(self._look_at_some)
        for connection in some:
            if connection in self._connections or connection in self._lingering:
                connection.end_if_expired(self.now)

    def welcome(self, guest: Guest) -> None:
        self._guests.add(guest)

    def has_gone(self, guest: Guest) -> None:
        self._guests.discard(guest)
        self._look_whether_drained()

    # What connections share

    def opened(self, connection: Connection) -> bool:
        """Whether there is room for it."""
        if not self._has_room():
            return False
        self._connections.add(connection)
        self._crowd.tell(self._own_count)
        return True

    def _has_room(self) -> bool:
        return self._own_count + self._crowd.others() < self.limits.max_connections

    @property
    def _own_count(self) -> int:
        entering = self._door.entering if self._door is not None else 0
        return len(self._connections) + entering

    def lingers(self, connection: Connection) -> None:
        """It has been answered for the last time."""
        self._connections.discard(connection)
        self._crowd.tell(self._own_count)
        self._lingering.add(connection)
        self._look_whether_drained()

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._crowd.tell(self._own_count)
        self._lingering.discard(connection)
        self._look_whether_drained()

    def wait_for_turn(self, connection: Connection) -> None:
        """It has more to read: it has a turn when all other connections have been read from."""
        self._waiting.append(connection)
        if not self._is_giving_turns:
            self._is_giving_turns = True
            asyncio.get_running_loop().call_soon(self._give_turn)

    def _give_turn(self) -> None:
        self._waiting.popleft().take_turn()
        self._is_giving_turns = bool(self._waiting)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._give_turn)

    def _look_whether_drained(self) -> None:
        if self.stopping_since is not None and not self._connections and not self._guests:
            self._is_drained.set()
