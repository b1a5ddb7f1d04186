"""A server under test: the command as its users start it, one at a time."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from support.clock import FairClock

# Far longer than a start takes on a slow machine: a server that ends by itself is not waited for.
START_SECS = 180

# Workers of pytest-xdist that can have ports of their own.
_PORT_SHARES = 16
# Those that were given last.
_given_ports: deque[int] = deque(maxlen=500)


@dataclass(frozen=True)
class Answer:
    """`headers` as they came, `fields` by lower-case name."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    @property
    def fields(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers}

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        """The sentence of an error in MMS's JSON; its code must be the status."""
        document = self.json()
        assert list(document) == ["code", "type", "message"]
        assert document["code"] == self.status
        assert "Traceback" not in document["message"]
        return str(document["message"])


def free_port(lowest: int = 20_000, highest: int = 32_000) -> int:
    """
    Below the kernel's own range unless told, so that no other socket gets it meanwhile.

    Nor does another test: each of xdist's workers has ports of its own, and gives none of them twice in a row.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = random.randint(lowest, highest)
        if port % _PORT_SHARES != worker % _PORT_SHARES or port in _given_ports:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given_ports.append(port)
            return port


def request(
    port: int, method: str, target: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> Answer:  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, target, body.encode() if isinstance(body, str) else body, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, tuple(response.getheaders()), response.read())
    finally:
        connection.close()


class Process:
    """A command whose output is collected as it comes."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], cwd: Path | None = None) -> None:
        self._popen = subprocess.Popen(
            command, env=dict(environ), cwd=cwd, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._is_over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def log(self) -> str:
        with self._news:
            return "".join(self._lines)

    def wait_for_line(self, pattern: str, secs: float = START_SECS) -> str:
        """The first line that matches, also one that has come already."""
        deadline = time.monotonic() + secs
        seen = 0
        with self._news:
            while True:
                for line in self._lines[seen:]:
                    if re.search(pattern, line):
                        return line
                seen = len(self._lines)
                left = deadline - time.monotonic()
                if self._is_over or left <= 0:
                    raise AssertionError(f"no line matches {pattern!r} at the end of:\n{''.join(self._lines[-40:])}")
                self._news.wait(left)

    def send(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, secs: float = 120) -> int:
        code = self._popen.wait(secs)
        self._reader.join(30)  # it has all once nobody can write any more
        return code

    def kill_tree(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self._popen.kill()
        self._popen.wait(60)
        self._reader.join(5)

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as output:  # nobody else closes it: a read from what is closed is an error
            for line in output:
                with self._news:
                    self._lines.append(line.decode("utf-8", "replace"))
                    self._news.notify_all()
        with self._news:
            self._is_over = True
            self._news.notify_all()


def told_to(engine: str) -> dict[str, str]:
    """
    What MMS is told here. Java starts without its optimising compiler, which takes a third of a start's CPU time.

    And MMS has ports that no test is given: Java binds its own some seconds after it was found free.
    """
    if engine != "mms":
        return {}
    from polyhost.engine.mms_process import vm_arguments  # only here: others start without the engine

    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    lowest = 10_000 + 500 * (worker % _PORT_SHARES)
    return {
        "SAGEMAKER_MODEL_SERVER_VMARGS": f"{vm_arguments()} -XX:TieredStopAtLevel=1",
        "SAGEMAKER_SAFE_PORT_RANGE": f"{lowest}-{lowest + 499}",
    }


def imports_for(arguments: Sequence[str]) -> str:
    """
    When frameworks are imported in tests, unless a test says it: late, as for scripts, which most tests load.

    Hundreds of servers are started: a second of imports for each would be a third of all tests' time. The hardened mode
    is tested as users have it.
    """
    return "early" if "--hardened" in arguments else "late"


class Server:
    """`polyhost serve`, ready to answer."""

    # Models of tests lie anywhere.
    model_root = "/"

    def __init__(
        self, engine: str, arguments: Sequence[str] = (), environ: Mapping[str, str] | None = None, port: int = 0,
    ) -> None:  # fmt: skip
        self.engine = engine
        self.port = port or free_port()
        self.temp = Path(tempfile.mkdtemp(prefix="ph-test-"))
        ours = re.compile(r"SAGEMAKER|POLYHOST|MMS_|AWS_|OMP_|PYTHONPATH")
        clean = {name: value for name, value in os.environ.items() if not ours.match(name)}
        self.process = Process(
            [sys.executable, "-m", "polyhost", "serve", "--engine", engine, "--port", str(self.port),
             "--model-root", self.model_root, "--fronts", os.environ.get("FRONTS", "1"), *arguments],
             {
                 **clean, **told_to(engine), "SAGEMAKER_BASE_DIR": str(self.temp / "no-model"),
                 "TMPDIR": str(self.temp), "POLYHOST_IMPORT_FRAMEWORKS": imports_for(arguments), **(environ or {}),
             },
        )  # fmt: skip
        try:
            self.process.wait_for_line(r"\] polyhost - ready on|\"message\": \"ready on")
        except AssertionError:
            self.kill()
            raise

    def stop(self) -> int:
        """Ask it to stop as a platform does; its exit code."""
        self.process.send(signal.SIGTERM)
        try:
            return self.ends_within(30)
        finally:
            self.kill()

    def ends_within(self, secs: float) -> int:
        """Its exit code, once it has ended by itself; raises TimeoutExpired after so many fair seconds."""
        clock = FairClock(self.process.pid)
        deadline = clock() + secs
        while True:
            try:
                return self.process.wait(0.1)
            except subprocess.TimeoutExpired:
                if clock() > deadline:
                    raise

    def kill(self) -> None:
        self.process.kill_tree()
        shutil.rmtree(self.temp, ignore_errors=True)

    # Requests

    def request(self, method: str, target: str, body: bytes | str | None = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(self.port, method, target, body, named)

    def load(self, name: str, url: Path | str, **parameters: Any) -> Answer:
        document = {"model_name": name, "url": str(url), **parameters}
        return self.request("POST", "/models", json.dumps(document), Content_Type="application/json")

    def unload(self, name: str) -> Answer:
        return self.request("DELETE", f"/models/{quote(name, safe='')}")

    def names(self) -> list[str]:
        return [model["modelName"] for model in self.request("GET", "/models").json()["models"]]

    def invoke(self, name: str, body: bytes | str = b"", content_type: str = "text/csv", **headers: str) -> Answer:
        target = f"/models/{quote(name, safe='')}/invoke"
        return self.request("POST", target, body, Content_Type=content_type, **headers)

    @contextlib.contextmanager
    def loaded(self, name: str, url: Path | str, **parameters: Any) -> Iterator[Callable[..., Answer]]:
        """A model for the length of a block, as a function that invokes it."""
        answer = self.load(name, url, **parameters)
        assert (answer.status, answer.json()) == (200, {"status": "Workers scaled"}), answer.text + self.process.log
        try:
            yield lambda *args, **headers: self.invoke(name, *args, **headers)
        finally:
            self.unload(name)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end soon; one that is dead and only init can bury has ended."""
    deadline = time.monotonic() + 60
    while any(process.is_running() and not is_zombie(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
