"""
A front: a process that speaks HTTP on the server's port and asks the keeper.

    python -m polyhost.fronts.front SETUP

It loads nothing and keeps nothing, so that it may end at any time: its connections are lost then, and nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from polyhost.api.listener import Listener
from polyhost.api.origins import Origins
from polyhost.certificate import Certificate
from polyhost.endpoint.events import CallAnswered
from polyhost.endpoint.measures import access_log
from polyhost.engine.native.leases import Flags
from polyhost.engine.native.segments import Readable
from polyhost.fronts.board import Board
from polyhost.fronts.counts import Counter
from polyhost.fronts.messages import Grant, Ready, Setup
from polyhost.fronts.own_answers import OnAnswer, OwnAnswers
from polyhost.fronts.relay import Relay
from polyhost.log import configure_server
from polyhost.processes import die_with_parent, flush_and_exit, give_back_large_blocks, hide

logger = logging.getLogger("polyhost.fronts")


def main() -> None:
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    die_with_parent(setup.keeper_pid, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGHUP):  # they are the keeper's: it tells us when to stop, and when to look
        signal.signal(number, signal.SIG_IGN)
    if setup.is_hidden:
        hide()
    give_back_large_blocks()
    write_line = configure_server(setup.log_format)
    uvloop.new_event_loop().run_until_complete(_serve(setup, write_line))
    flush_and_exit(0)


async def _serve(setup: Setup, write_line: Callable[[str], None]) -> None:
    certificate = _certificate(setup)
    relay = Relay(on_lost=_end)
    listener = Listener(
        _app(setup, relay, write_line),
        limits=setup.limits,
        drain_secs=setup.drain_secs,
        tls=certificate.context if certificate else None,
        crowd=Board(setup.board, setup.number),
    )
    if certificate is not None:
        relay.on_look = certificate.look
    relay.on_leave = listener.leave
    relay.on_stop = listener.stop
    for descriptor in (setup.board, setup.leases, setup.counts):
        if descriptor >= 0:
            os.close(descriptor)  # it is mapped
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, listener.stop)
    link = socket.socket(fileno=setup.link)
    link.setblocking(False)
    await loop.create_unix_connection(lambda: relay, sock=link)
    await listener.start_on([socket.socket(fileno=descriptor) for descriptor in setup.listening])
    gc.collect()
    gc.freeze()
    relay.send(Ready())
    await listener.serve()


def _app(setup: Setup, relay: Relay, write_line: Callable[[str], None]) -> OwnAnswers:
    return OwnAnswers(
        relay,
        Readable(socket.socket(fileno=setup.segments)),
        Flags(setup.leases, is_owner=False).flags if setup.leases >= 0 else memoryview(b""),
        _on_answer(setup, write_line),
        max_request_bytes=setup.max_request_bytes,
        origins=Origins(frozenset(setup.origins[0]), setup.origins[1]) if setup.origins else None,
        deciding=setup.deciding,
    )


def _on_answer(setup: Setup, write_line: Callable[[str], None]) -> OnAnswer:
    if setup.counts < 0:
        return lambda *_: None
    add = Counter(setup.counts).add
    log_call = access_log(setup.log_format, write_line)

    def answered(
        grant: Grant, request_id: str, bytes_in: int, bytes_out: int, total_secs: float, model_secs: float
    ) -> None:
        add(grant.slot, grant.lane, total_secs, model_secs)
        if setup.has_access_log:
            log_call(
                CallAnswered(
                    request_id, grant.endpoint, grant.variant, grant.target, 200, bytes_in, bytes_out, total_secs,
                    model_secs, was_hit=True,
                )
            )  # fmt: skip

    return answered


def _certificate(setup: Setup) -> Certificate | None:
    if setup.tls_cert is None:
        return None
    return Certificate(Path(setup.tls_cert), Path(setup.tls_key) if setup.tls_key else None)


def _end() -> None:
    """The keeper has ended, or does not want us any more."""
    os._exit(0)


if __name__ == "__main__":
    main()
