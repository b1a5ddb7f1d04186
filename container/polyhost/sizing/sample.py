"""
The measurement: a sample of a source's models in a server of our own, from the source and again from its disk.

What is asked and in which order is here; what follows from the figures is fleet.py's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import mimetypes
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from polyhost_handlers.artifacts import recognise
from polyhost_handlers.errors import LoadFailed

from polyhost.artifacts.stores import S3, store_of
from polyhost.errors import InvalidSetting, PolyhostError
from polyhost.memory import DEFAULT_SHARE, memory_limit_bytes
from polyhost.service_errors import EndpointError
from polyhost.sizing.fleet import Measured
from polyhost.sizing.server import SampleReply, SampleServer

# Rows of zeros are tried with up to so many columns, until a model takes one.
_MAX_COLUMNS = 128
# Calls of each loaded model: some before its memory is looked at, more for how long one takes.
_FIRST_CALLS = 5
_CALLS = 20
_CALLS_SECS = 15.0
OWN_CODE = "own code"
_TIMEOUTS_SECS = (10.0, 60.0, 360.0)  # of a bucket: to connect, to read, to fetch


@dataclass(frozen=True)
class Body:
    """A request that models may take."""

    content: bytes
    content_type: str


@dataclass(frozen=True)
class Sample:
    """
    `refused`: why, by key, models could not be loaded. `left_out`: how many more this machine has no memory for.
    `idle_bytes`: of a server without models. CPU costs are of one
    core, for a call and for a load from disk.
    """

    measured: tuple[Measured, ...]
    refused: Mapping[str, str]
    left_out: int
    idle_bytes: int
    call_cpu_secs: float
    load_cpu_secs: float


def archives_of(source: str) -> dict[str, int]:
    """The archives of a source, their sizes in bytes by key. Raises InvalidSetting."""
    archives: dict[str, int] = {}
    try:
        for page in store_of(source, S3(*_TIMEOUTS_SECS)).pages():
            archives.update({key: listed.size_bytes for key, listed in page.items()})
    except EndpointError as error:
        raise InvalidSetting(f"SOURCE: {error.message}") from error
    if not archives:
        raise InvalidSetting(f"SOURCE: {source} has no archives (.tar.gz, .tgz, .tar, .mar or .zip).")
    return archives


def read_bodies(files: Sequence[Path]) -> list[Body]:
    """Raises InvalidSetting."""
    bodies = []
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InvalidSetting(f"--request: {file} cannot be read ({os.strerror(error.errno or 0)}).") from error
        bodies.append(Body(content, content_type_of(file)))
    return bodies


def content_type_of(file: Path) -> str:
    guessed = mimetypes.guess_type(file.name)[0] or ""
    if guessed.startswith("image/"):
        return "application/x-image"
    return {".jsonl": "application/jsonlines", ".libsvm": "text/libsvm"}.get(file.suffix, guessed or "text/csv")


def measure(
    source: str, archives: Mapping[str, int], keys: Sequence[str], bodies: Sequence[Body], folder: Path,
    say: Callable[[str], None],
) -> Sample:  # fmt: skip
    """
    Measure the models `keys`. `bodies`: rows of zeros if there are none. `folder`: for the server's files.

    Raises StartFailed; PolyhostError if no model could be loaded.
    """
    budget_bytes = int(min(memory_limit_bytes(), psutil.virtual_memory().available) * DEFAULT_SHARE)
    with _answering(SampleServer(source, folder, budget_bytes)) as server:
        first = _FromSource(server, archives, bodies)
        for number, key in enumerate(keys, 1):
            say(f"{number} of {len(keys)}: {key}")
            if not first.take(key):
                break
        idle_bytes = max(0, server.private_bytes() - server.models_bytes())
    if not first.measured:
        key, reason = next(iter(first.refused.items()))
        raise PolyhostError(f"none of the {len(first.refused)} models that were tried could be loaded. {key}: {reason}")
    say("once more, from disk")
    with _answering(SampleServer(source, folder, budget_bytes)) as server:
        second = _FromDisk(server, first.measured, first.bodies)
        second.load()
        second.call()
    return Sample(
        tuple(second.measured),
        first.refused,
        left_out=len(keys) - len(first.measured) - len(first.refused),
        idle_bytes=idle_bytes,
        call_cpu_secs=second.call_cpu_secs,
        load_cpu_secs=max(0.0, second.load_cpu_secs - second.call_cpu_secs),
    )


@contextlib.contextmanager
def _answering(server: SampleServer) -> Iterator[SampleServer]:
    """Raises PolyhostError if it stops answering."""
    with server:
        try:
            yield server
        except (OSError, http.client.HTTPException) as error:
            raise PolyhostError(f"the server that was measured does not answer:\n{server.log_tail()}") from error


class _FromSource:
    """Each model fetched, loaded and called a few times; how much the server grew."""

    def __init__(self, server: SampleServer, archives: Mapping[str, int], bodies: Sequence[Body]) -> None:
        self._server = server
        self._archives = archives
        self._given = list(bodies)
        self._guess = bodies[0] if bodies else zeros(1)
        self._firsts = Firsts(server)
        self.measured: list[Measured] = []
        self.refused: dict[str, str] = {}
        # What each model took.
        self.bodies: dict[str, Body] = {}

    def take(self, key: str) -> bool:
        """Whether there is room for more."""
        before_bytes, before = self._server.models_bytes(), self._server.loaded()
        reply = self._server.invoke(key, self._guess.content, self._guess.content_type)
        new = self._server.loaded().items() - before.items()
        if self._server.evictions():
            return False
        if not new:
            self.refused[key] = reply.message
            return True
        self._find_body(key, reply)
        kind = kind_of(next(iter(new))[1])
        grown_bytes = max(0, self._server.models_bytes() - before_bytes)
        is_first = self._firsts.was_first(kind)
        self.measured.append(Measured(key, kind, self._archives[key], grown_bytes, is_first, reply.secs, reply.secs))
        return True

    def _find_body(self, key: str, reply: SampleReply) -> None:
        """What the last model took is likely to be what this one takes."""
        if reply.status == 200:
            self._call(key, self._guess)
            return
        for body in self._given or map(zeros, range(1, _MAX_COLUMNS + 1)):
            if self._server.invoke(key, body.content, body.content_type).status == 200:
                self._call(key, body)
                return

    def _call(self, key: str, body: Body) -> None:
        self._guess = self.bodies[key] = body
        for _ in range(_FIRST_CALLS):
            self._server.invoke(key, body.content, body.content_type)


class _FromDisk:
    """The same models in a server that finds their archives unpacked; then calls of all of them, turn by turn."""

    def __init__(self, server: SampleServer, measured: Sequence[Measured], bodies: Mapping[str, Body]) -> None:
        self._server = server
        self.measured = list(measured)
        self._bodies = bodies
        self.load_cpu_secs = 0.0
        self.call_cpu_secs = 0.0

    def load(self) -> None:
        firsts = Firsts(self._server)
        usual: list[float] = []
        for place, one in enumerate(self.measured):
            before = self._server.cpu_secs()
            body = self._bodies.get(one.key) or zeros(1)
            reply = self._server.invoke(one.key, body.content, body.content_type)
            took = self._server.cpu_secs() - before
            is_first = firsts.was_first(one.kind)
            usual += [] if is_first else [took]
            self.measured[place] = dataclasses.replace(one, disk_secs=reply.secs, is_first_from_disk=is_first)
        self.load_cpu_secs = sum(usual) / len(usual) if usual else 0.0

    def call(self) -> None:
        calls: dict[str, list[float]] = {key: [] for key in self._bodies}
        begin, before = time.monotonic(), self._server.cpu_secs()
        for _ in range(_CALLS):
            for key, body in self._bodies.items():
                calls[key].append(self._server.invoke(key, body.content, body.content_type).secs)
            if time.monotonic() - begin > _CALLS_SECS:
                break
        count = sum(map(len, calls.values()))
        self.call_cpu_secs = (self._server.cpu_secs() - before) / count if count else 0.0
        self.measured = [dataclasses.replace(one, calls_secs=tuple(calls.get(one.key, ()))) for one in self.measured]


class Firsts:
    """Which process each new model went to, by what grew; whether it was the first of its kind there."""

    def __init__(self, server: SampleServer) -> None:
        self._server = server
        self._resident = server.resident()
        self._seen: set[tuple[int, str]] = set()

    def was_first(self, kind: str) -> bool:
        before, self._resident = self._resident, self._server.resident()
        if kind == OWN_CODE or os.environ.get("POLYHOST_ISOLATION") == "process":
            return False  # a process of its own is what every such model costs
        pid = max(self._resident, key=lambda pid: self._resident[pid] - before.get(pid, 0))
        is_first = (pid, kind) not in self._seen
        self._seen.add((pid, kind))
        return is_first


def zeros(columns: int) -> Body:
    return Body(",".join(["0"] * columns).encode(), "text/csv")


def kind_of(folder: str) -> str:
    """Which handler serves what was unpacked there."""
    if (Path(folder) / "MAR-INF").is_dir():
        return OWN_CODE
    try:
        name = recognise(Path(folder), os.environ).name
    except LoadFailed:
        return OWN_CODE
    return OWN_CODE if name == "script" else name
