"""
The resources of the control plane by kind and name: found, created and deleted, with their ARNs and tags.

Synchronous; it belongs to the thread that owns the state.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyhost.endpoint.arns import CONFIG, ENDPOINT, MODEL, NAME_FIELDS, TRANSFORM, Arns
from polyhost.endpoint.definitions import Endpoint
from polyhost.endpoint.hosting.outcomes import invalid
from polyhost.endpoint.hosting.state import Resource, State

_IN_WORDS = {MODEL: "model", CONFIG: "endpoint configuration", ENDPOINT: "endpoint", TRANSFORM: "transform job"}
_MOST_TAGS = 50


class Records:
    """`own` is the endpoint of the command line: it has a name, an ARN and tags, and is no resource of the state."""

    def __init__(self, state: State, arns: Arns, own: Endpoint | None) -> None:
        self._state = state
        self.arns = arns
        self._own = own

    def is_own(self, name: str) -> bool:
        return self._own is not None and self._own.name.lower() == name.lower()

    def arn_of(self, kind: str, name: str) -> str:
        return self.arns.of(kind, name)

    def all(self, kind: str) -> Sequence[Resource]:
        return self._state.all(kind)

    def require(self, kind: str, name: str) -> Resource:
        """Raises HostingError."""
        resource = self._state.get(kind, name)
        if resource is None:
            raise invalid(f'Could not find {_IN_WORDS[kind]} "{self.arns.of(kind, name)}".')
        return resource

    def require_new(self, kind: str, name: str) -> None:
        """Raises HostingError."""
        if self._state.get(kind, name) or (kind == ENDPOINT and self.is_own(name)):
            raise invalid(f'Cannot create already existing {_IN_WORDS[kind]} "{self.arns.of(kind, name)}".')

    def create(self, kind: str, name: str, asked: Mapping[str, Any]) -> str:
        """Keep a resource as it was asked for; its ARN. Raises HostingError for too many tags."""
        arn = self.arns.of(kind, name)
        document = {key: value for key, value in asked.items() if key not in ("Tags", NAME_FIELDS[kind])}
        created = now()
        self._state.put(Resource(kind, name, created, created, document))
        self.add_tags(arn, {}, asked.get("Tags", ()))
        return arn

    def delete(self, kind: str, name: str) -> None:
        """Raises HostingError."""
        self.require(kind, name)
        self._state.delete(kind, name)
        self._state.set_tags(self.arns.of(kind, name), {})

    def described(self, resource: Resource, arn_field: str) -> dict[str, Any]:
        """What every description begins with."""
        return {
            NAME_FIELDS[resource.kind]: resource.name,
            arn_field: self.arns.of(resource.kind, resource.name),
            "CreationTime": resource.created,
        }

    # Tags

    def require_taggable(self, arn: str) -> str:
        """The ARN of what it names, as we write it. Raises HostingError."""
        read = self.arns.read(arn)
        if read is None:
            raise invalid(f'Could not find resource "{arn[:256]}".')
        kind, name = read
        if not (kind == ENDPOINT and self.is_own(name)):
            self.require(kind, name)
        return self.arns.of(kind, name)

    def tags(self, arn: str) -> Mapping[str, str]:
        return self._state.tags(arn)

    def add_tags(self, arn: str, old: Mapping[str, str], tags: Sequence[Mapping[str, str]]) -> None:
        """Raises HostingError."""
        all_tags = {**old, **{tag["Key"]: tag["Value"] for tag in tags}}
        if len(all_tags) > _MOST_TAGS:
            raise invalid(f"A resource has {_MOST_TAGS} tags at most: with these it would have {len(all_tags)}.")
        self._state.set_tags(arn, all_tags)

    def remove_tags(self, arn: str, keys: Iterable[str]) -> None:
        removed = set(keys)
        self._state.set_tags(arn, {key: value for key, value in self._state.tags(arn).items() if key not in removed})


def now() -> float:
    """Seconds since 1970, to the millisecond, as the state keeps them."""
    return round(time.time(), 3)
