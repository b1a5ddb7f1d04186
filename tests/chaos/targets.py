"""The servers under chaos, with the same verbs: Polyhost as an endpoint before a bucket, and the real MMS alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from support.endpoint import client
from support.server import free_port, request

from benchmarks.servers import Mms
from chaos import census
from chaos.models import Model, fleet
from chaos.oracle import RIGHT, Call, Sample, ask_once
from chaos.store import BUCKET, Store

# Of one call of a model; the server ends what takes longer.
MODEL_TIMEOUT_SECS = 4
# How long a request waits for its model's load.
READY_TIMEOUT_SECS = 30
LOAD_TIMEOUT_SECS = 40
# What a request may take at most: a load, then a call whose worker is ended and which is tried once more.
REQUEST_SECS = READY_TIMEOUT_SECS + 2 * MODEL_TIMEOUT_SECS + 4
_START_SECS = 60
_STOP_SECS = 30
_OTHERS_SETTINGS = re.compile(r"SAGEMAKER|POLYHOST|MMS_|AWS_")
# However this process ends, the kernel ends the server with it. setpriv then becomes the command.
_ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
# MMS counts a load, which starts a process and imports the frameworks, against the same timeout as a call.
_MMS_TIMEOUT_SECS = 25
PREFIX, OTHER_PREFIX = "models", "other"
OTHER_ENDPOINT = "other"


class ServerFailed(Exception):
    """A server did not start, or does not answer; the sentence says which."""


class Target:
    """A server that is started, asked, killed and started again on the same state."""

    title = ""
    model_timeout_secs: float = MODEL_TIMEOUT_SECS
    # How long its recovery is awaited at least, so that there is a figure where nothing is promised.
    patience_secs: float = 0
    steady: Sequence[Model] = ()
    unruly: Sequence[Model] = ()

    @property
    def port(self) -> int:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        raise NotImplementedError

    def start(self) -> None:
        raise NotImplementedError

    def stop(self, number: int = signal.SIGTERM) -> None:
        raise NotImplementedError

    def call(self, model: Model, body: bytes | None = None, values: Iterable[int] = ()) -> Call:
        raise NotImplementedError

    def temp_folders(self) -> Mapping[str, Path]:
        raise NotImplementedError

    def ask(self, model: Model, body: bytes | None = None, timeout_secs: float = REQUEST_SECS) -> Sample:
        return ask_once(self.port, self.call(model, body), timeout_secs)

    def processes(self, kind: str) -> list[psutil.Process]:
        return [member.process for member in census.members(self.pid) if member.kind == kind]

    def census(self) -> census.Census:
        return census.take(self.pid, self.temp_folders())

    def answers_ping(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def what_is_not_right(self) -> str:
        """Of all models, the first that does not answer its constant; empty if all do."""
        for model in (*self.steady, *self.unruly):
            sample = self.ask(model)
            if sample.outcome != RIGHT:
                return f"{model.name}: {sample.outcome} {sample.text}".strip()
        return ""

    def open_what_stays_open(self) -> None:
        """Connections that are kept for the next time are no leftovers of a fault that happens to use them first."""

    def has_endpoints(self) -> bool:
        return True

    def unload(self, model: Model) -> int:
        """The answer's status. What the model has started must end with it."""
        raise NotImplementedError


