"""The native engine behind its HTTP front: start, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import uvicorn
import uvloop

from polyhost.api.container import ContainerApi
from polyhost.config import Config
from polyhost.engine.mms import handler_spec, is_multi_model, require_free_port
from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.native.source import Inspector
from polyhost.engine.protocol import Registration
from polyhost.memory import DEFAULT_SHARE, cpu_limit, memory_limit_bytes
from polyhost.processes import become_subreaper, kill_descendants

logger = logging.getLogger("polyhost")

_DEFAULT_MAX_REQUEST_BYTES = 6_553_500
_DEFAULT_TIMEOUT_SECS = 60.0
_DRAIN_SECS = 25
_SINGLE_MODEL = "model"


def serve(config: Config, environ: Mapping[str, str]) -> int:
    """Run until told to stop; exit code 0. Raises PortInUse."""
    require_free_port(config)
    become_subreaper()
    # Short, as everything that may hold sockets.
    run = Path(tempfile.mkdtemp(prefix="polyhost-"))
    try:
        uvloop.run(_serve(config, environ, run))
    finally:
        kill_descendants()
        shutil.rmtree(run, ignore_errors=True)
    return 0


async def _serve(config: Config, environ: Mapping[str, str], run: Path) -> None:
    multi_model = is_multi_model(environ)
    workers = config.workers_per_model or (1 if multi_model else cpu_limit())
    if "MMS_DEFAULT_WORKERS_PER_MODEL" in environ:
        workers = int(environ["MMS_DEFAULT_WORKERS_PER_MODEL"])
    told = worker_environ(config, environ, multi_model)
    engine = NativeEngine(
        inspector=Inspector(
            model_roots=config.model_root,
            default_handler=handler_spec(config.handler),
            environ=told,
            run_folder=run,
        ),
        environ=told,
        shared_workers=cpu_limit(),
        workers_per_model=workers,
        response_timeout_secs=response_timeout_secs(environ),
        budget_bytes=config.memory_budget or int(memory_limit_bytes() * DEFAULT_SHARE),
    )
    api = ContainerApi(
        engine,
        max_request_bytes=max_request_bytes(environ),
        single_model=None if multi_model else _SINGLE_MODEL,
        workers=workers,
    )
    server = _Server(
        uvicorn.Config(
            api, host=config.host, port=config.port, log_config=None, access_log=False, lifespan="off",
            server_header=False, date_header=False, timeout_graceful_shutdown=_DRAIN_SECS, ws="none", http="httptools",
            proxy_headers=False,
        ),
    )  # fmt: skip
    await engine.start()
    if not multi_model:
        folder = Path(environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "model"
        await engine.load(Registration(url=str(folder), name=_SINGLE_MODEL))
    try:
        await server.serve()
    finally:
        await engine.stop()
    logger.info("stopped")


class _Server(uvicorn.Server):
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

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        logger.info("ready on http://%s:%d", self.config.host, self.config.port)


def worker_environ(config: Config, environ: Mapping[str, str], multi_model: bool) -> dict[str, str]:
    """What workers see: the container's environment, and MMS's own defaults for workers."""
    told = {**environ, "SAGEMAKER_MULTI_MODEL": "true" if multi_model else "false"}
    told["POLYHOST_LOG_FORMAT"] = config.log_format
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        told.setdefault(name, "1")
    told.setdefault("MXNET_USE_OPERATOR_TUNING", "0")
    told.setdefault("MMS_DECODE_INPUT_REQUEST", "false")
    return told


def max_request_bytes(environ: Mapping[str, str]) -> int:
    if "SAGEMAKER_MAX_REQUEST_SIZE" in environ:
        return int(environ["SAGEMAKER_MAX_REQUEST_SIZE"])
    if "SAGEMAKER_MAX_PAYLOAD_IN_MB" in environ:
        return int(environ["SAGEMAKER_MAX_PAYLOAD_IN_MB"]) * 1024**2
    return _DEFAULT_MAX_REQUEST_BYTES


def response_timeout_secs(environ: Mapping[str, str]) -> float:
    """MMS's order: seconds if they are given, else minutes, which the toolkit takes to be 60 unless told."""
    if "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS" in environ:
        return float(environ["SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"])
    if "SAGEMAKER_MODEL_SERVER_TIMEOUT" in environ:
        return float(environ["SAGEMAKER_MODEL_SERVER_TIMEOUT"]) * 60
    return _DEFAULT_TIMEOUT_SECS
