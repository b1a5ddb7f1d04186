"""Files in folders where models' code can write too: in their place may be a link, a pipe, or a huge file."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def opened(path: Path) -> int:
    """A descriptor for reading. Raises OSError, also for a link; a pipe does not keep anybody waiting."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def read_file(path: Path, most_bytes: int) -> bytes:
    """What is in a file. Raises OSError, also where it is none, or has more bytes."""
    descriptor = opened(path)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > most_bytes:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)
