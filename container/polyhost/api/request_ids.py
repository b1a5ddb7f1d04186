"""The ids of requests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator


def request_ids() -> Iterator[str]:
    """UUIDs of this process: a random part and a count."""
    start = os.urandom(10).hex()
    prefix = f"{start[:8]}-{start[8:12]}-4{start[12:15]}-a{start[15:18]}"
    return (f"{prefix}-{number:012x}" for number in itertools.count(1))
