"""
The real Multi Model Server as a child of ours, booted by the inference toolkit.

    front ── MmsProcess ──> mms_boot ── toolkit ──> multi-model-server (mms_start) ──> java
                                              java ──> mms_worker ──> mms_service, MMS's worker, per model

This module decides what the toolkit and MMS are told, all by environment variables of theirs; `mms_boot` is
the process that calls the toolkit. MMS listens on loopback alone; who asks it is `mms`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import shutil
import socket
import sys
import sysconfig
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import psutil

from polyhost.config import Config
from polyhost.engine.handlers import handler_spec
from polyhost.environment import environments_told
from polyhost.errors import MissingDependency, StartFailed
from polyhost.limits import Limits, is_multi_model
from polyhost.log import line_as_json
from polyhost.memory import cpu_limit, memory_limit_bytes
from polyhost.processes import kill_tree, living_descendants

logger = logging.getLogger("polyhost")

HOST = "127.0.0.1"
# How long a killed process may take to be gone.
_STOP_SECS = 4.0
# MMS keeps a port in a signed 16-bit number. Above it, other sockets get theirs from the kernel.
_MAX_PORT = 32766
_PORTS = (20_000, 32_000)
_TICK_SECS = 0.1
# The toolkit's own process needs a moment to import before it starts anything.
_GRACE_SECS = 10.0
# A worker of an unloaded model that has nothing to do ends in a few milliseconds, when its socket closes.
_LAST_MOMENT_SECS = 0.2
_HEAP_SHARE = 8
_MIN_HEAP_BYTES = 96 * 1024**2
_MAX_HEAP_BYTES = 1024**3
# What MMS is told of a model must fit, however small the limit of predictions is.
_MIN_REQUEST_BYTES = 64 * 1024


class MmsProcess:
    """`book`: the folder in which the front and the workers tell each other of models, see `mms_service`."""

    def __init__(self, config: Config, environ: Mapping[str, str], limits: Limits, run: Path) -> None:
        self.port = _free_port(environ, config.port)
        self.book = run / "models"
        self._config = config
        self._environ = mms_environ(config, environ, limits, run, self.port)
        self._memory_book = run / "memory"
        self._process: asyncio.subprocess.Process | None = None
        self._ended: asyncio.Task[int] | None = None

    async def start(self, answers: Callable[[], Awaitable[bool]]) -> None:
        """
        Returns when MMS `answers`.

        Raises MissingDependency, StartFailed.
        """
        _require_java(self._environ)
        self.book.mkdir()
        self._memory_book.mkdir()
        with _rewritten_output(self._config.log_format) as output:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "polyhost.engine.mms_boot", handler_spec(self._config.handler), str(os.getpid()),
                env=self._environ, start_new_session=True, stdout=output,
                stderr=None if output is None else asyncio.subprocess.STDOUT,
            )  # fmt: skip
        self._ended = asyncio.create_task(self._process.wait())
        idle_secs = 0.0
        while not await answers():
            if self._ended.done():
                raise StartFailed("Multi Model Server ended while starting: its reason is in the lines above.")
            idle_secs = 0.0 if living_descendants(self._process.pid) else idle_secs + _TICK_SECS
            if idle_secs > _GRACE_SECS:
                raise StartFailed("Multi Model Server did not start: its reason is in the lines above.")
            await asyncio.sleep(_TICK_SECS)

    @property
    def session(self) -> int:
        """The session of MMS and its workers."""
        return self._process.pid if self._process else 0

    async def wait(self) -> None:
        """Returns when MMS has ended, by itself or stopped."""
        if self._ended is not None:
            await asyncio.shield(self._ended)

    async def stop(self) -> None:
        """
        End it, with all that it has started.

        Requests have been drained before, and it keeps nothing that would have to be written: it is killed. Asked to
        end, Java takes half a second.
        """
        if self._process is None or self._ended is None:
            return
        kill_tree(self._process.pid)
        await self._ended

    def end_workers(self, inner_name: str) -> None:
        """
        Wait until no process of a model is left that MMS has unregistered; blocking.

        MMS ends the first process of a model, not those that it forked: one that computes, or hangs, would stay.
        """
        assert self._process is not None
        left = self._workers_of(inner_name)
        _, left = psutil.wait_procs(left, timeout=_LAST_MOMENT_SECS)
        for worker in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        psutil.wait_procs(left, timeout=_STOP_SECS)

    def _workers_of(self, inner_name: str) -> list[psutil.Process]:
        assert self._process is not None
        workers = []
        for process in living_descendants(self._process.pid):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if ("--model-name", inner_name) in itertools.pairwise(process.cmdline()):
                    workers.append(process)
        return workers


def mms_environ(
    config: Config, environ: Mapping[str, str], limits: Limits, run: Path, inner_port: int,
) -> dict[str, str]:  # fmt: skip
    """The environment of the toolkit, of MMS and of its workers. What the user set for them stays."""
    listen = f"http://{HOST}:{inner_port}"
    told = {
        **environ,
        "SAGEMAKER_MULTI_MODEL": "true" if is_multi_model(environ) else "false",
        "SAGEMAKER_BIND_TO_PORT": str(config.port),
        "MMS_INFERENCE_ADDRESS": listen,
        "MMS_MANAGEMENT_ADDRESS": listen,
        # The front has counted before.
        "MMS_MAX_REQUEST_SIZE": str(max(limits.max_request_bytes, _MIN_REQUEST_BYTES)),
        # Sockets, fifos and the pid file of MMS: a folder of each run's own, so that nothing stale is met.
        "TEMP": str(run),
        "TMPDIR": str(run),
        "PATH": os.pathsep.join(
            [str(Path(__file__).parent / "mms_bin"), sysconfig.get_path("scripts"), environ.get("PATH", os.defpath)]
        ),
        "POLYHOST_PYTHON": sys.executable,
        "POLYHOST_LOG_FORMAT": config.log_format,
        "POLYHOST_MEMORY_BOOK": str(run / "memory"),
        "POLYHOST_MODELS_BOOK": str(run / "models"),
    }
    if config.memory_budget is not None:
        told["POLYHOST_MEMORY_BUDGET_BYTES"] = str(config.memory_budget)
    told.update(environments_told(config))
    told.setdefault("SAGEMAKER_MODEL_SERVER_VMARGS", vm_arguments())
    told.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime's reports to its makers, from its import on
    return told


def vm_arguments() -> str:
    """
    A heap that fits the container: an eighth of its memory.

    The toolkit's own default, -XX:-UseContainerSupport, has the JVM take a quarter of the whole machine.
    """
    heap = min(max(memory_limit_bytes() // _HEAP_SHARE, _MIN_HEAP_BYTES), _MAX_HEAP_BYTES) // 1024**2
    return f"-Xmx{heap}m -XX:MaxDirectMemorySize={heap}m -XX:ActiveProcessorCount={cpu_limit()} -XX:+UseSerialGC"


def _require_java(environ: Mapping[str, str]) -> None:
    home = environ.get("JAVA_HOME")
    java = Path(home, "bin/java") if home else None
    if java.is_file() if java else shutil.which("java", path=environ.get("PATH")):
        return
    where = f"JAVA_HOME is {home}, but {java} does not exist" if home else "there is no `java` on the PATH"
    raise MissingDependency(
        f"the engine mms needs a Java runtime, and {where}. Install one: "
        "`apt-get install openjdk-17-jre-headless` on Debian or Ubuntu, `dnf install java-17-openjdk-headless` "
        "on Fedora, `brew install openjdk@17` on macOS.",
    )


def _free_port(environ: Mapping[str, str], outer_port: int) -> int:
    """A free port, in the range that the platform leaves to containers if it names one."""
    first, _, last = environ.get("SAGEMAKER_SAFE_PORT_RANGE", "").partition("-")
    is_told = first.isdigit() and last.isdigit()
    lowest, highest = (int(first), min(int(last), _MAX_PORT)) if is_told else _PORTS
    candidates = [port for port in range(lowest, highest + 1) if port != outer_port]
    random.shuffle(candidates)
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise StartFailed(f"no port between {lowest} and {highest} is free for Multi Model Server.")


@contextlib.contextmanager
def _rewritten_output(log_format: str) -> Iterator[int | None]:
    """Where a command's output goes so that each line has our form: None is our own output."""
    if log_format != "json":
        yield None
        return
    read_end, write_end = os.pipe()
    # Ends when nobody is left who could print. Not a daemon: our own end waits for the last line.
    threading.Thread(target=_pump, args=(os.fdopen(read_end, "rb"),)).start()
    try:
        yield write_end
    finally:
        os.close(write_end)


def _pump(stream: IO[bytes]) -> None:
    with stream:
        for line in stream:
            sys.stdout.write(line_as_json(line.decode("utf-8", "replace").rstrip("\n")) + "\n")
            sys.stdout.flush()
