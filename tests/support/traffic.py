"""Traffic: clients that keep asking a server's models while a test does something to it, and count every answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import quote

from support.clock import FairClock

# A request that takes longer is counted as never answered.
ANSWER_SECS = 120


@dataclass(frozen=True)
class Sample:
    """One answer. `started`: on time.monotonic()'s clock. `model` is "" for /ping."""

    model: str
    status: int
    started: float
    secs: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Traffic:
    """
    Asks every model in turn on several keep-alive connections, from entry to exit of its block.

    `expected`: by model, the right answer; any other body with status 200 is an error. One more connection asks
    /ping a hundred times a second. Bounded in requests and in time, whatever the block does. After the block
    `answers` and `pings` hold what came, `errors` what should not have: no answer, a broken connection, a wrong body.
    """

    def __init__(
        self,
        port: int,
        expected: Mapping[str, bytes],
        body: bytes,
        *,
        pid: int,
        connections: int = 6,
        pause_secs: float = 0.004,
        max_requests: int = 100_000,
        max_secs: float = 200,
    ) -> None:
        self._port = port
        self._expected = dict(expected)
        self._body = body
        self._connections = connections
        self._pause_secs = pause_secs
        self._max_requests = max_requests
        self._max_secs = max_secs
        self._clock = FairClock(pid)
        self._watching = contextlib.ExitStack()
        self._is_over = False
        self._deadline = 0.0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.answers: list[Sample] = []
        self.pings: list[Sample] = []
        self.errors: list[str] = []

    def __enter__(self) -> Traffic:  # noqa: PYI034 - Self came with Python 3.11
        self._deadline = time.monotonic() + self._max_secs
        self._watching.enter_context(self._clock.watching())
        self._thread.start()
        self.wait_for_answers(len(self._expected))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over = True
        self._thread.join(ANSWER_SECS + 5)
        self._watching.close()

    def wait_for_answers(self, count: int) -> None:
        """Until so many more have come; at once when the traffic has ended by its bounds."""
        wanted = len(self.answers) + count
        while len(self.answers) < wanted and self._thread.is_alive():
            time.sleep(0.005)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(sample.status for sample in self.answers)

    @property
    def latencies(self) -> list[float]:
        return [self._fair_secs(sample) for sample in self.answers]

    def latencies_within(self, begin: float, end: float) -> list[float]:
        """Of the requests that were under way at some moment of this span, seconds."""
        during = (one for one in self.answers if one.started < end and one.started + one.secs > begin)
        return [self._fair_secs(sample) for sample in during]

    def _fair_secs(self, sample: Sample) -> float:
        return sample.secs - self._clock.waited_between(sample.started, sample.started + sample.secs)

    def all_right(self) -> bool:
        """Whether every request, and every ping, was answered 200 with what is right. Says what was not."""
        assert self.errors == []
        assert set(self.statuses) == {200}, self.statuses
        assert {ping.status for ping in self.pings} == {200}
        return True

    def __repr__(self) -> str:
        slowest = f"slowest {max(self.latencies):.3f} s" if self.answers else "none"
        return f"<Traffic {dict(self.statuses)} {slowest} | {len(self.pings)} pings | {len(self.errors)} errors>"

    # The clients, in a thread and a loop of their own

    async def _run(self) -> None:
        clients = [asyncio.create_task(self._ask_models(number)) for number in range(self._connections)]
        clients.append(asyncio.create_task(self._ask_ping()))
        while not self._may_stop():  # noqa: ASYNC110 - told by another thread
            await asyncio.sleep(0.01)
        _, late = await asyncio.wait(clients, timeout=ANSWER_SECS)
        for client in late:
            client.cancel()
            self.errors.append(f"a request was not answered within {ANSWER_SECS} s")
        await asyncio.gather(*clients, return_exceptions=True)

    def _may_stop(self) -> bool:
        return self._is_over or len(self.answers) >= self._max_requests or time.monotonic() > self._deadline

    async def _ask_models(self, number: int) -> None:
        names = list(self._expected)
        # Each connection begins elsewhere, so that they do not go round in step.
        first = number * len(names) // self._connections
        client = _Client(self._port)
        with contextlib.closing(client):
            for name in itertools.cycle(names[first:] + names[:first]):
                if self._may_stop():
                    break
                request = _request("POST", f"/models/{quote(name, safe='')}/invoke", self._body)
                await self._ask(client, name, request, self.answers)
                await asyncio.sleep(self._pause_secs)

    async def _ask_ping(self) -> None:
        client = _Client(self._port)
        request = _request("GET", "/ping", b"")
        with contextlib.closing(client):
            while not self._may_stop():
                await self._ask(client, "", request, self.pings)
                await asyncio.sleep(0.01)

    async def _ask(self, client: _Client, name: str, request: bytes, to: list[Sample]) -> None:
        started = time.monotonic()
        try:
            status, body = await client.ask(request)
        except (OSError, EOFError, ValueError) as error:
            client.close()
            self.errors.append(f"{name or '/ping'}: {type(error).__name__}: {error}")
            await asyncio.sleep(0.02)
            return
        to.append(Sample(name, status, started, time.monotonic() - started))
        if name and status == 200 and body != self._expected[name]:
            self.errors.append(f"{name}: {body!r} instead of {self._expected[name]!r}")


class _Client:
    """One keep-alive connection, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body. Raises OSError and EOFError when the connection breaks."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection") == "close":
            self.close()
        return int(head[0].split(" ")[1]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _request(method: str, target: str, body: bytes) -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/csv\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body
