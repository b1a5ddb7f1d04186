"""Starts what the configuration asks for, serves, drains, stops."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from polyhost.api.container import ContainerApi
from polyhost.api.http import App
from polyhost.api.listener import Listener
from polyhost.api.routes import Ports
from polyhost.api.sockets import listening_sockets
from polyhost.certificate import Certificate
from polyhost.config import Config
from polyhost.engine.errors import EngineError
from polyhost.engine.protocol import Engine, Registration
from polyhost.environment import cache_folder, container_environ
from polyhost.errors import InvalidSetting, MissingDependency, PortInUse, StartFailed
from polyhost.limits import Limits, base_folder, front_count, is_multi_model
from polyhost.log import configure_server, every_line_as_json
from polyhost.memory import cpu_limit
from polyhost.metrics import Metrics
from polyhost.plan import Plan
from polyhost.processes import (
    allow_many_files,
    become_subreaper,
    give_back_large_blocks,
    hide,
    kill_descendants,
    mark_server,
)
from polyhost.readiness import NOTIFY_SOCKET, Readiness
from polyhost.settings_changes import SettingsChanges
from polyhost.submit_directory import fetched_submit_directory
from polyhost.tasks import Tasks
from polyhost.temporary import own_folder, sweep

if TYPE_CHECKING:
    from polyhost.api.open_inference.api import OpenInference
    from polyhost.api.open_inference.grpc_server import GrpcServer
    from polyhost.endpoint_server import EndpointHalf
    from polyhost.fronts.keeper import Fronts

logger = logging.getLogger("polyhost")

_SINGLE_MODEL = "model"
# How long processes may take to end by themselves that the engine has left, and tasks.
_PATIENCE_SECS = 2.0
_CANCELLED_SECS = 0.2
# Until workers that could not be started are asked for again.
_RETRY_SECS = 1.0
_STDIN = 0
# As a shell reports a process that a signal has ended.
_SIGNALLED = 128


def serve(
    config: Config, environ: Mapping[str, str], greeting: str = "", read_again: Callable[[], Config] | None = None
) -> int:
    """
    Run the server in the foreground; returns the exit code.

    `greeting` is printed when it is ready. `read_again`: what `config` is by now, if it may have changed.

    The code is 0 when told to stop, 1 when the engine ended by itself, 128 and the signal's number when told twice.

    Raises PolyhostError if it cannot start.
    """
    write_line = configure_server(config.log_format)
    _certificate(config)  # before anything else is started
    notify_socket = environ.get(NOTIFY_SOCKET, "")
    environ = {name: value for name, value in environ.items() if name != NOTIFY_SOCKET}  # it is no business of models
    with own_folder("code-") as folder:
        environ = fetched_submit_directory(environ, folder, config.unpack_timeout_secs)
        plan = _endpoints_plan(config, environ) if config.has_endpoint else _platforms_plan(config, environ)
        plan = dataclasses.replace(plan, notify_socket=notify_socket, greeting=greeting)
        return serve_plan(plan, write_line, SettingsChanges(config, read_again))


def _endpoints_plan(config: Config, environ: Mapping[str, str]) -> Plan:
    """Credentials are for the process that fetches archives, not for those of models."""
    told = container_environ(config, environ)
    roots = (*config.model_root, cache_folder(config, environ), *_served_folder(config))
    config = dataclasses.replace(config, model_root=roots)
    limits = Limits.of_platform(config, {**environ, "SAGEMAKER_MULTI_MODEL": "true"})
    return Plan(config=config, environ=told, limits=limits, endpoints_environ=environ)


def _served_folder(config: Config) -> tuple[Path, ...]:
    """
    The folder of `--models`: its archives may be loaded by MMS's API, too.

    Not in the hardened mode, where each model may read what lies below these folders.
    """
    if config.models is None or config.models.startswith("s3://") or config.hardened:
        return ()
    return (Path(config.models),)


def _certificate(config: Config) -> Certificate | None:
    """None without TLS. Raises InvalidSetting."""
    if config.tls_cert is not None:
        return Certificate(config.tls_cert, config.tls_key)
    if config.tls_key is not None:
        raise InvalidSetting("--tls-key needs --tls-cert.")
    return None


def _platforms_plan(config: Config, environ: Mapping[str, str]) -> Plan:
    """Raises InvalidSetting for what would be passed over: who sets it counts on it."""
    if config.auth != "off" or config.rate_limit is not None:
        raise InvalidSetting("--auth and --rate-limit need an endpoint: add --models, or --state-dir.")
    startup: tuple[Registration, ...] = ()
    if not is_multi_model(environ):
        startup = (Registration(url=str(base_folder(environ) / "model"), name=_SINGLE_MODEL, is_startup=True),)
    return Plan(config=config, environ=environ, limits=Limits.of_platform(config, environ), startup=startup)


def serve_plan(plan: Plan, write_line: Callable[[str], None], changes: SettingsChanges | None = None) -> int:
    """As `serve`. `write_line`: as `configure_server` returns it. `changes`: None where no settings file is read."""
    changes = SettingsChanges(plan.config, None) if changes is None else changes
    for host, port in plan.addresses:
        require_free_port(host, port)
    if plan.is_hidden:
        hide()  # otherwise models get our environment anyway, and memory tools of our user may look
    become_subreaper()
    allow_many_files()
    give_back_large_blocks()
    threading.Thread(target=sweep, daemon=True).start()  # however much it is, nobody waits for it
    in_one_form = every_line_as_json() if plan.config.log_format == "json" else contextlib.nullcontext()
    code = 0
    with in_one_form:
        # Short, because Unix sockets lie in it: their paths have 107 bytes at most.
        with own_folder(number=mark_server()) as run:
            code = run_until_told(lambda at_once: _serve(plan, run, at_once, write_line, changes))
        if code == 0:
            logger.info("stopped")
    return code


def run_until_told(serving: Callable[[asyncio.Future[int]], Coroutine[Any, Any, int]]) -> int:
    """
    Run the server, and leave no process. Returns its exit code, or the result of `at_once` as soon as it has one.

    Unlike `uvloop.run` this does not wait for threads: an unpacking may take minutes, and nobody needs it any more.
    """
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    at_once: asyncio.Future[int] = loop.create_future()
    task = loop.create_task(serving(at_once))
    patience_secs = _PATIENCE_SECS
    try:
        loop.run_until_complete(asyncio.wait({task, at_once}, return_when=asyncio.FIRST_COMPLETED))
        if task.done():
            return task.result()
        patience_secs = 0.0
        return at_once.result()
    finally:
        kill_descendants(patience_secs)
        _cancel_all(loop)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    """Tasks that are still there end now, and are not waited for long."""
    for task in (tasks := asyncio.all_tasks(loop)):
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=_CANCELLED_SECS))


async def _serve(
    plan: Plan, run: Path, at_once: asyncio.Future[int], write_line: Callable[[str], None], changes: SettingsChanges
) -> int:
    # What the operator names lies where it may.
    named = tuple(plan.model_store / model.url for model in plan.startup)
    plan = dataclasses.replace(
        plan, config=dataclasses.replace(plan.config, model_root=(*plan.config.model_root, *named))
    )
    metrics = Metrics()
    engine = _engine(plan, run, metrics)
    half = _endpoint_half(plan, engine, metrics, write_line)
    readiness = Readiness(plan.notify_socket)
    tasks = Tasks()
    starting = asyncio.create_task(_start(engine, half, plan))
    parts = _Parts(half, readiness, starting, plan.config.unready_secs, changes)
    engine.on_end = parts.stop
    on_signal = _Signals(parts.leave, parts.look, at_once)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    try:
        await asyncio.wait([starting])
        single_model = None if starting.cancelled() else starting.result()
        if not parts.is_stopping:
            gc.freeze()  # what is there now stays until the end: a look through it would hold requests up for 40 ms
            api = functools.partial(_front, engine, half, metrics, plan, readiness, single_model)
            fronts = [api(address) for address in plan.addresses]
            parts.fronts += [*fronts, *_grpc_fronts(plan, fronts[0])]
            tasks.start(_become_ready(engine, half, readiness, lambda: _greet(plan, write_line)))
            await asyncio.gather(*(front.serve() for front in parts.fronts))
    finally:
        await tasks.stop()
        if half is not None:
            await half.stop()
        await engine.stop()
    return 1 if engine.has_ended else 0


def _engine(plan: Plan, run: Path, metrics: Metrics) -> Engine:
    # Imported here: a server need not wait for the libraries of the engine that it does not use.
    if plan.config.engine == "mms":
        if plan.config.hardened:
            raise InvalidSetting("--hardened needs --engine native: MMS starts its workers itself.")
        from polyhost.engine.mms import mms_engine

        return mms_engine(plan, run)
    from polyhost.engine.native.start import native_engine

    return native_engine(plan, run, metrics)


def _endpoint_half(
    plan: Plan, engine: Engine, metrics: Metrics, write_line: Callable[[str], None]
) -> EndpointHalf | None:
    if plan.endpoints_environ is None:
        return None
    from polyhost.endpoint_server import endpoint_half

    return endpoint_half(plan, plan.endpoints_environ, engine, metrics, write_line)


class _Parts:
    """What a running server is made of, as far as signals are its concern."""

    def __init__(
        self, half: EndpointHalf | None, readiness: Readiness, starting: asyncio.Task[str | None], unready_secs: float,
        changes: SettingsChanges,
    ) -> None:  # fmt: skip
        self.fronts: list[_Front | GrpcServer] = []
        # Once it stops, no front is to be made: nobody would stop that one.
        self.is_stopping = False
        self._half = half
        self._readiness = readiness
        self._starting = starting
        self._unready_secs = unready_secs
        self._changes = changes

    def stop(self) -> None:
        self.is_stopping = True
        self._starting.cancel()
        if self._half is not None:
            self._half.stop_soon()
        for front in self.fronts:
            front.stop()

    def leave(self) -> None:
        """Where somebody looks at /ready, stop only when they have seen it."""
        self._readiness.leave()
        for front in self.fronts:
            front.leave()
        if self.fronts and self._unready_secs:
            asyncio.get_running_loop().call_later(self._unready_secs, self.stop)
        else:
            self.stop()

    def look(self) -> None:
        """Files of the operator's may have changed."""
        logger.info(
            "got SIGHUP: looking at the files of the certificate, users, the token key, endpoints, settings and "
            "--preload. Other options and environment variables need a restart."
        )
        config = self._changes.look()
        if self._half is not None:
            self._half.look(config)
        for front in self.fronts:
            front.look()


