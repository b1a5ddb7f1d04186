"""The fronts of a server: they are started, started again when they end, and told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence

import msgspec

from polyhost.api.listener import Listener
from polyhost.api.runtime import DECIDING
from polyhost.api.sockets import one_more
from polyhost.config import MOST_FRONTS, Config
from polyhost.engine.native.segments import Channel, new_channel
from polyhost.environment import system_environ
from polyhost.errors import StartFailed
from polyhost.fronts.board import Board
from polyhost.fronts.landlord import Landlord
from polyhost.fronts.link import Link
from polyhost.fronts.messages import Leave, Look, Setup, Stop
from polyhost.tasks import Tasks

logger = logging.getLogger("polyhost.fronts")

# A front that has lived for less than this is started again after a pause: it may end again at once.
_SHORT_LIFE_SECS, _PAUSE_SECS = 1.0, 1.0


class Fronts:
    """The fronts beside the keeper, on one address."""

    def __init__(
        self, config: Config, environ: Mapping[str, str], count: int, landlord: Landlord, *, is_hidden: bool,
    ) -> None:  # fmt: skip
        """`environ`: the server's. `count`: the keeper counts too. `is_hidden`: whether nobody may look into them."""
        assert 1 <= count <= MOST_FRONTS
        self._config = config
        self._landlord = landlord
        self._environ = system_environ(environ)
        self._count = count
        self._is_hidden = is_hidden
        self._board = Board.new()
        # The keeper's own.
        self.crowd = Board(self._board, 0)
        self._seats: list[Seat] = []

    async def start(self, listener: Listener, sockets: Sequence[socket.socket]) -> None:
        """Returns when all of them accept connections. `sockets`: the keeper's own. Raises StartFailed, OSError."""
        for number in range(1, self._count):
            listening = [one_more(each) for each in sockets]
            setup = self._setup(number, listening, listener.app.max_request_bytes)
            self._seats.append(Seat(setup, self._environ, listening, listener, self.crowd, self._landlord))
        for seat in self._seats:
            seat.start()
        if not all([await seat.is_ready for seat in self._seats]):
            raise StartFailed(
                "a front has ended before it accepted connections: the log has its last words. With --fronts 1 the "
                "server needs none."
            )

    def look(self) -> None:
        """The certificate's files may have changed."""
        for seat in self._seats:
            seat.look()

    def leave(self) -> None:
        """Their connections end with their next answers."""
        for seat in self._seats:
            seat.leave()

    def stop(self) -> None:
        """They accept no more connections, and end when what is in flight is answered. None is started any more."""
        for seat in self._seats:
            seat.stop()

    async def end(self) -> None:
        """Returns when none is left."""
        await asyncio.gather(*(seat.end() for seat in self._seats))

    def _setup(self, number: int, listening: Sequence[socket.socket], max_request_bytes: int) -> Setup:
        config, landlord = self._config, self._landlord
        return Setup(
            keeper_pid=os.getpid(),
            number=number,
            board=self._board,
            leases=landlord.lessor.leases.descriptor if landlord.lessor else -1,
            listening=[each.fileno() for each in listening],
            limits=config.http_limits,
            max_request_bytes=max_request_bytes,
            drain_secs=config.drain_secs,
            tls_cert=str(config.tls_cert) if config.tls_cert else None,
            tls_key=str(config.tls_key) if config.tls_key else None,
            log_format=config.log_format,
            has_access_log=config.access_log == "on",
            is_hidden=self._is_hidden,
            origins=None if landlord.origins is None else ([*landlord.origins.allowed], landlord.origins.checks_host),
            deciding=sorted(DECIDING),
        )


class Seat:
    """
    A front's place: there is a process in it until the server stops.

    The keeper has the sockets open too. So clients who come while one process has ended, and the next one is not ready,
    wait for it.
    """

    def __init__(
        self, setup: Setup, environ: Mapping[str, str], sockets: Sequence[socket.socket], listener: Listener,
        board: Board, landlord: Landlord,
    ) -> None:  # fmt: skip
        self._setup = setup
        self._environ = dict(environ)
        self._sockets = sockets
        self._listener = listener
        self._board = board
        self._landlord = landlord
        # Whether its first process came to accept connections, unless the server was stopped before.
        self.is_ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._process: asyncio.subprocess.Process | None = None
        self._link: Link | None = None
        self._is_leaving = self._is_stopping = False
        self._tasks = Tasks()

    def start(self) -> None:
        keeping = self._tasks.start(self._keep())
        keeping.add_done_callback(lambda _: self._came_to_be_ready(self._is_stopping))

    def look(self) -> None:
        if self._link is not None:  # otherwise its next process reads them as they are
            self._link.send(Look())

    def leave(self) -> None:
        self._is_leaving = True
        if self._link is not None:
            self._link.send(Leave())

    def stop(self) -> None:
        self._is_stopping = True
        for listening in self._sockets:
            listening.close()
        if self._link is not None:
            self._link.send(Stop())

    async def end(self) -> None:
        self.stop()
        self.abort()
        await self._tasks.settled()

    def abort(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _keep(self) -> None:
        while not self._is_stopping:
            began = time.monotonic()
            try:
                how = _words_of(await self._run())
            except OSError as error:  # without memory or a process id for it: clients of this seat wait meanwhile
                how = f"not started: {error}"
            self._board.forget(self._setup.number)
            self._came_to_be_ready(self._is_stopping)
            if self._is_stopping:
                return
            logger.error(
                "front %d has ended (%s): its connections are lost, another takes its place",
                self._setup.number,
                how,
            )
            if time.monotonic() - began < _SHORT_LIFE_SECS:
                await asyncio.sleep(_PAUSE_SECS)

    async def _run(self) -> int:
        """A process, from its start until it is buried: its exit code. Raises OSError where it cannot be started."""
        with contextlib.ExitStack() as its_own:
            ours, theirs = socket.socketpair()
            passing, getting = new_channel()
            its_own.enter_context(theirs)
            its_own.enter_context(getting)
            counted = self._landlord.new_counted()
            counts = counted.descriptor if counted else -1
            link = Link(
                self._listener.app, self._landlord.lessor, Channel(passing),
                on_ready=lambda: self._came_to_be_ready(True), on_lost=self._lost, abort=self.abort,
            )  # fmt: skip
            setup = msgspec.structs.replace(self._setup, link=theirs.fileno(), segments=getting.fileno(), counts=counts)
            try:
                self._process = process = await self._new_process(setup)
            except OSError:
                ours.close()
                passing.close()
                self._landlord.has_gone(link, counted)
                raise
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        self._link = link
        self._listener.welcome(self)
        if self._is_leaving:
            link.send(Leave())
        if self._is_stopping:
            self.abort()
        code = await process.wait()
        self._process = None
        link.close()
        self._landlord.has_gone(link, counted)
        return code

    async def _new_process(self, setup: Setup) -> asyncio.subprocess.Process:
        descriptors = [setup.link, setup.segments, setup.board, setup.leases, setup.counts, *setup.listening]
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "polyhost.fronts.front", msgspec.json.encode(setup).decode(),
            env=self._environ, pass_fds=[each for each in descriptors if each >= 0], start_new_session=True,
        )  # fmt: skip

    def _came_to_be_ready(self, is_ready: bool) -> None:
        if not self.is_ready.done():
            self.is_ready.set_result(is_ready)

    def _lost(self) -> None:
        self._link = None
        self._listener.has_gone(self)


def _words_of(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
