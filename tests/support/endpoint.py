"""A server with an endpoint, and the clients that its users have."""

from __future__ import annotations

import contextlib
import functools
import shutil
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from support.server import Server

# Retries would only hide what is answered.
ONCE = Config(retries={"max_attempts": 0}, read_timeout=180)
# boto3's default session makes clients for one thread at a time.
_making_a_client = threading.Lock()


class EndpointServer(Server):
    """`polyhost serve --models …`, its state in a folder of its own that outlives it until `clean`."""

    def __init__(
        self,
        engine: str,
        models: str | Path | None,
        *arguments: str,
        state: Path | None = None,
        environ: Mapping[str, str] | None = None,
        port: int = 0,
        model_root: str = Server.model_root,
    ) -> None:
        self.model_root = model_root
        self.state = state or Path(tempfile.mkdtemp(prefix="ph-state-"))
        self.owns_state = state is None
        self.models = models
        self._runtimes: list[Any] = []
        own = ["--state-dir", str(self.state), *(["--models", str(models)] if models else [])]
        super().__init__(engine, [*own, *arguments], environ, port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        super().kill()
        if self.owns_state:
            shutil.rmtree(self.state, ignore_errors=True)

    @functools.cached_property
    def sagemaker(self) -> Any:
        """The control plane's client: it takes longer to make one than to call it."""
        return self.client("sagemaker")

    def client(self, service: str, **settings: Any) -> Any:
        """boto3's, as a notebook makes it."""
        return client(service, settings.pop("url", self.url), **settings)

    def deploy(self, name: str, source: str, **container: Any) -> None:
        """An endpoint of one container on a path below `models`, in service."""
        sagemaker = self.sagemaker
        container = {"Image": "any/image:1", "ModelDataUrl": f"file://{self.models}{source}", **container}
        sagemaker.create_model(
            ModelName=name, ExecutionRoleArn="arn:aws:iam::000000000000:role/any", PrimaryContainer=container
        )
        variant = {"VariantName": "AllTraffic", "ModelName": name, "InitialInstanceCount": 1}
        variant["InstanceType"] = "ml.m5.large"
        sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig={"Delay": 1})

    def predict(self, target: str | None, body: bytes | str, content_type: str = "text/csv", **more: Any) -> str:
        """The answer's text, by boto3."""
        if target is not None:
            more["TargetModel"] = target
        more.setdefault("EndpointName", "polyhost")
        # To make a client takes longer than the call. Each call has a connection of its own, as those of new clients.
        runtime = self._runtimes.pop() if self._runtimes else self.client("sagemaker-runtime")
        try:
            answer = runtime.invoke_endpoint(Body=body, ContentType=content_type, **more)
            return str(answer["Body"].read().decode())
        finally:
            runtime.close()
            self._runtimes.append(runtime)


@contextlib.contextmanager
def served(models: str | Path | None, *arguments: str, **environ: str) -> Iterator[EndpointServer]:
    """A server that must end well; its log is shown where a notebook fails."""
    server = EndpointServer("native", models, *arguments, environ=environ)
    try:
        yield server
    except BaseException:
        server.kill()
        sys.stderr.write(server.process.log)
        raise
    assert server.stop() == 0, server.process.log


def client(service: str, url: str, **settings: Any) -> Any:
    given = {"region_name": "us-east-1", "aws_access_key_id": "anybody", "aws_secret_access_key": "anything"}
    with _making_a_client:
        return boto3.client(service, endpoint_url=url, config=ONCE, **{**given, **settings})


def packed(folder: Path, to: Path) -> Path:
    """A `model.tar.gz` as a data scientist makes it: the files, not the folder."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(to, "w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return to


def fill(folder: Path, names: Sequence[str], archive: Path) -> Path:
    """A folder of copies of one archive."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(archive, folder / name)
    return folder
