from __future__ import annotations

import functools
import gc
import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import botocore.session
import pytest
from durations import Durations, Line, Looks, cpu_secs, is_checked, table
from lanes import ENGINES, GroupScheduling, has_long_form, is_pure, place_of
from support.forms import IS_LONG, use_profile
from support.server import Server

use_profile()
# Tests count processes: a server has one front, however many CPUs there are, unless a test wants more.
os.environ.setdefault("POLYHOST_FRONTS", "1")
# Threads of XGBoost that wait for the next of hundreds of small predictions sleep: the CPUs are for other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

MODELS = Path(__file__).parent / "contract" / "models"
ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples" / "models"
_LINES = pytest.StashKey[list[Line]]()
# Beside the environment in which the tests run (VENV).
ENVIRONMENTS = Path(sys.prefix) / "envs"
MXNET_PYTHON = ENVIRONMENTS / "mxnet-1.9" / "bin" / "python"


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Every test of the contract runs on every engine."""
    return str(request.param)


class Servers:
    """At most one server at a time, kept between tests that want the same: the toolkit allows one MMS a machine."""

    def __init__(self) -> None:
        self._wanted: object = None
        self._server: Server | None = None

    def get(self, engine: str, arguments: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Server:
        wanted = (engine, tuple(arguments), tuple(sorted((environ or {}).items())))
        if self._server is None or wanted != self._wanted:
            self.stop()
            # As its users have it.
            told = {"POLYHOST_IMPORT_FRAMEWORKS": "early", **(environ or {})}
            self._server, self._wanted = Server(engine, arguments, told), wanted
        return self._server

    def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            assert server.stop() == 0, server.process.log


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def samples_folder() -> Path:
    """The sample models, trained if they are missing."""
    subprocess.run([ROOT / "scripts" / "make-models"], check=True)
    return SAMPLES


@pytest.fixture
def server(engine: str, servers: Servers) -> Server:
    """A multi-model server with the default handler."""
    return servers.get(engine, environ={"SAGEMAKER_MULTI_MODEL": "true"})


@pytest.fixture(scope="session", autouse=True)
def one_loader() -> Iterator[None]:
    """boto3 reads its descriptions of services once for all tests, not for each session again, which takes 0.3 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


# Before pytest's own hook, which reads the marks.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place_of)
    for item in items:
        if has_long_form(item):
            item.add_marker(pytest.mark.long)
        if item.get_closest_marker("second_stage") and not IS_LONG:
            item.add_marker(pytest.mark.skip(reason="it takes long for what it shows: make test LONG=1 runs it"))
        if is_pure(item):
            item.add_marker(pytest.mark.pure)
        if item.get_closest_marker("mxnet") and not MXNET_PYTHON.exists():
            reason = "MXNet's environment is not installed (scripts/install-mxnet): it needs Python 3.11 at most"
            if os.environ.get("CI"):
                continue  # there it must be: the test fails instead
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Tests are called alike in all workers: a function by its name, not by its address."""
    return f"{val.__module__}.{val.__qualname__}" if inspect.isroutine(val) else None


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> GroupScheduling:
    return GroupScheduling(config, log)


def pytest_configure() -> None:
    """Told to end, a run ends its servers: as Ctrl-C does it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays: to look through it for garbage, again and again, is a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


_STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"}
_pure_test = ""
_started: list[str] = []


def _note_starts(event: str, _: object) -> None:
    if _pure_test and event in _STARTS:
        _started.append(event)


sys.addaudithook(_note_starts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Its fixtures, too, belong to a test."""
    global _pure_test  # noqa: PLW0603 - an audit hook knows nothing but what is global
    _pure_test = item.nodeid if item.get_closest_marker("pure") else ""
    try:
        return (yield)
    finally:
        _pure_test = ""


@pytest.fixture(autouse=True)
def no_process_in_pure_tests() -> Iterator[None]:
    """A test that `make test FAST=1` runs must start no process: it fails if it has."""
    yield
    started = [*_started]
    _started.clear()
    assert not started, f"it starts a process ({started[0]}), and tests/lanes.py takes it for one that does not"


_CPU_SECS, _SLOWNESS = "cpu_secs", "slowness"
_looks = Looks()
_begun = pytest.StashKey[float]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    item.stash[_begun] = cpu_secs()
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The last report of a test tells what it has used of CPUs, and now and then how slow the machine is."""
    report = yield
    if call.when == "teardown":
        report.user_properties += [(_CPU_SECS, cpu_secs() - item.stash[_begun]), (_SLOWNESS, _looks.look())]
    return report


_durations = Durations()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    told = dict(report.user_properties)
    _durations.add(report.nodeid, report.when, report.duration, told.get(_CPU_SECS, 0.0), told.get(_SLOWNESS))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of xdist's workers, only their controller has all reports."""
    is_whole_run = not session.config.option.markexpr and getattr(session.config.option, "numprocesses", None)
    session.config.stash[_LINES] = _durations.lines() if is_whole_run else []
    if is_checked() and any(line.is_far_over for line in session.config.stash[_LINES]) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_LINES, [])
    if not lines:
        return
    terminalreporter.section("durations by folder")
    terminalreporter.write_line(table(lines))
    if over := [line.folder for line in lines if line.is_over]:
        cure = "Make them quicker, or say in tests/durations.py why they may take longer."
        terminalreporter.write_line(f"Over their budget: {', '.join(over)}. {cure}")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """
    Tests of the image need the image, those of routers take minutes.

    They run when they are asked for: scripts/image-test, scripts/fleet-test.
    """
    if collection_path.name in ("image", "routers") and collection_path.name not in (config.option.markexpr or ""):
        return True
    return None
