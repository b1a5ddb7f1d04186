"""
Which endpoints are served, which have failed, and why.

Synchronous; it belongs to the thread that owns the state.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyhost.endpoint.arns import ENDPOINT
from polyhost.endpoint.definitions import Container, Endpoint
from polyhost.endpoint.hosting.containers import folders_of, is_allowed
from polyhost.endpoint.hosting.deployments import (
    CREATING,
    FAILED,
    UPDATING,
    endpoint_of,
    settled,
    variant_summary,
)
from polyhost.endpoint.hosting.outcomes import Outcome, invalid, require_weight
from polyhost.endpoint.hosting.records import Records, now
from polyhost.endpoint.hosting.state import Resource, State

logger = logging.getLogger("polyhost.endpoint")

Check = Callable[[Sequence[Container]], "str | None"]


class Served:
    """`own` is the endpoint of the command line: it is shown, and stays as it is."""

    def __init__(
        self, state: State, records: Records, *, own: Endpoint | None, allowed_folders: Sequence[Path], check: Check
    ) -> None:
        self._state = state
        self._records = records
        self._own = own
        self._started = now()
        self._allowed_folders = allowed_folders
        self._check = check
        # Endpoints that were made when the server served what it no longer does, and why it does not.
        self._failures: dict[str, str] = {}
        # What `changes` found last, and in which version of the state.
        self._seen: dict[str, Endpoint] | None = None
        self._seen_version: object = None

    def changes(self) -> dict[str, Endpoint | None]:
        """The endpoints that are otherwise than at the last call: None is gone. All of them at the first one."""
        if self._seen is not None and self._state.version == self._seen_version:
            return {}
        self._seen_version = self._state.version
        before, now = self._seen or {}, self._servable()
        self._seen = now
        changed: dict[str, Endpoint | None] = {
            name: endpoint for name, endpoint in now.items() if before.get(name) != endpoint
        }
        return changed | dict.fromkeys(before.keys() - now.keys())

    def _servable(self) -> dict[str, Endpoint]:
        failures, self._failures = self._failures, {}
        endpoints: dict[str, Endpoint] = {}
        for resource in sorted(self.resources(), key=lambda resource: resource.created):
            if self.status(resource) == FAILED:
                continue
            endpoint = self._definition(resource)
            others = [*self._own_containers(), *_containers_in(endpoints.values())]
            reason = self._reason_against(others, _containers(endpoint))
            if reason:
                self._failures[resource.name] = reason
                if failures.get(resource.name) != reason:
                    logger.warning("endpoint %s is not served: %s", resource.name, reason)
            else:
                endpoints[resource.name] = endpoint
        return endpoints

    def settle(self, endpoint: Endpoint, failure: str | None) -> Mapping[str, Endpoint | None]:
        """Keep what came of a deployment; the endpoints that are otherwise now."""
        found = self._state.transact(lambda: self._settled(endpoint, failure))
        if found is None or failure is None:
            return {}
        resource, before = found
        logger.warning("endpoint %s: %s", resource.name, failure)
        endpoint = self._definition(resource)
        reason = None if before is None else self._reason_against(self._others(resource), _containers(endpoint))
        if reason:
            self._failures[resource.name] = reason
        return {resource.name: None if self.status(resource) == FAILED else endpoint}

    def _settled(self, endpoint: Endpoint, failure: str | None) -> tuple[Resource, Any] | None:
        """What is kept of it now, and what it was before its update; None where nothing is to be kept."""
        resource = self._state.get(ENDPOINT, endpoint.name)
        if resource is None or self._definition(resource) != endpoint:
            return None
        document = settled(resource.document, failure)
        if document is None:
            return None
        before = resource.document.get("Before")
        resource = dataclasses.replace(resource, document=document)
        self._state.put(resource)
        return resource, before

    def put(self, resource: Resource) -> Outcome:
        """Keep an endpoint that is to be served. Raises HostingError where it cannot be, beside the others."""
        require_weight({variant["VariantName"]: variant["Weight"] for variant in resource.document["Variants"]})
        endpoint = self._definition(resource)
        reason = self._reason_against(self._others(resource), _containers(endpoint))
        if reason:
            raise invalid(reason)
        self._state.put(resource)
        return Outcome({"EndpointArn": endpoint.arn}, {resource.name: endpoint})

    def why_not_beside_others(self, containers: Sequence[Container]) -> str | None:
        """Why containers that belong to no endpoint cannot be served beside those that do; None if they can."""
        return self._reason_against([*self._own_containers(), *self._containers_of_all()], containers)

    def forget_failures(self, names: Iterable[str]) -> None:
        """Forget failures of endpoints that were changed since."""
        for name in names:
            self._failures.pop(name, None)

    def resources(self) -> list[Resource]:
        return [resource for resource in self._records.all(ENDPOINT) if not self._records.is_own(resource.name)]

    def status(self, resource: Resource) -> str:
        if resource.name in self._failures:
            return FAILED
        return str(resource.document.get("Status", "InService"))

    def failure(self, resource: Resource) -> str | None:
        return self._failures.get(resource.name) or resource.document.get("FailureReason")

    def require_changeable(self, name: str) -> Resource:
        """Raises HostingError."""
        if self._records.is_own(name):
            raise invalid(
                f'The endpoint "{self._records.arn_of(ENDPOINT, name)}" is the server\'s own: it is as the server was '
                "started, and can be neither updated nor deleted."
            )
        return self._records.require(ENDPOINT, name)

    def require_settled(self, endpoint: Resource) -> None:
        """Raises HostingError."""
        if self.status(endpoint) in (CREATING, UPDATING):
            raise invalid(f'Cannot update in-progress endpoint "{self._records.arn_of(ENDPOINT, endpoint.name)}".')

    def describe_own(self) -> dict[str, Any] | None:
        """The server's own endpoint; None where it has none."""
        if self._own is None:
            return None
        variants = ({"VariantName": variant.name, "Weight": variant.weight} for variant in self._own.variants)
        return {
            "EndpointName": self._own.name,
            "EndpointArn": self._own.arn,
            "EndpointConfigName": self._own.name,
            "CreationTime": self._started,
            "LastModifiedTime": self._started,
            "EndpointStatus": "InService",
            "ProductionVariants": [variant_summary(variant) for variant in variants],
        }

    def _others(self, resource: Resource) -> list[Container]:
        """The containers of all other endpoints that are served."""
        return [*self._own_containers(), *self._containers_of_all(but=resource.name)]

    def _containers_of_all(self, but: str = "") -> list[Container]:
        served = (one for one in self.resources() if one.name != but and self.status(one) != FAILED)
        return _containers_in(self._definition(one) for one in served)

    def _own_containers(self) -> list[Container]:
        return _containers(self._own) if self._own else []

    def _reason_against(self, others: Sequence[Container], containers: Sequence[Container]) -> str | None:
        for folder in folders_of(containers):
            if not is_allowed(folder, self._allowed_folders):
                return f"{folder} does not lie under a folder that this server may serve models from."
        return self._check([*others, *containers])

    def _definition(self, resource: Resource) -> Endpoint:
        return endpoint_of(resource.name, self._records.arn_of(ENDPOINT, resource.name), resource.document)


def _containers_in(endpoints: Iterable[Endpoint]) -> list[Container]:
    return [container for endpoint in endpoints for container in _containers(endpoint)]


def _containers(endpoint: Endpoint) -> list[Container]:
    return [container for variant in (*endpoint.variants, *endpoint.shadows) for container in variant.containers]
