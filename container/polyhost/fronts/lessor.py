"""What fronts may answer themselves: the keeper leases it to them, and revokes it before anything else changes."""

from __future__ import annotations

from polyhost.api.container import ID_FIELD as CONTAINERS_ID_FIELD
from polyhost.api.container import ContainerApi, answer_result
from polyhost.api.endpoint import EndpointApi
from polyhost.api.http import Headers, Request
from polyhost.api.runtime import ID_FIELD, Resident, answer_headers
from polyhost.endpoint.events import ModelLeaving
from polyhost.endpoint.shelf import Model, Shelf
from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.native.leases import Tenant
from polyhost.engine.native.rows import ROW_HEADERS, RowModel
from polyhost.engine.protocol import Answer
from polyhost.fronts.counts import LANES
from polyhost.fronts.messages import Grant

_CONTAINERS_HEADERS = {
    accept: answer_result(Answer(200, headers, b"")).headers for accept, headers in ROW_HEADERS.items()
}


class Lessor:
    """
    Of a server whose routes are open: where access is controlled, the keeper asks for it with each request.

    A model of the container's API is leased until the engine drops it, which is the engine's to say. One of an endpoint
    is also revoked when the cache lets it go, or when the endpoint's requests go elsewhere.
    """

    def __init__(self, engine: NativeEngine, container: ContainerApi, endpoints: EndpointApi | None) -> None:
        """`endpoints`: the whole application of a server that has an endpoint."""
        self.leases = engine.leases
        self._engine = engine
        self._container = container
        self._endpoints = endpoints
        # Variants with their lanes.
        self.lanes: dict[tuple[str, str], int] = {}
        # Models of endpoints that are leased, and by their slots.
        self._leased: dict[tuple[Shelf, str], RowModel] = {}
        self.models: dict[int, Model] = {}

    def grant(self, request: Request, tenant: Tenant) -> Grant | None:
        """A lease for requests like this one, which was just answered; None where there is none."""
        if self._endpoints is not None and self._endpoints.routes.find(request) is not None:
            resident = self._endpoints.resident(request)
            return None if resident is None else self._grant_resident(resident, tenant)
        found = self._container.routes.find(request)
        name = None if found is None else self._container.predicting(found, request)
        rows = None if name is None else self._engine.rows_of(name)
        lease = None if rows is None else self.leases.give(rows, tenant)
        return None if lease is None else Grant(*lease, headers=_CONTAINERS_HEADERS, id_field=CONTAINERS_ID_FIELD)

    def _grant_resident(self, resident: Resident, tenant: Tenant) -> Grant | None:
        rows = self._engine.rows_of(resident.loaded.name)
        lane = self._lane_of(resident)
        lease = None if rows is None or lane is None else self.leases.give(rows, tenant)
        if rows is None or lane is None or lease is None:
            return None
        model = resident.model
        self._leased[model.shelf, model.target] = rows
        self.models[lease.slot] = model
        return Grant(
            *lease, headers=_headers(resident.variant), id_field=ID_FIELD, lines=resident.signals,
            lane=lane, endpoint=resident.endpoint, variant=resident.variant, target=model.target,
        )  # fmt: skip

    def _lane_of(self, resident: Resident) -> int | None:
        names = resident.endpoint, resident.variant
        if names not in self.lanes and len(self.lanes) < LANES:
            self.lanes[names] = len(self.lanes)
        return self.lanes.get(names)

    def on_leaving(self, event: ModelLeaving) -> None:
        rows = self._leased.pop((event.shelf, event.target), None)
        if rows is not None:
            self.leases.revoke(rows)

    def routes_have_changed(self) -> None:
        for rows in self._leased.values():
            self.leases.revoke(rows)
        self._leased.clear()

    def ended(self, slot: int) -> None:
        """No front has the slot any more."""
        self.models.pop(slot, None)


def _headers(variant: str) -> dict[str, Headers]:
    return {accept: answer_headers(headers, variant) for accept, headers in ROW_HEADERS.items()}
