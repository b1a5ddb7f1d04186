"""What a process cannot do once it has confined itself, restriction by restriction."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from polyhost.config import RESTRICTIONS
from polyhost.engine.native import landlock, seccomp

ALL = frozenset(RESTRICTIONS)


LANDLOCK = landlock.version()
needs_landlock = pytest.mark.skipif(not LANDLOCK, reason="this kernel has no Landlock, or it is switched off")
needs_seccomp = pytest.mark.skipif(not seccomp.is_supported(), reason="this kernel or machine takes no seccomp filter")

_CHILD = """
import json, sys
from polyhost.engine.native.messages import Confine
from polyhost.engine.native.sandbox import confine
given = json.loads(sys.argv[1])
source = given.pop("source")
confine(Confine(id=1, environ=[], **given))
scope = {"answer": None, "TEMP": given["temp"]}
try:
    exec(source, scope)
except BaseException as error:
    print(json.dumps(type(error).__name__ + ": " + str(error)))
else:
    print(json.dumps(scope["answer"]))
"""


class Child:
    """Runs Python in a process that has confined itself."""

    def __init__(self, folder: Path) -> None:
        self.own, self.temp, self.secret = folder / "own", folder / "temp", folder / "secret.txt"
        self.own.mkdir()
        self.temp.mkdir()
        (self.own / "model.txt").write_text("a model")
        self.secret.write_text("a secret")

    def run(self, source: str, *restrictions: str, version: int = LANDLOCK) -> Any:
        given = {
            "source": source.replace("SECRET", str(self.secret)).replace("FRONT", str(os.getpid())),
            "readable": [str(self.own)], "temp": str(self.temp), "restrictions": restrictions,
            "landlock_version": version, "guarded_pids": [os.getpid()],
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, json.dumps(given)], capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def child(tmp_path: Path) -> Child:
    return Child(tmp_path)


READ = "answer = open('SECRET').read()"
SIGNAL = "import os; os.kill(FRONT, 0); answer = 'sent'"
CONNECT = "import socket; socket.socket(); answer = 'a socket'"
# What only the restriction of calls refuses, to root as well: another process's limits.
LIMIT = "import resource; resource.prlimit(FRONT, resource.RLIMIT_CORE); answer = 'read'"
HUGE = "open(TEMP + '/huge', 'wb').truncate(2 << 30); answer = 'written'"
DOORS = [
    pytest.param("files", READ, "a secret", "PermissionError", marks=needs_landlock),
    pytest.param("signals", SIGNAL, "sent", "PermissionError", marks=needs_landlock),
    pytest.param("network", CONNECT, "a socket", "PermissionError", marks=needs_seccomp),
    pytest.param("syscalls", LIMIT, "read", "PermissionError", marks=needs_seccomp),
    pytest.param("limits", HUGE, "written", "OSError: [Errno 27] File too large", marks=[]),
]


@pytest.mark.parametrize(("restriction", "source", "open_answer", "refusal"), DOORS)
def test_each_restriction_alone_closes_its_own_door(
    child: Child, restriction: str, source: str, open_answer: str, refusal: str
) -> None:
    """And without it the door is open, which shows that nothing else had closed it."""
    assert child.run(source, restriction).startswith(refusal)
    assert child.run(source, *(ALL - {restriction})) == open_answer


@needs_seccomp
def test_a_kernel_whose_landlock_keeps_no_signals_in_guards_the_server(child: Child) -> None:
    """By the filter; a process's own children can still be ended."""
    version = min(LANDLOCK, 5)
    assert child.run(SIGNAL, *ALL, version=version).startswith("PermissionError")
    everybody = "import os; os.kill(-1, 0); answer = 'sent'"
    assert child.run(everybody, *ALL, version=version).startswith("PermissionError")
    own = "import subprocess; one = subprocess.Popen(['sleep', '60']); one.kill(); answer = one.wait()"
    assert child.run(own, *ALL, version=version) == -9


@needs_landlock
@needs_seccomp
@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_older_versions_of_landlock_close_files_too(child: Child, version: int) -> None:
    """As far as this kernel has them: a newer one does what an older one does."""
    if version > LANDLOCK:
        pytest.skip(f"this kernel's Landlock is version {LANDLOCK}")
    assert child.run(READ, *ALL, version=version).startswith("PermissionError")
    shorten = "import os; os.truncate('SECRET', 0)"
    assert child.run(shorten, *ALL, version=version).startswith("PermissionError")
    assert child.secret.read_text() == "a secret"
    own = "open(TEMP + '/x', 'w').write('hi'); answer = open(TEMP + '/x').read()"
    assert child.run(own, *ALL, version=version) == "hi"


@needs_seccomp
def test_without_landlock_the_rest_holds(child: Child) -> None:
    """The server says so at its start; the files are open then."""
    assert child.run(READ, *ALL, version=0) == "a secret"
    assert child.run(CONNECT, *ALL, version=0).startswith("PermissionError")
    assert child.run(SIGNAL, *ALL, version=0).startswith("PermissionError")


def test_privileges_are_given_up(child: Child) -> None:
    """Root is left with the one capability to read files of others, which Landlock watches."""
    own = "answer = open('/proc/self/status').read()"
    started = "import subprocess; answer = subprocess.check_output(['cat', '/proc/self/status']).decode()"
    for source in (own, started):
        fields = dict(re.findall(r"(?m)^(\w+):\s+(\S+)$", child.run(source, *ALL)))
        assert fields["NoNewPrivs"] == "1"
        assert int(fields["CapEff"], 16) in (0, 2)


@needs_seccomp
def test_modes_of_files_are_not_changed(child: Child) -> None:
    """Landlock would let everybody do it who finds the file."""
    os.chmod(child.secret, 0o640)
    assert child.run("import os; answer = os.chmod('SECRET', 0)", *ALL) is None
    assert child.secret.stat().st_mode & 0o777 == 0o640


def test_the_version_is_the_kernels() -> None:
    """Asked here by the system call itself."""
    asked = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    assert landlock.version() == max(0, asked)
    assert [landlock.handled_rights(version).bit_length() for version in (0, 1, 2, 3, 4, 5, 6, 7)] == [
        0, 13, 14, 15, 15, 16, 16, 16,
    ]  # fmt: skip
