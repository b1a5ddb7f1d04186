"""
A gRPC call as REST has it: access control and rate limits know requests, and decide for both in one place.

The request that stands for a call has the path of the REST route that does the same, with no model's name in it: a
name is the client's, and must not lead to another route.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

from polyhost.api.http import Request

_MODEL, _REPOSITORY = "/v2/models/-", "/v2/repository"
ROUTES = {
    "ServerLive": ("GET", "/v2/health/live"),
    "ServerReady": ("GET", "/v2/health/ready"),
    "ServerMetadata": ("GET", "/v2"),
    "ModelReady": ("GET", f"{_MODEL}/ready"),
    "ModelMetadata": ("GET", _MODEL),
    "ModelInfer": ("POST", f"{_MODEL}/infer"),
    "RepositoryIndex": ("POST", f"{_REPOSITORY}/index"),
    "RepositoryModelLoad": ("POST", f"{_REPOSITORY}/models/-/load"),
    "RepositoryModelUnload": ("POST", f"{_REPOSITORY}/models/-/unload"),
}


def request_of(name: str, metadata: Iterable[tuple[str, str | bytes]], peer: str) -> Request:
    """
    `name`: the call's. `peer`: as grpcio writes it, such as `ipv4:192.0.2.7:51234`.

    Values that are bytes are no header fields, and are left out. Of a key that comes twice, all values count.
    """
    method, path = ROUTES[name]
    headers: dict[str, str] = {}
    for key, value in metadata:
        if isinstance(value, str):
            headers[key] = f"{headers[key]},{value}" if key in headers else value
    return Request(method, path, "", headers, b"", address_of(peer))


def address_of(peer: str) -> str:
    """Empty where the client has no address, as on a Unix socket."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest.rpartition(":")[0]).strip("[]")