class _Signals:
    """
    The first signal stops the server when what is in flight is answered; another one ends it at once.

    SIGHUP has two meanings: the terminal has gone, and so has whoever would have stopped the server; else an operator
    has changed files, which are looked at.
    """

    def __init__(self, stop: Callable[[], None], look: Callable[[], None], at_once: asyncio.Future[int]) -> None:
        self._stop = stop
        self._look = look
        self._at_once = at_once
        self._is_stopping = False
        self._had_terminal = os.isatty(_STDIN)

    def __call__(self, number: int) -> None:
        if number == signal.SIGHUP and not (self._had_terminal and not os.isatty(_STDIN)):
            self._look()
            return
        name = signal.Signals(number).name
        if not self._is_stopping:
            self._is_stopping = True
            logger.info("stopping: got %s", name)
            self._stop()
        elif not self._at_once.done():
            logger.warning("ending at once, without the requests in flight: got %s while stopping", name)
            self._at_once.set_result(_SIGNALLED + number)


def _front(
    engine: Engine,
    half: EndpointHalf | None,
    metrics: Metrics,
    plan: Plan,
    readiness: Readiness,
    single_model: str | None,
    address: tuple[str, int],
) -> _Front:
    ports = Ports.BOTH
    if plan.management is not None:
        ports = Ports.MANAGEMENT if address == plan.management else Ports.PREDICTIONS
    api = ContainerApi(
        engine,
        metrics,
        max_request_bytes=plan.limits.max_request_bytes,
        single_model=single_model,
        workers=plan.limits.startup_workers,
        readiness=readiness,
        ports=ports,
        has_endpoint=half is not None,
    )
    app = half.app(api) if half else api
    # MMS's address for management is asked too seldom to need more than one.
    count = front_count(plan.config, cpu_limit()) if ports & Ports.PREDICTIONS else 1
    if count == 1:
        return _Front(app, *address, plan, None, app.open_inference)
    from polyhost.fronts.keeper import Fronts
    from polyhost.fronts.landlord import landlord_of

    landlord = landlord_of(engine, api, half, app)
    others = Fronts(plan.config, os.environ, count, landlord, is_hidden=plan.is_hidden)
    return _Front(app, *address, plan, others, app.open_inference)


