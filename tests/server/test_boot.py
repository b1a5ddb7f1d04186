"""
Booted as a container of the inference toolkit is: `multi-model-server` on the PATH is ours, and no Java runs.

The toolkit itself is unmodified. It looks for MMS among all processes that it sees and refuses to see two: where
that is allowed it gets a process namespace of its own, as in a container.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import MODELS, ROOT
from polyhost.config import Config
from polyhost.errors import InvalidSetting
from polyhost.limits import Limits
from polyhost.memory import cpu_limit
from polyhost.mms_command import COMMAND_FOLDER
from polyhost.mms_properties import HONOURED, NEEDLESS, mms_properties, parsed, without_effect
from support.server import Answer, Process, free_port, gone, request
from support.tree import command_of, javas, wait_until

TOOLKIT = Path(__file__).parent / "toolkit"
COMMAND = COMMAND_FOLDER / "multi-model-server"
READY = r"\] polyhost - ready on"


def clean_environ(temp: Path, **more: str) -> dict[str, str]:
    """Ours first on the PATH, no Java, nothing of what configures this very test run."""
    ours = re.compile(r"SAGEMAKER|POLYHOST|MMS_|AWS_")
    clean = {name: value for name, value in os.environ.items() if not ours.match(name)}
    path = os.pathsep.join([str(COMMAND_FOLDER), str(Path(sys.executable).parent), clean["PATH"]])
    return {**clean, "PATH": path, "JAVA_HOME": "/no/java", "TMPDIR": str(temp), **more}


def own_namespace() -> list[str]:
    """What runs a command among processes of its own; nothing where that is not allowed."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        command.insert(1, "--map-root-user")
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    return command if allowed else []