class Polyhost(Target):
    """`polyhost serve --models s3://…`, and a second endpoint that a client has made."""

    title = "Polyhost"

    def __init__(self, store: Store, arguments: Sequence[str] = (), *, heavy: int = 0) -> None:
        self._store = store
        self._arguments = tuple(arguments)
        self._port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="ph-chaos-"))
        self.state = self.folder / "state"
        self.cache = self.state / "cache"
        self._popen: subprocess.Popen[bytes] | None = None
        self.unruly = fleet("unruly", 2)
        self.steady = [*fleet("data", 12), *fleet("heavy", heavy), *fleet("other", 2)]

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    @property
    def log(self) -> str:
        """Its last 20,000 characters."""
        with open(self.folder / "log", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            return file.read().decode("utf-8", "replace")

    def upload(self, cold: int) -> None:
        for model in (*self.steady, *self.unruly, *fleet("cold", cold)):
            self._store.put(OTHER_PREFIX if model.kind == "other" else PREFIX, model)

    def start(self) -> None:
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "polyhost", "serve", "--port", str(self._port), "--state-dir", str(self.state),
            "--models", f"s3://{BUCKET}/{PREFIX}/", "--access-log", "off", "--refresh-secs", "0",
            "--model-ready-timeout-secs", str(READY_TIMEOUT_SECS),
            "--model-load-timeout-secs", str(LOAD_TIMEOUT_SECS), *self._arguments,
        ]  # fmt: skip
        with open(self.folder / "log", "ab") as log:
            self._popen = subprocess.Popen(
                [*_ENDS_WITH_US, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ(),
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECS
        while not self.answers_ping():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                raise ServerFailed(f"{self.title} did not start. Its log ends:\n{self.log[-3000:]}")
            time.sleep(0.05)

    def _environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not _OTHERS_SETTINGS.match(name)}
        return {
            **kept, "TMPDIR": str(self.folder / "tmp"), "SAGEMAKER_BASE_DIR": str(self.folder / "no-model"),
            "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": str(MODEL_TIMEOUT_SECS),
            "AWS_ENDPOINT_URL": self._store.url, "AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos",
            "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_MAX_ATTEMPTS": "1",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull, "AWS_REGION": "us-east-1",
        }  # fmt: skip

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Raises ServerFailed where it does not end in time; it has ended then, too."""
        assert self._popen is not None
        late = False
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)
        try:
            self._popen.wait(_STOP_SECS)
        except subprocess.TimeoutExpired:
            late = True
            self._popen.kill()
            self._popen.wait()
        if late:
            raise ServerFailed(f"{self.title} did not end within {_STOP_SECS} s of {signal.Signals(number).name}.")

    def close(self) -> None:
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def make_endpoint(self, name: str = OTHER_ENDPOINT) -> None:
        sagemaker = self._sagemaker()
        container = {"Image": "polyhost:latest", "Mode": "MultiModel", "ModelDataUrl": f"s3://{BUCKET}/{OTHER_PREFIX}/"}
        sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
        variant = {"VariantName": "all", "ModelName": name, "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        deadline = time.monotonic() + REQUEST_SECS
        while sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] != "InService":
            if time.monotonic() > deadline:
                raise ServerFailed(f"The endpoint {name} is not InService within {REQUEST_SECS} s.")
            time.sleep(0.05)

    def delete_endpoint(self, name: str) -> None:
        sagemaker = self._sagemaker()
        sagemaker.delete_endpoint(EndpointName=name)
        sagemaker.delete_endpoint_config(EndpointConfigName=name)
        sagemaker.delete_model(ModelName=name)

    def has_endpoints(self) -> bool:
        names = {endpoint["EndpointName"] for endpoint in self._sagemaker().list_endpoints()["Endpoints"]}
        return {"polyhost", OTHER_ENDPOINT} <= names

    def open_what_stays_open(self) -> None:
        self.refresh()  # looks at all models at once

    def refresh(self) -> int:
        """The answer's status."""
        return request(self._port, "POST", "/refresh", timeout=REQUEST_SECS).status

    def unload(self, model: Model) -> int:
        state = request(self._port, "GET", "/dashboard/state", timeout=REQUEST_SECS).json()
        (container,) = (one["id"] for one in state["containers"] if one["endpoint"] == "polyhost")
        headers = {"Content-Type": "application/json", "X-Polyhost-Dashboard": "1"}
        asked = json.dumps({"container": container, "target": model.key})
        return request(self._port, "POST", "/dashboard/unload", asked, headers, REQUEST_SECS).status

    def metrics(self) -> str:
        return request(self._port, "GET", "/metrics", timeout=REQUEST_SECS).text

    def _sagemaker(self) -> Any:
        return client("sagemaker", f"http://127.0.0.1:{self._port}")

    def call(self, model: Model, body: bytes | None = None, values: Iterable[int] = ()) -> Call:
        endpoint = OTHER_ENDPOINT if model.kind == "other" else "polyhost"
        return Call(
            model.name, f"/endpoints/{endpoint}/invocations", model.row if body is None else body,
            frozenset(values) or frozenset({model.value}),
            {"Content-Type": "text/csv", "X-Amzn-SageMaker-Target-Model": model.key},
        )  # fmt: skip

    def temp_folders(self) -> Mapping[str, Path]:
        return {"tmp": self.folder / "tmp", "cache/tmp": self.cache / "tmp"}


ROLE = "arn:aws:iam::123456789012:role/chaos"


class StockMms(Target):
    """The real Multi Model Server as SageMaker boots it. It has no store and no state: a restart loads all anew."""

    title = "MMS"
    model_timeout_secs = _MMS_TIMEOUT_SECS
    patience_secs = 30

    def __init__(self) -> None:
        self._server: Mms | None = None
        self._port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="ph-chaos-mms-"))
        self.steady = fleet("data", 3)
        self.unruly = fleet("unruly", 1)
        for model in (*self.steady, *self.unruly):
            model.write(self._folder)

    @property
    def port(self) -> int:
        return self._port

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._front().pid

    def _front(self) -> psutil.Process:
        assert self._server is not None
        for process in self._server.processes():
            if "benchmarks.mms_bare" in " ".join(process.cmdline()):
                return process
        raise ServerFailed("MMS's own process has ended.")

    def start(self) -> None:
        self._server = Mms({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": str(_MMS_TIMEOUT_SECS)})
        self._server.port = self._port  # clients know no other
        self._server.start()
        for model in (*self.steady, *self.unruly):
            self.load(model)

    def load(self, model: Model) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        document = {
            "model_name": model.name, "url": str(self._folder / model.name), "initial_workers": 1, "synchronous": True,
            "response_timeout": _MMS_TIMEOUT_SECS,
        }  # fmt: skip
        try:
            connection.request("POST", "/models", json.dumps(document), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise ServerFailed(f"MMS did not load {model.name}: {response.status} {response.read(300)!r}")
        finally:
            connection.close()

    def unload(self, model: Model) -> int:
        """And load it again: MMS does not do that by itself."""
        status = request(self.port, "DELETE", f"/models/{model.name}", timeout=60).status
        self.load(model)
        return status

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.stop()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, model: Model, body: bytes | None = None, values: Iterable[int] = ()) -> Call:
        return Call(
            model.name, f"/models/{model.name}/invoke", model.row if body is None else body,
            frozenset(values) or frozenset({model.value}), {"Content-Type": "text/csv"},
        )  # fmt: skip

    def temp_folders(self) -> Mapping[str, Path]:
        assert self._server is not None
        return {"tmp": self._server.folder}


@contextlib.contextmanager
def closing(target: Any) -> Iterator[Any]:
    try:
        yield target
    finally:
        target.close()
