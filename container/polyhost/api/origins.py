"""
Whether another site has made a browser send a request.

A server without access control does what it is told by whoever reaches it, and a browser on the same machine or in
the same network reaches it for every page that it shows. Browsers say where a request comes from; other clients do not.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit


class Origins(NamedTuple):
    """
    `allowed`: origins such as `https://models.example`, beside the server's own.

    `checks_host`: whether only this machine can reach the server, so that another name of it is a trick: a site whose
    name has been made to point here (DNS rebinding) is the server's own origin for a browser.
    """

    allowed: frozenset[str] = frozenset()
    checks_host: bool = False


def origins_of(bound_host: str, allowed: Iterable[str]) -> Origins:
    return Origins(frozenset(allowed), is_loopback(bound_host))


def why_foreign(headers: Mapping[str, str], origins: Origins) -> str | None:
    """
    Why the request is refused, None if it is not.

    1. A browser's request from an allowed page passes.
    2. One from a page of another origin does not, nor one of which the browser says that another site caused it.
    3. Where only this machine can reach the server, it must have been called by one of this machine's names.
    """
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin in origins.allowed:
        return None
    if origin is not None and (not host or _netloc(origin) != host.lower()):
        return f"A page of {origin[:100]} may not call this server: {_CURE}"
    if headers.get("sec-fetch-site") == "cross-site":
        return f"A page of another site may not call this server: {_CURE}"
    if origins.checks_host and host and not _is_name_of_this_machine(host, origins.allowed):
        return f"This server listens on this machine alone and is not called {host[:100]}: {_CURE}"
    return None


_CURE = "use --auth, or name what may with --allowed-origin."


def is_loopback(host: str) -> bool:
    """Whether it is an address, or the name, by which a machine reaches itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _netloc(origin: str) -> str:
    """Host and port of an origin in small letters, "" if it has none, as `null`."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


@functools.lru_cache(maxsize=64)
def _is_name_of_this_machine(host: str, allowed: frozenset[str]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) or any(_netloc(origin) == host.lower() for origin in allowed)
