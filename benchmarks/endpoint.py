"""The endpoint half: what it costs on top of the engine, warm, from the disk cache and from S3."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from benchmarks.artifacts import BOOSTERS, ROW_CSV, Artifacts
from benchmarks.load import Figures, Load, measure
from benchmarks.servers import CSV, BenchmarkFailed, Native, free_port

_REGION = "us-east-1"
_KEY_ID, _SECRET = "AKIABENCHMARK0000000", "the-secret-of-the-benchmark-alone"
_TARGET = "X-Amzn-SageMaker-Target-Model"
_BUCKET = "benchmark"
_WAIT_SECS = 30


class EndpointServer(Native):
    """The native engine behind an endpoint. Its state is the caller's, so that a second start finds it."""

    title = "Polyhost's endpoint"

    def __init__(self, models: str, state: Path, *options: str, environ: dict[str, str] | None = None) -> None:
        super().__init__(environ)
        self._options = ["--models", models, "--state-dir", str(state), "--access-log", "off", *options]

    def command(self) -> list[str]:
        return [*super().command(), *self._options]


def principals(folder: Path) -> Path:
    """A file for --auth sigv4 with one user, who may do everything."""
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": ["sagemaker:*", "polyhost:*"], "Resource": "*"}],
    }
    user = {"name": "benchmark", "access_key_id": _KEY_ID, "secret_access_key": _SECRET, "policies": [policy]}
    file = folder / "principals.json"
    file.write_text(json.dumps({"account_id": "123456789012", "users": [user], "roles": []}))
    file.chmod(0o600)
    return file


def archives(artifacts: Artifacts, folder: Path, count: int) -> list[str]:
    """`m0.tar.gz` and so on in a folder, each with a booster; their names."""
    names = []
    for number, source in enumerate(artifacts.shared(count)):
        with tarfile.open(folder / f"m{number}.tar.gz", "w:gz") as tar:
            tar.add(source / "xgboost-model", "xgboost-model")
        names.append(f"m{number}.tar.gz")
    return names


def invocation(port: int, target: str, *, is_signed: bool = False) -> tuple[str, dict[str, str]]:
    """Path and header fields of an InvokeEndpoint. A signature is good for five minutes."""
    path = "/endpoints/polyhost/invocations"
    headers = {"Content-Type": CSV, _TARGET: target}
    if not is_signed:
        return path, headers
    request = AWSRequest("POST", f"http://127.0.0.1:{port}{path}", data=ROW_CSV, headers=headers)
    SigV4Auth(Credentials(_KEY_ID, _SECRET), "sagemaker", _REGION).add_auth(request)
    return path, dict(request.headers.items())


def load_of(port: int, targets: list[str], *, is_signed: bool, law: str = "robin") -> Load:
    """One row for each target, in turn or as the law says."""
    requests = [invocation(port, target, is_signed=is_signed) for target in targets]
    return Load(
        port=port, path_format=requests[0][0], models=len(targets), body=ROW_CSV, content_type=CSV,
        headers=tuple(headers for _, headers in requests), law=law,
    )  # fmt: skip


def ask(server: EndpointServer, targets: list[str], *, is_signed: bool = False) -> list[float]:
    """Ask each once on one connection: milliseconds each."""
    took = []
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=_WAIT_SECS)
    for target in targets:
        path, headers = invocation(server.port, target, is_signed=is_signed)
        started = time.perf_counter()
        connection.request("POST", path, ROW_CSV, headers)
        response = connection.getresponse()
        answer = response.read()
        took.append((time.perf_counter() - started) * 1000)
        if response.status != http.HTTPStatus.OK:
            raise BenchmarkFailed(f"{server.title}: {target}: {response.status} {answer[:300]!r}")
    connection.close()
    return took


def refresh(server: EndpointServer) -> None:
    with server.client() as client:
        client.request("POST", "/refresh")


