"""Containers of the image under test: started, asked and removed with the docker command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from support.server import Answer, request

# What scripts/image-test exports.
DOCKER = os.environ.get("DOCKER", "docker")
IMAGE = os.environ.get("POLYHOST_IMAGE", "polyhost:mms")
NATIVE_IMAGE = os.environ.get("POLYHOST_NATIVE_IMAGE", "polyhost:native")
MXNET_IMAGE = os.environ.get("POLYHOST_MXNET_IMAGE", "polyhost:mms-mxnet")

MODELS = "/opt/ml/models"


def docker(*arguments: str, timeout: float = 120) -> str:
    """What a docker command prints; it must succeed."""
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def inspect(name: str) -> dict[str, Any]:
    return json.loads(docker("inspect", name))[0]


def wait_until(is_so: Callable[[], object], what: str, secs: float = 120) -> None:
    deadline = time.monotonic() + secs
    while not is_so():
        assert time.monotonic() < deadline, f"not within {secs:.0f} s: {what}"
        time.sleep(0.05)


class Container:
    """A container with models at /opt/ml/models, its port published on one of 127.0.0.1."""

    def __init__(
        self, models: Path, *options: str, image: str = IMAGE, command: str = "serve", port: int = 8080
    ) -> None:
        self._port = port
        volume, publish = f"{models}:{MODELS}:ro", f"127.0.0.1::{port}"
        self.image = image
        self.id = docker("run", "--detach", "--volume", volume, "--publish", publish, *options, image, *command.split())

    def remove(self) -> None:
        print(self.logs()[-20_000:])  # noqa: T201 - pytest shows it when the test has failed
        docker("rm", "--force", "--volumes", self.id)

    def state(self) -> dict[str, Any]:
        return inspect(self.id)["State"]

    def logs(self) -> str:
        done = subprocess.run(
            [DOCKER, "logs", self.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        return done.stdout

    def execute(self, *command: str) -> str:
        return docker("exec", self.id, *command)

    def processes(self) -> list[dict[str, Any]]:
        """`pid`, `state` and `command` of every process inside; there is no `ps` in the image."""
        found = json.loads(self.execute("python3", "-c", _LIST_PROCESSES))
        return [process for process in found if process["command"][0] != "runc"]  # another `docker exec`

    def java(self) -> dict[str, Any] | None:
        return next((process for process in self.processes() if process["command"][0].endswith("java")), None)

    def workers_of(self, model: str) -> list[dict[str, Any]]:
        """Of the engine mms: what its MMS calls the model is in the log."""
        inner_name = re.findall(rf"model {model}: to Multi Model Server it is (\w+)", self.logs())[-1]
        return [process for process in self.processes() if inner_name in process["command"]]

    # Requests

    def request(self, method: str, target: str, body: bytes | str | None = None, **headers: str) -> Answer:
        # Asked for each time: a restart changes it.
        port = int(docker("port", self.id, str(self._port)).splitlines()[0].rpartition(":")[2])
        return request(port, method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def wait_ready(self) -> None:
        wait_until(self._is_ready, "/ping answers")

    def _is_ready(self) -> bool:
        assert self.state()["Running"], f"the container ended: {self.logs()}"
        try:
            return self.request("GET", "/ping").status == 200
        except OSError:
            return False

    def load(self, name: str, folder: str = "") -> Answer:
        document = {"model_name": name, "url": f"{MODELS}/{folder or name}"}
        return self.request("POST", "/models", json.dumps(document), Content_Type="application/json")

    def must_load(self, *names: str) -> None:
        for name in names:
            answer = self.load(name)
            assert answer.status == 200, answer.text

    def unload(self, name: str) -> None:
        answer = self.request("DELETE", f"/models/{quote(name, safe='')}")
        assert answer.status == 200, answer.text

    @contextlib.contextmanager
    def loaded(self, *names: str) -> Iterator[None]:
        """Models for the length of a block."""
        self.must_load(*names)
        try:
            yield
        finally:
            for name in names:
                self.unload(name)

    def invoke(self, name: str, body: bytes | str, content_type: str = "text/csv") -> Answer:
        return self.request("POST", f"/models/{quote(name, safe='')}/invoke", body, Content_Type=content_type)


_LIST_PROCESSES = """
import json, os
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline") as line:
            state, command = stat.read().rpartition(")")[2].split()[0], line.read().split("\\0")
    except OSError:
        continue
    if int(pid) != os.getpid():
        found.append({"pid": int(pid), "state": state, "command": command})
print(json.dumps(found))
"""
