"""What a fleet is: its servers, and how requests are to be divided among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from polyhost.errors import InvalidSetting

# A host's name or address, IPv6 in brackets, and a port; `{}` stands for the server's number.
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._{}-]+):(?P<port>[0-9{}]+)")
# What may stand between quotes in HAProxy's files, in YAML and in a path without being read as anything else.
_PLAIN = re.compile(r"[A-Za-z0-9._/@:-]+")
_MAX_PORT = 65535


@dataclass(frozen=True)
class Server:
    """
    One Polyhost.

    Its number decides which models are its own: a server that comes back under another address, with the same number,
    has the same models on its disk.
    """

    number: int
    host: str
    port: int

    @property
    def name(self) -> str:
        return f"polyhost-{self.number}"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """
    `endpoint_name`: the endpoint that `/invocations` means. `copy_at`: requests/s of one model, by the whole fleet,
    for each of which it gets one more copy. `routers`: how many HAProxies share the requests, so that each sees its
    part of a rate. `tls_cert`, `tls_key`: files at the router, with which clients are answered by HTTPS.
    `server_ca`: a file at the router; where it is given, the servers are asked by HTTPS.
    `resolves`: whether names of servers may come to mean other addresses. `slow_start_secs`: in which time a server
    that comes back gets all of its models again.
    """

    servers: Sequence[Server]
    endpoint_name: str = "polyhost"
    copy_at: float = 50.0
    routers: int = 1
    listen: int = 8080
    metrics_listen: int = 8405
    ready_path: str = "/ready"
    tls_cert: str = ""
    tls_key: str = ""
    server_ca: str = ""
    resolves: bool = False
    slow_start_secs: int = 20


def servers_of(replicas: int, addresses: Sequence[str]) -> list[Server]:
    """
    One for each number below `replicas`.

    `addresses`: one with `{}` in it for all of them, or one for each. Raises InvalidSetting.
    """
    if len(addresses) == 1 and "{}" in addresses[0]:
        addresses = [addresses[0].replace("{}", str(number)) for number in range(replicas)]
    if len(addresses) != replicas:
        raise InvalidSetting(
            f"--server: {len(addresses)} addresses are given for {replicas} replicas. Give one for each, or one in "
            "which {} stands for a server's number.",
        )
    servers = [_server(number, address) for number, address in enumerate(addresses)]
    if len({server.address for server in servers}) < replicas:
        raise InvalidSetting("--server: an address is given twice. Each replica needs one of its own.")
    return servers


def plain(option: str, text: str) -> str:
    """`text`, where it means nothing but itself in the files that are written. Raises InvalidSetting."""
    if text and not _PLAIN.fullmatch(text):
        raise InvalidSetting(f"{option}: {text!r} has characters that a configuration reads as its own. Rename it.")
    return text


def _server(number: int, address: str) -> Server:
    found = _ADDRESS.fullmatch(address)
    if not found or "{" in address or "}" in address or not 0 < int(found["port"]) <= _MAX_PORT:
        raise InvalidSetting(
            f"--server: {address!r} is not HOST:PORT. Write a name or an address, and a port of 1 to {_MAX_PORT}."
        )
    return Server(number, found["host"], int(found["port"]))
