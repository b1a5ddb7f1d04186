"""Load from wrk, or in two segments a request, and its figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.artifacts import SEED
from benchmarks.servers import REPOSITORY, BenchmarkFailed

_SCRIPT = Path(__file__).with_name("load.lua")
_TIMEOUT_SECS = 60


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked: `path_format` has a `%d` for the model's number, 0 to `models` - 1."""

    port: int
    path_format: str
    models: int
    body: bytes
    content_type: str
    # Further header fields of the request for each model, if there are any.
    headers: tuple[Mapping[str, str], ...] = ()
    # "robin": one after the other; "zipf": the model of rank n with a chance of 1/n; "zipf0.8": of 1/n^0.8.
    law: str = "robin"


@dataclass(frozen=True)
class Figures:
    requests_per_sec: float
    p50_ms: float
    p99_ms: float


def measure(load: Load, *, connections: int, secs: int) -> Figures:
    """Closed loop: each connection asks again when it has its answer. Raises BenchmarkFailed if any is not a 200."""
    with (
        tempfile.NamedTemporaryFile(prefix="ph-bench-body-") as body,
        tempfile.NamedTemporaryFile(prefix="ph-bench-headers-", mode="w") as headers,
    ):
        body.write(load.body)
        body.flush()
        headers.writelines("\t".join(f"{name}: {value}" for name, value in of.items()) + "\n" for of in load.headers)
        headers.flush()
        finished = subprocess.run(
            ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{secs}s", f"--timeout={_TIMEOUT_SECS}s",
             "-s", str(_SCRIPT), f"http://127.0.0.1:{load.port}", "--",
             load.path_format, str(load.models), load.law, load.content_type, body.name, str(SEED),
             headers.name],
            capture_output=True, text=True, errors="replace", timeout=secs + 2 * _TIMEOUT_SECS, check=False,
        )  # fmt: skip
    return figures_of(finished.stdout + finished.stderr)


def measure_segments(load: Load, *, connections: int, secs: int) -> Figures:
    """The same loop with a segment for each head and one for each body. Raises BenchmarkFailed if any is not a 200."""
    fields = f"Host: 127.0.0.1\r\nContent-Type: {load.content_type}\r\nContent-Length: {len(load.body)}\r\n\r\n"
    told = {
        "port": load.port, "connections": connections, "secs": secs, "body": load.body.decode(),
        "heads": [f"POST {load.path_format % model} HTTP/1.1\r\n{fields}" for model in range(load.models)],
    }  # fmt: skip
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.segments"], input=json.dumps(told), cwd=REPOSITORY,
        capture_output=True, text=True, timeout=secs + 2 * _TIMEOUT_SECS, check=False,
    )  # fmt: skip
    return figures_of(finished.stdout + finished.stderr)


def figures_of(output: str) -> Figures:
    """What load.lua or segments.py printed. Raises BenchmarkFailed."""
    found = re.search(r"^JSON (.*)$", output, re.MULTILINE)
    if found is None:
        raise BenchmarkFailed(f"the load generator ended without figures:\n{output[-1000:]}")
    told = json.loads(found[1])
    if told["bad"] or told["broken"] or not told["requests"]:
        bad = re.search(r"^BAD (.*)$", output, re.MULTILINE)
        example = f", for example {bad[1]}" if bad else ""
        raise BenchmarkFailed(
            f"of {told['requests']} answers {told['bad']} were not a 200{example}; "
            f"{told['broken']} requests broke off or timed out",
        )
    return Figures(told["requests"] / told["secs"], told["p50_ms"], told["p99_ms"])
