"""A served bucket: moto's real HTTP server, and a server of AWS that fails."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.endpoint import EndpointServer

HOUSE = "1998,2150,3,2.5,0.4,2"
_WAIT_SECS = 120


def aws(url: str, attempts: int = 5) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_S3": url,
        "AWS_ACCESS_KEY_ID": "AKIAOURS",
        "AWS_SECRET_ACCESS_KEY": "our-secret-of-s3",
        "AWS_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": str(attempts),
    }


@pytest.fixture
def server(s3_url: str, s3: Any, bucket: str, samples_folder: Path) -> Iterator[EndpointServer]:
    for name in ("houston", "boston"):
        s3.upload_file(str(samples_folder / f"{name}.tar.gz"), bucket, f"models/{name}.tar.gz")
    s3.upload_file(str(samples_folder / "denver.tar.gz"), bucket, "private/denver.tar.gz")
    server = EndpointServer("native", f"s3://{bucket}/models", "--refresh-secs", "0.2", environ=aws(s3_url))
    yield server
    assert server.stop() == 0, server.process.log
    assert "our-secret-of-s3" not in server.process.log


def error_of(server: EndpointServer, target: str) -> ClientError:
    with pytest.raises(ClientError) as caught:
        server.predict(target, HOUSE)
    return caught.value


def wait_for(server: EndpointServer, target: str, expected: str) -> set[str]:
    """All that was answered until the expected came."""
    answers: set[str] = set()
    deadline = time.monotonic() + _WAIT_SECS
    while expected not in answers:
        assert time.monotonic() < deadline, f"{expected!r} never came, but {answers}"
        answers.add(server.predict(target, HOUSE))
    return answers


def test_a_bucket_is_served(server: EndpointServer, s3: Any, bucket: str, samples_folder: Path) -> None:
    """A new key at once, an overwritten one at the next listing, a deleted one until then; no key of other prefixes."""
    houston, boston = (server.predict(f"{name}.tar.gz", HOUSE) for name in ("houston", "boston"))
    assert houston != boston

    s3.upload_file(str(samples_folder / "houston.tar.gz"), bucket, "models/north/new one.tar.gz")
    assert server.predict("north/new one.tar.gz", HOUSE) == houston

    s3.upload_file(str(samples_folder / "boston.tar.gz"), bucket, "models/houston.tar.gz")
    assert wait_for(server, "houston.tar.gz", boston) <= {houston, boston}

    s3.delete_object(Bucket=bucket, Key="models/boston.tar.gz")
    deadline = time.monotonic() + _WAIT_SECS
    while is_answered(server, "boston.tar.gz"):
        assert time.monotonic() < deadline
    for target in ("boston.tar.gz", "never.tar.gz", "denver.tar.gz"):
        message = error_of(server, target).response["Error"]["Message"]
        assert message.startswith(f"Failed to download model data(bucket: {bucket}, key: models/{target}).")
    assert error_of(server, "../private/denver.tar.gz").response["Error"]["Code"] == "ValidationError"


def is_answered(server: EndpointServer, target: str) -> bool:
    try:
        server.predict(target, HOUSE)
    except ClientError:
        return False
    return True


def test_what_was_fetched_is_there_after_a_restart_without_its_bucket(
    s3_url: str, s3: Any, bucket: str, samples_folder: Path, tmp_path: Path
) -> None:
    """Even killed: nothing is fetched again, and a store that does not answer is no reason not to serve."""
    s3.upload_file(str(samples_folder / "houston.tar.gz"), bucket, "houston.tar.gz")
    first = EndpointServer("native", f"s3://{bucket}/", state=tmp_path / "state", environ=aws(s3_url))
    answer = first.predict("houston.tar.gz", HOUSE)
    first.kill()
    second = EndpointServer(
        "native", f"s3://{bucket}/", state=tmp_path / "state", environ=aws("http://127.0.0.1:1/", 1)
    )
    try:
        assert second.predict("houston.tar.gz", HOUSE) == answer
        unknown = error_of(second, "boston.tar.gz")
        assert unknown.response["ResponseMetadata"]["HTTPStatusCode"] == 503
        assert unknown.response["Error"]["Code"] == "ServiceUnavailable"
    finally:
        assert second.stop() == 0, second.process.log


class _Hangs(BaseHTTPRequestHandler):
    """An S3 that accepts and says nothing until it is let go."""

    released = threading.Event()

    def do_HEAD(self) -> None:
        self.released.wait(_WAIT_SECS)
        self.send_error(503)

    def log_message(self, *_: Any) -> None: ...


def test_a_slow_bucket_is_a_model_that_is_not_ready() -> None:
    """boto3's exception for it; other models and /ping are not held up."""
    s3 = ThreadingHTTPServer(("127.0.0.1", 0), _Hangs)
    thread = threading.Thread(target=s3.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{s3.server_address[1]}"
    server = EndpointServer("native", "s3://slow/", "--model-ready-timeout-secs", "0.5", environ=aws(url))
    try:
        runtime = server.client("sagemaker-runtime")
        with pytest.raises(runtime.exceptions.ModelNotReadyException) as caught:
            runtime.invoke_endpoint(EndpointName="polyhost", TargetModel="a.tar.gz", Body=HOUSE)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
        assert server.request("GET", "/ping").json() == {"status": "Healthy"}
    finally:
        _Hangs.released.set()
        assert server.stop() == 0, server.process.log
        s3.shutdown()
        thread.join()
        s3.server_close()


def test_tls_is_one_flag(tmp_path: Path, samples_folder: Path) -> None:
    """boto3 checks the certificate."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    server = EndpointServer("native", samples_folder, "--tls-cert", str(cert), "--tls-key", str(key))
    try:
        runtime = server.client("sagemaker-runtime", url=f"https://127.0.0.1:{server.port}", verify=str(cert))
        answer = runtime.invoke_endpoint(
            EndpointName="polyhost", TargetModel="houston.tar.gz", ContentType="text/csv", Body=HOUSE
        )
        assert json.loads(answer["Body"].read())
    finally:
        assert server.stop() == 0, server.process.log
