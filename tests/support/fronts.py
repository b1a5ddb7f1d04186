"""Our HTTP front in a thread, before any function from a request to a reply."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import cast

import uvicorn
from polyhost.api.http import Asgi, Reply, Request, ShortWay


class _App:
    max_request_bytes = 6_291_456

    def __init__(self, reply_to: Callable[[Request], Reply]) -> None:
        self._reply_to = reply_to

    async def answer(self, request: Request) -> Reply:
        return self._reply_to(request)

    def answer_soon(self, request: Request, done: Callable[[Reply], None]) -> None:
        done(self._reply_to(request))

    def too_large(self, request: Request) -> Reply:
        return Reply(b"", 413, ())


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self.is_up.set()


@contextlib.contextmanager
def front(reply_to: Callable[[Request], Reply]) -> Iterator[str]:
    """Its address."""
    app = _App(reply_to)
    server = _Server(
        uvicorn.Config(
            Asgi(app), port=0, log_config=None, lifespan="off", ws="none", proxy_headers=False,
            http=cast("type", functools.partial(ShortWay, app)),
        ),
    )  # fmt: skip
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.is_up.wait(30)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
