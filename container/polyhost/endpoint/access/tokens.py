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
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from polyhost.errors import InvalidSetting

logger = logging.getLogger("polyhost.access")

SESSION_PREFIX = "ASIA"
_KEY_FILE = "session-tokens.key"
_KEY_BYTES = 32
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
def opened(key: bytes, token: str) -> Opened:
    """Raises ValueError if the token was not sealed with `key`. Whether it has expired is not looked at."""
    if len(token) > _LONGEST_TOKEN:
        raise ValueError("too long")
    sealed = base64.b64decode(token, altchars=b"-_", validate=True)
    mac, statement = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, "token", statement)):
        raise ValueError("not ours")
    return Opened(Session(*json.loads(statement)), *_access_key(key, token))


def seal_login(key: bytes, access_key_id: str, secret: str, expires_at: int) -> str:
    """What a browser is given: it ends with the user's secret, which is in the seal and not in the token."""
    statement = json.dumps([access_key_id, expires_at]).encode()
    return base64.urlsafe_b64encode(_login_mac(key, secret, statement) + statement).decode()


def opened_login(key: bytes, token: str, secret_of: Callable[[str], str | None]) -> tuple[str, int]:
    """
    The access key's id, and when the login ends. `secret_of` knows the secrets of those who are users now.

    Raises ValueError if the token was not sealed with `key` and that secret.
    """
    if len(token) > _LONGEST_TOKEN:
        raise ValueError("too long")
    sealed = base64.b64decode(token, altchars=b"-_", validate=True)
    mac, statement = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
    access_key_id, expires_at = json.loads(statement)
    secret = secret_of(str(access_key_id))
    if secret is None or not hmac.compare_digest(mac, _login_mac(key, secret, statement)):
        raise ValueError("not ours")
    return access_key_id, expires_at


def _login_mac(key: bytes, secret: str, statement: bytes) -> bytes:
    return _mac(key, "login", secret.encode() + b"\0" + statement)


def _access_key(key: bytes, token: str) -> tuple[str, str]:
    """In AWS's form: 20 letters and 40."""
    identity = base64.b32encode(_mac(key, "id", token.encode()))[:16].decode()
    secret = base64.b64encode(_mac(key, "secret", token.encode()))[:40].decode()
    return SESSION_PREFIX + identity, secret


def _mac(key: bytes, use: str, text: bytes) -> bytes:
    return hmac.digest(key, use.encode() + b"\0" + text, "sha256")


def read_or_make_key(folder: Path) -> bytes:
    """
    The server's key, the same after a restart.

    Raises InvalidSetting.
    """
    file = folder / _KEY_FILE
    try:
        if not file.exists():
            _make_key(file)
        key = file.read_bytes()
        mode = file.stat().st_mode
    except OSError as error:
        raise InvalidSetting(f"{file}: {os.strerror(error.errno or 0)}: session tokens are signed with it.") from error
    if len(key) != _KEY_BYTES:
        raise InvalidSetting(f"{file} is not a key of {_KEY_BYTES} bytes: remove it, and a new one is made.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("%s may be read by others: chmod 600", file)
    return key


def _make_key(file: Path) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Whole or not at all, and of two servers that start at once one makes it.
    descriptor, temporary = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(_KEY_BYTES))
        file.hardlink_to(temporary)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
