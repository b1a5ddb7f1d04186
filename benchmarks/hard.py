"""
An endpoint where it is hard: signed and logged calls, a storm of cold calls, a memory that holds half of the models.

`python -m benchmarks.hard PORT TARGET…` is the steady client of the storm, a process of its own, so that the others'
work in Python does not count as waiting.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvloop

from benchmarks.artifacts import BOOSTERS, ROW_CSV, Artifacts
from benchmarks.endpoint import EndpointServer, archives, ask, asked_servers, invocation, load_of, turns_of
from benchmarks.load import Figures, measure
from benchmarks.servers import REPOSITORY, BenchmarkFailed

Add = Callable[[str, float], None]

_STEADY_PER_SEC = 300
_STEADY_CLIENTS = 3
_COLD_AT_ONCE = 64
_CHURN_BUDGET_MIB = 2048
_CHURN_LAW = "zipf0.8"
_MIB = 1024**2


def measure_signed(artifacts: Artifacts, repeats: int, secs: int, connections: int, add: Add) -> None:
    """Requests/s with an access log and with signatures, as shares of those without; A B C A B C …"""
    with asked_servers(artifacts, "plain", "logged", "signed") as (targets, servers):
        loads = {name: load_of(server.port, targets, is_signed=name == "signed") for name, server in servers.items()}
        for figures in turns_of(loads, repeats, secs, connections):
            per_sec = {name: figure.requests_per_sec for name, figure in figures.items()}
            for name, figure in per_sec.items():
                add(f"{name}_per_sec", figure)
            add("logged_share", per_sec["logged"] / per_sec["plain"])
            add("signed_share", per_sec["signed"] / per_sec["plain"])


def measure_storm(artifacts: Artifacts, models: int, add: Add) -> None:
    """Many cold calls at once, while some models are asked steadily; the archives are in the disk cache."""
    with tempfile.TemporaryDirectory(prefix="ph-bench-") as temp:
        folder = Path(temp)
        (folder / "models").mkdir()
        targets = archives(artifacts, folder / "models", BOOSTERS + models)
        hot, cold = targets[:BOOSTERS], targets[BOOSTERS:]
        for state in ("new", "compiled"):  # the second server finds what the first has compiled
            with EndpointServer(str(folder / "models"), folder / "state") as server:
                ask(server, hot)
                steady = _Steady(server.port, hot)
                secs = _ask_all_at_once(server, cold)
                waits_ms = steady.ended()
            add(f"cold_{state}_per_sec", len(cold) / secs)
            add(f"hot_p50_{state}_ms", _share_of(waits_ms, 0.5))
            add(f"hot_p99_{state}_ms", _share_of(waits_ms, 0.99))


class _Steady:
    """The steady client, until it is ended."""

    def __init__(self, port: int, targets: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.hard", str(port), *targets],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def ended(self) -> list[float]:
        """Milliseconds from when each answer was due to be asked for until it was there."""
        output, _ = self._process.communicate("\n")
        waits_ms: list[float] = json.loads(output)
        return waits_ms


def _ask_all_at_once(server: EndpointServer, targets: Sequence[str]) -> float:
    """
    Each once, over so many connections; seconds for all.

    One thread: one for each connection would take as much of the machine as the server.
    """
    started = time.perf_counter()
    uvloop.run(_ask_all(server.port, iter(targets)))
    return time.perf_counter() - started


async def _ask_all(port: int, targets: Iterator[str]) -> None:
    await asyncio.gather(*(_ask_one_by_one(port, targets) for _ in range(_COLD_AT_ONCE)))


async def _ask_one_by_one(port: int, targets: Iterator[str]) -> None:
    """On one connection, as long as there are any."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for target in targets:
        path, headers = invocation(port, target)
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(ROW_CSV)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode() + ROW_CSV)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1])) if length else b""
        if not head.startswith(b"HTTP/1.1 200 "):
            raise BenchmarkFailed(f"{target}: {head[:50]!r} {body[:300]!r}")
    writer.close()


def measure_churn(artifacts: Artifacts, models: int, secs: int, connections: int, add: Add) -> None:
    """Of the models, drawn by Zipf's law with the exponent 0.8, half fit into memory."""
    with tempfile.TemporaryDirectory(prefix="ph-bench-") as temp:
        folder = Path(temp)
        (folder / "models").mkdir()
        targets = archives(artifacts, folder / "models", models)
        source, state = str(folder / "models"), folder / "state"
        with EndpointServer(source, state, "--memory-budget", f"{_CHURN_BUDGET_MIB}MiB") as server:
            ask(server, targets[:1])
            before = _used_bytes(server)
            ask(server, targets[1:])
            all_bytes = _used_bytes(server) - before
        budget_mib = (before + all_bytes / 2) / _MIB
        with EndpointServer(source, state, "--memory-budget", f"{budget_mib:.0f}MiB") as server:
            figures: Figures | None = None
            load = load_of(server.port, targets, is_signed=False, law=_CHURN_LAW)
            for _ in range(2):  # the first one warms up
                figures = measure(load, connections=connections, secs=secs)
            resident = _metric(server, "polyhost_loaded_model_count")
        assert figures is not None
        add("requests_per_sec", figures.requests_per_sec)
        add("p50_ms", figures.p50_ms)
        add("p99_ms", figures.p99_ms)
        add("resident", resident)


def _used_bytes(server: EndpointServer) -> float:
    return _metric(server, "polyhost_memory_utilization_ratio") * _CHURN_BUDGET_MIB * _MIB


def _metric(server: EndpointServer, name: str) -> float:
    with server.client() as client:
        page = client.request("GET", "/metrics").decode()
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    if found is None:
        raise BenchmarkFailed(f"{server.title}: /metrics has no {name}")
    return float(found[1])


def _share_of(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _ask_steadily(port: int, targets: Sequence[str], is_over: threading.Event) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    waits_ms, begin, number = [], time.perf_counter(), 0
    while not is_over.is_set():
        due = begin + number * _STEADY_CLIENTS / _STEADY_PER_SEC
        time.sleep(max(0.0, due - time.perf_counter()))
        path, headers = invocation(port, targets[number % len(targets)])
        connection.request("POST", path, ROW_CSV, headers)
        response = connection.getresponse()
        response.read()
        if response.status != http.HTTPStatus.OK:
            raise BenchmarkFailed(f"{targets[number % len(targets)]}: {response.status}")
        waits_ms.append((time.perf_counter() - due) * 1000)
        number += 1
    return waits_ms


def main(port: int, targets: Sequence[str]) -> None:
    is_over = threading.Event()
    waits_ms: list[float] = []
    threads = [
        threading.Thread(target=lambda: waits_ms.extend(_ask_steadily(port, targets, is_over)))
        for _ in range(_STEADY_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    print("started", flush=True)
    sys.stdin.readline()
    is_over.set()
    for thread in threads:
        thread.join()
    print(json.dumps(waits_ms))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
