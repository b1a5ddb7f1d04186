"""How a server with an endpoint starts, or says why it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.endpoint import EndpointServer
from support.server import Server, free_port

HOUSE = "1998,2150,3,2.5,0.4,2"


def refusal(*arguments: str, code: int = 2, environ: dict[str, str] | None = None) -> str:
    """What is said by a server that does not start."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("POLYHOST", "SAGEMAKER", "AWS"))}
    done = subprocess.run(
        [sys.executable, "-m", "polyhost", "serve", "--port", str(free_port()), *arguments],
        env={**clean, **(environ or {})}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "/there/is/nothing"], "there is no folder '/there/is/nothing'"),
        (["--models", "s3://"], "names no bucket"),
        (["--models", "https://bucket/"], "is neither s3://BUCKET/PREFIX/ nor a folder"),
        (["--models", ".", "--endpoint-name", "a_b"], "is not an endpoint's name"),
        (["--models", ".", "--auth", "sigv4"], "--auth sigv4 needs --auth-file"),
        (["--models", ".", "--auth", "sigv4", "--auth-file", "/nothing.json"], "/nothing.json"),
        (["--models", ".", "--emf-namespace", "Mine"], "--emf-namespace needs --log-format json"),
        (["--models", ".", "--log-format", "json", "--emf-namespace", "AWS/Mine"], "AWS's own"),
        (["--models", ".", "--tls-key", "/key.pem"], "--tls-key needs --tls-cert"),
        (["--models", ".", "--tls-cert", "/cert.pem"], "--tls-cert /cert.pem"),
        (["--models", ".", "--preload", "@/nothing.txt"], "--preload: /nothing.txt cannot be read"),
        (["--models", ".", "--refresh-secs", "-1"], "is not a number of seconds"),
    ],
)
def test_a_setting_that_cannot_be_is_said(tmp_path: Path, arguments: list[str], words: str) -> None:
    """
    With the flag's name, and exit code 2.
    """
    assert words in refusal(*arguments, environ={"POLYHOST_STATE_DIR": str(tmp_path)})


def test_a_state_folder_is_one_servers(tmp_path: Path, samples_folder: Path) -> None:
    """
    The second says so; what cannot be made is said too.
    """
    server = EndpointServer("native", samples_folder, state=tmp_path / "state")
    try:
        second = refusal("--models", str(samples_folder), "--state-dir", str(tmp_path / "state"), code=5)
        assert str(tmp_path / "state") in second
    finally:
        assert server.stop() == 0, server.process.log
    (tmp_path / "file").write_text("")
    no_folder = refusal("--models", str(samples_folder), "--state-dir", str(tmp_path / "file" / "x"), code=5)
    assert "--state-dir: " in no_folder


def test_start_up_says_loudly_what_is_open(samples_folder: Path) -> None:
    """
    On an address that others reach, without access control.
    """
    server = EndpointServer("native", samples_folder, "--host", "0.0.0.0")
    assert server.stop() == 0, server.process.log
    assert "[WARNING]" in server.process.log
    assert "ANYBODY who reaches 0.0.0.0:" in server.process.log
    quiet = EndpointServer("native", samples_folder)
    assert quiet.stop() == 0, quiet.process.log
    assert "ANYBODY" not in quiet.process.log


def test_what_is_preloaded_is_there_before_anybody_asks(tmp_path: Path, samples_folder: Path) -> None:
    """
    From flags and files; what is not there is logged, and the server serves.
    """
    (tmp_path / "hot.txt").write_text("boston.tar.gz\n\nnothing.tar.gz\n")
    server = EndpointServer(
        "native", samples_folder, "--preload", "houston.tar.gz", "--preload", f"@{tmp_path / 'hot.txt'}"
    )
    try:
        server.process.wait_for_line("--preload nothing.tar.gz: Failed to download model data")
        assert len(server.names()) == 2
        before = server.request("GET", "/metrics").text
        assert 'polyhost_loaded_model_count{endpoint="polyhost",variant="AllTraffic"} 2.0' in before
        assert server.predict("houston.tar.gz", HOUSE)
        server.process.wait_for_line("target=houston.tar.gz .*loaded=hit")
    finally:
        assert server.stop() == 0, server.process.log


def test_the_container_half_alone_has_no_endpoint(samples_folder: Path) -> None:
    """
    As SageMaker expects it: no such routes, and 405 at the root.
    """
    server = Server("native", environ={"SAGEMAKER_MULTI_MODEL": "true"})
    try:
        assert server.request("POST", "/endpoints/polyhost/invocations", HOUSE).status == 404
        assert server.request("GET", "/").status == 405
    finally:
        assert server.stop() == 0, server.process.log
