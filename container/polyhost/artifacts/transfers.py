"""
All that the front and the fetcher ever say to each other, in msgpack.

Every order carries an id that its answer repeats; answers come as they are ready. Across the socket go codes and
text, never an exception.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from polyhost.service_errors import (
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
    """
    The server may not read it. A server that may not list the bucket cannot tell this from a missing object.

    Access can come back.
    """


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
    # Longest that one archive may take: to be fetched, and to be unpacked.
    fetch_secs: float
    unpack_secs: float
    # Whether buckets will be asked soon: then boto3 is imported at the start, which takes 0.2 s of a CPU and 29 MB.
    expects_buckets: bool = True

    def __repr__(self) -> str:
        return "Settings(…)"


class List(msgspec.Struct, frozen=True, tag="list"):
    """List `most` archives, by name, that come after `after`."""

    id: int
    source: str
    after: str = ""
    most: int = 1000


class LookUp(msgspec.Struct, frozen=True, tag="look-up"):
    """`known`: what the store has said before, so that it need only say whether that is so yet."""

    id: int
    source: str
    key: str
    known: Listed | None = None


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


class Unpack(msgspec.Struct, frozen=True, tag="unpack"):
    """Unpack the file `source` into the new folder `to`. `Done` is the answer."""

    id: int
    source: str
    to: str


class ReadObject(msgspec.Struct, frozen=True, tag="read-object"):
    """An object of a bucket, unless it is still of the version `known`."""

    id: int
    source: str
    key: str
    known: str


class WriteObject(msgspec.Struct, frozen=True, tag="write-object"):
    """Write it where it is still of the version `expected`; "": where there is none. `Content` is the answer."""

    id: int
    source: str
    key: str
    body: bytes
    expected: str

    def __repr__(self) -> str:
        return f"WriteObject({self.source}{self.key})"


class ListObjects(msgspec.Struct, frozen=True, tag="list-objects"):
    """All objects of a bucket or folder whose keys begin with `prefix`, `most` at most."""

    id: int
    source: str
    prefix: str
    most: int


class CopyObject(msgspec.Struct, frozen=True, tag="copy-object"):
    """Copy an object to the file `to`. `Done` is the answer."""

    id: int
    source: str
    key: str
    to: str


class PutObject(msgspec.Struct, frozen=True, tag="put-object"):
    """Write `file` as an object, whole or not at all. `Done` is the answer."""

    id: int
    source: str
    key: str
    file: str
    kms_key: str


class ReadPayload(msgspec.Struct, frozen=True, tag="read-payload"):
    """What a model is asked, as an object of a bucket or folder. `Payload` is the answer."""

    id: int
    source: str
    key: str
    most_bytes: int


class WritePayload(msgspec.Struct, frozen=True, tag="write-payload"):
    """Write an object, whole or not at all, over what is there. `Done` is the answer."""

    id: int
    source: str
    key: str
    body: bytes
    content_type: str
    kms_key: str

    def __repr__(self) -> str:
        return f"WritePayload({self.source}{self.key})"


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """The order of this id is not wanted any more."""

    id: int


# Fetcher to front


class Page(msgspec.Struct, frozen=True, tag="page"):
    """A part of a listing; `Done` follows the last."""

    id: int
    archives: dict[str, Listed]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """`has_more`: of a listing, whether there are archives behind its last one."""

    id: int
    has_more: bool = False


class Found(msgspec.Struct, frozen=True, tag="found"):
    id: int
    listed: Listed


class Content(msgspec.Struct, frozen=True, tag="content"):
    """`body` is empty where only the version was asked for, or is as known."""

    id: int
    version: str
    body: bytes = b""

    def __repr__(self) -> str:
        return f"Content({self.version}, {len(self.body)} bytes)"


class Payload(msgspec.Struct, frozen=True, tag="payload"):
    """`content_type`: as its store has it, "" where it has none."""

    id: int
    body: bytes
    content_type: str

    def __repr__(self) -> str:
        return f"Payload({len(self.body)} bytes)"


class Fetched(msgspec.Struct, frozen=True, tag="fetched"):
    """
    `disk_bytes`: what it takes of the disk, blocks counted whole. `meta_sha256`: of the file that lists what is in it.
    """

    id: int
    unpacked_bytes: int
    disk_bytes: int
    meta_sha256: str
    secs: float


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    id: int
    kind: str
    message: str
    # What the archive takes, where the disk is full.
    need_bytes: int = 0

    @property
    def error(self) -> EndpointError:
        if self.need_bytes:
            return DiskFull(self.message, need_bytes=self.need_bytes)
        return KINDS[self.kind](self.message)


Question = (
    List
    | LookUp
    | Fetch
    | Unpack
    | ReadObject
    | WriteObject
    | ListObjects
    | CopyObject
    | PutObject
    | ReadPayload
    | WritePayload
)
ToFetcher = Settings | Question | Cancel
ToFront = Page | Done | Found | Fetched | Content | Payload | Failed

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
    need_bytes = error.need_bytes if isinstance(error, DiskFull) else 0
    return Failed(order_id, _KIND_OF[type(error)], error.message, need_bytes)
