"""
API keys: secrets that a request brings as they are, for callers without an AWS client.

The file of principals has only their SHA-256. A key has 256 random bits, so that a fast hash is enough: nobody can try
them all, and a slow one would let strangers keep the server busy.
"""

from __future__ import annotations

import hashlib
import secrets

# So that people, and programs that look for secrets, know what it is.
_PREFIX = "phk_"
HASH_PATTERN = r"\Asha256:[0-9a-f]{64}\Z"
_ID_CHARS = len("sha256:") + 16


def new_key() -> str:
    return _PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """As the file has it."""
    return "sha256:" + hashlib.sha256(key.encode(errors="replace")).hexdigest()


def id_of(hashed: str) -> str:
    """It tells keys apart and is no secret. No access key has such an id: it has a colon."""
    return hashed[:_ID_CHARS]


def bearer_of(authorization: str) -> str | None:
    """What follows `Bearer`; None for any other scheme."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