class S3:
    """moto's S3, a server of its own on loopback."""

    def __init__(self) -> None:
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the server ends
        self.environ = {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": _REGION,
        }

    def __enter__(self) -> S3:  # noqa: PYI034 - Self needs Python 3.11
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._said)
        deadline = time.monotonic() + _WAIT_SECS
        while True:
            try:
                self.client().create_bucket(Bucket=_BUCKET)
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    reason = self._last_line() or error
                    self.__exit__()
                    raise BenchmarkFailed(f"moto's server did not start: {reason}") from error
                time.sleep(0.1)
            else:
                return self

    def _last_line(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip().rpartition("\n")[2]

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._said.close()

    def client(self) -> object:
        return boto3.client(
            "s3", endpoint_url=self.environ["AWS_ENDPOINT_URL_S3"], region_name=_REGION, aws_access_key_id="any",
            aws_secret_access_key="any",
        )  # fmt: skip

    def upload(self, folder: Path, names: list[str]) -> str:
        """The source that they are under."""
        client = self.client()
        for name in names:
            client.upload_file(str(folder / name), _BUCKET, f"models/{name}")
        return f"s3://{_BUCKET}/models/"

    def download_ms(self, names: list[str], to: Path) -> list[float]:
        """By boto3 alone, its client warm."""
        client = self.client()
        client.download_file(_BUCKET, f"models/{names[0]}", str(to / "warm"))
        took = []
        for name in names:
            started = time.perf_counter()
            client.download_file(_BUCKET, f"models/{name}", str(to / name))
            took.append((time.perf_counter() - started) * 1000)
        return took


def measure_warm(
    artifacts: Artifacts, repeats: int, secs: int, connections: int, add: Callable[[str, float], None]
) -> None:
    """Requests/s of the endpoint, without and with signatures, beside the engine's own route; A B C A B C …"""
    with asked_servers(artifacts, "plain", "signed") as (targets, servers):
        server, signed = servers["plain"], servers["signed"]
        with server.client() as client:
            for number, model in enumerate(artifacts.shared(BOOSTERS)):
                server.load(client, f"m{number}", model)
        loads = {
            "direct": Load(
                port=server.port, path_format="/models/m%d/invoke", models=BOOSTERS, body=ROW_CSV, content_type=CSV
            ),
            "endpoint": load_of(server.port, targets, is_signed=False),
            "signed": load_of(signed.port, targets, is_signed=True),
        }
        for figures in turns_of(loads, repeats, secs, connections):
            for name, figure in figures.items():
                add(f"{name}_per_sec", figure.requests_per_sec)
            add("endpoint_p50_ms", figures["endpoint"].p50_ms)
            add("endpoint_p99_ms", figures["endpoint"].p99_ms)
            add("endpoint_share", figures["endpoint"].requests_per_sec / figures["direct"].requests_per_sec)
            add("signed_share", figures["signed"].requests_per_sec / figures["direct"].requests_per_sec)


@contextlib.contextmanager
def asked_servers(artifacts: Artifacts, *kinds: str) -> Iterator[tuple[list[str], dict[str, EndpointServer]]]:
    """Targets, and a server of each kind that has been asked for all of them: `plain`, `logged` or `signed`."""
    with tempfile.TemporaryDirectory(prefix="ph-bench-") as temp, contextlib.ExitStack() as running:
        folder = Path(temp)
        (folder / "models").mkdir()
        targets = archives(artifacts, folder / "models", BOOSTERS)
        settings = {
            "plain": [],
            "logged": ["--access-log", "on"],
            "signed": ["--auth", "sigv4", "--auth-file", str(principals(folder))],
        }
        servers = {}
        for kind in kinds:
            server = EndpointServer(str(folder / "models"), folder / kind, *settings[kind])
            servers[kind] = running.enter_context(server)
            ask(server, targets, is_signed=kind == "signed")
        yield targets, servers


def turns_of(loads: Mapping[str, Load], repeats: int, secs: int, connections: int) -> Iterator[dict[str, Figures]]:
    """What each load has measured, turn by turn; the turn to warm up is left out."""
    for turn in range(-1, repeats):
        figures = {name: measure(load, connections=connections, secs=secs) for name, load in loads.items()}
        if turn >= 0:
            yield figures


def measure_cold(artifacts: Artifacts, models: int, add: Callable[[str, float], None]) -> None:
    """First calls: from S3, from the disk cache after a restart, and the engine's own load beside them."""
    with tempfile.TemporaryDirectory(prefix="ph-bench-") as temp, S3() as s3:
        folder = Path(temp)
        (folder / "models").mkdir()
        targets = archives(artifacts, folder / "models", models + 2)
        source = s3.upload(folder / "models", targets)
        first, rest = targets[:2], targets[2:]
        downloads = s3.download_ms(rest, folder)
        with EndpointServer(source, folder / "state", environ=s3.environ) as server:
            ask(server, first)
            refresh(server)
            from_s3 = ask(server, rest)
            warm = ask(server, rest)
        with EndpointServer(source, folder / "state", environ=s3.environ) as server:
            ask(server, first)
            refresh(server)
            from_disk = ask(server, rest)
            with server.client() as client:
                loads = []
                for number, model in enumerate(artifacts.shared(models)):
                    started = time.perf_counter()
                    server.load(client, f"own{number}", model)
                    server.invoke(client, f"own{number}")
                    loads.append((time.perf_counter() - started) * 1000)
    for name, figures in {
        "cold_s3_ms": from_s3, "cold_disk_ms": from_disk, "engine_load_ms": loads, "download_ms": downloads,
        "warm_ms": warm,
    }.items():  # fmt: skip
        for figure in figures:
            add(name, figure)
    for disk, load in zip(sorted(from_disk), sorted(loads), strict=True):
        add("disk_over_load_ms", disk - load)
    for cold, download in zip(sorted(from_s3), sorted(downloads), strict=True):
        add("s3_over_download_ms", cold - download)
