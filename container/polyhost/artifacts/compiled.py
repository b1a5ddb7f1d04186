"""
What an engine has compiled of an archive, in the archive's folder in the disk cache: ENTRY/compiled.

The engine says what is in it, and reads nothing else than what it has written: the front remembers the digest, so that
no other process can change it unseen.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from polyhost.artifacts.files import read_file

logger = logging.getLogger("polyhost.endpoint")

_NAME = "compiled"
BLOCK_BYTES = 4096
# The front reads it. Whatever another process puts there instead, it must not fill the front's memory.
MOST_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class Compiled:
    """What is known of such a file."""

    digest: bytes
    disk_bytes: int

    @classmethod
    def of(cls, content: bytes) -> Compiled:
        return cls(hashlib.blake2b(content, digest_size=16).digest(), -(-len(content) // BLOCK_BYTES) * BLOCK_BYTES)


def read_compiled(entry: Path) -> bytes | None:
    """Blocking. None where there is none, or something that no engine has written: a link, a pipe, a huge file."""
    try:
        return read_file(entry / _NAME, MOST_BYTES) or None
    except OSError:
        return None


def read_expected(entry: Path, expected: Compiled | None) -> bytes | None:
    """Blocking. What is known to be there; None where nothing is, or something else."""
    if expected is None:
        return None
    content = read_compiled(entry)
    if content is not None and Compiled.of(content) == expected:
        return content
    logger.warning("%s: another process has changed it; it is made anew", entry / _NAME)
    return None


def write_compiled(entry: Path, content: bytes) -> Compiled:
    """In one step, so that nobody reads a half; returns what is to be known of it. Blocking. Raises OSError."""
    new = entry / f"{_NAME}.new"
    new.unlink(missing_ok=True)
    with new.open("xb") as file:
        file.write(content)
    new.rename(entry / _NAME)
    return Compiled.of(content)
