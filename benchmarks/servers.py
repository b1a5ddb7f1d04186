"""The contenders: how each is started, asked and stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

import psutil
from typing_extensions import Self

from benchmarks.artifacts import ROW, ROW_CSV
from benchmarks.memory import pss_bytes

REPOSITORY = Path(__file__).resolve().parent.parent
CSV = "text/csv"
_START_SECS = 90.0
_ANSWER_SECS = 60.0
_POLL_SECS = 0.002
# By the number of their processes: name and title.
FASTAPIS = {1: ("fastapi", "FastAPI, one process"), 2: ("fastapi2", "FastAPI, two processes")}
_OTHERS_SETTINGS = re.compile(r"SAGEMAKER|POLYHOST|MMS_|MLSERVER|OMP_|PYTHONPATH")


S = TypeVar("S", bound="Server")


class BenchmarkFailed(Exception):
    """A server did not do what is measured; the sentence says which and what it answered."""


class Server:
    """One server, from `start` to `stop`; the same verbs for all of them."""

    name: str
    title: str
    ping: ClassVar[str] = "/ping"
    # One row for one model, as this server takes it.
    row: ClassVar[bytes] = ROW_CSV
    row_type: ClassVar[str] = CSV

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        # Short: Unix sockets lie in it.
        self.folder = Path(tempfile.mkdtemp(prefix="ph-bench-"))
        self._extra_environ = dict(environ or {})
        self._keeper: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def own_environ(self) -> dict[str, str]:
        return {}

    def invoke_path(self, model: str) -> str:
        return f"/models/{model}/invoke"

    def prepare(self, model: str, source: Path) -> None:
        """What a server needs on disk before it can be asked to load a model; not measured."""

    def load(self, client: Client, model: str, source: Path, workers: int = 1) -> None:
        document = {"model_name": model, "url": str(source), "initial_workers": workers, "synchronous": True}
        client.request("POST", "/models", json.dumps(document).encode(), "application/json")

    def unload(self, client: Client, model: str) -> None:
        client.request("DELETE", f"/models/{model}")

    def invoke(self, client: Client, model: str) -> bytes:
        return client.request("POST", self.invoke_path(model), self.row, self.row_type)

    # Start and stop

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> float:
        """Seconds from the start of the process until `/ping` is answered 200."""
        kept = {name: value for name, value in os.environ.items() if not _OTHERS_SETTINGS.match(name)}
        environ = {**kept, "TMPDIR": str(self.folder), "TEMP": str(self.folder), **self.own_environ()}
        with open(self.folder / "log", "wb") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.keeper", "env", f"--chdir={self.folder}", *self.command()],
                cwd=REPOSITORY, env={**environ, **self._extra_environ}, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert self._keeper.stdout is not None
        self._keeper.stdout.readline()
        started = time.perf_counter()
        while not self._answers_ping():
            if time.perf_counter() - started > _START_SECS or not self.processes():
                raise BenchmarkFailed(f"{self.title} did not start:\n{self.log_tail()}")
            time.sleep(_POLL_SECS)
        return time.perf_counter() - started

    def stop(self) -> None:
        """Nothing of the server is left: no process, no file."""
        if self._keeper is not None:
            assert self._keeper.stdin is not None
            assert self._keeper.stdout is not None
            self._keeper.stdin.close()
            self._keeper.wait()
            self._keeper.stdout.close()
            self._keeper = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """Every living process of the server."""
        assert self._keeper is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            return [
                process
                for process in psutil.Process(self._keeper.pid).children(recursive=True)
                if process.status() != psutil.STATUS_ZOMBIE
            ]
        return []

    def pss_bytes(self) -> int:
        return pss_bytes(self.processes())

    def log_tail(self) -> str:
        log = self.folder / "log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else ""

    def client(self) -> Client:
        return Client(self)

    def _answers_ping(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", self.ping)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Client:
    """One client on one connection that is kept open. Anything but a 200 ends the benchmark."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_ANSWER_SECS)

    def __enter__(self) -> Client:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def request(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> bytes:
        headers = {"Content-Type": content_type} if content_type else {}
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise BenchmarkFailed(
                f"{self._server.title}: {method} {path}: {error!r}; its log ends:\n{self._server.log_tail()}",
            ) from error
        if response.status != http.HTTPStatus.OK:
            raise BenchmarkFailed(
                f"{self._server.title}: {method} {path}: {response.status} {answer[:300]!r}; "
                f"its log ends:\n{self._server.log_tail()}",
            )
        return answer


class Native(Server):
    name = "native"
    title = "Polyhost native"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "polyhost", "serve", "--engine", "native", "--port", str(self.port),
                "--model-root", "/"]  # fmt: skip

    def own_environ(self) -> dict[str, str]:
        return {
            "PYTHONPATH": python_path(),
            "SAGEMAKER_MULTI_MODEL": "true",
            "SAGEMAKER_BASE_DIR": str(self.folder),
        }


