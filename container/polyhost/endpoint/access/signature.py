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
import operator
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import quote

from polyhost.service_errors import NotAuthenticated

ALGORITHM = "AWS4-HMAC-SHA256"
# AWS's own.
_SKEW_SECS = 300
_TIME = "%Y%m%dT%H%M%SZ"
# All but the signature itself, which is of 64 hexadecimal digits.
_CLAIM = re.compile(
    ALGORITHM + r" +Credential=([^/\s,]+)/([0-9]{8})/([^/\s,]+)/([^/\s,]+)/aws4_request *, *"
    r"SignedHeaders=([^\s,]+) *, *Signature=",
)
_SIGNATURE = re.compile("[0-9a-f]{64}")
_SIGNATURE_CHARS = 64
# A client's requests of a day claim the same, but for their signatures. A longer claim is not remembered.
_REMEMBERED, _REMEMBERED_CHARS = 1024, 1024
# Each says what is asked for: unsigned, it could be added or changed on the way.
_SIGNED_IF_SENT = ("x-amz-", "x-amzn-sagemaker-")


class Claim(NamedTuple):
    """
    What `Authorization` says, but for the signature. What stands behind `signed_headers` follows from the rest.

    `values_in` takes the values of all names out of headers, `lines` is a template for them: both do all at once.
    """

    access_key_id: str
    date: str
    region: str
    service: str
    signed_headers: str
    scope: str
    names: tuple[str, ...]
    signed: frozenset[str]
    values_in: Callable[[Mapping[str, str]], tuple[str, ...]]
    lines: str

    @classmethod
    def of(cls, access_key_id: str, date: str, region: str, service: str, signed_headers: str) -> Claim:
        names = tuple(signed_headers.split(";"))
        scope = f"{date}/{region}/{service}/aws4_request"
        # Of one name alone, an itemgetter would return no tuple.
        values_in = operator.itemgetter(*names) if len(names) > 1 else lambda headers: (headers[names[0]],)
        lines = "".join(f"{name.replace('%', '%%')}:%s\n" for name in names)
        signed = frozenset(names)
        return cls(access_key_id, date, region, service, signed_headers, scope, names, signed, values_in, lines)


def claim_of(headers: Mapping[str, str], query: str) -> tuple[Claim, str]:
    """The claim, and the signature that shall prove it. Raises NotAuthenticated."""
    authorization = headers.get("authorization")
    if authorization is None:
        if "X-Amz-Algorithm=" in query:
            raise _missing("Presigned URLs are not supported: send the signature in the Authorization header.")
        raise _missing("Missing Authentication Token")
    text, signature = authorization[:-_SIGNATURE_CHARS], authorization[-_SIGNATURE_CHARS:]
    claim = _remembered_claim(text) if len(text) <= _REMEMBERED_CHARS else _claim(text)
    if claim is None or not _SIGNATURE.fullmatch(signature):
        raise _incomplete(
            f"Authorization must be: {ALGORITHM} Credential=KEY/DATE/REGION/SERVICE/aws4_request, "
            "SignedHeaders=host;…, Signature=64 hexadecimal digits.",
        )
    return claim, signature


def _claim(text: str) -> Claim | None:
    match = _CLAIM.fullmatch(text)
    return Claim.of(*match.groups()) if match else None


_remembered_claim = functools.lru_cache(maxsize=_REMEMBERED)(_claim)


def check_scope(claim: Claim, headers: Mapping[str, str], service: str, now: float) -> str:
    """
    The time of the signature, as it was signed.

    Raises NotAuthenticated if the claim is for another service or time, or leaves out a header that counts.
    """
    if claim.service != service:
        raise _invalid(f"Credential should be scoped to correct service: '{service}'.")
    _check_names(claim.signed, tuple(headers))
    timestamp = headers.get("x-amz-date") or _date_header(claim.signed, headers)
    signed_at = _parse_time(timestamp)
    if not timestamp.startswith(claim.date):
        raise _invalid(f"Date in Credential scope does not match YYYYMMDD of the request's date {timestamp}.")
    if abs(signed_at - now) > _SKEW_SECS:
        raise _invalid(_why_not_now(timestamp, signed_at, now))
    return timestamp


