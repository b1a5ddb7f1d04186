"""The process tree: who outlives whom, and which models share a process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MODELS, ROOT, SAMPLES
from polyhost import processes
from polyhost.engine.errors import EngineError
from polyhost.engine.source import Inspector
from polyhost.unpacking import Unpacker
from support.adopting import adopting
from support.obedient import ANSWER, SLEEP, begun, write_obedient, write_obedient_script
from support.tree import living, template_of, wait_until, wait_until_gone

from native.conftest import HOUSE, Fleet, StartServer

WHO = f"{ANSWER},0"
ROW = "1998,2150,3,2.5,0.4,2,y,n"


def test_a_killed_template_leaves_the_workers_serving(
    start_fleet: Callable[..., Fleet], tmp_path: Path, together: Callable[..., list[Any]],
) -> None:  # fmt: skip
    """
    Models that are loaded do not notice; the next loads, several at once, get a new template.
    """
    fleet = start_fleet()
    scripts = [write_obedient_script(tmp_path / f"script-{number}") for number in range(4)]
    template = template_of(fleet.server)
    with fleet.traffic() as traffic:
        template.kill()
        wait_until_gone([template])
        traffic.wait_for_answers(200)
        loads = together([lambda path=path: fleet.server.load(path.name, path) for path in scripts])
        assert [load.status for load in loads] == [200] * 4, [load.text for load in loads]
        pids = {fleet.server.invoke(path.name, WHO).text for path in scripts}
        assert len(pids) == 4
    assert traffic.all_right()


def test_a_worker_killed_after_its_template_comes_back(start_fleet: Callable[..., Fleet]) -> None:
    """
    Template and all workers killed at once: only the front is left, and every model still answers.
    """
    fleet = start_fleet()
    for process in living(fleet.server):
        process.kill()
    assert fleet.answers_of_all() == fleet.answers


DAEMON = """
import os, time

def model_fn(model_dir):
    return model_dir

def input_fn(body, content_type):
    return body if isinstance(body, str) else body.decode()

def predict_fn(order, model):
    if order == "daemon" and os.fork() == 0:
        os.setsid()
        time.sleep(600)
    if order == "exit":
        os._exit(3)
    if order == "close at the end":
        os.closerange(3, 1024)
    if order == "put a file in its place":
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > 2:
                os.dup2(0, number)
    if order == "close":
        os.closerange(3, 1024)
        time.sleep(600)
    return order

def output_fn(answer, accept):
    return answer