class Mms(Server):
    """The real Multi Model Server, with nothing of Polyhost before it; it runs Polyhost's handlers."""

    name = "mms"
    title = "Multi Model Server"

    def __init__(self, environ: Mapping[str, str] | None = None, python_environment: Path | None = None) -> None:
        """`python_environment`: whose interpreter MMS's workers run in; the benchmark's own unless told."""
        super().__init__(environ)
        self._scripts = python_environment / "bin" if python_environment else Path(sysconfig.get_path("scripts"))

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.mms_bare", "polyhost_handlers.auto:handle"]

    def own_environ(self) -> dict[str, str]:
        listen = f"http://127.0.0.1:{self.port}"
        return {
            "PYTHONPATH": python_path(),
            "SAGEMAKER_MULTI_MODEL": "true",
            "SAGEMAKER_BASE_DIR": str(self.folder),
            "SAGEMAKER_BIND_TO_PORT": str(self.port),
            # The toolkit would have it listen to the world.
            "MMS_INFERENCE_ADDRESS": listen,
            "MMS_MANAGEMENT_ADDRESS": listen,
            "PATH": f"{self._scripts}:{os.environ.get('PATH', os.defpath)}",
        }


class MlServer(Server):
    """Seldon's MLServer with its own XGBoost runtime, its settings at their defaults."""

    name = "mlserver"
    title = "MLServer"
    ping = "/v2/health/ready"
    row = json.dumps(
        {"inputs": [{"name": "house", "shape": [1, len(ROW)], "datatype": "FP32", "data": list(map(float, ROW))}]},
    ).encode()
    row_type = "application/json"

    def __init__(self, python_environment: Path) -> None:
        super().__init__()
        self._scripts = python_environment / "bin"
        self._repository = self.folder / "models"
        self._repository.mkdir()

    def command(self) -> list[str]:
        settings = {
            "host": "127.0.0.1",
            "http_port": self.port,
            "grpc_port": free_port(),
            "metrics_port": free_port(),
            "debug": False,
            "load_models_at_startup": False,
        }
        (self._repository / "settings.json").write_text(json.dumps(settings))
        return [str(self._scripts / "mlserver"), "start", str(self._repository)]

    def own_environ(self) -> dict[str, str]:
        # Threads for one row cost more than they bring; the others' workers have one by default.
        return {"OMP_NUM_THREADS": "1", "PATH": f"{self._scripts}:{os.environ.get('PATH', os.defpath)}"}

    def invoke_path(self, model: str) -> str:
        return f"/v2/models/{model}/infer"

    def prepare(self, model: str, source: Path) -> None:
        folder = self._repository / model
        folder.mkdir()
        settings = {
            "name": model,
            "implementation": "mlserver_xgboost.XGBoostModel",
            "parameters": {"uri": "./model.ubj"},
        }
        (folder / "model-settings.json").write_text(json.dumps(settings))
        os.link(source / "xgboost-model", folder / "model.ubj")

    def load(self, client: Client, model: str, source: Path, workers: int = 1) -> None:  # noqa: ARG002
        client.request("POST", f"/v2/repository/models/{model}/load")

    def unload(self, client: Client, model: str) -> None:
        client.request("POST", f"/v2/repository/models/{model}/unload")


class FastApi(Server):
    """FastAPI behind uvicorn, which loads models from a folder: what many write who need no more than one model."""

    def __init__(self, processes: int) -> None:
        super().__init__()
        self.name, self.title = FASTAPIS[processes]
        self._processes = processes
        self._models = self.folder / "models"
        self._models.mkdir()

    def command(self) -> list[str]:
        return [sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(self.port), "--no-access-log",
                "--workers", str(self._processes), "benchmarks.fastapi_app:app"]  # fmt: skip

    def own_environ(self) -> dict[str, str]:
        return {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "MODELS": str(self._models)}

    def prepare(self, model: str, source: Path) -> None:
        (self._models / model).symlink_to(source)

    def load(self, client: Client, model: str, source: Path, workers: int = 1) -> None:
        """A process loads it when it is first asked."""


def python_path() -> str:
    """Our checkout's packages, before those that are installed."""
    return ":".join(str(REPOSITORY / folder) for folder in ("container", "aws", "handlers", "."))


def free_port() -> int:
    """
    One that MMS takes (15 bits), below the kernel's own range, so that no other socket gets it meanwhile.

    Nor one of those that the tests beside it are given.
    """
    while True:
        port = random.randint(18_000, 19_999)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
