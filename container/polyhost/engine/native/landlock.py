"""
Landlock, by which a process gives up access to files for itself and all that it starts: the kernel's three calls.

See landlock(7). What a ruleset handles is refused unless a rule allows it. A restricted process can neither trace
processes outside of its own domain nor read their memory and environment, whatever it may read below /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Sequence

# The same numbers on all machines but alpha.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
READ = _EXECUTE | _READ_FILE | _READ_DIR
ALL = (1 << 16) - 1
# Files whose names one knows can be used, and nobody sees which there are.
UNLISTED = ALL & ~(_READ_DIR | _EXECUTE | _IOCTL_DEV)
# How many of the rights above each version of Landlock knows.
_RIGHTS_BY_VERSION = {0: 0, 1: 13, 2: 14, 3: 15, 4: 15}
_ALL_RIGHTS = 16
_NET_TCP = 0b11
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1, 2
TRUNCATE_VERSION, NETWORK_VERSION, SCOPES_VERSION = 3, 4, 6

_LIBC = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The version of this kernel's Landlock; 0 where it has none, or has it switched off."""
    found = _LIBC.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_CREATE_RULESET_VERSION))
    return max(0, int(found))


def handled_rights(version: int) -> int:
    """The rights to files that a kernel with this version can refuse."""
    return int((1 << _RIGHTS_BY_VERSION.get(version, _ALL_RIGHTS)) - 1)


def restrict(
    version: int, rules: Sequence[tuple[str, int]] | None, *, network: bool, signals: bool,
) -> None:  # fmt: skip
    """
    Restrict the calling thread and what it starts.

    `rules`: paths with the rights below them, None for no restriction of files. `network`: refuse TCP, and abstract
    sockets of others. `signals`: refuse signals to processes that it has not started. Raises OSError.
    """
    rights = handled_rights(version) if rules is not None else 0
    net = _NET_TCP if network and version >= NETWORK_VERSION else 0
    scopes = (_SCOPE_ABSTRACT_SOCKETS * network | _SCOPE_SIGNALS * signals) if version >= SCOPES_VERSION else 0
    if not rights | net | scopes:
        return
    ruleset = _created(version, rights, net, scopes)
    try:
        for path, allowed in rules or ():
            _allow(ruleset, path, allowed & rights)
        _checked(_LIBC.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint(0)), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _created(version: int, rights: int, net: int, scopes: int) -> int:
    """An older kernel takes a shorter structure."""
    fields = [rights, net, scopes]
    known = fields[: 1 if version < NETWORK_VERSION else 2 if version < SCOPES_VERSION else 3]
    attributes = struct.pack(f"={len(known)}Q", *known)
    ruleset = _LIBC.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    return _checked(ruleset, "landlock_create_ruleset")


def _allow(ruleset: int, path: str, rights: int) -> None:
    """What is not there needs no rule."""
    with contextlib.suppress(FileNotFoundError, PermissionError, NotADirectoryError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(place).st_mode):
                rights &= _ON_FILES
            rule = struct.pack("=Qi", rights, place)
            _checked(
                _LIBC.syscall(_ADD_RULE, ruleset, ctypes.c_uint(_RULE_PATH_BENEATH), rule, ctypes.c_uint(0)),
                f"landlock_add_rule {path}",
            )
        finally:
            os.close(place)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return int(result)
