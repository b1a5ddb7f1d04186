"""Starts what the configuration asks for, serves, drains, stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import uvicorn
import uvloop

from polyhost.api.container import ContainerApi
from polyhost.config import Config
from polyhost.engine.errors import EngineError
from polyhost.engine.mms import MmsEngine, mms_engine
from polyhost.engine.native.start import native_engine
from polyhost.engine.protocol import Engine, Registration
from polyhost.errors import PortInUse, StartFailed
from polyhost.limits import Limits, is_multi_model
from polyhost.log import configure
from polyhost.processes import become_subreaper, kill_descendants
from polyhost.submit_directory import fetched_submit_directory

logger = logging.getLogger("polyhost")

_SINGLE_MODEL = "model"


def serve(config: Config, environ: Mapping[str, str]) -> int:
    """Run the server in the foreground; returns the exit code. Raises PolyhostError if it cannot start."""
    configure(config.log_format)
    with tempfile.TemporaryDirectory(prefix="polyhost-code-") as folder:
        told = fetched_submit_directory(environ, Path(folder))
        require_free_port(config.host, config.port)
        with run_folder() as run:
            become_subreaper()
            try:
                return uvloop.run(_serve(config, told, run))
            finally:
                kill_descendants()


async def _serve(config: Config, environ: Mapping[str, str], run: Path) -> int:
    """The exit code: 0 when told to stop, 1 when the engine ended by itself."""
    limits = Limits.of(config, environ)
    multi_model = is_multi_model(environ)
    engine: Engine
    if config.engine == "mms":
        engine = mms_engine(config, environ, limits, run)
    else:
        engine = native_engine(config, environ, limits, run)
    api = ContainerApi(
        engine,
        max_request_bytes=limits.max_request_bytes,
        single_model=None if multi_model else _SINGLE_MODEL,
        workers=limits.workers_per_model,
    )
    front = _Front(api, config)
    starting = asyncio.create_task(_start(engine, environ, multi_model=multi_model))

    def stop() -> None:
        starting.cancel()
        front.should_exit = True

    if isinstance(engine, MmsEngine):
        engine.on_end = stop
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_on_signal, number, stop)
    try:
        await asyncio.wait([starting])
        if not starting.cancelled():
            starting.result()
            await front.serve()
    finally:
        await engine.stop()
    if isinstance(engine, MmsEngine) and engine.has_ended:
        return 1
    logger.info("stopped")
    return 0


def _stop_on_signal(number: int, stop: Callable[[], None]) -> None:
    logger.info("stopping: got %s", signal.Signals(number).name)
    stop()


async def _start(engine: Engine, environ: Mapping[str, str], *, multi_model: bool) -> None:
    """Raises StartFailed, also when the only model does not load: a server without it serves nothing."""
    await engine.start()
    if multi_model:
        return
    folder = Path(environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "model"
    try:
        await engine.load(Registration(url=str(folder), name=_SINGLE_MODEL))
    except EngineError as error:
        raise StartFailed(f"the model in {folder} was not loaded: {error.message}") from error


class _Front(uvicorn.Server):
    """The HTTP server; ends when `should_exit` is set and what is in flight is answered."""

    def __init__(self, api: ContainerApi, config: Config) -> None:
        super().__init__(
            uvicorn.Config(
                api, host=config.host, port=config.port, log_config=None, access_log=False, lifespan="off",
                server_header=False, date_header=False, timeout_graceful_shutdown=config.drain_secs, ws="none",
                http="httptools", proxy_headers=False,
            ),
        )  # fmt: skip

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `_serve`'s: uvicorn's own handler would raise them again, and exit code 0 would be lost."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        logger.info("ready on http://%s:%d", self.config.host, self.config.port)


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A folder of this run's own, so that nothing stale is met."""
    # Short, because Unix sockets lie in it: their paths have 107 bytes at most.
    run = Path(tempfile.mkdtemp(prefix="polyhost-"))
    try:
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)


def require_free_port(host: str, port: int) -> None:
    """Raises PortInUse."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}): "
                "stop what listens there, or choose another with --port.",
            ) from error
