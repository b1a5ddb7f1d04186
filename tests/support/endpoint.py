"""A server with an endpoint, and the clients that its users have."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from support.server import Server

# Retries would only hide what is answered.
ONCE = Config(retries={"max_attempts": 0}, read_timeout=60)


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
    ) -> None:
        self.state = state or Path(tempfile.mkdtemp(prefix="ph-state-"))
        self.owns_state = state is None
        own = ["--state-dir", str(self.state), *(["--models", str(models)] if models else [])]
        super().__init__(engine, [*own, *arguments], environ, port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        super().kill()
        if self.owns_state:
            shutil.rmtree(self.state, ignore_errors=True)

    def client(self, service: str, **settings: Any) -> Any:
        """boto3's, as a notebook makes it."""
        return client(service, settings.pop("url", self.url), **settings)

    def predict(self, target: str | None, body: bytes | str, content_type: str = "text/csv", **more: Any) -> str:
        """The answer's text, by boto3."""
        if target is not None:
            more["TargetModel"] = target
        more.setdefault("EndpointName", "polyhost")
        answer = self.client("sagemaker-runtime").invoke_endpoint(Body=body, ContentType=content_type, **more)
        return str(answer["Body"].read().decode())


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
