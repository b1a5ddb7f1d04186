"""The file of principals on the disk: read again when it has changed, and changed by commands."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from polyhost.endpoint.access.policy import parse_json
from polyhost.endpoint.access.principals import Principals, read_principals
from polyhost.errors import InvalidSetting

logger = logging.getLogger("polyhost.access")

_LOOK_EVERY_SECS = 1

# What tells one state of a file from another; None: it cannot be read.
Stamp = tuple[int, int, int] | None


class AuthFile:
    """
    What the file says now. It is looked at when a request comes, at most once a second.

    A file that cannot be used leaves what was read before in force.
    """

    def __init__(self, file: Path, now: Callable[[], float]) -> None:
        """Raises InvalidSetting."""
        self.principals, self._stamp = _read(file)
        self._file = file
        self._now = now
        self._looked_at = now()

    def __repr__(self) -> str:
        return f"{self._file} [{_counts(self.principals)}]"

    def look(self, *, at_once: bool = False) -> None:
        now = self._now()
        # A clock that was put back must not stop the looking.
        if at_once or abs(now - self._looked_at) >= _LOOK_EVERY_SECS:
            self._looked_at = now
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._stamp = stamp
                self._read_again()

    def _read_again(self) -> None:
        try:
            principals, self._stamp = _read(self._file)
            if principals.account_id != self.principals.account_id:
                raise InvalidSetting(
                    f"{self._file}: account_id changes with a restart only: endpoints are named by it."
                )
        except InvalidSetting as error:
            logger.error("%s What was read before stays in force.", error)  # noqa: TRY400
            return
        self.principals = principals
        logger.info("%s has changed and is in force: %s", self._file, _counts(principals))


def _read(file: Path) -> tuple[Principals, Stamp]:
    """Raises InvalidSetting."""
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            text = stream.read()
    except OSError as error:
        raise InvalidSetting(f"{file}: {os.strerror(error.errno or 0)}.") from error
    principals = _checked(file, text)
    if status.st_mode & stat.S_IRWXO:
        logger.warning("%s holds secrets and is open to every user of this machine: chmod o-rwx", file)
    return principals, _stamp_of(status)


def _stamp(file: Path) -> Stamp:
    try:
        return _stamp_of(file.stat())
    except OSError:
        return None


def _stamp_of(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _counts(principals: Principals) -> str:
    return f"{len(principals.user_arns)} users, {len(principals.roles)} roles"


# Commands


class _User(msgspec.Struct):
    name: str
    api_keys: list[str] = []


class _Users(msgspec.Struct):
    users: list[_User]


def read_document(file: Path) -> tuple[dict[str, Any], Principals]:
    """Raises InvalidSetting."""
    text = _bytes_of(file)
    principals = _checked(file, text)
    return parse_json(text), principals


def read_users(file: Path) -> dict[str, Any]:
    """
    The file's content, of which no more is checked than that its users have names: one may be about to get a key.

    Raises InvalidSetting.
    """
    try:
        document: dict[str, Any] = parse_json(_bytes_of(file))
        msgspec.convert(document, _Users)
    except ValueError as error:
        raise InvalidSetting(f"{file}: {error}.") from error
    return document


def _bytes_of(file: Path) -> bytes:
    """Raises InvalidSetting."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidSetting(f"{file}: {os.strerror(error.errno or 0)}.") from error


def write_document(file: Path, document: Mapping[str, Any]) -> None:
    """In one step, with the file's mode and owner, because it holds secrets. Raises InvalidSetting."""
    text = json.dumps(document, indent=2).encode() + b"\n"
    _checked(file, text)
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(text)
            before = file.stat()
            os.chown(temporary, before.st_uid, before.st_gid)
            shutil.copymode(file, temporary)
            os.replace(temporary, file)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InvalidSetting(f"{file} cannot be written: {os.strerror(error.errno or 0)}.") from error


def _checked(file: Path, text: bytes) -> Principals:
    """Raises InvalidSetting."""
    try:
        return read_principals(text)
    except ValueError as error:
        raise InvalidSetting(f"{file}: {error}.") from error
