"""
Where the control plane's resources are kept: what every place for them can do, and what those in memory share.

There are three: a file of one server's own (sqlite_state), a file that an operator writes (file_state), and an object
of a bucket that several servers share (bucket_state). All of it blocks, and belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class StateFailed(Exception):
    """It cannot be read or written now. What was to be changed is as it was."""


@dataclass(frozen=True)
class Resource:
    """Times in seconds since 1970, to the millisecond."""

    kind: str
    name: str
    created: float
    modified: float
    document: Mapping[str, Any]


class State(Protocol):
    """
    Names that differ only in case are the same. Everything is done within a transaction.

    `poll_secs`: how often others may have changed it, 0.0 where nobody else can. `version` differs once they have.
    `refusal`: why it is not changed here, in a sentence; "" where it is.
    """

    poll_secs: float
    refusal: str

    @property
    def version(self) -> object: ...

    def transact(self, work: Callable[[], T]) -> T:
        """
        Do `work` on the newest state; what it writes is kept, all of it or nothing. It may be called again.

        Raises StateFailed, and what `work` raises.
        """

    def close(self) -> None: ...

    def get(self, kind: str, name: str) -> Resource | None: ...

    def all(self, kind: str) -> Sequence[Resource]:
        """By name."""

    def put(self, resource: Resource) -> None: ...

    def delete(self, kind: str, name: str) -> None: ...

    def tags(self, arn: str) -> dict[str, str]: ...

    def set_tags(self, arn: str, tags: Mapping[str, str]) -> None: ...


class Contents(dict[tuple[str, str], Any]):
    """
    Everything of a state in memory, by kind and name in small letters; tags are of the kind TAGS, by ARN.

    Values are never changed, only replaced: a copy is a snapshot.
    """

    def copy(self) -> Contents:
        return Contents(self)


TAGS = "tags"


class InMemory:
    """A `State` but for its transactions: those who keep it elsewhere add them."""

    poll_secs = 0.0
    refusal = ""

    def __init__(self) -> None:
        self.contents = Contents()

    @property
    def version(self) -> object:
        return None

    def transact(self, work: Callable[[], T]) -> T:
        before = self.contents.copy()
        try:
            return work()
        except BaseException:
            self.contents = before
            raise

    def close(self) -> None:
        pass

    def get(self, kind: str, name: str) -> Resource | None:
        return self.contents.get((kind, name.lower()))

    def all(self, kind: str) -> Sequence[Resource]:
        return [self.contents[key] for key in sorted(key for key in self.contents if key[0] == kind)]

    def put(self, resource: Resource) -> None:
        self.contents[resource.kind, resource.name.lower()] = resource

    def delete(self, kind: str, name: str) -> None:
        self.contents.pop((kind, name.lower()), None)

    def tags(self, arn: str) -> dict[str, str]:
        return dict(self.contents.get((TAGS, arn), {}))

    def set_tags(self, arn: str, tags: Mapping[str, str]) -> None:
        if tags:
            self.contents[TAGS, arn] = dict(sorted(tags.items()))
        else:
            self.contents.pop((TAGS, arn), None)
