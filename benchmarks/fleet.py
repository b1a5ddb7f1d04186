"""Three servers on one machine behind a router: what they are asked, what happens to them, what their clients see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from typing_extensions import Self

from benchmarks.artifacts import ROW_CSV, SEED
from benchmarks.routers import Router
from benchmarks.servers import CSV, BenchmarkFailed, free_port

SERVERS = 3
# What takes longer hangs; busy neighbours make a start of a second take a minute.
_START_SECS = 240
_STOP_SECS = 240
_POLL_SECS = 0.02
_TARGET = "X-Amzn-SageMaker-Target-Model"
_PATH = "/endpoints/polyhost/invocations"
# A client waits so long for an answer, and asks once.
_CLIENT_SECS = 60
_HITS = re.compile(r"(?m)^polyhost_model_cache_(hits|lookups)_total\{[^}]*\} ([0-9.e+]+)$")
# Long enough for a router that looks every second, and takes a server out after two refusals.
UNREADY_SECS = 4
# As `polyhost fleet haproxy` has it unless it is told.
SLOW_START_SECS = 20


class Host:
    """A Polyhost whose port and folder of state outlive its process."""

    def __init__(self, number: int, models: str, folder: Path, *options: str, environ: dict[str, str]) -> None:
        self.number = number
        self.port = free_port()
        self.folder = folder
        self._state = folder / f"state-{number}"
        self._temp = folder / f"t{number}"
        self._temp.mkdir()
        self._log = folder / f"server-{number}.log"
        self._environ = environ
        self._command = [
            sys.executable, "-m", "polyhost", "serve", "--engine", "native", "--host", "127.0.0.1",
            "--port", str(self.port), "--models", models, "--state-dir", str(self._state),
            "--server-name", str(number), "--access-log", "off", "--drain-secs", "10",
            "--unready-secs", str(UNREADY_SECS), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def start(self) -> None:
        """Until it says that it is ready. Raises BenchmarkFailed."""
        kept = {
            name: value for name, value in os.environ.items() if not re.match(r"SAGEMAKER|POLYHOST|MMS_|AWS_", name)
        }
        environ = {**kept, "TMPDIR": str(self._temp), **self._environ}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECS
        while not self.is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise BenchmarkFailed(f"server {self.number} did not start:\n{self.log[-2000:]}")
            time.sleep(_POLL_SECS)

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.told("/ready"))
        return False

    def told(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def terminate(self) -> int:
        """SIGTERM, and its exit code when it has ended."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_STOP_SECS)

    def kill(self) -> None:
        """SIGKILL, to its models' processes too."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait(_STOP_SECS)

    def hits_and_lookups(self) -> tuple[float, float]:
        counted = _HITS.findall(self.told("/metrics"))
        hits, lookups = (sum(float(count) for name, count in counted if name == of) for of in ("hits", "lookups"))
        return hits, lookups


@contextlib.contextmanager
def hosts(count: int, models: str, *options: str, environ: dict[str, str] | None = None) -> Iterator[list[Host]]:
    """That many, started; nothing of them stays."""
    with tempfile.TemporaryDirectory(prefix="ph-fleet-", ignore_cleanup_errors=True) as folder:
        made = [Host(number, models, Path(folder), *options, environ=environ or {}) for number in range(count)]
        try:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(Host.start, made))
            yield made
        finally:
            for host in made:
                host.kill()


@dataclass(frozen=True)
class Call:
    """`status`: 0 where no answer came. `server`: who answered, "" where nobody says."""

    began: float
    secs: float
    status: int
    server: str


@dataclass
class Seen:
    """What clients have seen."""

    calls: list[Call] = field(default_factory=list)

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if call.status != 200]

    def ms(self, percent: float) -> float:
        return float(np.percentile([call.secs for call in self.calls], percent)) * 1000

    def shares(self) -> dict[str, float]:
        """By server."""
        counted = Counter(call.server for call in self.calls)
        return {server: count / len(self.calls) for server, count in counted.items()}


class Traffic:
    """
    An open loop: so many requests/s whatever becomes of them, each sent once, from a thread of its own.

    `targets` are asked for in turn.
    """

    def __init__(self, port: int, targets: Sequence[str], rate: float) -> None:
        self.seen = Seen()
        self._url = f"http://127.0.0.1:{port}{_PATH}"
        self._targets = targets
        self._rate = rate
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(2 * _CLIENT_SECS)

    def wait_for(self, calls: int) -> None:
        """Until so many are over."""
        while len(self.seen.calls) < calls:
            time.sleep(_POLL_SECS)

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=_CLIENT_SECS)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            begun, calls = time.monotonic(), []
            while not self._is_over.is_set():
                await asyncio.sleep(max(0.0, begun + len(calls) / self._rate - time.monotonic()))
                target = self._targets[len(calls) % len(self._targets)]
                calls.append(asyncio.create_task(ask(session, self._url, target, self.seen)))
            await asyncio.gather(*calls)


async def ask(session: aiohttp.ClientSession, url: str, target: str, seen: Seen) -> None:
    began = time.monotonic()
    status, server = 0, ""
    with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
        async with session.post(url, data=ROW_CSV, headers={"Content-Type": CSV, _TARGET: target}) as answer:
            await answer.read()
            status, server = answer.status, answer.headers.get("x-polyhost-server", "")
    seen.calls.append(Call(began, time.monotonic() - began, status, server))


def ask_all(port: int, targets: Sequence[str], connections: int = 8) -> Seen:
    """A closed loop: each connection asks again when it has its answer. Raises BenchmarkFailed."""

    async def run() -> None:
        rest = iter(targets)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections)) as session:

            async def one() -> None:
                for target in rest:
                    await ask(session, f"http://127.0.0.1:{port}{_PATH}", target, seen)

            await asyncio.gather(*(one() for _ in range(connections)))

    seen = Seen()
    asyncio.run(run())
    if seen.failed:
        raise BenchmarkFailed(f"{len(seen.failed)} of {len(seen.calls)} answers were not a 200: {seen.failed[0]}")
    return seen


def zipf(models: Sequence[str], requests: int, exponent: float = 1.0) -> list[str]:
    """Models drawn by Zipf's law, the same each time."""
    chance = 1 / np.arange(1, len(models) + 1) ** exponent
    drawn = np.random.default_rng(SEED).choice(len(models), requests, p=chance / chance.sum())
    return [models[number] for number in drawn]


