"""
How long a client may take for each phase of a request, and what its connection comes to then.

Decides only, from what it is given. Times are the loop's.
"""

from __future__ import annotations

import enum

from polyhost.api.parsing import Refused
from polyhost.http_limits import HttpLimits

# How long a client that is still sending is read from after its reply: in all, and with nothing coming.
_LINGER_SECS = 30.0
_LINGER_SILENT_SECS = 5.0
# Once the server stops: how long a body may pause, and how long it may still take in all.
_STOPPING_SILENT_SECS = 0.5
_STOPPING_BODY_SECS = 2.0
# Over TLS a client that has its answer is waited for so long to say goodbye.
_GOODBYE_SECS = 0.2


class Phase(enum.Enum):
    """What a connection is at. `CLOSING`: the last reply is on its way. `LINGERING`: what still comes is dropped."""

    IDLE = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWERING = enum.auto()
    CLOSING = enum.auto()
    LINGERING = enum.auto()


class End(enum.Enum):
    """What a connection comes to whose time is up."""

    REFUSE = enum.auto()
    ABORT = enum.auto()
    CLOSE = enum.auto()


def end_of(phase: Phase, *, is_stuck: bool, is_stopping: bool) -> End:
    """
    What to do with a connection whose time is up. `is_stuck`: it has written what the client does not read.

    1. A request that did not come in time is refused, unless the server stops.
    2. A client that does not read its answer is cut off: a close would wait for it.
    3. All others are closed.
    """
    if phase in (Phase.HEAD, Phase.BODY) and not is_stopping:
        return End.REFUSE
    return End.ABORT if is_stuck else End.CLOSE


def expires_at(
    phase: Phase, since: float, last_data_at: float, limits: HttpLimits, *, stopping_since: float | None,
    is_over: bool = False,
) -> float | None:  # fmt: skip
    """
    When a connection has been at `phase`, since `since`, for too long; None: never.

    `is_over`: a client of TLS has its whole answer, and once the connection closes has only to say goodbye.
    """
    match phase:
        case Phase.IDLE | Phase.CLOSING:
            return since + (_GOODBYE_SECS if is_over and phase is Phase.CLOSING else limits.keep_alive_secs)
        case Phase.HEAD:
            return since + limits.header_timeout_secs
        case Phase.BODY:
            ends_at = since + limits.body_timeout_secs
            if stopping_since is None:
                return ends_at
            return min(ends_at, last_data_at + _STOPPING_SILENT_SECS, stopping_since + _STOPPING_BODY_SECS)
        case Phase.LINGERING:
            return min(since + _LINGER_SECS, last_data_at + _LINGER_SILENT_SECS)
        case Phase.ANSWERING:
            return None  # the engine has limits of its own


def too_slow(phase: Phase, limits: HttpLimits) -> Refused:
    if phase is Phase.HEAD:
        what, secs, setting = "header", limits.header_timeout_secs, "--header-timeout-secs"
    else:
        what, secs, setting = "body", limits.body_timeout_secs, "--body-timeout-secs"
    return Refused(408, f"The request's {what} did not come within {secs:g} s: send it faster, or raise {setting}.")
