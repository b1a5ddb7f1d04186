from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from click.testing import CliRunner
from moto.moto_api import recorder
from moto.server import ThreadedMotoServer
from polyhost.cli import cli
from polyhost.errors import PolyhostError
from support.endpoint import EndpointServer

ACCOUNT = "123456789012"
REGION = "us-east-1"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAOURS", "AWS_SECRET_ACCESS_KEY": "our-secret"}
HOUSE = "1998,2150,3,2.5,0.4,2"

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Done:
    """A command that has run: its exit code, what it printed, and what it said, errors too."""

    code: int
    out: str
    said: str

    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """`polyhost …`, as its `main` runs it, in an environment of its own."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ: dict[str, str | None] = {
            **dict.fromkeys(("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")),
            # Neither this machine's files nor a cloud's metadata are asked for credentials.
            "AWS_CONFIG_FILE": "/nowhere",
            "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
            "AWS_EC2_METADATA_DISABLED": "true",
            **environ,
        }

    def try_(self, *arguments: str, answers: str = "") -> Done:
        result = CliRunner().invoke(cli, list(arguments), input=answers, env=self.environ)
        error = result.exception
        if error is not None and not isinstance(error, (SystemExit, PolyhostError)):
            raise error
        said = result.stderr + (f"polyhost: {error}" if isinstance(error, PolyhostError) else "")
        return Done(error.exit_code if isinstance(error, PolyhostError) else result.exit_code, result.stdout, said)

    def run(self, *arguments: str, answers: str = "") -> Done:
        done = self.try_(*arguments, answers=answers)
        assert done.code == 0, done.said
        return done


@pytest.fixture(scope="session")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """AWS, all of it that there is at home."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        # Its variable counts only before moto is imported.
        patch.setattr(recorder, "_location", str(tmp_path_factory.mktemp("moto") / "recording"))
        yield f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    server.stop()


@functools.cache
def client_of(service: str, url: str) -> Any:
    return boto3.client(
        service, endpoint_url=url, region_name=REGION,
        aws_access_key_id="AKIAOURS", aws_secret_access_key="our-secret",
    )  # fmt: skip


@dataclass(frozen=True)
class Cloud:
    """A fresh account, with a bucket, a role and an image."""

    url: str

    def client(self, service: str) -> Any:
        return client_of(service, self.url)

    @property
    def shell(self) -> Shell:
        return Shell({"AWS_ENDPOINT_URL": self.url, "AWS_REGION": REGION, **KEYS})

    def put_image(self, repository: str, tag: str, manifest: dict[str, Any]) -> str:
        """Its digest."""
        answer = self.client("ecr").put_image(
            repositoryName=repository, imageTag=tag, imageManifest=json.dumps(manifest),
            imageManifestMediaType=manifest["mediaType"],
        )  # fmt: skip
        return str(answer["image"]["imageId"]["imageDigest"])

    def asked(self, run: Callable[[], Any]) -> list[str]:
        """The operations of SageMaker and of Application Auto Scaling that are called meanwhile."""
        requests.post(f"{self.url}/moto-api/recorder/reset-recording", timeout=30)
        requests.post(f"{self.url}/moto-api/recorder/start-recording", timeout=30)
        run()
        requests.post(f"{self.url}/moto-api/recorder/stop-recording", timeout=30)
        log = requests.get(f"{self.url}/moto-api/recorder/download-recording", timeout=30).text
        headers = [json.loads(line)["headers"] for line in log.splitlines()]
        targets = ({name.lower(): value for name, value in each.items()}.get("x-amz-target", "") for each in headers)
        return [target.rpartition(".")[2] for target in targets if target]


@pytest.fixture
def cloud(moto_url: str) -> Cloud:
    requests.post(f"{moto_url}/moto-api/reset", timeout=30)
    cloud = Cloud(moto_url)
    cloud.client("s3").create_bucket(Bucket="our-models")
    trust = {"Version": "2012-10-17", "Statement": []}
    cloud.client("iam").create_role(RoleName="polyhost-execution", AssumeRolePolicyDocument=json.dumps(trust))
    cloud.client("ecr").create_repository(repositoryName="polyhost")
    cloud.put_image("polyhost", "mms", docker_manifest("first"))
    return cloud


def docker_manifest(seed: str) -> dict[str, Any]:
    kind = "application/vnd.docker."
    blob = {"size": 1, "digest": f"sha256:{seed.encode().hex():0>64}"}
    return {
        "schemaVersion": 2,
        "mediaType": f"{kind}distribution.manifest.v2+json",
        "config": {"mediaType": f"{kind}container.image.v1+json", **blob},
        "layers": [{"mediaType": f"{kind}image.rootfs.diff.tar.gzip", **blob}],
    }


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointServer]:
    """A server without an endpoint of its own."""
    server = EndpointServer("native", None, "--state-dir", str(tmp_path_factory.mktemp("state")))
    yield server
    assert server.stop() == 0, server.process.log


@pytest.fixture
def name() -> str:
    """Of a deployment, another one for each test."""
    return f"houses-{next(_numbers)}"


@pytest.fixture
def folder(tmp_path: Path, samples_folder: Path) -> Path:
    """Two archives."""
    for city in ("houston", "boston"):
        (tmp_path / f"{city}.tar.gz").write_bytes((samples_folder / f"{city}.tar.gz").read_bytes())
    return tmp_path
