"""HAProxy's configuration: `haproxy.cfg` beside this file, filled in."""

from __future__ import annotations

import math
import string
from collections.abc import Iterable
from pathlib import Path

from polyhost.fleet.layout import Fleet, Server

# Over how many seconds HAProxy counts a model's requests.
_WINDOW_SECS = 5
_RESOLVERS = """
# Servers' names are looked up again, since a name may come to mean another address.
resolvers names
    parse-resolv-conf
    accepted_payload_size 8192
    hold valid 2s
    hold nx 2s
    hold other 2s
"""


def configuration(fleet: Fleet) -> str:
    return filled(
        fleet,
        servers=_lines(fleet.servers, ""),
        tracking_servers=_lines(fleet.servers, " track predictions/{}"),
        count=str(len(fleet.servers)),
        everywhere=str(everywhere(len(fleet.servers))),
        requests_per_copy=str(requests_per_copy(fleet.copy_at, fleet.routers)),
    )


def filled(fleet: Fleet, **parts: str) -> str:
    """The file with these parts; the others are as the fleet has them."""
    template = string.Template((Path(__file__).parent / "haproxy.cfg").read_text(encoding="utf-8"))
    own = {
        "listen": str(fleet.listen),
        "metrics_listen": str(fleet.metrics_listen),
        "bind_tls": f" ssl crt {fleet.tls_cert}" if fleet.tls_cert else "",
        "endpoint_name": fleet.endpoint_name,
        "ready_path": fleet.ready_path,
        "copy_at": f"{fleet.copy_at:g}",
        "of_routers": f" that {fleet.routers} HAProxies get together" if fleet.routers > 1 else "",
        "slow_start": f" slowstart {fleet.slow_start_secs}s" if fleet.slow_start_secs else "",
        "resolvers": _RESOLVERS if fleet.resolves else "",
        "server_options": _server_options(fleet),
    }
    return template.substitute({**own, **parts})


def requests_per_copy(copy_at: float, routers: int) -> int:
    """How many requests within the window, at one of the HAProxies, a further copy is for."""
    return max(1, round(copy_at * _WINDOW_SECS / routers))


def everywhere(servers: int) -> int:
    """
    From how many copies on a model is at all servers: a quarter of these, at least two.

    Copies are placed by chance, and the hottest model's would meet at one server.
    """
    return max(2, math.ceil(servers / 4))


def _server_options(fleet: Fleet) -> str:
    tls = f" ssl verify required ca-file {fleet.server_ca}" if fleet.server_ca else ""
    return tls + (" resolvers names init-addr last,libc,none" if fleet.resolves else "")


def _lines(servers: Iterable[Server], more: str) -> str:
    return "\n".join(
        f"    server {server.name} {server.address} id {server.number + 1}{more.format(server.name)}"
        for server in servers
    )
