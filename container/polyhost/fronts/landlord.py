"""What lets fronts answer themselves, made from the parts of the server that they answer for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from polyhost.api.container import ContainerApi
from polyhost.api.endpoint import EndpointApi
from polyhost.api.http import App
from polyhost.api.origins import Origins, origins_of
from polyhost.endpoint.events import ModelLeaving
from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.native.leases import Tenant
from polyhost.engine.protocol import Engine
from polyhost.fronts.collector import Collector
from polyhost.fronts.counts import Counted
from polyhost.fronts.lessor import Lessor

if TYPE_CHECKING:
    from polyhost.endpoint_server import EndpointHalf


class Landlord(NamedTuple):
    """
    What lets fronts answer themselves. `lessor`: None where the keeper answers everything.

    `collector`: of a server that has an endpoint. `origins`: from where browsers may call, if that is looked at.
    """

    lessor: Lessor | None = None
    collector: Collector | None = None
    origins: Origins | None = None

    def new_counted(self) -> Counted | None:
        """For a front that begins."""
        if self.collector is None:
            return None
        counted = Counted()
        self.collector.add(counted)
        return counted

    def has_gone(self, tenant: Tenant, counted: Counted | None) -> None:
        """A front's process has ended."""
        if self.collector is not None and counted is not None:
            self.collector.remove(counted)
            counted.close()
        if self.lessor is not None:
            self.lessor.leases.gone(tenant)


def landlord_of(engine: Engine, container: ContainerApi, half: EndpointHalf | None, app: App) -> Landlord:
    """
    `app`: the server's, with `container` as its part or alone.

    Where callers are asked who they are or counted, or MMS has the models, the keeper answers everything.
    """
    if not isinstance(engine, NativeEngine) or (half is not None and half.sees_every_request):
        return Landlord()
    if half is None:
        return Landlord(Lessor(engine, container, None))
    assert isinstance(app, EndpointApi)
    lessor = Lessor(engine, container, app)
    collector = Collector(lessor, half.cache, half.measures)
    half.events.subscribe((ModelLeaving,), lessor.on_leaving)
    half.cache.ask_before_choice(collector.collect_uses)
    half.traffic.on_change = collector.routes_have_changed
    half.measures.before_telling = collector.collect
    lessor.leases.on_ended = collector.slot_ended
    half.tasks.start(collector.collect_again_and_again())
    return Landlord(lessor, collector, origins_of(half.config.host, half.config.allowed_origin))
