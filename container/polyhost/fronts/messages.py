"""
All that a front and the keeper say to each other, in msgpack.

Both are ours alone: no code of a model runs in either. A request carries a number, which its reply repeats. Replies
come in any order.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from polyhost.api.http import Headers
from polyhost.http_limits import HttpLimits

# What the length before a message can say. How much a client may send is said by the limits of requests.
MOST_BYTES = 2**32 - 1


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What a front is started with, as JSON on its command line. Descriptors are numbers of its own."""

    keeper_pid: int
    # Which of the fronts it is; the keeper is number 0.
    number: int
    board: int
    # The flags of leases.
    leases: int
    # Another one for each process: the socket to the keeper, that over which segments are passed, and what it counts.
    link: int = -1
    segments: int = -1
    counts: int = -1
    listening: list[int]
    limits: HttpLimits
    max_request_bytes: int
    drain_secs: float
    tls_cert: str | None
    tls_key: str | None
    log_format: str
    has_access_log: bool
    is_hidden: bool
    # From where browsers may call, where that is looked at: as Origins has them.
    origins: tuple[list[str], bool] | None
    # Header fields that decide what is answered, besides those that say what a row is and how it is answered.
    deciding: list[str]


# A front to the keeper


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    """It accepts connections."""


class Ask(msgspec.Struct, frozen=True, tag="ask", array_like=True):
    """
    A client's request. `is_too_large`: its body has more bytes than it may, and was not read.

    `wants_lease`: whether the front would answer the next one like it.
    """

    number: int
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    peer: str = ""
    is_too_large: bool = False
    wants_lease: bool = False


class Left(msgspec.Struct, frozen=True, tag="left", array_like=True):
    """The client has gone: nobody waits for the reply to this request."""

    number: int


class Returned(msgspec.Struct, frozen=True, tag="returned", array_like=True):
    """The front does not read any more what it was given by this lease."""

    slot: int
    serial: int


# The keeper to a front


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """
    A lease, and what the front puts around its rows' answers: header fields by what a client accepts, an id's name, and
    further lines.

    `lane`: of a variant of an endpoint, where its calls are counted; -1 for a model of the container's API.
    """

    slot: int
    serial: int
    segment: int
    offset: int
    default_accept: str
    headers: dict[str, Headers]
    id_field: bytes
    lines: bytes = b""
    lane: int = -1
    endpoint: str = ""
    variant: str = ""
    target: str = ""


class Piece(msgspec.Struct, frozen=True, tag="piece", array_like=True):
    """Of the body of a reply that comes in parts. The last one has no body; `is_whole` says whether all has come."""

    number: int
    body: bytes
    is_whole: bool = False


class Replied(msgspec.Struct, frozen=True, tag="replied", array_like=True):
    """`comes_in_parts`: pieces of its body follow."""

    number: int
    body: bytes
    status: int
    headers: Headers
    own_headers: bytes
    closes: bool
    grant: Grant | None = None
    comes_in_parts: bool = False


class Revoked(msgspec.Struct, frozen=True, tag="revoked", array_like=True):
    """The lease does not hold any more, as its flag says already."""

    slot: int


class Look(msgspec.Struct, frozen=True, tag="look", array_like=True):
    """The certificate's files may have changed."""


class Leave(msgspec.Struct, frozen=True, tag="leave", array_like=True):
    """The server will stop soon: each connection ends with its next answer."""


class Stop(msgspec.Struct, frozen=True, tag="stop", array_like=True):
    """Accept no more connections, answer what is in flight, and end."""


ToKeeper: TypeAlias = Ready | Ask | Left | Returned
ToFront: TypeAlias = Replied | Piece | Revoked | Look | Leave | Stop
