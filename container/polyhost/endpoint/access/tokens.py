"""
Session tokens: what a session is, signed by this server. Nothing about sessions is stored.

The session's access key follows from its token and the server's own key, so that a token alone is of no use, and a
token that was changed goes with no key.
"""

from __future__ import annotations

import base64
import functools
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

SESSION_PREFIX = "ASIA"
_MAC_BYTES = 32
# The longest that is made here has less than half.
_LONGEST_TOKEN = 8192


class Session(NamedTuple):
    """`began_with` is the id of the user's access key; `policy` "" narrows nothing."""

    role_arn: str
    name: str
    began_with: str
    expires_at: int
    policy: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """What AssumeRole answers. `arn` and `user_id` are those of the session."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)
    expires_at: int
    arn: str
    user_id: str


class Opened(NamedTuple):
    """A token that is ours, and the key that goes with it."""

    session: Session
    access_key_id: str
    secret_access_key: str

    def __repr__(self) -> str:
        return f"<Opened {self.access_key_id}>"


def seal(key: bytes, session: Session) -> str:
    """The token."""
    statement = json.dumps(session, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_mac(key, "token", statement) + statement).decode()


@functools.lru_cache(maxsize=1024)
def opened(keys: tuple[bytes, ...], token: str) -> Opened:
    """Raises ValueError if the token was sealed with none of `keys`. Whether it has expired is not looked at."""
    mac, statement = _parts_of(token)
    key = _key_of(keys, mac, lambda key: _mac(key, "token", statement))
    return Opened(Session(*json.loads(statement)), *_access_key(key, token))


def _parts_of(token: str) -> tuple[bytes, bytes]:
    """The seal, and what is sealed. Raises ValueError."""
    if len(token) > _LONGEST_TOKEN:
        raise ValueError("too long")
    sealed = base64.b64decode(token, altchars=b"-_", validate=True)
    return sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]


def seal_login(key: bytes, access_key_id: str, secret: str, expires_at: int) -> str:
    """What a browser is given: it ends with the user's secret, which is in the seal and not in the token."""
    statement = json.dumps([access_key_id, expires_at]).encode()
    return base64.urlsafe_b64encode(_login_mac(key, secret, statement) + statement).decode()


def opened_login(keys: tuple[bytes, ...], token: str, secret_of: Callable[[str], str | None]) -> tuple[str, int]:
    """
    The access key's id, and when the login ends. `secret_of` knows the secrets of those who are users now.

    Raises ValueError if the token was not sealed with one of `keys` and that secret.
    """
    mac, statement = _parts_of(token)
    access_key_id, expires_at = json.loads(statement)
    secret = secret_of(str(access_key_id))
    if secret is None:
        raise ValueError("nobody's")
    _key_of(keys, mac, lambda key: _login_mac(key, secret, statement))
    return access_key_id, expires_at


def _key_of(keys: tuple[bytes, ...], mac: bytes, mac_by: Callable[[bytes], bytes]) -> bytes:
    """The one that has made this seal. Raises ValueError."""
    for key in keys:
        if hmac.compare_digest(mac, mac_by(key)):
            return key
    raise ValueError("not ours")


def _login_mac(key: bytes, secret: str, statement: bytes) -> bytes:
    return _mac(key, "login", secret.encode() + b"\0" + statement)


def _access_key(key: bytes, token: str) -> tuple[str, str]:
    """In AWS's form: 20 letters and 40."""
    identity = base64.b32encode(_mac(key, "id", token.encode()))[:16].decode()
    secret = base64.b64encode(_mac(key, "secret", token.encode()))[:40].decode()
    return SESSION_PREFIX + identity, secret


def _mac(key: bytes, use: str, text: bytes) -> bytes:
    return hmac.digest(key, use.encode() + b"\0" + text, "sha256")
