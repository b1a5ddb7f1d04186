"""
Clients that know the right answer of every model, and note what each request met.

An outcome is "right", "WRONG …" (a 200 with another body), a status as text, or what became of the connection:
"timeout", "reset", "refused".
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from chaos.models import is_value

RIGHT = "right"


@dataclass(frozen=True)
class Call:
    """One request to a model, and the constants of which one must be its answer."""

    model: str
    path: str
    body: bytes
    values: frozenset[int]
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """`started`: on time.monotonic()'s clock. `text`: the beginning of an answer that was not right."""

    model: str
    outcome: str
    started: float
    secs: float
    text: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.outcome.startswith("WRONG")


class Client:
    """One keep-alive connection, opened when it is needed. It never asks twice: what failed has failed."""

    def __init__(self, port: int, timeout_secs: float) -> None:
        self._port = port
        self._timeout_secs = timeout_secs
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, call: Call) -> Sample:
        started = time.monotonic()
        try:
            status, body = self._exchange("POST", call.path, call.body, call.headers)
            outcome, text = _judged(call, status, body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            outcome, text = _broken(error), str(error)
        return Sample(call.model, outcome, started, time.monotonic() - started, text)

    def _exchange(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout_secs)
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def ask_once(port: int, call: Call, timeout_secs: float) -> Sample:
    client = Client(port, timeout_secs)
    try:
        return client.ask(call)
    finally:
        client.close()


def _judged(call: Call, status: int, body: bytes) -> tuple[str, str]:
    if status != 200:
        return str(status), body[:300].decode("utf-8", "replace")
    if is_value(body, call.values):
        return RIGHT, ""
    text = body[:80].decode("utf-8", "replace")
    return f"WRONG {text}", text


def _broken(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return "refused" if isinstance(error, ConnectionRefusedError) else "reset"


class Traffic:
    """
    Asks on a few connections, each call chosen by `choose`, from entry to exit of its block.

    Bounded in requests and in time. `samples` has what came.
    """

    def __init__(
        self, port: int, choose: Callable[[random.Random], Call], *, seed: int, timeout_secs: float,
        connections: int = 4, pause_secs: float = 0.01, max_secs: float = 120, max_requests: int = 50_000,
    ) -> None:  # fmt: skip
        self.samples: list[Sample] = []
        self._port = port
        self._choose = choose
        self._timeout_secs = timeout_secs
        self._pause_secs = pause_secs
        self._max_requests = max_requests
        self._over = threading.Event()
        self._deadline = time.monotonic() + max_secs
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {number}"),), daemon=True)
            for number in range(connections)
        ]

    def __enter__(self) -> Traffic:  # noqa: PYI034 - Self came with Python 3.11
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(self._timeout_secs + 5)

    def wait_for_right(self, count: int, secs: float) -> bool:
        """Until so many more right answers have come; False where they do not come in time."""
        wanted = self._right() + count
        deadline = time.monotonic() + secs
        while self._right() < wanted:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _right(self) -> int:
        return sum(sample.outcome == RIGHT for sample in [*self.samples])

    def _run(self, rng: random.Random) -> None:
        client = Client(self._port, self._timeout_secs)
        while not self._over.is_set() and time.monotonic() < self._deadline and len(self.samples) < self._max_requests:
            sample = client.ask(self._choose(rng))
            self.samples.append(sample)
            # Where nobody listens, asking again at once would only heat the machine.
            self._over.wait(self._pause_secs if sample.outcome == RIGHT else 0.05)
        client.close()


def failures(samples: Iterable[Sample]) -> Counter[str]:
    """How many by outcome, wrong answers apart."""
    return Counter(one.outcome for one in samples if one.outcome != RIGHT and not one.is_wrong)


def slowest_secs(samples: Sequence[Sample]) -> float:
    return max((one.secs for one in samples), default=0.0)
