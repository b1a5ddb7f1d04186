"""The command `polyhost serve` as a process: modes, signals, what is left behind, what it says when it cannot start."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import MODELS, Servers
from lanes import ENGINES
from moto.server import ThreadedMotoServer
from support.server import Process, Server, free_port, gone, request
from support.tree import command_of, javas, wait_until, zombies_of

HOUSE = "1998,2150,3,2.5,0.4,2"
MULTI_MODEL = {"SAGEMAKER_MULTI_MODEL": "true"}


@pytest.fixture
def own(engine: str, servers: Servers) -> Iterator[Server]:
    """A server for one test alone, as users have it, with a model loaded."""
    server = Server(engine, environ={**MULTI_MODEL, "POLYHOST_IMPORT_FRAMEWORKS": "early"})
    try:
        assert server.load("noop", MODELS / "noop-v1.0").status == 200
        yield server
    finally:
        server.kill()


def test_a_stop_ends_every_process(own: Server) -> None:
    """Java and its Python workers end too, within five seconds, exit code 0, nothing left in the temporary folder."""
    processes = own.descendants()
    assert len(processes) >= 3
    own.process.send(signal.SIGTERM)

    assert own.ends_within(5) == 0
    assert gone(processes)
    assert list(own.temp.glob("polyhost-*")) == []


def test_workers_end_when_their_model_is_unloaded(own: Server, samples_folder: Path) -> None:
    """DELETE gives the processes back, and no zombie stays."""
    assert own.load("houston", samples_folder / "houston").status == 200  # the workers that models share are there
    before = {process.pid for process in own.descendants()}
    assert own.load("second", MODELS / "noop-v1.0").status == 200
    workers = [process for process in own.descendants() if process.pid not in before]
    assert workers
    assert own.unload("second").status == 200

    assert gone(workers)
    wait_until(lambda: not zombies_of(own.process.pid), 60, "no zombie is left")


@pytest.mark.parametrize(("engine", "victim"), [*((each, "polyhost serve") for each in ENGINES), ("mms", "mms_boot")])
def test_a_killed_process_takes_all_others_along(own: Server, victim: str) -> None:
    """kill -9 of either of our two processes leaves none of the tree."""
    processes = own.descendants()
    pid = own.process.pid
    if victim == "mms_boot":
        (pid,) = (process.pid for process in processes if "polyhost.engine.mms_boot" in command_of(process))
    os.kill(pid, signal.SIGKILL)

    assert own.ends_within(15) != 0
    assert gone(processes)


@pytest.mark.parametrize("engine", ["mms"])
def test_the_server_ends_when_mms_dies(own: Server) -> None:
    """A server without its engine must not linger: the platform starts another."""
    processes = own.descendants()
    (java,) = javas(processes)
    java.kill()

    assert own.ends_within(15) == 1
    assert gone(processes)
    assert "ended by itself" in own.process.log


@pytest.mark.parametrize("engine", ["mms"])
def test_the_server_ends_when_mms_dies_before_the_toolkit_has_found_it(engine: str) -> None:
    """The toolkit looks once a second: MMS may be ready, and dead, before it has looked again."""
    others = psutil.Process().children(recursive=True)  # a server that other tests share
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(Server, engine)
        boot = await_below(psutil.Process(), "polyhost.engine.mms_boot", others)
        java = await_below(boot, "com.amazonaws.ml.mms.ModelServer")
        boot.suspend()
        server = starting.result()
    try:
        processes = server.descendants()
        java.kill()
        boot.resume()

        assert server.ends_within(15) == 1
        assert gone(processes)
        assert "ended by itself" in server.process.log
    finally:
        server.kill()


def await_below(parent: psutil.Process, word: str, others: Sequence[psutil.Process] = ()) -> psutil.Process:
    """The process with this word in its command, once there is one beside `others`."""

    def found() -> list[psutil.Process]:
        news = [process for process in parent.children(recursive=True) if process not in others]
        return [process for process in news if word in command_of(process)]

    return wait_until(found, 120, f"a process has {word} in its command")[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_requests_in_flight_be_answered(own: Server, number: int) -> None:
    """Drained, then stopped, exit code 0, nothing left."""
    assert own.load("sleeps", MODELS / "sleeps").status == 200
    assert own.load("echo", MODELS / "echo").status == 200
    slow = http.client.HTTPConnection("127.0.0.1", own.port, timeout=120)
    slow.request("POST", "/models/sleeps/invoke", "2")
    # Once it is with its handler it is in flight; another one has come after it and is answered.
    assert own.invoke("echo").status == 200
    processes = own.descendants()
    own.process.send(number)
    own.process.wait_for_line("stopping: got")

    answer = slow.getresponse()
    assert (answer.status, answer.read()) == (200, b"awake")
    slow.close()  # where it was answered before the stop, it is kept
    assert own.ends_within(10) == 0
    assert gone(processes)
    assert list(own.temp.glob("polyhost-*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_can_be_stopped_while_it_starts(engine: str, tmp_path: Path, number: int) -> None:
    """Java needs seconds: exit code 0, nothing left behind."""
    environ = {**os.environ, **MULTI_MODEL, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "polyhost", "serve", "--engine", engine, "--port", str(free_port())]
    process = Process(command, environ)
    try:
        process.wait_for_line("sagemaker-inference - " if engine == "mms" else "ready on")
        processes = psutil.Process(process.pid).children(recursive=True)
        process.send(number)

        assert process.wait() == 0, process.log
        assert gone(processes)
        assert list(tmp_path.glob("polyhost-*")) == []
    finally:
        process.kill_tree()


# Modes


def test_one_model_in_its_folder_is_served_alone(engine: str, samples_folder: Path, tmp_path: Path) -> None:
    """A model in /opt/ml/model and no SAGEMAKER_MULTI_MODEL: /invocations needs no name, CSV is the default."""
    shutil.copytree(samples_folder / "houston", tmp_path / "model")
    server = Server(engine, ["--workers-per-model", "1"], {"SAGEMAKER_BASE_DIR": str(tmp_path)})
    try:
        assert server.names() == ["model"]
        server.request("PUT", "/models/model?min_worker=1&synchronous=true")
        answer = server.request("POST", "/invocations", HOUSE, Content_Type="text/csv")

        assert answer.status == 200, answer.text
        assert answer.fields["content-type"] == "text/csv"
        assert float(answer.text) > 100_000
        as_json = server.request("POST", "/invocations", HOUSE, Content_Type="text/csv", Accept="application/json")
        assert as_json.json() == {"predictions": [{"score": pytest.approx(float(answer.text))}]}
    finally:
        assert server.stop() == 0


def test_the_platforms_variables_are_taken(engine: str, tmp_path: Path) -> None:
    """The toolkit's and MMS's own: the port, the request size, the default Accept, MMS_ overrides."""
    port = free_port()
    environ = {
        **MULTI_MODEL,
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_SAFE_PORT_RANGE": "9000-9999",
        "SAGEMAKER_MAX_REQUEST_SIZE": "1000",
        "MMS_DEFAULT_WORKERS_PER_MODEL": "2",
        "POLYHOST_ENGINE": engine,
        "POLYHOST_MODEL_ROOT": str(MODELS),
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SAGEMAKER", "POLYHOST"))}
    process = Process([sys.executable, "-m", "polyhost", "serve"], {**clean, **environ, "TMPDIR": str(tmp_path)})
    try:
        process.wait_for_line(f"ready on http://127.0.0.1:{port}")
        body = json.dumps({"model_name": "two", "url": str(MODELS / "noop-v1.0")})
        answer = request(port, "POST", "/models", body, {"Content-Type": "application/json"})
        assert answer.status == 200
        assert len(request(port, "GET", "/models/two").json()["workers"]) == 2
        assert request(port, "POST", "/models/two/invoke", "x" * 1001).status == 413
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.kill_tree()


def test_the_handler_can_be_chosen_and_json_for_the_log(engine: str, samples_folder: Path) -> None:
    """
    --handler xgboost for every archive: one that holds something else says so.

    Whatever writes a line, Java and libraries too, --log-format json makes it one object.
    """
    server = Server(engine, ["--handler", "xgboost", "--log-format", "json"], MULTI_MODEL)
    try:
        with server.loaded("houston", samples_folder / "houston") as invoke:
            assert invoke(HOUSE).status == 200
        assert server.load("tone", samples_folder / "listing_tone").status == 500
        server.process.wait_for_line("model tone: Unable to load model: weights.json is not a readable XGBoost model")
    finally:
        assert server.stop() == 0
    for line in server.process.log.splitlines():
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys(), line


# Code that belongs to the container


@pytest.fixture
def s3() -> Iterator[str]:
    """A real S3 API on loopback, its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def aws(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def source_archive(tmp_path: Path) -> Path:
    """What the SageMaker SDK uploads: a script and a module beside it."""
    code = tmp_path / "source"
    code.mkdir()
    (code / "serve_it.py").write_text(
        "import helper\n"
        "def model_fn(model_dir): return open(model_dir + '/name.txt').read()\n"
        "def transform_fn(model, body, content_type, accept): return helper.greet(model), 'text/plain'\n",
    )
    (code / "helper.py").write_text("def greet(name): return 'hello ' + name\n")
    with tarfile.open(tmp_path / "sourcedir.tar.gz", "w:gz") as archive:
        for path in code.iterdir():
            archive.add(path, path.name)
    return tmp_path / "sourcedir.tar.gz"


def test_the_containers_code_serves_every_model(
    engine: str, s3: str, source_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """SAGEMAKER_SUBMIT_DIRECTORY is fetched from S3 once and serves models that bring no code of their own."""
    import boto3

    for name, value in aws(s3).items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    client.upload_file(str(source_archive), "bucket", "job/source/sourcedir.tar.gz")
    client.close()
    for name in ("ada", "grace"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name.txt").write_text(name)
    submitted = {
        "SAGEMAKER_SUBMIT_DIRECTORY": "s3://bucket/job/source/sourcedir.tar.gz",
        "SAGEMAKER_PROGRAM": "serve_it.py",
    }
    server = Server(engine, environ={**MULTI_MODEL, **aws(s3), **submitted})
    try:
        with server.loaded("ada", tmp_path / "ada") as ada, server.loaded("grace", tmp_path / "grace") as grace:
            assert (ada().text, grace().text) == ("hello ada", "hello grace")
    finally:
        assert server.stop() == 0


# What it says when it cannot start


def start_in_vain(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "polyhost", "serve", *arguments],
        env={**os.environ, **MULTI_MODEL, **environ}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_without_java_it_names_the_package(tmp_path: Path) -> None:
    """The most likely reason on a fresh machine, in words that can be pasted."""
    result = start_in_vain("--engine", "mms", "--port", str(free_port()), PATH=str(tmp_path), JAVA_HOME="")

    assert result.returncode == 3
    assert "apt-get install openjdk-17-jre-headless" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_that_is_taken(engine: str) -> None:
    """Said at once, not after the toolkit's ten minutes."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        result = start_in_vain("--engine", engine, "--port", str(port))

    assert result.returncode == 4
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "0"], "--port: '0' is not a port"),
        (["--engine", "magic"], "--engine: 'magic' is none of native, mms"),
        (["--memory-budget", "much"], "--memory-budget: 'much' is not a size: write for example 800MiB or 4GiB"),
        (["--workers-per-model", "0"], "--workers-per-model: '0' is not a number of at least 1"),
        (["--handler", "a b"], "--handler: 'a b' is not a handler"),
    ],
)
def test_a_setting_that_cannot_be(arguments: list[str], words: str) -> None:
    """The flag, the value and what would be right."""
    result = start_in_vain(*arguments)

    assert result.returncode == 2
    assert words in result.stderr


def test_a_setting_of_the_environment_that_cannot_be() -> None:
    """The variable is named as the user wrote it."""
    assert (
        "POLYHOST_LOG_FORMAT: 'xml' is none of text, json: choose one of them."
        in start_in_vain(POLYHOST_LOG_FORMAT="xml").stderr
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://no-such-bucket/x.tar.gz", "cannot be fetched from s3://no-such-bucket/x.tar.gz"),
        ("ftp://host/x", "use s3://BUCKET/KEY or a path"),
        ("/nowhere/sourcedir.tar.gz", "which does not exist"),
    ],
)
def test_code_that_cannot_be_had(s3: str, url: str, words: str) -> None:
    """A container without its code does not start."""
    result = start_in_vain("--port", str(free_port()), SAGEMAKER_SUBMIT_DIRECTORY=url, **aws(s3))

    assert result.returncode == 5, result.stdout
    assert words in result.stderr


def test_one_model_that_cannot_be_loaded(engine: str, tmp_path: Path) -> None:
    """A server of one model that does not load serves nothing: it ends, and says why."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(bytes(10))
    environ = {"SAGEMAKER_MULTI_MODEL": "false", "SAGEMAKER_BASE_DIR": str(tmp_path)}
    arguments = ["--engine", engine, "--port", str(free_port()), "--model-root", str(tmp_path)]
    result = start_in_vain(*arguments, **environ)

    assert result.returncode == 5
    assert "was not loaded: " in result.stderr
    assert "Found: weights.bin" in result.stderr


def test_an_mms_that_cannot_start_is_told_soon(tmp_path: Path) -> None:
    """When Java gives up the server does, with Java's own words in the log."""
    environ = {**MULTI_MODEL, "SAGEMAKER_MODEL_SERVER_VMARGS": "-XX:NoSuchFlag", "TMPDIR": str(tmp_path)}
    result = start_in_vain("--engine", "mms", "--port", str(free_port()), **environ)

    assert result.returncode == 5
    assert "NoSuchFlag" in result.stdout + result.stderr
    assert "Multi Model Server" in result.stderr
    with contextlib.suppress(FileNotFoundError):
        assert list(tmp_path.glob("polyhost-*")) == []
