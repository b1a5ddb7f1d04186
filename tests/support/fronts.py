"""Our HTTP front in a thread, before any function from a request to a reply."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator

import uvloop
from polyhost.api.http import Reply, Request
from polyhost.api.listener import Listener
from polyhost.http_limits import HttpLimits


class _App:
    max_request_bytes = 6_291_456

    def __init__(self, reply_to: Callable[[Request], Reply]) -> None:
        self._reply_to = reply_to

    def answer(self, request: Request, done: Callable[[Reply], None]) -> None:
        done(self._reply_to(request))

    def stop_soon(self) -> None: ...

    async def stop(self) -> None: ...

    def too_large(self, request: Request, done: Callable[[Reply], None]) -> None:
        done(Reply(b"", 413, ()))


@contextlib.contextmanager
def front(
    reply_to: Callable[[Request], Reply],
    limits: HttpLimits | None = None,
    tls: Callable[[], ssl.SSLContext] | None = None,
) -> Iterator[str]:
    """Its address."""
    is_up = threading.Event()
    ends: list[Callable[[], object]] = []
    port = 0

    async def serve() -> None:
        nonlocal port
        listener = Listener(_App(reply_to), limits=limits, drain_secs=10, tls=tls)
        await listener.start("127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(listener.stop))
        port = listener.port
        is_up.set()
        await listener.serve()

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    try:
        assert is_up.wait(120)
        yield f"http://127.0.0.1:{port}"
    finally:
        ends[0]()
        thread.join()
