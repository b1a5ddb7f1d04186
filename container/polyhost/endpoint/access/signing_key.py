"""The server's own key, which signs session tokens and logins: read, made where there is none, and renewed."""

from __future__ import annotations

import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from polyhost.errors import InvalidSetting

logger = logging.getLogger("polyhost.access")

_KEY_FILE = "session-tokens.key"
_KEY_BYTES = 32
# No session and no login lasts longer, so that nothing is left then that the key before has signed.
LONGEST_SECS = 12 * 3600


class SigningKey:
    """
    `newest` signs. The one before it is still `accepted` for as long as something lasts that it has signed, so that a
    new file ends nobody's session.
    """

    def __init__(self, newest: bytes, file: Path | None = None, now: Callable[[], float] = lambda: 0.0) -> None:
        """`file`: where a new one may be found; None where it stays the same. `now` is Unix time."""
        self.newest = newest
        self._file = file
        self._now = now
        self._before: bytes | None = None
        self._accepted_until = 0.0

    @classmethod
    def read(cls, file: Path | None, folder: Path, now: Callable[[], float]) -> SigningKey:
        """`folder`: where the server keeps a key of its own, if it is given no `file`. Raises InvalidSetting."""
        return cls(read_or_make_key(folder)) if file is None else cls(read_key(file), file, now)

    @property
    def accepted(self) -> tuple[bytes, ...]:
        """The newest first."""
        if self._before is None or self._now() >= self._accepted_until:
            return (self.newest,)
        return self.newest, self._before

    def look(self) -> None:
        """Read the file again. One that cannot be used leaves the key that is in force."""
        if self._file is None:
            return
        try:
            key = read_key(self._file)
        except InvalidSetting as error:
            logger.error("%s The key that was read before stays in force.", error)  # noqa: TRY400
            return
        if key != self.newest:
            self._before, self.newest = self.newest, key
            self._accepted_until = self._now() + LONGEST_SECS
            logger.info("%s has changed and signs from now on. What the key before has signed stays valid.", self._file)


def read_or_make_key(folder: Path) -> bytes:
    """
    The server's key, the same after a restart.

    Raises InvalidSetting.
    """
    file = folder / _KEY_FILE
    try:
        if not file.exists():
            _make_key(file)
        key, mode = _read(file)
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(key) != _KEY_BYTES:
        raise InvalidSetting(f"{file} is not a key of {_KEY_BYTES} bytes: remove it, and a new one is made.")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("%s may be read by others: chmod 600", file)
    return key


def read_key(file: Path) -> bytes:
    """
    A key that several servers share, as an operator has made it.

    Kubernetes lets a pod's group read its secrets. Raises InvalidSetting.
    """
    try:
        key, mode = _read(file)
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(key) < _KEY_BYTES:
        raise InvalidSetting(
            f"--token-key-file: {file} has {len(key)} bytes, at least {_KEY_BYTES} are needed: make it once "
            "for all servers, with `openssl rand -hex 32`."
        )
    if mode & stat.S_IRWXO:
        logger.warning("%s holds secrets and is open to every user of this machine: chmod o-rwx", file)
    return key


def _read(file: Path) -> tuple[bytes, int]:
    return file.read_bytes(), file.stat().st_mode


def _unreadable(file: Path, error: OSError) -> InvalidSetting:
    return InvalidSetting(
        f"{file} cannot be read ({os.strerror(error.errno or 0)}): session tokens are signed with it. Let the server "
        "read it."
    )


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
