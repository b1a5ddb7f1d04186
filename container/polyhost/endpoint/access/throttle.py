"""How often callers may call. The decision is a function; what it remembers of each caller is one number."""

from __future__ import annotations

import functools
import ipaddress
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping

from polyhost.http_limits import Rate
from polyhost.service_errors import Throttled

# The caller who was here the longest ago is forgotten first. Who is forgotten begins with a whole burst.
_MOST_CALLERS = 20_000
# Refusals of this many callers are counted apart, those of later ones together.
_MOST_NAMES = 1_000
_OTHERS = "(other)"
# What sums of times may be wrong by.
_ROUNDING_SECS = 1e-6
# A site has an IPv6 network of at least this size, and may use any address in it.
_SITE_BITS = 64


def admitted(due: float, now: float, rate: Rate) -> tuple[float, float]:
    """
    Whether a request may pass that comes `now`: the new `due`, and how many seconds it must wait, 0.0 if it may pass.

    `due` is when all that passed before would have passed at an even pace. A burst may be ahead of that pace. A request
    that must wait takes nothing from the next one.
    """
    due = max(due, now)
    wait_secs = due - now - (rate.burst - 1) / rate.per_sec
    if wait_secs > _ROUNDING_SECS:
        return due, wait_secs
    return due + 1 / rate.per_sec, 0.0


class Throttle:
    """It is asked by the event loop and by threads that check signatures."""

    def __init__(
        self, *, now: Callable[[], float] = time.monotonic, most_callers: int = _MOST_CALLERS, known: Iterable[str] = ()
    ) -> None:
        """`known`: names that are counted from the beginning, so that a metric has them with 0."""
        self._now = now
        self._most_callers = most_callers
        # In the order of their last requests.
        self._due: dict[Hashable, float] = {}
        self._refused = dict.fromkeys(known, 0)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._due)

    def refused(self) -> Mapping[str, int]:
        """How many requests of each caller were refused, since the server has started."""
        with self._lock:
            return dict(self._refused)

    def admit(self, who: Hashable, name: str, rate: Rate, *, counted_as: str | None = None) -> None:
        """`name`: for the error. `counted_as`: for `refused`, None for the name. Raises Throttled."""
        with self._lock:
            due, wait_secs = admitted(self._due.pop(who, 0.0), self._now(), rate)
            self._due[who] = due
            if len(self._due) > self._most_callers:
                del self._due[next(iter(self._due))]
            if wait_secs:
                self._count(counted_as or name)
        if wait_secs:
            raise Throttled(
                f"Rate exceeded: {name} may make {rate.per_sec:g} requests per second, {rate.burst} at once. "
                "Send less, or have the rate limit raised (docs/rate-limits.md).",
                retry_after_secs=math.ceil(wait_secs),
            )

    def _count(self, name: str) -> None:
        if name not in self._refused and len(self._refused) >= _MOST_NAMES:
            name = _OTHERS
        self._refused[name] = self._refused.get(name, 0) + 1


@functools.lru_cache(maxsize=4096)
def site_of(address: str) -> str:
    """What an address counts as: an IPv4 address as itself, also in IPv6's form; one of IPv6 as its network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _SITE_BITS), strict=False))
