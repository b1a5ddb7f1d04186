"""HAProxy or Envoy as a process, with a configuration that `polyhost fleet` has printed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Self

from benchmarks.servers import BenchmarkFailed, free_port

_START_SECS = 120
_STOP_SECS = 10
_POLL_SECS = 0.05
_UP = {
    "haproxy": ("/metrics", r'(?m)^haproxy_server_status\{proxy="predictions",server="[^"]+",state="UP"\} (1)'),
    "envoy": ("/stats?filter=membership_healthy", r"membership_healthy: (\d+)"),
}


class Router:
    """`ports`: of the servers, all on loopback. `options`: further ones of `polyhost fleet`."""

    def __init__(self, engine: str, folder: Path, ports: Sequence[int], *options: str) -> None:
        self.engine = engine
        self.port, self.metrics_port = free_port(), free_port()
        self._replicas = len(ports)
        self._log = folder / f"{engine}-{self.port}.log"
        file = folder / f"{engine}-{self.port}.{'cfg' if engine == 'haproxy' else 'yaml'}"
        servers = [f"--server=127.0.0.1:{port}" for port in ports]
        listens = [f"--listen={self.port}", f"--metrics-listen={self.metrics_port}"]
        file.write_text(printed(engine, f"--replicas={len(ports)}", *servers, *listens, *options))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(_command(engine, file), stdout=log, stderr=log, start_new_session=True)

    def __enter__(self) -> Self:
        try:
            self.wait_for(self._replicas, _START_SECS)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def servers_up(self) -> int:
        """How many servers the engine sends requests to; -1 while it does not tell."""
        path, pattern = _UP[self.engine]
        with contextlib.suppress(OSError):
            return sum(int(count) for count in re.findall(pattern, self.told(path)))
        return -1

    def told(self, path: str) -> str:
        """What it says of itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def wait_for(self, count: int, secs: float = _START_SECS) -> None:
        """Until it takes connections, and sends requests to so many servers. Raises BenchmarkFailed."""
        deadline = time.monotonic() + secs
        while (up := self.servers_up()) != count or not self._takes_connections():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise BenchmarkFailed(f"{self.engine} has {up} servers, not {count}:\n{self.log[-2000:]}")
            time.sleep(_POLL_SECS)

    def _takes_connections(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True
        return False

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(_STOP_SECS)


def printed(*arguments: str) -> str:
    """What `polyhost fleet …` prints."""
    command = [sys.executable, "-m", "polyhost", "fleet", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def installed(engine: str) -> Path | None:
    """Where scripts/install-fleet has put it, or the system."""
    if engine == "envoy":
        envoy = Path(sys.prefix) / "envs" / "fleet" / "bin" / "envoy"
        return envoy if envoy.exists() else None
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def _command(engine: str, file: Path) -> list[str | os.PathLike[str]]:
    program = installed(engine)
    if program is None:
        raise BenchmarkFailed(f"{engine} is not installed: scripts/install-fleet does it.")
    if engine == "haproxy":
        return [program, "-db", "-f", file]
    return [program, "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
