"""The files that the dashboard's page is made of, with what tells browsers to take nothing from elsewhere."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple

from polyhost.api.http import Headers, Reply, Request

# Header of every answer of the dashboard: it allows our own files of scripts and styles, and none within a page.
_POLICY = (
    b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
SAFE: Headers = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_PAGE = "index.html"
_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}


class Asset(NamedTuple):
    body: bytes
    etag: str
    headers: Headers

    def reply(self, request: Request) -> Reply:
        if request.headers.get("if-none-match") == self.etag:
            return Reply(b"", 304, self.headers)
        return Reply(self.body, 200, self.headers)


def assets() -> dict[str, Asset]:
    """By path."""
    files = {file.name: file.read_bytes() for file in (resources.files("polyhost") / "dashboard").iterdir()}
    return {"/" if name == _PAGE else f"/dashboard/{name}": _asset(name, body) for name, body in files.items()}


def _asset(name: str, body: bytes) -> Asset:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = (
        (b"content-type", _TYPES[name.rpartition(".")[2]]),
        (b"cache-control", b"no-cache"),
        (b"etag", etag.encode()),
        *SAFE,
    )
    return Asset(body, etag, headers)
