"""Requests as botocore signs them, in the parts in which our server sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


class Wire(NamedTuple):
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes

    def with_header(self, name: str, value: str) -> Wire:
        return self._replace(headers={**self.headers, name: value})

    def without_header(self, name: str) -> Wire:
        return self._replace(headers={key: value for key, value in self.headers.items() if key != name})


def signed(
    url: str = "http://127.0.0.1:8080/endpoints/polyhost/invocations",
    *,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    body: bytes = b"1,2,3",
    key: str,
    secret: str,
    token: str | None = None,
    service: str = "sagemaker",
    region: str = "us-east-1",
) -> Wire:
    request = AWSRequest(method=method, url=url, headers=dict(headers or {}), data=body)
    SigV4Auth(Credentials(key, secret, token), service, region).add_auth(request)
    prepared = request.prepare()
    parts = urlsplit(prepared.url)
    sent = {name.lower(): _text(value) for name, value in prepared.headers.items()}
    return Wire(method, parts.path, parts.query, {"host": parts.netloc, **sent}, prepared.body or b"")


def signed_again(wire: Wire, *, key: str, secret: str) -> Wire:
    """The request as it is, with the signature that botocore gives it at the time of its `x-amz-date`."""
    headers = {
        name: value.encode("latin-1").decode() for name, value in wire.headers.items() if name != "authorization"
    }
    url = f"http://{wire.headers['host']}{wire.path}" + (f"?{wire.query}" if wire.query else "")
    request = AWSRequest(method=wire.method, url=url, headers=headers, data=wire.body)
    request.context["timestamp"] = wire.headers["x-amz-date"]
    signer = SigV4Auth(Credentials(key, secret), "sagemaker", "us-east-1")
    text = signer.string_to_sign(request, signer.canonical_request(request))
    names = signer.signed_headers(signer.headers_to_sign(request))
    claim = f"{signer.scope(request)}, SignedHeaders={names}, Signature={signer.signature(text, request)}"
    return wire.with_header("authorization", f"AWS4-HMAC-SHA256 Credential={claim}")


def _text(value: str | bytes) -> str:
    """As HTTP's bytes are read: botocore writes text as UTF-8."""
    return (value if isinstance(value, bytes) else value.encode()).decode("latin-1")