def check_signature(
    claim: Claim,
    signature: str,
    timestamp: str,
    secret: str,
    *,
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
    canonical = canonical_request(method, path, query, headers, claim, body_hash)
    text = f"{ALGORITHM}\n{timestamp}\n{claim.scope}\n{hashlib.sha256(canonical).hexdigest()}"
    keyed = _keyed(secret, claim.date, claim.region, claim.service)
    if not hmac.compare_digest(keyed.hexdigest(text.encode()), signature):
        raise _invalid(
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method.",
        )


def canonical_request(
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    claim: Claim,
    body_hash: str,
) -> bytes:
    """All of the claim's names are in `headers`."""
    values = claim.values_in(headers)
    lines = claim.lines % values
    if not _are_plain(values, lines):
        lines = claim.lines % tuple([" ".join(_text(value).split()) for value in values])
    query = _canonical_query(_text(query)) if query else ""
    return (f"{method}\n{_canonical_path(path)}\n{query}\n{lines}\n{claim.signed_headers}\n{body_hash}").encode(
        errors="surrogateescape"
    )


def _are_plain(values: tuple[str, ...], lines: str) -> bool:
    """Whether a signer leaves these values as they are: it trims them, and makes one blank of many."""
    together = "".join(values)
    return together.isascii() and together.isprintable() and not ("  " in lines or " \n" in lines or ": " in lines)


# Few endpoints have many requests; a path may be as long as a request's line.
@functools.lru_cache(maxsize=64)
def _canonical_path(path: str) -> str:
    return quote(_text(path), safe="/~", errors="surrogateescape")


def _text(wire: str) -> str:
    """What the bytes are that came as Latin-1: signers write and trim UTF-8. Any other byte stays what it is."""
    return wire if wire.isascii() else wire.encode("latin-1").decode(errors="surrogateescape")


class Keyed:
    """HMAC-SHA256 by one key (RFC 2104): hmac's own objects take twice as long to copy."""

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(hashlib.sha256().block_size, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def hexdigest(self, text: bytes) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(text)
        outer.update(inner.digest())
        return outer.hexdigest()


@functools.lru_cache(maxsize=1024)
def _keyed(secret: str, date: str, region: str, service: str) -> Keyed:
    """Kept, by the secret itself: a secret that changes never meets the old one's key."""
    return Keyed(signing_key(secret, date, region, service))


def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _canonical_query(query: str) -> str:
    pairs = (pair.partition("=") for pair in query.split("&"))
    return "&".join(f"{key}={value}" for key, value in sorted((key, value) for key, _, value in pairs))


# A client sends the same names each time. Names are long where somebody means ill: few are remembered.
@functools.lru_cache(maxsize=64)
def _check_names(signed: frozenset[str], names: tuple[str, ...]) -> None:
    sent = frozenset(names)
    if not sent >= signed:
        name = next(name for name in signed if name not in sent)
        raise _invalid(f"The header '{_shown(name)}' is in SignedHeaders but was not sent.")
    for name in sent - signed:
        if name == "host" or name.startswith(_SIGNED_IF_SENT):
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
def _parse_time(timestamp: str) -> float:
    """Since 1970."""
    try:
        return datetime.strptime(timestamp, _TIME).replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        raise _incomplete("The header 'x-amz-date' is not of the form 20250131T235959Z.") from None


def _why_not_now(timestamp: str, signed_at: float, now: float) -> str:
    here, skew = datetime.fromtimestamp(now, timezone.utc), timedelta(seconds=_SKEW_SECS)
    if signed_at < now:
        return f"Signature expired: {timestamp} is now earlier than {here - skew:{_TIME}} ({here:{_TIME}} - 5 min.)"
    return f"Signature not yet current: {timestamp} is still later than {here + skew:{_TIME}} ({here:{_TIME}} + 5 min.)"


def _shown(name: str) -> str:
    return name[:64]


def _missing(message: str) -> NotAuthenticated:
    return NotAuthenticated("MissingAuthenticationTokenException", message)


def _incomplete(message: str) -> NotAuthenticated:
    return NotAuthenticated("IncompleteSignatureException", message)


def _invalid(message: str) -> NotAuthenticated:
    return NotAuthenticated("InvalidSignatureException", message)