class Toolkit:
    """A process that has called the toolkit's start_model_server, and the server that came of it."""

    def __init__(self, handler_service: str, base: Path, *, is_multi_model: bool) -> None:
        self.port = free_port()
        temp = base / "tmp"
        temp.mkdir()
        self.temp = temp
        environ = clean_environ(
            temp,
            SAGEMAKER_BASE_DIR=str(base),
            SAGEMAKER_BIND_TO_PORT=str(self.port),
            SAGEMAKER_MULTI_MODEL=str(is_multi_model).lower(),
            SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="120",
        )
        environ["PYTHONPATH"] = os.pathsep.join([str(TOOLKIT), environ.get("PYTHONPATH", "")])
        self._namespace = own_namespace()
        command = [sys.executable, str(TOOLKIT / "boot.py"), handler_service]
        self.process = Process([*self._namespace, *command], environ, cwd=temp)
        self.process.wait_for_line(READY)

    def descendants(self) -> list[psutil.Process]:
        """The server is the toolkit's child only where an orphan's next parent is the toolkit."""
        mine = str(self.temp)
        return [process for process in psutil.process_iter() if mine in environ_of(process).get("TMPDIR", "")]

    def servers(self) -> list[psutil.Process]:
        mark = "com.amazonaws.ml.mms.ModelServer"
        return [process for process in self.descendants() if mark in command_of(process)]

    def stop(self) -> int:
        """SIGTERM to the process that called the toolkit; its exit code."""
        toolkit = psutil.Process(self.process.pid)
        if self._namespace:
            (toolkit,) = toolkit.children()
        # Before it has found the server the toolkit does not handle the signal.
        wait_until(lambda: handles(toolkit.pid, signal.SIGTERM), 120, "it handles the signal")
        toolkit.send_signal(signal.SIGTERM)
        return self.process.wait()

    def kill(self) -> None:
        self.process.kill_tree()
        kill(self.descendants())

    def request(self, method: str, target: str, body: str | None = None, **headers: str) -> Answer:
        return request(
            self.port, method, target, body, {name.replace("_", "-"): text for name, text in headers.items()}
        )

    def load(self, name: str, url: Path) -> Answer:
        return self.request(
            "POST", "/models", json.dumps({"model_name": name, "url": str(url)}), Content_Type="application/json"
        )


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def environ_of(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:
        return {}


def handles(pid: int, number: int) -> bool:
    mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return mask is not None and bool(int(mask[1], 16) >> (number - 1) & 1)


@pytest.fixture
def toolkit(tmp_path: Path) -> Iterator[Callable[..., Toolkit]]:
    """Boots as `toolkit(handler_service, is_multi_model=…)`."""
    booted: list[Toolkit] = []

    def boot(handler_service: str = "factor_handler_service", *, is_multi_model: bool) -> Toolkit:
        booted.append(Toolkit(handler_service, tmp_path, is_multi_model=is_multi_model))
        return booted[-1]

    yield boot
    for one in booted:
        one.kill()


def factor_model(folder: Path, factor: float) -> Path:
    folder.mkdir(parents=True)
    (folder / "factor.txt").write_text(str(factor))
    return folder


# The toolkit


def test_the_toolkit_boots_a_multi_model_server(toolkit: Callable[..., Toolkit], tmp_path: Path) -> None:
    """
    Its handler service serves every model; ping, load, list, invoke, unload and errors are MMS's; no Java runs.
    """
    models = tmp_path / "models"
    two, three = factor_model(models / "two", 2), factor_model(models / "three", 3)
    server = toolkit(is_multi_model=True)

    assert server.request("GET", "/ping").json() == {"status": "Healthy"}
    for name, url in {"two": two, "three": three}.items():
        assert server.load(name, url).json() == {"status": "Workers scaled"}
    assert [model["modelName"] for model in server.request("GET", "/models").json()["models"]] == ["three", "two"]
    for name, answer in {"two": [2.0, 4.0], "three": [3.0, 6.0]}.items():
        predicted = server.request("POST", f"/models/{name}/invoke", "[1, 2]", Content_Type="application/json")
        assert (predicted.status, predicted.json()) == (200, answer)
    as_csv = server.request("POST", "/models/two/invoke", "1,2\n3,4", Content_Type="text/csv", Accept="text/csv")
    assert as_csv.text.split() == ["2.0,4.0", "6.0,8.0"]

    assert server.load("two", two).message == "Model two is already registered."
    assert server.request("POST", "/models/four/invoke", "1").message == "Model not found: four"
    assert server.load("four", models / "four").status == 404
    assert server.load("etc", Path("/etc")).message.startswith("Model url is not under a model root")
    assert server.request("POST", "/invocations", "1").message == "Parameter model_name is required."
    (only,) = server.request("GET", "/models/two").json()["workers"]
    assert only["status"] == "READY"
    assert server.request("DELETE", "/models/two").status == 200
    assert server.request("GET", "/models/two").status == 404

    processes = server.descendants()
    assert len(server.servers()) == 1
    assert not javas(processes)
    assert server.stop() == 0
    assert "stopping: got SIGTERM" in server.process.log
    assert gone(processes)


def test_the_toolkit_boots_a_single_model(toolkit: Callable[..., Toolkit], tmp_path: Path) -> None:
    """
    SAGEMAKER_MULTI_MODEL=false: the toolkit names the model on the command line, /invocations is its.

    The user's own code/inference.py is found by the toolkit and wins over the framework's functions.
    """
    code = factor_model(tmp_path / "model", 5) / "code"
    code.mkdir()
    (code / "inference.py").write_text(
        "def output_fn(prediction, accept, context=None):\n    return f'<{prediction}>'\n"
    )
    server = toolkit(is_multi_model=False)

    answer = server.request("POST", "/invocations", "[1, 2]", Content_Type="application/json")
    assert (answer.status, answer.text) == (200, "<[ 5. 10.]>")
    described = server.request("GET", "/models/model").json()
    assert described["loadedAtStartup"] is True
    assert len(described["workers"]) == len(os.sched_getaffinity(0))
    assert server.request("GET", "/execution-parameters").status == 200
    assert server.stop() == 0


# The command


def written(folder: Path, **properties: object) -> Path:
    config = folder / "config.properties"
    config.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    return config


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """The command, with a configuration of these properties; whatever it leaves running is killed."""
    started: list[Process] = []
    temp = tmp_path / "tmp"
    temp.mkdir()

    def run(*arguments: str, environ: Mapping[str, str] | None = None, **properties: object) -> Process:
        config = written(tmp_path, **properties)
        told = clean_environ(temp, **(environ or {}))
        started.append(Process([str(COMMAND), *arguments, "--mms-config", str(config)], told, cwd=tmp_path))
        return started[-1]

    yield run
    for process in started:
        process.kill_tree()
    kill([process for process in psutil.process_iter() if environ_of(process).get("TMPDIR") == str(temp)])


def addresses(port: int) -> dict[str, object]:
    return {f"{part}_address": f"http://127.0.0.1:{port}" for part in ("inference", "management")}


# It is at a call until there is a file `go` in its folder.
HOLDS = """
import os, time

def handle(data, context):
    if data is None:
        return None
    open("called", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.005)
    return ["done"]
"""


def test_a_stop_signal_drains_and_exits_with_0(run: Callable[..., Process], tmp_path: Path) -> None:
    """
    In the foreground the command is the server; what is in flight is still answered.
    """
    model = tmp_path / "store" / "holds"
    model.mkdir(parents=True)
    (model / "service.py").write_text(HOLDS)
    port = free_port()
    server = run(
        "--start", "--foreground", "--model-store", str(tmp_path / "store"), "--models", "slow=holds",
        environ={"POLYHOST_DRAIN_SECS": "600"}, default_service_handler="service:handle", **addresses(port),
    )  # fmt: skip
    server.wait_for_line(READY)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(request, port, "POST", "/predictions/slow", "1")
        wait_until(lambda: call.done() or (model / "called").exists(), 60, "the call has begun")
        server.send(signal.SIGTERM)
        server.wait_for_line("stopping: got SIGTERM")
        assert not call.done()
        (model / "go").touch()
        assert call.result().text == "done"
    assert server.wait() == 0


def test_it_starts_in_the_background_and_stops(run: Callable[..., Process], tmp_path: Path) -> None:
    """
    --start returns, a second one is refused, --stop ends it; the pid file is MMS's and goes with the server.
    """
    port = free_port()
    pid_file = tmp_path / "tmp" / ".model_server.pid"
    launcher = run("--start", **addresses(port))
    launcher.wait_for_line(READY)
    pid = int(pid_file.read_text())
    assert "com.amazonaws.ml.mms.ModelServer" in psutil.Process(pid).cmdline()
    assert request(port, "GET", "/ping").status == 200

    again = run("--start", **addresses(port))
    assert again.wait() == 1
    assert "already running, please use multi-model-server --stop" in again.log

    stop = run("--stop")
    assert (stop.wait(), stop.log) == (0, "Model server stopped.\n")
    assert launcher.wait() == 0
    assert not pid_file.exists()
    once_more = run("--stop")
    assert (once_more.wait(), once_more.log) == (0, "Model server is not currently running.\n")


def test_a_server_that_its_parent_has_not_buried_has_stopped(tmp_path: Path) -> None:
    """--stop does not wait out its limit for a zombie: whoever started the server may bury it late."""
    (tmp_path / "tmp").mkdir()
    environ = clean_environ(tmp_path / "tmp")
    command = [str(COMMAND), "--foreground", "--mms-config", str(written(tmp_path, **addresses(free_port())))]
    server = subprocess.Popen(command, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert any(re.search(READY, line) for line in server.stdout)
        stopped = subprocess.run(
            [COMMAND, "--stop"], env=environ, capture_output=True, text=True, timeout=120, check=True
        )
        assert stopped.stdout == "Model server stopped.\n"
        assert psutil.Process(server.pid).status() == psutil.STATUS_ZOMBIE
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.parametrize("content", ["no pid", "", "999999999", "of these tests"])
def test_a_stale_pid_file_stops_nothing(run: Callable[..., Process], tmp_path: Path, content: str) -> None:
    """
    Of a killed server, of another process that has its pid by now, or damaged: a container starts again.
    """
    text = str(os.getpid()) if content == "of these tests" else content
    (tmp_path / "tmp" / ".model_server.pid").write_text(text)
    server = run("--foreground", **addresses(free_port()))
    server.wait_for_line(READY)
    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert "Removing orphan pid file." in server.log
    assert not (tmp_path / "tmp" / ".model_server.pid").exists()


def test_all_models_of_the_store_are_loaded(run: Callable[..., Process], tmp_path: Path) -> None:
    """
    load_models=ALL takes folders and archives; one that does not load is missing, the others serve.
    """
    store = tmp_path / "store"
    store.mkdir()
    for name in ("noop-v1.0", "echo", "init-error"):
        (store / name).symlink_to(MODELS / name)
    (store / ".hidden").mkdir()
    port = free_port()
    environ = {"POLYHOST_MODEL_ROOT": f"{store}:{MODELS}"}
    server = run("--foreground", environ=environ, model_store=store, load_models="ALL", **addresses(port))
    server.wait_for_line(READY)

    urls = {model["modelUrl"] for model in request(port, "GET", "/models").json()["models"]}
    assert urls == {"noop-v1.0", "echo"}


def test_properties_variables_and_references_are_taken(run: Callable[..., Process]) -> None:
    """
    The file, $$NAME$$ in it, MMS_ over it; what has no effect is named once; a secret stays out of workers.
    """
    port = free_port()
    server = run(
        "--foreground", "--model-store", str(MODELS),
        environ={"MY_WORKERS": "2", "MMS_MAX_REQUEST_SIZE": "1000", "MMS_JOB_QUEUE_SIZE": "7"},
        enable_envvars_config="true", default_workers_per_model="$$MY_WORKERS$$", max_request_size="5",
        vmargs="-Xmx1g", cors_allowed_origin="*", number_of_gpu="1", **addresses(port),
    )  # fmt: skip
    server.wait_for_line(READY)

    assert request(port, "POST", "/models?url=noop-v1.0&model_name=m").json() == {"status": "Workers scaled"}
    assert len(request(port, "GET", "/models/m").json()["workers"]) == 2
    assert request(port, "POST", "/predictions/m", "x" * 1000).status == 200
    assert request(port, "POST", "/predictions/m", "x" * 1001).status == 413
    warnings = [line for line in server.log.splitlines() if "without effect" in line]
    assert len(warnings) == 1
    assert warnings[0].endswith("without effect here: cors_allowed_origin, number_of_gpu")


@pytest.mark.parametrize(
    ("arguments", "properties", "words"),
    [
        (["--mms-config", "/no/file"], {}, "--mms-config file not found: /no/file"),
        (["--model-store", "/no/folder"], {}, "--model-store directory not found: /no/folder"),
        (["--models", "a=b"], {}, "--model-store is required to load model locally."),
        ([], {"default_service_handler": "$$NOT_SET$$"}, "asks for the environment variable NOT_SET"),
        ([], {"job_queue_size": "many"}, "job_queue_size (or MMS_JOB_QUEUE_SIZE): 'many' is not a whole number"),
        ([], {"inference_address": "https://127.0.0.1:8443"}, "put what speaks https in front"),
        ([], {"inference_address": "8080"}, "inference_address: 8080 is no address such as"),
        (["--model-store", "/"], {"load_models": "ALL"}, "load_models: ALL would be the whole disk"),
        ([], {"blacklist_env_vars": "("}, "blacklist_env_vars: not a regular expression"),
    ],
)
def test_what_cannot_be_started_is_said_at_once(
    tmp_path: Path, arguments: list[str], properties: dict[str, str], words: str
) -> None:
    """
    By the command itself, not by a server in the background.
    """
    config = ["--mms-config", str(written(tmp_path, **properties))]
    result = subprocess.run(
        [COMMAND, *config, *arguments], env=clean_environ(tmp_path), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_whose_only_model_does_not_load_ends(run: Callable[..., Process], tmp_path: Path) -> None:
    """
    A platform that is told so sends no traffic; the log has the handler's words.
    """
    (tmp_path / "model").mkdir()
    pythonpath = os.pathsep.join([str(TOOLKIT), os.environ.get("PYTHONPATH", "")])
    process = run(
        "--foreground", "--model-store", "/", "--models", f"model={tmp_path / 'model'}",
        environ={"PYTHONPATH": pythonpath}, default_service_handler="factor_handler_service", **addresses(free_port()),
    )  # fmt: skip

    assert process.wait() == 5
    assert f"the model in {tmp_path / 'model'} was not loaded: Unable to load model: " in process.log


# Properties


def test_the_format_of_properties() -> None:
    """
    As Java reads them: comments, three separators, continued lines, escapes.
    """
    text = "# a=1\n! b=2\n\nc=d\n  e : f g \nh i\nj\\=k=l\\\n   m\nn=\\u0041\\tz\no=\np=C\\:\\\\q\nr=-X:Y=1\n"

    assert parsed(text) == {
        "c": "d", "e": "f g", "h": "i", "j=k": "lm", "n": "A\tz", "o": "", "p": "C:\\q", "r": "-X:Y=1",
    }  # fmt: skip


def test_what_wins_over_what(tmp_path: Path) -> None:
    """
    The command line wins over the file, and MMS_ variables over both if the file says that they count.
    """
    file = written(tmp_path, model_store="/file", load_models="file")
    other = tmp_path / "other"
    other.write_text("model_store=/other\nenable_envvars_config=true\n")
    environ = {"MMS_LOAD_MODELS": "variable", "MMS_OTHER": "no property of MMS's"}

    assert mms_properties(str(file), "", [], environ) == {"model_store": "/file", "load_models": "file"}
    assert mms_properties(str(file), "/flag", ["a", "b=c"], environ)["load_models"] == "a,b=c"
    told = mms_properties(str(file), "/flag", ["a"], {**environ, "MMS_CONFIG_FILE": str(other)})
    assert told == {"model_store": "/flag", "load_models": "variable", "enable_envvars_config": "true"}
    assert without_effect({"keystore": "x", "vmargs": "y", "model_store": "z", "of_nobody": ""}) == [
        "keystore",
        "of_nobody",
    ]


def test_limits_are_mmss() -> None:
    """
    MMS 1.1.11 takes its timeout in minutes, unless it is told seconds.
    """
    bare = Limits.of({})
    assert (bare.max_request_bytes, bare.response_timeout_secs, bare.workers_per_model) == (6_553_500, 7200, 0)
    assert (bare.startup_workers, bare.job_queue_size) == (cpu_limit(), 100)
    assert Limits.of({"default_response_timeout": "2"}).response_timeout_secs == 120
    told = {"default_response_timeout": "2", "default_response_timeout_seconds": "7"}
    assert Limits.of(told).response_timeout_secs == 7


def test_limits_of_the_platform_are_what_the_toolkit_makes_of_them() -> None:
    """
    `polyhost serve` reads the variables that the toolkit reads; MMS_ variables win.
    """
    multi = {"SAGEMAKER_MULTI_MODEL": "true"}
    plain = Limits.of_platform(Config(), multi)
    assert (plain.response_timeout_secs, plain.workers_per_model, plain.max_request_bytes) == (3600, 1, 6_553_500)
    assert Limits.of_platform(Config(), {"SAGEMAKER_MULTI_MODEL": "false"}).workers_per_model == cpu_limit()
    environ = {
        **multi, "SAGEMAKER_MAX_PAYLOAD_IN_MB": "2", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "9",
        "MMS_JOB_QUEUE_SIZE": "3",
    }  # fmt: skip
    told = Limits.of_platform(Config(workers_per_model=4), environ)
    assert (told.max_request_bytes, told.response_timeout_secs) == (2 * 1024**2, 9)
    assert (told.workers_per_model, told.job_queue_size) == (4, 3)
    with pytest.raises(InvalidSetting, match="max_request_size"):
        Limits.of_platform(Config(), {"SAGEMAKER_MAX_REQUEST_SIZE": "big"})


def test_the_docs_name_every_property() -> None:
    """
    docs/bring-your-own-container.md says which of MMS's properties count, and which need not.
    """
    text = (ROOT / "docs" / "bring-your-own-container.md").read_text()

    assert [name for name in HONOURED | NEEDLESS if f"`{name}`" not in text] == []
