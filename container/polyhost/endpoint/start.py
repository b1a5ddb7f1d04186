"""The endpoint half, made from what the server is configured to be."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhost.api.container import ContainerApi
from polyhost.api.endpoint import EndpointApi
from polyhost.api.ops import DashboardApi
from polyhost.config import Config
from polyhost.endpoint.access import Access
from polyhost.endpoint.artifacts import Artifacts
from polyhost.endpoint.artifacts.fetcher import hide
from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.definitions import Container, Endpoint, Variant
from polyhost.endpoint.environment import cache_folder, state_folder
from polyhost.endpoint.errors import EndpointError, ValidationError
from polyhost.endpoint.hosting import Hosting
from polyhost.endpoint.measures import Gauges, Measures
from polyhost.endpoint.traffic import Traffic
from polyhost.engine.errors import EngineError
from polyhost.engine.protocol import Engine
from polyhost.errors import InvalidSetting, StartFailed
from polyhost.metrics import Metrics
from polyhost.plan import Plan
from polyhost.processes import CpuMeter

logger = logging.getLogger("polyhost.endpoint")

# Of a server without access control: no account of AWS's.
_NO_ACCOUNT = "000000000000"
_VARIANT = "AllTraffic"


@dataclass(frozen=True)
class EndpointHalf:
    config: Config
    account_id: str
    region: str
    access: Access | None
    engine: Engine
    artifacts: Artifacts
    cache: ModelCache
    hosting: Hosting
    traffic: Traffic
    measures: Measures
    tasks: list[asyncio.Task[None]]

    async def start(self) -> None:
        """Raises StartFailed."""
        await self.artifacts.start()
        await self.hosting.start()
        await self.cache.start()
        self.tasks.append(asyncio.create_task(self.measures.emit_every_minute()))
        self.tasks.append(asyncio.create_task(self._preload()))
        if self.access is None and not _is_loopback(self.config.host):
            logger.warning(
                "ANYBODY who reaches %s:%d may call every model and the control plane, and load and unload models: "
                "there is no access control (--auth sigv4, docs/access.md)",
                self.config.host,
                self.config.port,
            )

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.cache.stop()
        await self.hosting.stop()
        await self.artifacts.stop()

    def endpoints_have_changed(self) -> None:
        """What is gone is gone at once, so that a new endpoint of its name is not taken for an update."""
        for gone in self.traffic.forget_all_but({endpoint.name for endpoint in self.hosting.endpoints()}):
            self.measures.forget_endpoint(gone)
        self.cache.keep_only(self.traffic.shelves())

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
            self.cache.keep_only(self.traffic.shelves())

    def app(self, container: ContainerApi) -> EndpointApi:
        dashboard = DashboardApi(
            engine=self.engine, artifacts=self.artifacts, cache=self.cache, hosting=self.hosting, traffic=self.traffic,
            measures=self.measures, access=self.access, account_id=self.account_id, region=self.region,
            refresh_secs=self.config.refresh_secs,
        )  # fmt: skip
        return EndpointApi(
            container, self.hosting, self.traffic, self.cache, self.measures, self.access, dashboard,
            own_endpoint=self.config.endpoint_name if self.config.models else None,
            account_id=self.account_id, region=self.region,
        )  # fmt: skip

    async def _preload(self) -> None:
        own = self.hosting.endpoint(self.config.endpoint_name)
        if own is None or not self.config.models:
            return
        shelf = self.traffic.route(own.name).lanes[0].shelves[0]
        for target in preloaded(self.config):
            try:
                await self.cache.load(shelf, target, pin=True)
            except (EndpointError, EngineError) as error:
                logger.warning("--preload %s: %s", target, error.message)


def endpoint_half(plan: Plan, environ: Mapping[str, str], engine: Engine, metrics: Metrics) -> EndpointHalf:
    """
    `environ`: the whole one, for the process that fetches. Raises InvalidSetting, StartFailed.
    """
    config = plan.config
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    state = state_folder(config, environ)
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartFailed(f"--state-dir: {state} cannot be made ({os.strerror(error.errno or 0)}).") from error
    access = _access(config, region, state)
    account_id = access.account_id if access else _NO_ACCOUNT
    preloaded(config)
    if config.emf_namespace is not None and config.log_format != "json":
        raise InvalidSetting("--emf-namespace needs --log-format json: CloudWatch reads whole lines.")
    try:
        measures = Measures(access_log=config.access_log == "on", emf_namespace=config.emf_namespace)
    except ValueError as error:
        raise InvalidSetting(f"--emf-namespace: {error}.") from error
    artifacts = Artifacts(
        cache_folder(config, environ),
        budget_bytes=config.disk_budget,
        environ=environ,
        refresh_secs=config.refresh_secs,
    )
    cache = ModelCache(
        engine,
        artifacts,
        measures,
        ready_timeout_secs=config.model_ready_timeout_secs,
        load_timeout_secs=config.model_load_timeout_secs,
        refresh_secs=config.refresh_secs,
    )
    own = _own_endpoint(config, account_id, region)
    half: EndpointHalf
    hosting = Hosting(
        state,
        account_id=account_id,
        region=region,
        own=own,
        allowed_folders=_allowed_folders(config),
        check=lambda containers: _refusal(config, containers),
        on_change=lambda: half.endpoints_have_changed(),  # noqa: PLW0108 - it is made below
        deploy=lambda endpoint: half.deploy(endpoint),  # noqa: PLW0108
    )
    traffic = Traffic(cache, hosting.endpoint, account_id)
    half = EndpointHalf(
        config,
        account_id,
        region,
        access,
        engine,
        artifacts,
        cache,
        hosting,
        traffic,
        measures,
        [],
    )
    cpu = CpuMeter()
    measures.gauges = lambda: _gauges(cache, engine, artifacts, cpu)
    metrics.add(measures)
    hide()  # models' processes must not read our environment
    return half


def _access(config: Config, region: str, state: Path) -> Access | None:
    if config.auth == "off":
        return None
    if config.auth_file is None:
        raise InvalidSetting("--auth sigv4 needs --auth-file (docs/access.md).")
    return Access.read(config.auth_file, region=region, secret_folder=state, is_tls=config.tls_cert is not None)


def _own_endpoint(config: Config, account_id: str, region: str) -> Endpoint | None:
    if config.models is None:
        return None
    arn = f"arn:aws:sagemaker:{region}:{account_id}:endpoint/{config.endpoint_name.lower()}"  # as AWS writes it
    variant = Variant(name=_VARIANT, weight=1.0, containers=(Container(source=config.models),))
    return Endpoint(name=config.endpoint_name, arn=arn, variants=(variant,))


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


def _gauges(cache: ModelCache, engine: Engine, artifacts: Artifacts, cpu: CpuMeter) -> Gauges:
    loaded: dict[tuple[str, str], int] = {}
    for shelf in cache.shelves():
        count = sum(model.loaded is not None for model in shelf.models.values())
        loaded[shelf.endpoint, shelf.variant] = loaded.get((shelf.endpoint, shelf.variant), 0) + count
    return Gauges(
        loaded_models=loaded,
        memory_utilization=engine.used_bytes() / engine.budget_bytes,
        disk_utilization=artifacts.used_bytes / max(1, artifacts.budget_bytes),
        cpu_utilization=cpu.cores(),
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
        targets += [line.strip() for line in lines if line.strip()]
    return targets


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
