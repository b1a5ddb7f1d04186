"""
The real Multi Model Server, booted by the inference toolkit.

    polyhost serve ── supervises ──> mms_boot ── toolkit ──> multi-model-server (mms_start) ──> java
                                                                     java ──> mms_worker ──> MMS's worker, per model

This module decides what the toolkit and MMS are told, all by environment variables of theirs; `mms_boot` is
the process that calls the toolkit.
"""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from polyhost.config import Config
from polyhost.engine.handlers import handler_spec
from polyhost.errors import InvalidSetting, MissingDependency, StartFailed
from polyhost.limits import is_multi_model
from polyhost.log import line_as_json
from polyhost.memory import cpu_limit, memory_limit_bytes
from polyhost.processes import living_descendants, supervise

logger = logging.getLogger("polyhost")

# MMS without a request in flight ends in less than a second; the platform kills 30 s after SIGTERM.
_STOP_SECS = 20.0
# MMS keeps a port in a signed 16-bit number.
_MAX_PORT = 32766
_HEAP_SHARE = 8
_MIN_HEAP_BYTES = 96 * 1024**2
_MAX_HEAP_BYTES = 1024**3


def serve(config: Config, environ: Mapping[str, str], run: Path) -> int:
    """
    Run until told to stop; exit code 0, or 1 when MMS ended by itself.

    Raises MissingDependency, StartFailed.
    """
    _require_java(environ)
    if config.port > _MAX_PORT:
        raise InvalidSetting(f"--port: the engine mms takes ports up to {_MAX_PORT}, not {config.port}.")
    (run / "memory").mkdir()
    startup = _Startup(config)
    code = supervise(
        [sys.executable, "-m", "polyhost.engine.mms_boot", handler_spec(config.handler), str(os.getpid())],
        mms_environ(config, environ, run),
        stop_secs=_STOP_SECS,
        on_tick=startup.is_still_starting,
        on_line=line_as_json if config.log_format == "json" else None,
    )
    if code is None:
        logger.info("stopped")
        return 0
    if not startup.is_ready:
        raise StartFailed("Multi Model Server ended while starting: its reason is in the lines above.")
    logger.error("Multi Model Server ended by itself")
    return 1


def mms_environ(config: Config, environ: Mapping[str, str], run: Path) -> dict[str, str]:
    """The environment of the toolkit, of MMS and of its workers. What the user set for them stays."""
    multi_model = is_multi_model(environ)
    listen = f"http://{config.host}:{config.port}"
    told = {
        **environ,
        "SAGEMAKER_MULTI_MODEL": "true" if multi_model else "false",
        "SAGEMAKER_BIND_TO_PORT": str(config.port),
        "MMS_INFERENCE_ADDRESS": listen,
        "MMS_MANAGEMENT_ADDRESS": listen,
        # Sockets, fifos and the pid file of MMS: a folder of each run's own, so that nothing stale is met.
        "TEMP": str(run),
        "TMPDIR": str(run),
        "PATH": os.pathsep.join([str(Path(__file__).parent / "mms_bin"), sysconfig.get_path("scripts"),
                                 environ.get("PATH", os.defpath)]),
        "POLYHOST_PYTHON": sys.executable,
        "POLYHOST_LOG_FORMAT": config.log_format,
        "POLYHOST_MEMORY_BOOK": str(run / "memory"),
    }  # fmt: skip
    if config.memory_budget is not None:
        told["POLYHOST_MEMORY_BUDGET_BYTES"] = str(config.memory_budget)
    workers = config.workers_per_model or (None if multi_model else cpu_limit())
    if workers is not None:
        told["SAGEMAKER_MODEL_SERVER_WORKERS"] = str(workers)
    told.setdefault("SAGEMAKER_MODEL_SERVER_VMARGS", _vm_arguments())
    if "SAGEMAKER_MAX_REQUEST_SIZE" in environ:
        told.setdefault("MMS_MAX_REQUEST_SIZE", environ["SAGEMAKER_MAX_REQUEST_SIZE"])
    return told


def _vm_arguments() -> str:
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


class _Startup:
    """Watches the server come up: says when it answers, gives up when nothing is left that could."""

    # The toolkit's own process needs a moment to import before it starts anything.
    _GRACE_TICKS = 40

    def __init__(self, config: Config) -> None:
        self._config = config
        self._idle_ticks = 0
        self.is_ready = False

    def is_still_starting(self, pid: int) -> bool:
        if self._answers():
            self.is_ready = True
            logger.info("ready on http://%s:%d", self._config.host, self._config.port)
            return False
        self._idle_ticks = 0 if living_descendants(pid) else self._idle_ticks + 1
        if self._idle_ticks > self._GRACE_TICKS:
            raise StartFailed("Multi Model Server did not start: its reason is in the lines above.")
        return True

    def _answers(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._config.host, self._config.host)  # noqa: S104
        connection = http.client.HTTPConnection(host, self._config.port, timeout=1)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
