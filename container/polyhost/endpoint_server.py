"""The endpoint half, made from what the server is configured to be."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhost.api.anybody import ADDRESSES, Anybody
from polyhost.api.container import ContainerApi
from polyhost.api.dashboard import DashboardApi
from polyhost.api.endpoint import EndpointApi
from polyhost.api.origins import is_loopback, origins_of
from polyhost.api.signals import Signals
from polyhost.artifacts import Artifacts
from polyhost.config import Config
from polyhost.endpoint.access import Access
from polyhost.endpoint.access.throttle import Throttle
from polyhost.endpoint.arns import ENDPOINT, Arns
from polyhost.endpoint.asynchronous import AsyncCalls
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.capturing import Capturing
from polyhost.endpoint.definitions import Container, Endpoint, Variant
from polyhost.endpoint.events import CACHE_EVENTS, CallAnswered, Publisher, log
from polyhost.endpoint.followers import Follower
from polyhost.endpoint.hosting import Hosting
from polyhost.endpoint.hosting.bucket_state import FILE, PROBE, BucketState
from polyhost.endpoint.hosting.file_state import FileState
from polyhost.endpoint.hosting.hosting import Plane, on_state
from polyhost.endpoint.hosting.sqlite_state import SqliteState
from polyhost.endpoint.hosting.state import State
from polyhost.endpoint.measures import Gauges, Measures, access_log
from polyhost.endpoint.monitoring import Monitoring
from polyhost.endpoint.preloading import Preloading
from polyhost.endpoint.shadows import Shadow, share_of
from polyhost.endpoint.shelf import Shelf
from polyhost.endpoint.traces import Traces, open_traces
from polyhost.endpoint.traffic import Route, Traffic
from polyhost.endpoint.transform import TransformJobs
from polyhost.engine.protocol import Engine
from polyhost.environment import cache_folder, state_folder
from polyhost.errors import InvalidSetting, StartFailed
from polyhost.limits import endpoints_timeout_secs
from polyhost.metrics import Metrics
from polyhost.plan import Plan
from polyhost.processes import CpuMeter
from polyhost.readiness import Readiness
from polyhost.service_errors import ValidationError
from polyhost.tasks import Tasks

logger = logging.getLogger("polyhost.endpoint")

# The account of a server without access control. AWS has no such account.
_NO_ACCOUNT = "000000000000"
_VARIANT = "AllTraffic"


@dataclass(frozen=True)
class EndpointHalf:
    config: Config
    arns: Arns
    access: Access | None
    throttle: Throttle
    engine: Engine
    artifacts: Artifacts
    cache: ModelCache
    preloading: Preloading
    hosting: Hosting
    jobs: TransformJobs
    calls: AsyncCalls
    traffic: Traffic
    events: Publisher
    measures: Measures
    capturing: Capturing
    monitoring: Monitoring
    traces: Traces | None
    tasks: Tasks

    @property
    def sees_every_request(self) -> bool:
        """Whether each request must come here, because its caller is asked who he is, or counted, or it is traced."""
        return self.access is not None or self.config.rate_limit is not None or self.traces is not None

    async def start(self) -> None:
        """Raises StartFailed."""
        await self.artifacts.start()
        await self.monitoring.start()
        await self.hosting.start()
        await self.jobs.start(self.hosting.unfinished_jobs)
        await self.calls.start()
        self.tasks.start(self.measures.tell_every_minute())
        self.capturing.start()
        if self.access is None and not is_loopback(self.config.host):
            logger.warning(
                "ANYBODY who reaches %s:%d may call every model and the control plane, and load and unload models: "
                "there is no access control (--auth sigv4, docs/security.md)",
                self.config.host,
                self.config.port,
            )

    async def prepared(self, readiness: Readiness) -> None:
        """Returns when the endpoints that there are, and the models of --preload, can answer or have failed."""
        readiness.wait("Endpoints are being prepared.")
        await self.hosting.deployed()
        await self.preloading.load_all(readiness.wait)

    def own_shelf(self) -> Shelf | None:
        """Of the models of --models; None without it, and before its endpoint is made."""
        own = self.hosting.endpoint(self.config.endpoint_name)
        if own is None or not self.config.models:
            return None
        return self.traffic.route(own.name).lanes[0].shelves[0]

    def look(self, config: Config) -> None:
        """Files of the operator's may have changed. `config`: the settings as they are by now."""
        if self.access is not None:
            self.access.look()
        try:
            self.tasks.start(self.preloading.change(preloaded(config)))
        except InvalidSetting as error:
            logger.error("%s What was read before stays in force.", error)  # noqa: TRY400
        if self.hosting.is_shared:
            self.tasks.start(self.hosting.look())

    def stop_soon(self) -> None:
        self.cache.stop_soon()

    async def stop(self) -> None:
        await self.tasks.stop()
        await self.jobs.stop()
        await self.calls.stop()
        # Before the cache: a deployment whose load the stop has ended would be kept as one that has failed.
        await self.hosting.stop()
        await self.cache.stop()
        await self.capturing.stop()
        await self.artifacts.stop()
        await self.monitoring.stop()
        if self.traces is not None:
            await self.traces.stop()

    def endpoints_have_changed(self) -> None:
        """What is gone is gone at once, so that a new endpoint of its name is not taken for an update."""
        for gone in self.traffic.forget_all_but({endpoint.name for endpoint in self.hosting.endpoints()}):
            self.measures.forget_endpoint(gone)
        self._keep_what_is_needed()

    def job_has_ended(self, endpoint: str) -> None:
        self.measures.forget_endpoint(endpoint)
        self._keep_what_is_needed()

    def _keep_what_is_needed(self) -> None:
        self.cache.keep_only(self.traffic.shelves() | self.jobs.shelves())

    async def deploy(self, endpoint: Endpoint) -> str | None:
        """As Traffic's; what nothing is left for is unloaded, once its successor serves."""
        try:
            return await self.traffic.deploy(endpoint)
        except ValidationError as error:
            return error.message
        except Exception:  # the others are served all the same
            logger.exception("endpoint %s cannot be served", endpoint.name)
            return "Internal error: the server's log says why."
        finally:
            self._keep_what_is_needed()

    def app(self, container: ContainerApi) -> EndpointApi:
        origins = origins_of(self.config.host, self.config.allowed_origin)
        signals = Signals(self.config.server_name)
        signals.subscribe_to(self.events)
        dashboard = DashboardApi(
            engine=self.engine, artifacts=self.artifacts, cache=self.cache, hosting=self.hosting, traffic=self.traffic,
            events=self.events, measures=self.measures, access=self.access, arns=self.arns,
            origins=origins, signals=signals,
        )  # fmt: skip
        return EndpointApi(
            container, self.hosting, self.traffic, self.events, self.access, dashboard, calls=self.calls,
            monitoring=self.monitoring, traces=self.traces,
            anybody=Anybody(origins, self.config.rate_limit, self.throttle), signals=signals,
        )  # fmt: skip


