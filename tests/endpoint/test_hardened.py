"""
The hardened mode as its users meet it: what a hostile model gets, and what an honest one goes on doing.

Its server runs as whoever runs the tests, root in many containers: what holds for root holds for others.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MXNET_PYTHON
from polyhost.engine.native import landlock, seccomp
from support.endpoint import EndpointServer, packed
from support.honest import ANSWERS, call_of
from support.hostile import HardenedServer, done_by, pack_hostile, pack_hostile_pickle, refused_to
from support.tree import wait_until

pytestmark = [
    pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock, or it is switched off"),
    pytest.mark.skipif(not seccomp.is_supported(), reason="this kernel or machine takes no seccomp filter"),
]
keeps_signals_in = pytest.mark.skipif(
    landlock.version() < landlock.SCOPES_VERSION, reason="this kernel's Landlock does not keep signals in (Linux 6.12)"
)

HOUSE = "1998,2150,3,2.5,0.4,2"
RAW, ROW = f"{HOUSE},y,n", f"{HOUSE},1,0"
FETCHER = "polyhost.artifacts.fetcher"
SECRET = "a secret of this test"
WHO = "type('Who', (), {'predict': lambda self, table: [__import__('os').getpid()]})()"


@dataclass
class Scene:
    """A server with hostile models, and the places that they are after."""

    server: HardenedServer
    places: dict[str, str]

    def refused(self, source: str, target: str = "hostile.tar.gz") -> str:
        return refused_to(self.server, target, self._filled(source))

    def done(self, source: str, target: str = "hostile.tar.gz") -> object:
        return done_by(self.server, target, self._filled(source))

    def _filled(self, source: str) -> str:
        return re.sub(r"\b[A-Z]{2,}(_[A-Z]+)+\b", lambda match: self.places.get(match[0], match[0]), source)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("hardened")
    models = folder / "models"
    pack_hostile(folder / "hostile", models / "hostile.tar.gz", **{"own.txt": "its own"})
    pack_hostile(folder / "victim", models / "victim.tar.gz", **{"weights.txt": SECRET})
    for name in ("one", "two"):
        pack_hostile_pickle(folder / name, models / f"{name}.tar.gz", WHO)
    pack_hostile_pickle(folder / "thief", models / "thief.tar.gz", f"open('{folder}/auth.json').read()")
    for name in ("houston", "boston", "house_preprocessor", "house_linear_learner", "house_network", "listing_tone"):
        shutil.copy(samples_folder / f"{name}.tar.gz", models)
    (folder / "home" / ".aws").mkdir(parents=True)
    (folder / "home" / ".aws" / "credentials").write_text(SECRET)
    (folder / "auth.json").write_text(SECRET)
    environ = {"HOME": str(folder / "home"), "DB_PASSWORD": SECRET, "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "170"}
    server = HardenedServer(models, "--auth-file", str(folder / "auth.json"), state=folder / "state", environ=environ)
    victim = done_by(server, "victim.tar.gz", "import os; answer = [model_dir, os.environ['TMPDIR'], os.getpid()]")
    fetcher = next(
        child for child in psutil.Process(server.process.pid).children() if FETCHER in " ".join(child.cmdline())
    )
    places = {
        "FRONT_PID": str(server.process.pid), "FETCHER_PID": str(fetcher.pid), "VICTIM_PID": str(victim[2]),
        "VICTIM_DIR": victim[0], "VICTIM_TEMP": victim[1], "AUTH_FILE": str(folder / "auth.json"),
        "STATE_DIR": str(folder / "state"), "MODELS_DIR": str(models), "HOME_DIR": str(folder / "home"),
    }  # fmt: skip
    yield Scene(server, places)
    assert server.stop() == 0, server.process.log
    assert SECRET not in server.process.log


# What a hostile model cannot do

READS = {
    "another model's file": "answer = open('VICTIM_DIR/weights.txt').read()",
    "another model's folder": "import os; answer = os.listdir('VICTIM_DIR')",
    "another model's temporary folder": "import os; answer = os.listdir('VICTIM_TEMP')",
    "the archives": "import os; answer = os.listdir('MODELS_DIR')",
    "an archive": "answer = open('MODELS_DIR/victim.tar.gz', 'rb').read(4)",
    "the auth file": "answer = open('AUTH_FILE').read()",
    "the state database": "answer = open('STATE_DIR/state.sqlite3', 'rb').read(16)",
    "the server's keys": "answer = open('HOME_DIR/.aws/credentials').read()",
    "the front's environment": "answer = open('/proc/FRONT_PID/environ').read()",
    "the fetcher's environment": "answer = open('/proc/FETCHER_PID/environ').read()",
    "another model's environment": "answer = open('/proc/VICTIM_PID/environ').read()",
    "another model's memory": "answer = open('/proc/VICTIM_PID/mem', 'rb').fileno()",
    "the front's descriptors": "import os; answer = os.readlink('/proc/FRONT_PID/fd/0')",
    "another model's files by its root": "answer = open('/proc/VICTIM_PID/root/AUTH_FILE').read()",
    "the user's passwords": "answer = open('/etc/shadow').read()",
    "shared memory of others": "import os; answer = os.listdir('/dev/shm')",
    "by a link of its own": (
        "import os; link = os.environ['TMPDIR'] + '/link'; os.path.lexists(link) or os.symlink('AUTH_FILE', link)\n"
        "answer = open(link).read()"
    ),
    "by a hard link": "import os; os.link('AUTH_FILE', os.environ['TMPDIR'] + '/hard')",
    "by moving it": "import os; os.rename('VICTIM_DIR/weights.txt', os.environ['TMPDIR'] + '/moved')",
    "by a program": (
        "import subprocess; answer = subprocess.check_output(['cat', 'AUTH_FILE'], stderr=subprocess.DEVNULL).decode()"
    ),
    "by a process pool": (
        "import multiprocessing, pathlib\nwith multiprocessing.Pool(1) as pool:\n"
        "    answer = pool.map(pathlib.Path.read_text, [pathlib.Path('AUTH_FILE')])"
    ),
}
WRITES = {
    "its own model": "open(model_dir + '/own.txt', 'w')",
    "another model's file": "open('VICTIM_DIR/weights.txt', 'a')",
    "the state folder": "open('STATE_DIR/new', 'w')",
    "the folder of all temporary files": "open('/tmp/new-of-a-hostile-model', 'w')",
    "a framework": "import numpy; open(numpy.__file__, 'a')",
    "another model's file, shorter": "import os; os.truncate('VICTIM_DIR/weights.txt', 0)",
    "away with it": "import os; os.unlink('VICTIM_DIR/weights.txt')",
}
REACHES = {
    "the front by a signal": "import os; os.kill(FRONT_PID, 0)",
    "the front's group": "import os; os.killpg(os.getpgid(FRONT_PID), 0)",
    "another model's worker": "import os; os.kill(VICTIM_PID, 0)",
    "another model's worker by its descriptor": (
        "import os, signal; signal.pidfd_send_signal(os.pidfd_open(VICTIM_PID), 0)"
    ),
    "the front's limits": "import resource; resource.prlimit(FRONT_PID, resource.RLIMIT_NOFILE, (8, 8))",
    "the front's turn": "import os; os.setpriority(os.PRIO_PROCESS, FRONT_PID, 19)",
    "the metadata address": "import socket; socket.create_connection(('169.254.169.254', 80), 1)",
    "the server itself": "import socket; socket.create_connection(('127.0.0.1', 8080), 1)",
    "a name server": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "another by ptrace": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.ptrace(16, VICTIM_PID, 0, 0) < 0: raise OSError(ctypes.get_errno(), 'ptrace')"
    ),
    "a namespace": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.unshare(0x10000000) < 0: raise OSError(ctypes.get_errno(), 'unshare')"
    ),
    "many descriptors": (
        "import os\nopened = []\ntry:\n    while len(opened) < 5000: opened.append(os.dup(0))\n"
        "finally:\n    for one in opened: os.close(one)"
    ),
    "a large file": "open(os.environ['TMPDIR'] + '/huge', 'wb').truncate(2 << 30)",
}


@pytest.mark.parametrize("what", READS)
def test_a_hostile_model_cannot_read(scene: Scene, what: str) -> None:
    assert re.match(
        r"PermissionError|CalledProcessError|FileExistsError|OSError: \[Errno 18\]", scene.refused(READS[what])
    )


@pytest.mark.parametrize("what", WRITES)
def test_a_hostile_model_cannot_write(scene: Scene, what: str) -> None:
    assert scene.refused(WRITES[what]).startswith("PermissionError")
    assert scene.done("answer = open(model_dir + '/weights.txt').read()", "victim.tar.gz") == SECRET


@pytest.mark.parametrize(
    "what",
    [pytest.param(what, marks=keeps_signals_in if "worker" in what or "group" in what else []) for what in REACHES],
)
def test_a_hostile_model_cannot_reach(scene: Scene, what: str) -> None:
    source = REACHES[what] if "import" in REACHES[what] else f"import os; {REACHES[what]}"
    assert re.match(r"PermissionError|OSError: \[Errno (1|24|27)\]", scene.refused(source))


def test_a_pickle_is_confined_before_it_is_read(scene: Scene) -> None:
    """What it does as it is unpickled it does as a stranger; the caller sees no path of ours but what it named."""
    answer = scene.server.request(
        "POST", "/invocations", HOUSE, X_Amzn_SageMaker_Target_Model="thief.tar.gz", Content_Type="text/csv"
    )
    assert answer.status == 424
    assert "Permission denied" in answer.text
    assert SECRET not in answer.text


def test_pickles_have_a_process_each_and_data_shares(scene: Scene) -> None:
    pids = {scene.server.predict(name, HOUSE) for name in ("one.tar.gz", "two.tar.gz")}
    assert len(pids) == 2
    before = workers(scene.server)
    for name, row in (("houston", HOUSE), ("boston", HOUSE), ("house_linear_learner", ROW), ("house_network", HOUSE)):
        assert scene.server.predict(f"{name}.tar.gz", row)
    assert workers(scene.server) <= before


def workers(server: EndpointServer) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


def test_what_a_model_leaves_in_its_folder_goes_with_it(scene: Scene) -> None:
    temp, pid = scene.done(
        "import os, pathlib\n"
        "folder = pathlib.Path(os.environ['TMPDIR'], 'deep', 'deeper')\nfolder.mkdir(parents=True)\n"
        "(folder / 'left').write_text('behind'); answer = [os.environ['TMPDIR'], os.getpid()]",
        "victim.tar.gz",
    )
    assert Path(temp, "deep", "deeper", "left").exists()
    psutil.Process(int(pid)).kill()
    wait_until(lambda: not Path(temp).exists(), 60, "the folder of an ended worker is removed")
    # The worker after it has a folder of its own.
    assert scene.done("import os; answer = os.environ['TMPDIR']", "victim.tar.gz") != temp


# What an honest model goes on doing


@pytest.mark.parametrize("function", ANSWERS)
def test_an_honest_model_goes_on_working(scene: Scene, function: Callable[[], Any]) -> None:
    assert scene.done(call_of(function)) == ANSWERS[function]


def test_models_of_every_kind_answer_as_without_it(scene: Scene, samples_folder: Path, tmp_path: Path) -> None:
    """Data, a pickle and ONNX; the numbers are those of a server that is not hardened."""
    rows = {
        "houston": HOUSE,
        "house_preprocessor": RAW,
        "house_linear_learner": ROW,
        "house_network": HOUSE,
    }
    folder = tmp_path / "models"
    folder.mkdir()
    for name in rows:
        shutil.copy(samples_folder / f"{name}.tar.gz", folder)
    plain = EndpointServer("native", folder)
    try:
        for name, row in rows.items():
            answers = [json.loads(server.predict(f"{name}.tar.gz", row)) for server in (scene.server, plain)]
            assert answers[0] == answers[1]
    finally:
        assert plain.stop() == 0, plain.process.log


_VECTOR = """
import sys, mxnet as mx
mx.model.save_checkpoint(sys.argv[1] + "/net", 0, mx.sym.var("data") * 2, {}, {}, remove_amp_cast=True)
"""


@pytest.mark.mxnet
def test_mxnet_answers_from_its_own_environment(scene: Scene, tmp_path: Path) -> None:
    """The network doubles its input."""
    folder = tmp_path / "doubles"
    folder.mkdir()
    subprocess.run([MXNET_PYTHON, "-W", "ignore", "-c", _VECTOR, folder], check=True)
    (folder / "net-shapes.json").write_text('[{"shape": [1, 2], "name": "data"}]')
    packed(folder, Path(scene.places["MODELS_DIR"], "doubles.tar.gz"))
    answer = json.loads(scene.server.predict("doubles.tar.gz", "[[1, 3]]", "application/json"))
    assert answer == [[2.0, 6.0]]


def test_the_start_says_what_holds(scene: Scene) -> None:
    scene.server.process.wait_for_line("hardened: files, limits, network, signals, syscalls, workers")


def test_a_containers_code_and_variables_count(scene: Scene, tmp_path: Path) -> None:
    """Its own archive of code is read, a library path that it names runs nothing in the template."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "says.py").write_text(
        "import json, os, sys\ndef model_fn(folder): return folder\ndef input_fn(body, kind): return body\n"
        "def predict_fn(data, model): return [os.environ['SAYS'], '/opt/lib' in sys.path]\n"
        "def output_fn(answer, accept): return json.dumps(answer)\n"
    )
    packed(code, Path(scene.places["MODELS_DIR"], "code", "sourcedir.tar.gz"))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "weights.txt").write_text("1")
    packed(tmp_path / "plain", Path(scene.places["MODELS_DIR"], "plain", "a.tar.gz"))
    environment = {
        "SAYS": "hello", "PYTHONPATH": "/opt/lib", "SAGEMAKER_PROGRAM": "says.py", "LD_PRELOAD": "/nothing.so",
        "SAGEMAKER_SUBMIT_DIRECTORY": f"file://{scene.places['MODELS_DIR']}/code/sourcedir.tar.gz",
    }  # fmt: skip
    scene.server.deploy("with-code", "/plain/", Mode="MultiModel", Environment=environment)
    answer = scene.server.predict("a.tar.gz", "x", "text/plain", EndpointName="with-code")
    assert json.loads(answer) == ["hello", True]
