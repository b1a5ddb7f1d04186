"""What a load test starts: servers of two sizings, and Locust's processes. Nothing of it outlives its block."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.endpoint import EndpointServer
from benchmarks.locust.figures import parsed
from benchmarks.servers import REPOSITORY, BenchmarkFailed, python_path

_ANSWER_SECS = 70
_MEASURING_BUDGET_BYTES = 4 * 1024**3
_CALLS = 3
# Memory that has not changed for so long has settled: a worker that is idle for a second gives its own back.
_SETTLED_SECS = 3.0


class ChurnServer(EndpointServer):
    """An endpoint with the churn models, with so much memory for them."""

    title = "Polyhost's endpoint with the churn models"

    def __init__(self, models: Path, state: Path, budget_bytes: int) -> None:
        super().__init__(str(models), state, "--memory-budget", str(budget_bytes))
        self.budget_bytes = budget_bytes

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_SECS)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def call(self, target: str, body: str) -> None:
        """Raises BenchmarkFailed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_SECS)
        try:
            headers = {"Content-Type": "text/csv", "X-Amzn-SageMaker-Target-Model": target}
            connection.request("POST", "/endpoints/polyhost/invocations", body.encode(), headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise BenchmarkFailed(f"{target}: {response.status} {answer[:300]!r}")

    def cpu_secs(self) -> float:
        """Of all its living processes, since they were started."""
        secs = 0.0
        for process in self.processes():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            secs += times.user + times.system
        return secs


def memory_of_all(models: Path, state: Path, body: str) -> int:
    """What all models in memory take, as a server counts it, bytes. Raises BenchmarkFailed."""
    targets = sorted(str(path.relative_to(models)) for path in models.rglob("*.tar.gz"))
    with ChurnServer(models, state, _MEASURING_BUDGET_BYTES) as server:
        for target in targets:
            for _ in range(_CALLS):
                server.call(target, body)
        return _settled_memory_bytes(server)


def _settled_memory_bytes(server: ChurnServer) -> int:
    """When its workers have been idle and have given back what loads took for a moment."""
    used_bytes, since = -1, time.monotonic()
    while time.monotonic() < since + _SETTLED_SECS:
        time.sleep(0.1)
        now_bytes = round(parsed(server.get("/metrics")).memory_ratio * server.budget_bytes)
        if now_bytes != used_bytes:
            used_bytes, since = now_bytes, time.monotonic()
    return used_bytes


class Command:
    """A command in a keeper's hands (benchmarks/keeper.py): if we die, it dies."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self._arguments = arguments
        self._environ = {**os.environ, "PYTHONPATH": python_path(), **environ}
        self.log = log
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Command:  # noqa: PYI034 - Self needs Python 3.11
        with self.log.open("wb") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.keeper", *self._arguments],
                cwd=REPOSITORY, env=self._environ, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert self._keeper.stdout is not None
        self._keeper.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._keeper is not None
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper.stdout.close()

    def is_running(self) -> bool:
        assert self._keeper is not None
        try:
            children = psutil.Process(self._keeper.pid).children()
            return any(child.status() != psutil.STATUS_ZOMBIE for child in children)
        except psutil.NoSuchProcess:
            return False

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def wait_for(commands: Sequence[Command], secs: float) -> None:
    """Until all have ended. Raises BenchmarkFailed when it takes longer."""
    deadline = time.monotonic() + secs
    for command in commands:
        while command.is_running():
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"Locust did not end in time; its log ends:\n{command.log_tail()}")
            time.sleep(0.2)
