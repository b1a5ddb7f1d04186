"""What HTTP clients may take of a server before their requests are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Rate(NamedTuple):
    """How often a caller may call: `burst` requests at once, and `per_sec` of them come again each second."""

    per_sec: float
    burst: int


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """The settings of the same names."""

    max_request_line_bytes: int = 8 * 1024
    max_header_bytes: int = 64 * 1024
    max_header_fields: int = 100
    max_connections: int = 10_000
    keep_alive_secs: float = 75.0
    header_timeout_secs: float = 20.0
    body_timeout_secs: float = 60.0
