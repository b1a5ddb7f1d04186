"""
All that the front and the fetcher ever say to each other, in msgpack.

Every order carries an id that its answer repeats; answers come as they are ready. Across the socket go codes and
text, never an exception.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from polyhost.endpoint.errors import (
    ArtifactMissing,
    ArtifactUnusable,
    DiskFull,
    EndpointError,
    StoreFailed,
    ValidationError,
)


@dataclass(frozen=True)
class Listed:
    """An archive as its store tells of it. `version`: the ETag of S3; of a file its time, size and inode."""

    version: str
    size_bytes: int


class ArtifactForbidden(ArtifactMissing):
    """Nobody here may read it, or, to one who may not list the bucket, it is missing. Access can come back."""


class ArtifactTooLarge(ValidationError):
    """It would never fit the disk's budget."""


class ArtifactChanged(StoreFailed):
    """It is no longer the version that was asked for."""


# Front to fetcher


class Settings(msgspec.Struct, frozen=True, tag="settings"):
    """Comes first, over the socket: what a process is started with, others can read."""

    environ: dict[str, str]
    connect_secs: float
    read_secs: float
    # Longest that one archive may take.
    fetch_secs: float

    def __repr__(self) -> str:
        return "Settings(…)"


class List(msgspec.Struct, frozen=True, tag="list"):
    id: int
    source: str


class LookUp(msgspec.Struct, frozen=True, tag="look-up"):
    id: int
    source: str
    key: str


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """
    Fetch and unpack this version into `place` (a new folder, removed before and upon failure), then rename it to `to`.
    """

    id: int
    source: str
    key: str
    listed: Listed
    place: str
    to: str
    limit_bytes: int


# Fetcher to front


class Page(msgspec.Struct, frozen=True, tag="page"):
    """A part of a listing; `Done` follows the last."""

    id: int
    archives: dict[str, Listed]


class Done(msgspec.Struct, frozen=True, tag="done"):
    id: int


class Found(msgspec.Struct, frozen=True, tag="found"):
    id: int
    listed: Listed


class Fetched(msgspec.Struct, frozen=True, tag="fetched"):
    """`disk_bytes`: what it takes of the disk, blocks counted whole."""

    id: int
    unpacked_bytes: int
    disk_bytes: int
    secs: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    id: int
    kind: str
    message: str


Question = List | LookUp | Fetch
ToFetcher = Settings | Question
ToFront = Page | Done | Found | Fetched | Failed

# What a failure's kind stands for.
KINDS: dict[str, type[EndpointError]] = {
    "invalid": ValidationError,
    "missing": ArtifactMissing,
    "forbidden": ArtifactForbidden,
    "unusable": ArtifactUnusable,
    "too-large": ArtifactTooLarge,
    "store": StoreFailed,
    "changed": ArtifactChanged,
    "disk-full": DiskFull,
}
_KIND_OF = {kind: name for name, kind in KINDS.items()}


def failed(order_id: int, error: EndpointError) -> Failed:
    return Failed(order_id, _KIND_OF[type(error)], error.message)