"""


@pytest.mark.parametrize(
    "orders",
    [["daemon", "exit"], ["close"], ["close at the end"], ["put a file in its place"]],
)
def test_a_worker_is_dead_when_its_process_is(start: StartServer, tmp_path: Path, orders: list[str]) -> None:
    """
    What it has started holds its socket open, in a session of its own: the caller hears of the end all the same.

    A process that has closed its socket without ending is ended. Nothing of that is a fault of ours, so that no
    traceback is in the log.
    """
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "inference.py").write_text(DAEMON)
    server = start()
    assert server.load("daemon", tmp_path / "model", response_timeout=600).status == 200
    assert server.invoke("daemon", "first").text == "first"
    for order in orders[:-1]:
        assert server.invoke("daemon", order).text == order
    workers = living(server)
    assert server.invoke("daemon", orders[-1]).status == 500
    assert server.invoke("daemon", "again").text == "again"
    assert server.unload("daemon").status == 200
    assert "Traceback" not in server.process.log
    for process in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_a_model_cannot_shrink_the_page_that_the_front_reads(start: StartServer, tmp_path: Path) -> None:
    (tmp_path / "model" / "code").mkdir(parents=True)
    (tmp_path / "model" / "code" / "inference.py").write_text(
        "import os\n"
        "def model_fn(model_dir): return model_dir\n"
        "def transform_fn(model, body, content_type, accept):\n"
        "    shrunk = 0\n"
        "    for number in os.listdir('/proc/self/fd'):\n"
        "        try:\n"
        "            if 'memfd' in os.readlink(f'/proc/self/fd/{number}'):\n"
        "                shrunk += 1\n"
        "                os.ftruncate(int(number), 0)\n"
        "        except PermissionError: pass\n"
        "        except FileNotFoundError: pass\n"
        "    return str(shrunk), 'text/plain'\n"
    )
    server = start()
    with server.loaded("shrinks", tmp_path / "model") as invoke:
        assert int(invoke().text) >= 1
        assert int(invoke().text) >= 1
    assert server.request("GET", "/ping").json() == {"status": "Healthy"}


_LAUNCHER = """
import subprocess, sys
print(subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).pid, flush=True)
sys.stdin.read()
"""


def test_what_is_handed_on_during_a_look_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multi Model Server, whose launcher ended while it was looked for, was taken for one that had ended."""
    look = psutil._ppid_map  # type: ignore[attr-defined]
    with adopting(), subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as launcher:  # fmt: skip
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        stdin, server = launcher.stdin, int(launcher.stdout.readline())

        def look_and_end() -> Any:
            seen = look()
            stdin.close()
            launcher.wait()
            return seen

        monkeypatch.setattr(psutil, "_ppid_map", look_and_end)
        try:
            assert server in {process.pid for process in processes.living_descendants(os.getpid())}
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def test_a_killed_front_leaves_no_process(start_fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    """
    kill -9 under load: templates, shared workers, dedicated ones, busy and idle, all end.
    """
    fleet = start_fleet()
    for number in range(3):
        assert fleet.server.load(f"script-{number}", write_obedient_script(tmp_path / f"{number}")).status == 200
    busy = threading.Thread(target=lambda: ask_in_vain(fleet, f"{SLEEP},600"))
    busy.start()
    wait_until(lambda: begun(tmp_path / "0", SLEEP), 60, "the call has begun")
    processes = living(fleet.server)
    assert len(processes) >= 5
    with fleet.traffic(max_secs=5):
        os.kill(fleet.server.process.pid, signal.SIGKILL)
        wait_until_gone(processes)
    assert fleet.server.process.wait() == -signal.SIGKILL
    busy.join(60)


def ask_in_vain(fleet: Fleet, body: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
        fleet.server.invoke("script-0", body)


@pytest.mark.mxnet
def test_python_environments_side_by_side(start: StartServer, samples_folder: Path, together: Any) -> None:
    """
    A network of MXNet (numpy 1.23) and a pickle of scikit-learn (numpy 2), served by one server at the same time.
    """
    server = start()
    picture = (SAMPLES / "picture.png").read_bytes()
    calls = [lambda: network(picture, "image/png"), lambda: preprocessor(ROW, "text/csv")]
    with (
        server.loaded("network", samples_folder / "squeezenet") as network,
        server.loaded("preprocessor", samples_folder / "house_preprocessor") as preprocessor,
    ):
        answers = together(calls * 4)
    assert [answer.status for answer in answers] == [200] * 8, [answer.text for answer in answers]
    assert len({answer.body for answer in answers}) == 2


@pytest.mark.mxnet
def test_handlers_and_scripts_run_in_the_environment_that_is_chosen_for_them(
    start: StartServer, samples_folder: Path, tmp_path: Path
) -> None:
    """
    The published handler for MXNet and ours give one answer; a script finds mxnet; scikit-learn's kind stays at home.
    """
    server = start("--environment", "mxnet")
    picture = (SAMPLES / "picture.png").read_bytes()
    published = f"{ROOT / 'tests' / 'data' / 'mxnet' / 'model_handler.py'}:handle"
    (tmp_path / "script" / "code").mkdir(parents=True)
    (tmp_path / "script" / "code" / "inference.py").write_text(
        "import mxnet\n\n"
        "def model_fn(model_dir):\n    return mxnet.__version__\n\n"
        "def transform_fn(model, body, content_type, accept):\n    return model, 'text/plain'\n"
    )
    with (
        server.loaded("published", samples_folder / "squeezenet", handler=published) as theirs,
        server.loaded("network", samples_folder / "squeezenet") as ours,
        server.loaded("script", tmp_path / "script") as script,
        server.loaded("preprocessor", samples_folder / "house_preprocessor") as preprocessor,
    ):
        answer = theirs(picture, "application/x-image")
        assert answer.status == 200, answer.text
        assert answer.json() == ours(picture, "application/x-image").json()
        assert len(answer.json()) == 5
        assert script("", "text/plain").text == "1.9.1"
        assert preprocessor(ROW, "text/csv").status == 200


def test_an_environment_that_is_not_installed_is_said(tmp_path: Path) -> None:
    """
    Our handlers of data go on without it.
    """
    inspector = Inspector(
        model_roots=(tmp_path,),
        default_handler="polyhost_handlers.auto:handle",
        environ={"POLYHOST_ENVIRONMENT": "nowhere"},
        run_folder=tmp_path / "run",
        unpacker=Unpacker({}, unpack_secs=1),
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model.joblib").write_bytes(b"\x80\x04N.")
    (tmp_path / "script" / "code").mkdir(parents=True)
    (tmp_path / "script" / "code" / "inference.py").touch()

    def environment_of(folder: str, *environ: tuple[str, str]) -> str:
        return asyncio.run(inspector.inspect(str(tmp_path / folder), "", environ)).environment

    assert environment_of("data") == ""
    with pytest.raises(EngineError, match=r"environment nowhere, .* is not installed: .* in POLYHOST_NOWHERE_PYTHON\."):
        environment_of("script")
    assert environment_of("script", ("POLYHOST_NOWHERE_PYTHON", sys.executable)) == "nowhere"


# Archives that bring code

SCRIPT = """
import json, os
import utils

calls = 0

def model_fn(model_dir):
    os.environ["WHO_AM_I"] = utils.name()
    os.environ.setdefault("FIRST_OF_ALL", utils.name())
    with open("data/who.txt") as file:  # as under MMS, names are relative to the archive
        who = file.read()
    os.chdir("data")
    return who

def transform_fn(model, body, content_type, accept):
    global calls
    calls += 1
    with open("who.txt") as file:
        seen = [model, file.read(), utils.name(), utils.state(), os.environ["WHO_AM_I"], os.environ["FIRST_OF_ALL"]]
    return json.dumps([seen, calls]), "application/json"
"""
SERVICE = """
from inference import model_fn, transform_fn

model = None

def handle(data, context):
    global model
    if data is None:
        model = model_fn(context.system_properties["model_dir"])
        return None
    return [transform_fn(model, None, None, None)[0]]
"""
UTILS = """
_state = []

def name():
    return "{name}"

def state():
    _state.append("{name}")
    return ",".join(sorted(set(_state)))
"""


def write_archive(folder: Path, style: str) -> Path:
    """An archive that knows its own name and looks for traces of others. `style`: of the toolkit, or MMS's."""
    code = folder if style == "mms" else folder / "code"
    code.mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "who.txt").write_text(folder.name)
    (code / "inference.py").write_text(SCRIPT)
    (code / "utils.py").write_text(UTILS.format(name=folder.name))
    if style == "mms":
        (folder / "service.py").write_text(SERVICE)
        manifest = {"model": {"modelName": folder.name, "handler": "service:handle"}}
        (folder / "MAR-INF").mkdir()
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("style", ["script", "mms"])
def test_archives_with_code_never_see_each_other(fleet: Fleet, tmp_path: Path, style: str, together: Any) -> None:
    """
    The same names of modules and files, module globals, the working directory and the environment: each its own.
    """
    names = ["ada", "grace", "hedy"]
    for name in names:
        assert fleet.server.load(name, write_archive(tmp_path / name, style)).status == 200, fleet.server.process.log
    try:
        rounds = [together([lambda name=name: fleet.server.invoke(name) for name in names]) for _ in range(5)]
    finally:
        for name in names:
            fleet.server.unload(name)
    for number, answers in enumerate(rounds, 1):
        assert [answer.json() for answer in answers] == [[[name] * 6, number] for name in names]


# The three isolations, seen by the process in which a model answers


def test_auto_shares_data_and_separates_code(fleet: Fleet, tmp_path: Path) -> None:
    """
    Archives of data share a few processes; each that brings code has one of its own, which ends with it.
    """
    pids: dict[str, int] = {}
    for number in range(6):
        assert fleet.server.load(f"data-{number}", write_obedient(tmp_path / f"data-{number}")).status == 200
        assert fleet.server.load(f"code-{number}", write_obedient_script(tmp_path / f"code-{number}")).status == 200
    for name in fleet.server.names():
        if not name.startswith("house"):
            answer = fleet.server.invoke(name, WHO)
            pids[name] = answer.json()[0] if name.startswith("data") else int(answer.text)
    dedicated = [psutil.Process(pid) for name, pid in pids.items() if name.startswith("code")]
    for name in pids:
        assert fleet.server.unload(name).status == 200

    shared = {pid for name, pid in pids.items() if name.startswith("data")}
    assert len(shared) <= len(os.sched_getaffinity(0))
    assert len({process.pid for process in dedicated} - shared) == 6
    wait_until_gone(dedicated, 0)  # the answer to DELETE has waited for it


def test_process_gives_every_model_its_own(start: StartServer, tmp_path: Path, house_folders: list[Path]) -> None:
    """
    --isolation process, for data too.
    """
    server = start("--isolation", "process")
    for number in range(4):
        assert server.load(f"data-{number}", write_obedient(tmp_path / f"data-{number}")).status == 200
    assert server.load("code", write_obedient_script(tmp_path / "code")).status == 200
    pids = [server.invoke(f"data-{number}", WHO).json()[0] for number in range(4)]
    pids.append(int(server.invoke("code", WHO).text))
    assert len(set(pids)) == 5

    before = {process.pid for process in living(server)}
    assert server.load("house", house_folders[0]).status == 200
    assert server.invoke("house", HOUSE).status == 200
    assert len({process.pid for process in living(server)} - before) == 1
    assert server.unload("house").status == 200
    assert {process.pid for process in living(server)} == before


@pytest.mark.parametrize(("when", "found"), [("early", "True"), ("late", "False")])
def test_frameworks_are_there_before_a_script_or_when_it_imports_them(
    start: StartServer, tmp_path: Path, when: str, found: str
) -> None:
    import xgboost

    (tmp_path / "script" / "code").mkdir(parents=True)
    (tmp_path / "script" / "code" / "inference.py").write_text("""
import sys
FOUND = "xgboost" in sys.modules
import xgboost

def model_fn(model_dir):
    return xgboost.__version__

def transform_fn(model, body, content_type, accept):
    return f"{FOUND} {model}", "text/plain"
""")
    server = start("--import-frameworks", when)

    with server.loaded("script", tmp_path / "script") as invoke:
        assert invoke(b"1").text == f"{found} {xgboost.__version__}"


def test_shared_puts_scripts_together_too(start: StartServer, tmp_path: Path) -> None:
    """
    --isolation shared: no process for any model, also for one that brings code.
    """
    server = start("--isolation", "shared")
    for number in range(6):
        answer = server.load(f"code-{number}", write_obedient_script(tmp_path / f"code-{number}"))
        assert answer.status == 200, answer.text
    assert server.load("data", write_obedient(tmp_path / "data")).status == 200
    assert server.load("mms", MODELS / "noop-v1.0").status == 200
    assert server.invoke("mms").text == "OK"
    pids = {server.invoke(f"code-{number}", WHO).text for number in range(6)}

    assert len(pids) <= len(os.sched_getaffinity(0))
    for number in range(6):
        assert server.unload(f"code-{number}").status == 200
    assert server.invoke("data", WHO).status == 200
    assert pids <= {str(process.pid) for process in living(server)}


def test_a_models_own_processes_end_with_it(fleet: Fleet, tmp_path: Path) -> None:
    """
    What a handler has started, a pool of processes say, does not outlive its model.
    """
    code = tmp_path / "parent" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text(
        "import subprocess\n"
        "def model_fn(model_dir): return subprocess.Popen(['sleep', '600'])\n"
        "def transform_fn(model, body, content_type, accept): return str(model.pid), 'text/plain'\n",
    )
    assert fleet.server.load("parent", tmp_path / "parent").status == 200
    child = psutil.Process(int(fleet.server.invoke("parent").text))
    try:
        assert fleet.server.unload("parent").status == 200
        wait_until_gone([child])
    finally:
        if child.is_running():
            child.kill()


@pytest.mark.parametrize("module", ["server", "endpoint_server", "engine.native.start", "artifacts.fetcher"])
def test_front_and_fetcher_import_no_numpy(module: str) -> None:
    """
    They would start a sixth of a second later, and take 20 MB more each.
    """
    code = f"import polyhost.{module}, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