def expects_buckets(config: Config) -> bool:
    """Whoever serves a folder may never ask one."""
    return config.state is not None or config.models is None or config.models.startswith("s3://")


def endpoint_half(
    plan: Plan, environ: Mapping[str, str], engine: Engine, metrics: Metrics, write_line: Callable[[str], None]
) -> EndpointHalf:
    """
    `environ`: the whole one, for the process that fetches. `write_line`: to the log, a line in its form.

    Raises InvalidSetting, StartFailed.
    """
    config = plan.config
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    state = state_folder(config, environ)
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartFailed(f"--state-dir: {state} cannot be made ({os.strerror(error.errno or 0)}).") from error
    throttle = Throttle(known=(ADDRESSES,) if config.auth == "off" else ())
    access = _access(config, state, throttle)
    arns = Arns(access.account_id if access else _NO_ACCOUNT, region)
    targets = preloaded(config)
    if config.emf_namespace is not None and config.log_format != "json":
        raise InvalidSetting("--emf-namespace needs --log-format json: CloudWatch reads whole lines.")
    try:
        measures = Measures(emf_namespace=config.emf_namespace)
    except ValueError as error:
        raise InvalidSetting(f"--emf-namespace: {error}.") from error
    events = Publisher()
    measures.subscribe_to(events)
    events.subscribe(CACHE_EVENTS, log)
    if config.access_log == "on":
        events.subscribe((CallAnswered,), access_log(config.log_format, write_line))
    artifacts = Artifacts(
        cache_folder(config, environ),
        budget_bytes=config.disk_budget,
        environ=environ,
        refresh_secs=config.refresh_secs,
        unpack_secs=config.unpack_timeout_secs,
        expects_buckets=expects_buckets(config),
    )
    cache = ModelCache(
        engine,
        artifacts,
        events,
        ready_timeout_secs=config.model_ready_timeout_secs,
        load_timeout_secs=config.model_load_timeout_secs,
        response_timeout_secs=endpoints_timeout_secs(environ),
        refresh_secs=config.refresh_secs,
    )
    own = _own_endpoint(config, arns)
    plane = Plane(
        arns=arns,
        own=own,
        allowed_folders=_allowed_folders(config),
        check=lambda containers: _refusal(config, containers),
    )
    half: EndpointHalf
    hosting = Hosting(
        _open_state(config, state, artifacts, plane),
        plane,
        on_change=lambda: half.endpoints_have_changed(),  # noqa: PLW0108 - it is made below
        deploy=lambda endpoint: half.deploy(endpoint),  # noqa: PLW0108
        unready_shadows=lambda name: half.traffic.unready_shadows(name),  # noqa: PLW0108
        begin_job=lambda job: half.jobs.begin(job),  # noqa: PLW0108
        stop_job=lambda name: half.jobs.stop_job(name),  # noqa: PLW0108
    )
    jobs = TransformJobs(
        cache,
        artifacts.objects,
        hosting,
        folder=cache_folder(config, environ) / "transform",
        account_id=arns.account_id,
        on_end=lambda endpoint: half.job_has_ended(endpoint),  # noqa: PLW0108
    )
    capturing = Capturing(artifacts.objects, events.publish, cache_folder(config, environ) / "capture")
    traffic = Traffic(
        cache,
        hosting.endpoint,
        arns.account_id,
        followers_of=lambda route: _followers(route, traffic, capturing, events),
    )
    calls = AsyncCalls(traffic, artifacts.payloads, events, folder=state, find=hosting.endpoint)
    monitoring = Monitoring(state, measures.take)
    measures.keep = monitoring.keep
    half = EndpointHalf(
        config,
        arns,
        access,
        throttle,
        engine,
        artifacts,
        cache,
        Preloading(cache, lambda: half.own_shelf(), targets),  # noqa: PLW0108 - it is made here
        hosting,
        jobs,
        calls,
        traffic,
        events,
        measures,
        capturing,
        monitoring,
        open_traces(environ) if config.traces == "otlp" else None,
        Tasks(),
    )
    cpu = CpuMeter()
    measures.gauges = lambda: _gauges(half, cpu)
    metrics.add(measures)
    return half