def _grpc_fronts(plan: Plan, front: _Front) -> list[GrpcServer]:
    """One if it is asked for, beside a front. Raises MissingDependency."""
    config = plan.config
    if config.grpc_port is None:
        return []
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its lines are in no form of ours
    try:
        from polyhost.api.open_inference.grpc_server import Address, GrpcServer
    except ImportError as error:
        raise MissingDependency("--grpc-port needs the grpcio package: pip install 'polyhost[grpc]'.") from error
    address = Address(config.host, config.grpc_port, front.certificate)
    return [
        GrpcServer(
            front.open_inference, address, max_request_bytes=plan.limits.max_request_bytes,
            limits=config.http_limits, drain_secs=config.drain_secs,
        )
    ]  # fmt: skip


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


def _greet(plan: Plan, write_line: Callable[[str], None]) -> None:
    if plan.greeting:
        write_line(plan.greeting)


async def _become_ready(
    engine: Engine, half: EndpointHalf | None, readiness: Readiness, greet: Callable[[], None]
) -> None:
    """Requests are answered from the beginning; from then on they do not wait for what was to be there before."""
    readiness.wait("Workers are being started.")
    while True:
        try:
            await engine.prepare(())
            break
        except Exception as error:  # noqa: BLE001 - the engine goes on trying, and so does this
            logger.warning("no worker can be started: %s", str(error) or type(error).__name__)
            readiness.wait("No worker can be started: the log says why.")
            await asyncio.sleep(_RETRY_SECS)
    if half is not None:
        await half.prepared(readiness)
    readiness.reached()
    greet()


