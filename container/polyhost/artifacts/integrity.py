"""
Whether an archive's files still are what was unpacked.

All models' processes run under one user, and could write into each other's files. A file is looked at before each
load: where its inode, size and times are those that it was unpacked with, nobody has written to it, because no process
can set the time of the last change (ctime). Where they differ, as in a folder that was copied, its digest tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polyhost.archives import Unpacked
from polyhost.artifacts.files import opened

# More files and folders than this, which the archive did not bring, are taken for an attack.
_MAX_OTHERS = 10_000


class Changed(Exception):
    """Somebody has changed, removed or replaced a file."""


@dataclass
class _Seen:
    """`suspects`: files that differ in any way. The rest is what the archive did not bring."""

    suspects: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def checked(folder: Path, files: Mapping[str, Unpacked], *, may_clean: bool) -> dict[str, Unpacked]:
    """
    What to expect of `files` the next time: the same, but where only times and inodes had changed. Blocking.

    What the archive did not bring would be part of the model, so it is removed: handlers leave such files in their
    folder, and so might others. Where that may not be done, because the model is in use, Changed is raised.
    """
    try:
        seen = _look(folder, files)
        if seen.others and not may_clean:
            raise Changed(f"{seen.others[0]} was not in the archive")
        for name in seen.others:
            os.unlink(folder / name)
        return {**files, **{name: _digested(folder, name, files[name]) for name in seen.suspects}}
    except OSError as error:
        raise Changed(error.strerror) from error


def _look(folder: Path, files: Mapping[str, Unpacked]) -> _Seen:
    """Raises Changed, OSError."""
    seen, count = _Seen(), 0
    folders = [""]
    while folders:
        below = folders.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                name = below + entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif name not in files:
                    seen.others.append(name)
                else:
                    count += 1
                    if _times(entry.stat(follow_symlinks=False)) != _expected(files[name]):
                        seen.suspects.append(name)
        if len(folders) + len(seen.others) > len(files) + _MAX_OTHERS:
            raise Changed("it holds many files that were not in the archive")
    if count < len(files):
        raise Changed("a file is missing")
    return seen


def _times(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _expected(file: Unpacked) -> tuple[int, ...]:
    return file.size, file.inode, file.mtime_ns, file.ctime_ns


def _digested(folder: Path, name: str, expected: Unpacked) -> Unpacked:
    """Raises Changed, OSError."""
    descriptor = opened(folder / name)
    with contextlib.closing(os.fdopen(descriptor, "rb")) as file:
        status = os.fstat(descriptor)  # before it is read: what is written meanwhile is seen the next time
        if not stat.S_ISREG(status.st_mode) or status.st_size != expected.size:
            raise Changed(f"{name} is another")
        digest = hashlib.sha256()
        while chunk := file.read(1024**2):
            digest.update(chunk)
    if digest.hexdigest() != expected.sha256:
        raise Changed(f"{name} is another")
    return Unpacked(expected.size, expected.sha256, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