def _access(config: Config, state: Path, throttle: Throttle) -> Access | None:
    if config.auth == "off":
        return None
    if config.auth_file is None:
        raise InvalidSetting("--auth sigv4 needs --auth-file (docs/security.md).")
    return Access.read(
        config.auth_file,
        secret_folder=state,
        token_key_file=config.token_key_file,
        rate=config.rate_limit,
        throttle=throttle,
        is_tls=config.tls_cert is not None,
    )


def _open_state(config: Config, folder: Path, artifacts: Artifacts, plane: Plane) -> Callable[[], State]:
    """Where endpoints are kept. Raises InvalidSetting."""
    if config.endpoints is not None and config.state is not None:
        raise InvalidSetting("--endpoints and --state: give one of them. Endpoints are in a file or made by calls.")
    if config.endpoints is not None:
        file = config.endpoints.absolute()
        return lambda: FileState(file, lambda state: on_state(state, plane)[1])
    if config.state is not None:
        prefix = config.state
        return lambda: BucketState(artifacts.stored(prefix, FILE), artifacts.stored(prefix, PROBE))
    return lambda: SqliteState(folder)


def _own_endpoint(config: Config, arns: Arns) -> Endpoint | None:
    if config.models is None:
        return None
    variant = Variant(name=_VARIANT, weight=1.0, containers=(Container(source=config.models),))
    return Endpoint(name=config.endpoint_name, arn=arns.of(ENDPOINT, config.endpoint_name), variants=(variant,))


def _allowed_folders(config: Config) -> list[Path]:
    own = [Path(config.models)] if config.models and not config.models.startswith("s3://") else []
    return [*own, *config.model_root]


def _refusal(config: Config, containers: Sequence[Container]) -> str | None:
    """MMS runs once in a server, with one environment and one handler."""
    if config.engine != "mms":
        return None
    for container in containers:
        if container.environ or container.handler not in ("", config.handler) or not container.is_multi_model:
            return (
                "With --engine mms a server has one container definition, that of its own environment and handler: "
                "this one differs. Use --engine native, or start a server of its own with these variables."
            )
    return None


def _followers(route: Route, traffic: Traffic, capturing: Capturing, events: Publisher) -> tuple[Follower, ...]:
    """What follows the answers of an endpoint's production variants."""
    weights = [lane.variant.weight for lane in route.lanes]
    shadows = (Shadow(traffic, events.publish, lane, share_of(lane.variant.weight, weights)) for lane in route.shadows)
    capture = route.endpoint.capture
    return (*shadows, *(() if capture is None else (capturing.follower(capture),)))


def _gauges(half: EndpointHalf, cpu: CpuMeter) -> Gauges:
    engine, artifacts = half.engine, half.artifacts
    loaded: dict[tuple[str, str], int] = {}
    for shelf in half.cache.shelves():
        count = sum(model.loaded is not None for model in shelf.models.values())
        loaded[shelf.endpoint, shelf.variant] = loaded.get((shelf.endpoint, shelf.variant), 0) + count
    return Gauges(
        loaded_models=loaded,
        memory_utilization=engine.used_bytes() / engine.budget_bytes,
        disk_utilization=artifacts.used_bytes / max(1, artifacts.budget_bytes),
        cpu_utilization=cpu.cores(),
        backlogs={one.name: half.calls.backlog(one.name) for one in half.hosting.endpoints() if one.asynchronous},
        throttled=half.throttle.refused(),
    )


def preloaded(config: Config) -> list[str]:
    """The targets of --preload. Raises InvalidSetting."""
    targets = []
    for text in config.preload:
        if not text.startswith("@"):
            targets.append(text)
            continue
        try:
            lines = Path(text[1:]).read_text().splitlines()
        except OSError as error:
            raise InvalidSetting(f"--preload: {text[1:]} cannot be read ({os.strerror(error.errno or 0)}).") from error
        except ValueError as error:
            raise InvalidSetting(f"--preload: {text[1:]} is not a text in UTF-8. Write one target a line.") from error
        targets += [line.strip() for line in lines if line.strip()]
    return targets
