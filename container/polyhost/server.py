"""Starts what the configuration asks for, serves, drains, stops."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import signal
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvicorn
import uvloop

from polyhost.api.container import ContainerApi
from polyhost.api.http import App, Asgi, ShortWay
from polyhost.config import Config
from polyhost.endpoint.environment import cache_folder, container_environ
from polyhost.engine.errors import EngineError
from polyhost.engine.protocol import Engine, Registration
from polyhost.errors import InvalidSetting, PortInUse, StartFailed
from polyhost.limits import Limits, base_folder, is_multi_model
from polyhost.log import configure, every_line_as_json
from polyhost.metrics import Metrics
from polyhost.plan import Plan
from polyhost.processes import allow_many_files, become_subreaper, kill_descendants
from polyhost.submit_directory import fetched_submit_directory
from polyhost.trees import remove_tree

if TYPE_CHECKING:
    from polyhost.endpoint.start import EndpointHalf

logger = logging.getLogger("polyhost")

_SINGLE_MODEL = "model"
# Longer than clients keep an idle connection, so that none is closed under a request.
_KEEP_ALIVE_SECS = 75


def serve(config: Config, environ: Mapping[str, str]) -> int:
    """
    Run the server in the foreground; returns the exit code: 0 when told to stop, 1 when the engine ended by itself.

    Raises PolyhostError if it cannot start.
    """
    configure(config.log_format)
    _check_tls(config)
    with tempfile.TemporaryDirectory(prefix="polyhost-code-") as folder:
        environ = fetched_submit_directory(environ, Path(folder))
        return serve_plan(_endpoints_plan(config, environ) if config.has_endpoint else _platforms_plan(config, environ))


def _endpoints_plan(config: Config, environ: Mapping[str, str]) -> Plan:
    """Credentials are for the process that fetches archives, not for those of models."""
    told = container_environ(config, environ)
    roots = (*config.model_root, cache_folder(config, environ))
    config = dataclasses.replace(config, model_root=roots)
    return Plan(config=config, environ=told, limits=Limits.of_platform(config, told), endpoints_environ=environ)


def _check_tls(config: Config) -> None:
    """Raises InvalidSetting."""
    if config.tls_key is not None and config.tls_cert is None:
        raise InvalidSetting("--tls-key needs --tls-cert.")
    if config.tls_cert is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.tls_cert, config.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidSetting(f"--tls-cert {config.tls_cert}: no certificate with its key: {error}.") from error


def _platforms_plan(config: Config, environ: Mapping[str, str]) -> Plan:
    startup: tuple[Registration, ...] = ()
    if not is_multi_model(environ):
        startup = (Registration(url=str(base_folder(environ) / "model"), name=_SINGLE_MODEL, is_startup=True),)
    return Plan(config=config, environ=environ, limits=Limits.of_platform(config, environ), startup=startup)


def serve_plan(plan: Plan) -> int:
    """As `serve`."""
    for host, port in plan.addresses:
        require_free_port(host, port)
    become_subreaper()
    allow_many_files()
    in_one_form = every_line_as_json() if plan.config.log_format == "json" else contextlib.nullcontext()
    with in_one_form, run_folder() as run:
        try:
            return uvloop.run(_serve(plan, run))
        finally:
            kill_descendants()


async def _serve(plan: Plan, run: Path) -> int:
    # What the operator names lies where it may.
    named = tuple(plan.model_store / model.url for model in plan.startup)
    plan = dataclasses.replace(
        plan, config=dataclasses.replace(plan.config, model_root=(*plan.config.model_root, *named))
    )
    metrics = Metrics()
    engine = _engine(plan, run, metrics)
    half = _endpoint_half(plan, engine, metrics)
    fronts: list[_Front] = []
    starting = asyncio.create_task(_start(engine, half, plan))

    def stop() -> None:
        starting.cancel()
        for front in fronts:
            front.should_exit = True

    engine.on_end = stop
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _stop_on_signal, number, stop)
    try:
        await asyncio.wait([starting])
        if not starting.cancelled():
            single_model = starting.result()
            fronts += [_front(engine, half, metrics, plan, address, single_model) for address in plan.addresses]
            await asyncio.gather(*(front.serve() for front in fronts))
    finally:
        if half is not None:
            await half.stop()
        await engine.stop()
    if engine.has_ended:
        return 1
    logger.info("stopped")
    return 0


def _engine(plan: Plan, run: Path, metrics: Metrics) -> Engine:
    # Imported here: a server need not wait for the libraries of the engine that it does not use.
    if plan.config.engine == "mms":
        from polyhost.engine.mms import mms_engine

        return mms_engine(plan, run)
    from polyhost.engine.native.start import native_engine

    return native_engine(plan, run, metrics)


def _endpoint_half(plan: Plan, engine: Engine, metrics: Metrics) -> EndpointHalf | None:
    if plan.endpoints_environ is None:
        return None
    from polyhost.endpoint.start import endpoint_half

    return endpoint_half(plan, plan.endpoints_environ, engine, metrics)


def _stop_on_signal(number: int, stop: Callable[[], None]) -> None:
    logger.info("stopping: got %s", signal.Signals(number).name)
    stop()


def _front(
    engine: Engine,
    half: EndpointHalf | None,
    metrics: Metrics,
    plan: Plan,
    address: tuple[str, int],
    single_model: str | None,
) -> _Front:
    is_management = address == plan.management
    api = ContainerApi(
        engine,
        metrics,
        max_request_bytes=plan.limits.max_request_bytes,
        single_model=single_model,
        workers=plan.limits.startup_workers,
        serves_predictions=not is_management,
        serves_management=is_management or plan.management is None,
    )
    return _Front(half.app(api) if half else api, *address, plan.config)


async def _start(engine: Engine, half: EndpointHalf | None, plan: Plan) -> str | None:
    """
    The name of the only model, None if there are more or none.

    Raises StartFailed if the only one does not load: a server without it serves nothing. Of several, those that do
    not load are missing, as with MMS; the engine has logged why.
    """
    await engine.start()
    if half is not None:
        await half.start()
    for model in plan.startup:
        failure = await _failure_of_load(engine, model)
        if failure is not None and len(plan.startup) == 1:
            raise StartFailed(f"the model in {model.url} was not loaded: {failure.message}") from failure
    return engine.names()[0] if len(plan.startup) == 1 else None


async def _failure_of_load(engine: Engine, model: Registration) -> EngineError | None:
    try:
        await engine.load(model)
    except EngineError as error:
        return error
    return None


class _Front(uvicorn.Server):
    """An HTTP server that ends when `should_exit` is set and what is in flight is answered."""

    def __init__(self, app: App, host: str, port: int, config: Config) -> None:
        super().__init__(
            uvicorn.Config(
                Asgi(app), host=host, port=port, log_config=None, access_log=False, lifespan="off",
                server_header=False, date_header=False, timeout_graceful_shutdown=config.drain_secs,
                timeout_keep_alive=_KEEP_ALIVE_SECS, ws="none", proxy_headers=False,
                http=cast("type[asyncio.Protocol]", functools.partial(ShortWay, app)),
                ssl_certfile=config.tls_cert, ssl_keyfile=config.tls_key,
            ),
        )  # fmt: skip

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are `_serve`'s: uvicorn's own handler would raise them again, and exit code 0 would be lost."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        scheme = "https" if self.config.is_ssl else "http"
        logger.info("ready on %s://%s:%d", scheme, self.config.host, self.config.port)


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A folder of this run's own, so that nothing stale is met."""
    # Short, because Unix sockets lie in it: their paths have 107 bytes at most.
    run = Path(tempfile.mkdtemp(prefix="polyhost-"))
    try:
        yield run
    finally:
        remove_tree(run)


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