async def _failure_of_load(engine: Engine, model: Registration) -> EngineError | None:
    try:
        await engine.load(model)
    except EngineError as error:
        return error
    return None


class _Front:
    """One address of the server: it serves until `stop`, and what is in flight then is answered."""

    def __init__(
        self, app: App, host: str, port: int, plan: Plan, others: Fronts | None, open_inference: OpenInference
    ) -> None:
        """`others`: the processes that accept connections there beside this one."""
        self.open_inference = open_inference
        config = plan.config
        self.certificate = certificate = _certificate(config)
        self._address = host, port
        self._scheme = "https" if certificate else "http"
        self._others = others
        self._listener = Listener(
            app,
            limits=config.http_limits,
            drain_secs=config.drain_secs,
            tls=certificate.context if certificate else None,
            crowd=others.crowd if others else None,
        )

    def stop(self) -> None:
        if self._others is not None:
            self._others.stop()
        self._listener.stop()

    def look(self) -> None:
        """The certificate's files may have changed."""
        if self.certificate is not None:
            self.certificate.look()
        if self._others is not None:
            self._others.look()

    def leave(self) -> None:
        if self._others is not None:
            self._others.leave()
        self._listener.leave()

    async def serve(self) -> None:
        """Raises PortInUse, StartFailed."""
        try:
            sockets = await listening_sockets(*self._address)
            if self._others is not None:
                await self._others.start(self._listener, sockets)
        except OSError as error:
            raise _port_in_use(*self._address, error) from error
        await self._listener.start_on(sockets)
        logger.info("ready on %s://%s:%d", self._scheme, *self._address)
        await self._listener.serve()
        if self._others is not None:
            await self._others.end()


def require_free_port(host: str, port: int) -> None:
    """Raises PortInUse."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise _port_in_use(host, port, error) from error


def _port_in_use(host: str, port: int, error: OSError) -> PortInUse:
    return PortInUse(
        f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}): "
        "stop what listens there, or choose another with --port.",
    )
