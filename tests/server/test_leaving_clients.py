"""Clients that leave before their answer, and a stop: what is carried out without them, and what is not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from polyhost.api.http import Reply, Request
from polyhost.api.listener import Listener
from polyhost.api.tasks import AnsweringTasks

POST = b"POST /%b HTTP/1.1\r\nContent-Length: 0\r\n\r\n"


class App:
    """Answers when `is_free` is set. `/mine` is for its client alone."""

    max_request_bytes = 1000

    def __init__(self) -> None:
        self._tasks = AnsweringTasks()
        self.has_begun = asyncio.Event()
        self.is_free = asyncio.Event()
        self.ends: asyncio.Queue[str] = asyncio.Queue()

    def answer(self, request: Request, done: Callable[[Reply], None]) -> Callable[[], object]:
        if request.path != "/mine":
            return self._tasks.run(self._reply_to(request), done)
        mine = asyncio.ensure_future(self._reply_to(request))
        mine.add_done_callback(lambda _: None if mine.cancelled() else done(mine.result()))
        return mine.cancel

    async def _reply_to(self, request: Request) -> Reply:
        self.has_begun.set()
        try:
            await self.is_free.wait()
        except asyncio.CancelledError:
            self.ends.put_nowait(f"{request.path} cancelled")
            raise
        self.ends.put_nowait(f"{request.path} done")
        return Reply(b"", 200, ())

    def stop_soon(self) -> None:
        self._tasks.stop_soon()

    async def stop(self) -> None:
        await self._tasks.stop()

    def too_large(self, request: Request, done: Callable[[Reply], None]) -> None:
        raise AssertionError(request)


@contextlib.asynccontextmanager
async def listening(app: App, drain_secs: float = 30.0) -> AsyncIterator[tuple[Listener, asyncio.Task[None]]]:
    listener = Listener(app, drain_secs=drain_secs)
    await listener.start("127.0.0.1", 0)
    serving = asyncio.create_task(listener.serve())
    try:
        yield listener, serving
    finally:
        listener.stop()
        app.is_free.set()
        await serving


async def begun(app: App, listener: Listener, path: bytes) -> asyncio.StreamWriter:
    """A client whose request is being answered."""
    app.has_begun.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    writer.write(POST % path)
    await app.has_begun.wait()
    return writer


def run(case: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(case(), 120))


def test_nobody_waits_for_a_client_that_has_gone() -> None:
    async def case() -> None:
        app = App()
        async with listening(app) as (listener, _):
            (await begun(app, listener, b"mine")).close()
            assert await app.ends.get() == "/mine cancelled"

    run(case)


def test_what_changes_the_server_goes_on_without_its_client() -> None:
    async def case() -> None:
        app = App()
        async with listening(app) as (listener, _):
            leaving = await begun(app, listener, b"others")
            leaving.close()
            (await begun(app, listener, b"mine")).close()
            assert await app.ends.get() == "/mine cancelled"  # so the server knows of the first one's end too
            app.is_free.set()
            assert await app.ends.get() == "/others done"

    run(case)


@pytest.mark.parametrize("leaves_first", [True, False])
def test_a_stop_ends_what_no_client_waits_for(leaves_first: bool) -> None:
    """At once, while another client's request is still answered."""

    async def case() -> None:
        app = App()
        async with listening(app) as (listener, serving):
            staying = await begun(app, listener, b"stays")
            leaving = await begun(app, listener, b"leaves")
            if leaves_first:
                leaving.close()
                (await begun(app, listener, b"mine")).close()
                assert await app.ends.get() == "/mine cancelled"
                listener.stop()
            else:
                listener.stop()
                await asyncio.sleep(0)
                leaving.close()
            assert await app.ends.get() == "/leaves cancelled"
            assert not serving.done()
            app.is_free.set()
            assert await app.ends.get() == "/stays done"
            staying.close()

    run(case)


def test_a_stop_takes_no_longer_than_the_drain() -> None:
    async def case() -> None:
        app = App()
        async with listening(app, drain_secs=0.1) as (listener, serving):
            client = await begun(app, listener, b"slow")
            listener.stop()
            await serving
            assert app.ends.get_nowait() == "/slow cancelled"
            client.close()

    run(case)