def hit_ratio(servers: Sequence[Host], port: int, targets: Sequence[str]) -> float:
    """Of the second half of these requests: the first fills the caches."""
    half = len(targets) // 2
    ask_all(port, targets[:half])
    before = [host.hits_and_lookups() for host in servers]
    ask_all(port, targets[half:])
    after = [host.hits_and_lookups() for host in servers]
    hits, lookups = (sum(new[at] - old[at] for new, old in zip(after, before, strict=True)) for at in (0, 1))
    return hits / lookups


@dataclass(frozen=True, kw_only=True)
class Faults:
    """When what happens, in seconds from the start of the traffic."""

    kill: float = 8
    restart: float = 14
    first_end: float = 20
    second_end: float = 28
    until: float = 38


def through_faults(router_port: int, servers: Sequence[Host], targets: Sequence[str], rate: float, at: Faults) -> Seen:
    """One server is killed and comes back; two others, one after the other, are told to end and come back."""
    first, second, third = servers
    with Traffic(router_port, targets, rate) as traffic:
        begun = time.monotonic()

        def wait_until(secs: float) -> None:
            time.sleep(max(0.0, begun + secs - time.monotonic()))

        wait_until(at.kill)
        first.kill()
        wait_until(at.restart)
        first.start()
        for host, secs in ((second, at.first_end), (third, at.second_end)):
            wait_until(secs)
            host.terminate()
            host.start()
        wait_until(at.until)
    return traffic.seen


def through_updates(router: Router, servers: Sequence[Host], targets: Sequence[str], rate: float = 150) -> Seen:
    """All servers are ended and started again, one after the other, each when the one before has its models again."""
    with Traffic(router.port, targets, rate) as traffic:
        for host in servers:
            host.terminate()
            host.start()
            router.wait_for(len(servers))
            time.sleep(SLOW_START_SECS)
    return traffic.seen


def hot_shares(router_port: int, target: str, rate: float, secs: float = 15) -> dict[str, float]:
    """Which part of one model's requests each server answers, once the router has seen their rate."""
    with Traffic(router_port, [target], rate) as traffic:
        traffic.wait_for(int(secs * rate))
    return Seen(traffic.seen.calls[int(secs * rate) // 2 :]).shares()
