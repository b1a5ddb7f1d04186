"""How a server with an endpoint starts, or says why it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from polyhost.config import Config
from polyhost.endpoint_server import expects_buckets
from polyhost.limits import endpoints_timeout_secs
from support.endpoint import EndpointServer
from support.server import Server, free_port

HOUSE = "1998,2150,3,2.5,0.4,2"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(models="/srv/models/"), False),
        (Config(models="s3://bucket/models/"), True),
        (Config(), True),  # endpoints that clients make are of buckets, as a rule
        (Config(models="/srv/models/", state="s3://bucket/state/"), True),
    ],
)
def test_which_servers_get_ready_for_buckets(config: Config, *, expected: bool) -> None:
    assert expects_buckets(config) == expected


def refusal(*arguments: str, code: int = 2) -> str:
    """What is said by a server that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "polyhost", "serve", "--port", str(free_port()), *arguments],
        env=clean_environ(), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("POLYHOST", "SAGEMAKER", "AWS"))}


REFUSED: list[tuple[list[str], str]] = [
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
    (["--models", ".", "--preload", f"@{sys.executable}"], "is not a text in UTF-8. Write one target a line."),
    (["--models", ".", "--refresh-secs", "-1"], "is not a number of seconds"),
    (["--models", ".", "--hardened-without", "landlock"], "'landlock' is none of files, signals, network"),
    (["--models", ".", "--hardened", "--engine", "mms"], "--hardened needs --engine native"),
    (["--models", ".", "--hardened", "--isolation", "shared"], "--isolation shared lets models that bring code"),
    (["--models", ".", "--hardened", "--auth-file", "/usr/auth.json"], "--auth-file /usr/auth.json lies in /usr"),
    (["--models", ".", "--hardened", "--token-key-file", "/usr/key"], "--token-key-file /usr/key lies in /usr"),
    (["--models", ".", "--hardened", "--hardened-read", "/"], "lies in /, which hardened models may read"),
]
# Each command in a process of its own, which has imported already what takes most of a start's time.
_FORKS = """
import json, os, runpy, sys, tempfile
import polyhost.server, polyhost.endpoint_server

def outcome(arguments):
    with tempfile.TemporaryFile() as said:
        pid = os.fork()
        if not pid:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.argv = ["polyhost", "serve", *arguments]
            os._exit(code_of(lambda: runpy.run_module("polyhost", run_name="__main__")))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said.seek(0)
        return code, said.read().decode()

def code_of(run):
    try:
        run()
    except SystemExit as ended:
        return ended.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0

print(json.dumps([outcome(arguments) for arguments in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str]]:
    """The exit code of each, and what it has said."""
    commands = [["--port", str(free_port()), *arguments] for arguments, _ in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", _FORKS, json.dumps(commands)],
        env={**clean_environ(), "POLYHOST_STATE_DIR": str(tmp_path_factory.mktemp("state"))},
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    return [(code, said) for code, said in json.loads(done.stdout)]


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_a_setting_that_cannot_be_is_said(refusals: list[tuple[int, str]], number: int) -> None:
    """
    With the flag's name, and exit code 2.
    """
    code, said = refusals[number]
    assert code == 2, said
    assert REFUSED[number][1] in said
    assert "Traceback" not in said


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
    assert "ANYBODY" not in server.process.log, "nobody else reaches it"
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


@pytest.mark.parametrize(
    ("environ", "secs"),
    [
        ({}, 60.0),  # what SageMaker gives a model to answer InvokeEndpoint
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT": "3"}, None),
        ({"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "90"}, None),
        ({"MMS_DEFAULT_RESPONSE_TIMEOUT": "2"}, None),
        ({"MMS_DEFAULT_RESPONSE_TIMEOUT_SECONDS": ""}, 60.0),
    ],
)
def test_how_long_a_model_may_take_to_answer(environ: dict[str, str], secs: float | None) -> None:
    """None: as the operator says, which the engine knows."""
    assert endpoints_timeout_secs(environ) == secs
