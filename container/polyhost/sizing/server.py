"""A server of our own to measure: started, asked, looked at and stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from prometheus_client.parser import text_string_to_metric_families

from polyhost.errors import StartFailed
from polyhost.memory import anonymous_bytes, private_bytes
from polyhost.processes import living_descendants

_START_SECS = 60.0
_STOP_SECS = 35.0
_ANSWER_SECS = 400.0
# It has started when, for so long, it has used no more than that of a core.
_QUIET_SECS, _QUIET_CPU_SECS = 1.0, 0.05
# Each CPU has a worker of its own that pays once for what its models share: with two, few models of a sample do.
_CPUS = 2
# Settings that decide how models are served; all others are ours.
_KEPT_SETTINGS = (
    "POLYHOST_HANDLER",
    "POLYHOST_HANDLER_ENVIRONMENT",
    "POLYHOST_ENVIRONMENT",
    "POLYHOST_ENVIRONMENTS",
    "POLYHOST_ENVIRONMENTS_FOLDER",
    "POLYHOST_ISOLATION",
    "POLYHOST_HARDENED",
    "POLYHOST_HARDENED_WITHOUT",
    "POLYHOST_HARDENED_READ",
    "POLYHOST_WORKERS_PER_MODEL",
    "POLYHOST_PASS_ENV",
    "POLYHOST_LIBSVM_FIRST_INDEX",
)
_OTHER_SETTING = re.compile(r"POLYHOST_|SAGEMAKER_BIND_TO_PORT|SAGEMAKER_SAFE_PORT_RANGE")


@dataclass(frozen=True)
class SampleReply:
    status: int
    body: bytes
    secs: float

    @property
    def message(self) -> str:
        """An error's sentence."""
        with contextlib.suppress(ValueError, AttributeError):
            document = json.loads(self.body)
            return str(document.get("Message") or document.get("message") or "")[:500]
        return self.body[:500].decode("utf-8", "replace")


class SampleServer:
    """The native engine behind an endpoint, on loopback; one connection that is kept open."""

    def __init__(self, source: str, folder: Path, budget_bytes: int) -> None:
        """`folder`: for its state, which a second server finds again, and its log."""
        self.budget_bytes = budget_bytes
        self._source = source
        self._folder = folder
        self._port = free_port()
        self._log = folder / f"log-{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_SECS)

    def __enter__(self) -> SampleServer:  # noqa: PYI034 - Self came with Python 3.11
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        if self._process is None:
            return
        tree = living_descendants(self._process.pid)
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECS)
        except subprocess.TimeoutExpired:
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        environ = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT_SETTINGS or not _OTHER_SETTING.match(name)
        }
        with self._log.open("wb") as log, _on_cpus(_CPUS):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "polyhost.sizing.child", str(os.getpid()), *self._command()],
                env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECS
        while not self._answers_ping():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise StartFailed(f"the server that was to be measured did not start:\n{self.log_tail()}")
            time.sleep(0.05)
        self.request("POST", "/refresh")
        self._settle()

    def _settle(self) -> None:
        """Until nothing of the start is under way: workers are forked after the first answer to a ping."""
        deadline = time.monotonic() + _START_SECS
        since, last = time.monotonic(), self.cpu_secs()
        while time.monotonic() - since < _QUIET_SECS and time.monotonic() < deadline:
            time.sleep(0.1)
            if (now := self.cpu_secs()) - last > _QUIET_CPU_SECS:
                since, last = time.monotonic(), now

    def _command(self) -> list[str]:
        return [
            "serve", "--engine", "native", "--host", "127.0.0.1", "--port", str(self._port),
            "--models", self._source, "--endpoint-name", "size", "--state-dir", str(self._folder / "state"),
            "--memory-budget", str(self.budget_bytes), "--model-ready-timeout-secs", "360",
            "--access-log", "off", "--auth", "off",
        ]  # fmt: skip

    def _answers_ping(self) -> bool:
        try:
            return self.request("GET", "/ping").status == 200
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return False

    def log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-5:])

    # Requests

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> SampleReply:
        begin = time.perf_counter()
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        answer = response.read()
        return SampleReply(response.status, answer, time.perf_counter() - begin)

    def invoke(self, target: str, body: bytes, content_type: str) -> SampleReply:
        header = target.encode("utf-8", "surrogateescape").decode("latin-1")
        headers = {"Content-Type": content_type, "X-Amzn-SageMaker-Target-Model": header}
        return self.request("POST", "/endpoints/size/invocations", body, headers)

    def loaded(self) -> dict[str, str]:
        """The folder of each model that is loaded, by the engine's name for it."""
        models: dict[str, str] = {}
        token = ""
        while True:
            page = self._json(f"/models?limit=100&next_page_token={quote(token)}" if token else "/models?limit=100")
            models.update({model["modelName"]: model["modelUrl"] for model in page["models"]})
            token = page.get("nextPageToken") or ""
            if not token:
                return models

    def _json(self, path: str) -> Any:
        return json.loads(self.request("GET", path).body)

    # What it uses

    def models_bytes(self) -> int:
        """What counts against the budget."""
        return round(self._gauge("polyhost_memory_utilization_ratio") * self.budget_bytes)

    def evictions(self) -> int:
        return int(self._gauge("polyhost_model_evictions_total"))

    def _gauge(self, name: str) -> float:
        text = self.request("GET", "/metrics").body.decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return float(sum(sample.value for sample in samples if sample.name == name))

    def processes(self) -> list[psutil.Process]:
        assert self._process is not None
        return [psutil.Process(self._process.pid), *living_descendants(self._process.pid)]

    def private_bytes(self) -> int:
        """The private memory of all its processes."""
        # A process that may not be looked into says at least how much is resident.
        return sum(private_bytes(process.pid) or resident_bytes(process.pid) for process in self.processes())

    def resident(self) -> dict[int, int]:
        """Resident memory that is no file's, by process."""
        return {process.pid: resident_bytes(process.pid) for process in self.processes()}

    def cpu_secs(self) -> float:
        """The CPU time of all its living processes, since they were started."""
        secs = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                secs += times.user + times.system
        return secs


def resident_bytes(pid: int) -> int:
    """0 for a process that is gone."""
    try:
        return anonymous_bytes(Path(f"/proc/{pid}/statm").read_text())
    except (OSError, ValueError):
        return 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _on_cpus(count: int) -> Iterator[None]:
    """What is started meanwhile stays on so many CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
