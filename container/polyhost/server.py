"""Starts what the configuration asks for, serves, drains, stops."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import uvicorn
import uvloop

from polyhost.api.container import ContainerApi
from polyhost.api.http import App, Asgi, ShortWay
from polyhost.config import Config
from polyhost.engine import mms
from polyhost.engine.native.start import native_engine
from polyhost.engine.protocol import Registration
from polyhost.errors import PortInUse
from polyhost.limits import Limits, is_multi_model
from polyhost.log import configure
from polyhost.metrics import Metrics
from polyhost.processes import become_subreaper, kill_descendants
from polyhost.submit_directory import fetched_submit_directory

logger = logging.getLogger("polyhost")

_SINGLE_MODEL = "model"
# Longer than clients keep an idle connection, so that none is closed under a request.
_KEEP_ALIVE_SECS = 75


def serve(config: Config, environ: Mapping[str, str]) -> int:
    """Run the server in the foreground; returns the exit code. Raises PolyhostError if it cannot start."""
    configure(config.log_format)
    with tempfile.TemporaryDirectory(prefix="polyhost-code-") as folder:
        told = fetched_submit_directory(environ, Path(folder))
        require_free_port(config.host, config.port)
        with run_folder() as run:
            if config.engine == "mms":
                return mms.serve(config, told, run)
            become_subreaper()
            try:
                uvloop.run(_serve(config, told, run))
            finally:
                kill_descendants()
        return 0


async def _serve(config: Config, environ: Mapping[str, str], run: Path) -> None:
    limits = Limits.of(config, environ)
    multi_model = is_multi_model(environ)
    metrics = Metrics()
    engine = native_engine(config, environ, limits, run, metrics)
    api = ContainerApi(
        engine,
        metrics,
        max_request_bytes=limits.max_request_bytes,
        single_model=None if multi_model else _SINGLE_MODEL,
        workers=limits.workers_per_model,
    )
    await engine.start()
    if not multi_model:
        folder = Path(environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "model"
        await engine.load(Registration(url=str(folder), name=_SINGLE_MODEL))
    try:
        await _Front(api, config).serve()
    finally:
        await engine.stop()
    logger.info("stopped")


class _Front(uvicorn.Server):
    """The HTTP server; stops by itself after SIGTERM or Ctrl-C, when what is in flight is answered."""

    def __init__(self, app: App, config: Config) -> None:
        super().__init__(
            uvicorn.Config(
                Asgi(app), host=config.host, port=config.port, log_config=None, access_log=False, lifespan="off",
                server_header=False, date_header=False, timeout_graceful_shutdown=config.drain_secs,
                timeout_keep_alive=_KEEP_ALIVE_SECS, ws="none", proxy_headers=False,
                http=cast("type[asyncio.Protocol]", functools.partial(ShortWay, app)),
            ),
        )  # fmt: skip

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on the platform's signals, and end with exit code 0: uvicorn's own would raise them again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        yield
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        logger.info("stopping: got %s", signal.Signals(number).name)
        self.should_exit = True

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
