"""
AWS Signature Version 4: what a request claims in its `Authorization`, and whether the claim is true.

Pure functions; they know no principals. botocore's SigV4Auth is the reference: what it signs is verified, but for
paths with empty or dot segments. It tidies these before it signs; here the path counts as it came, because the route
is chosen by the path as it came.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import quote

from polyhost.endpoint.errors import NotAuthenticated

ALGORITHM = "AWS4-HMAC-SHA256"
# AWS's own.
_SKEW = timedelta(minutes=5)
_TIME = "%Y%m%dT%H%M%SZ"
_CLAIM = re.compile(
    ALGORITHM + r" +Credential=([^/\s,]+)/([0-9]{8})/([^/\s,]+)/([^/\s,]+)/aws4_request *, *"
    r"SignedHeaders=([^\s,]+) *, *Signature=([0-9a-f]{64})",
)
# Each says what is asked for: unsigned, it could be added or changed on the way.
_SIGNED_IF_SENT = ("x-amz-", "x-amzn-sagemaker-")


class Claim(NamedTuple):
    """What `Authorization` says."""

    access_key_id: str
    date: str
    region: str
    service: str
    signed_headers: str
    signature: str


def claim_of(headers: Mapping[str, str], query: str) -> Claim:
    """Raises NotAuthenticated."""
    authorization = headers.get("authorization")
    if authorization is None:
        if "X-Amz-Algorithm=" in query:
            raise _missing("Presigned URLs are not supported: send the signature in the Authorization header.")
        raise _missing("Missing Authentication Token")
    match = _CLAIM.fullmatch(authorization)
    if match is None:
        raise _incomplete(
            f"Authorization must be: {ALGORITHM} Credential=KEY/DATE/REGION/SERVICE/aws4_request, "
            "SignedHeaders=host;…, Signature=64 hexadecimal digits.",
        )
    return Claim(*match.groups())


def check_scope(claim: Claim, headers: Mapping[str, str], service: str, now: float) -> str:
    """
    The time of the signature, as it was signed.

    Raises NotAuthenticated if the claim is for another service or time, or leaves out a header that counts.
    """
    if claim.service != service:
        raise _invalid(f"Credential should be scoped to correct service: '{service}'.")
    signed = frozenset(claim.signed_headers.split(";"))
    _check_headers(signed, headers)
    timestamp = headers.get("x-amz-date") or _date_header(signed, headers)
    signed_at = _parse_time(timestamp)
    if not timestamp.startswith(claim.date):
        raise _invalid(f"Date in Credential scope does not match YYYYMMDD of the request's date {timestamp}.")
    _check_time(timestamp, signed_at, datetime.fromtimestamp(now, timezone.utc))
    return timestamp


def check_signature(
    claim: Claim,
    timestamp: str,
    secret: str,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    body: bytes,
) -> None:
    """Raises NotAuthenticated."""
    body_hash = hashlib.sha256(body).hexdigest()
    if headers.get("x-amz-content-sha256", body_hash) != body_hash:
        raise _invalid("x-amz-content-sha256 is not the SHA-256 of the body; unsigned payloads are not accepted.")
    canonical = canonical_request(method, path, query, headers, claim.signed_headers, body_hash)
    string_to_sign = (
        f"{ALGORITHM}\n{timestamp}\n{claim.date}/{claim.region}/{claim.service}/aws4_request\n"
        f"{hashlib.sha256(canonical).hexdigest()}"
    )
    key = signing_key(secret, claim.date, claim.region, claim.service)
    expected = hmac.digest(key, string_to_sign.encode(), "sha256").hex()
    if not hmac.compare_digest(expected, claim.signature):
        raise _invalid(
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method.",
        )


def canonical_request(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    signed_headers: str,
    body_hash: str,
) -> bytes:
    """All of `signed_headers` are in `headers`."""
    lines = [method, quote(_text(path), safe="/~", errors="surrogateescape"), _canonical_query(_text(query))]
    lines += [f"{name}:{' '.join(_text(headers[name]).split())}" for name in signed_headers.split(";")]
    lines += ["", signed_headers, body_hash]
    return "\n".join(lines).encode(errors="surrogateescape")


def _text(wire: str) -> str:
    """What the bytes are that came as Latin-1: signers write and trim UTF-8. Any other byte stays what it is."""
    return wire if wire.isascii() else wire.encode("latin-1").decode(errors="surrogateescape")


@functools.lru_cache(maxsize=1024)
def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    """Kept, by the secret itself: a secret that changes never meets the old one's key."""
    key = b"AWS4" + secret.encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _canonical_query(query: str) -> str:
    if not query:
        return ""
    pairs = (pair.partition("=") for pair in query.split("&"))
    return "&".join(f"{key}={value}" for key, value in sorted((key, value) for key, _, value in pairs))


def _check_headers(signed: frozenset[str], headers: Mapping[str, str]) -> None:
    for name in signed:
        if name not in headers:
            raise _invalid(f"The header '{_shown(name)}' is in SignedHeaders but was not sent.")
    for name in headers:
        if (name == "host" or name.startswith(_SIGNED_IF_SENT)) and name not in signed:
            raise _invalid(f"'{_shown(name)}' must be a 'SignedHeader' in the AWS Authorization.")
    if "host" not in signed:
        raise _invalid("'host' must be a 'SignedHeader' in the AWS Authorization.")


def _date_header(signed: frozenset[str], headers: Mapping[str, str]) -> str:
    if "date" not in signed:
        raise _incomplete("Authorization header requires existence of either a 'X-Amz-Date' or a signed 'Date' header.")
    try:
        return parsedate_to_datetime(headers["date"]).astimezone(timezone.utc).strftime(_TIME)
    except (ValueError, OverflowError):
        raise _incomplete("The header 'date' is not a date.") from None


# A second's requests share theirs.
@functools.lru_cache(maxsize=64)
def _parse_time(timestamp: str) -> datetime:
    try:
        return datetime.strptime(timestamp, _TIME).replace(tzinfo=timezone.utc)
    except ValueError:
        raise _incomplete("The header 'x-amz-date' is not of the form 20250131T235959Z.") from None


def _check_time(timestamp: str, signed_at: datetime, now: datetime) -> None:
    if signed_at < now - _SKEW:
        raise _invalid(
            f"Signature expired: {timestamp} is now earlier than {now - _SKEW:{_TIME}} ({now:{_TIME}} - 5 min.)",
        )
    if signed_at > now + _SKEW:
        raise _invalid(
            f"Signature not yet current: {timestamp} is still later than {now + _SKEW:{_TIME}} "
            f"({now:{_TIME}} + 5 min.)",
        )


def _shown(name: str) -> str:
    return name[:64]


def _missing(message: str) -> NotAuthenticated:
    return NotAuthenticated("MissingAuthenticationTokenException", message)


def _incomplete(message: str) -> NotAuthenticated:
    return NotAuthenticated("IncompleteSignatureException", message)


def _invalid(message: str) -> NotAuthenticated:
    return NotAuthenticated("InvalidSignatureException", message)
