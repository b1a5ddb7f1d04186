"""
Temporary folders of a server's own, and those that a server which was killed has left.

Each holds a file that its server keeps locked. The kernel gives the lock up when the server ends, however it does, so a
folder whose file can be locked has no owner any more. What has no such file is not ours, and stays.

The file also tells the number with which the server has marked its processes: those that outlived it are ended, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from polyhost.processes import end_marked
from polyhost.trees import remove_tree

logger = logging.getLogger("polyhost")

_PREFIX = "polyhost-"
_OWNER = ".owner"
_NUMBER_DIGITS = 20


@contextlib.contextmanager
def own_folder(kind: str = "", *, number: int = 0) -> Iterator[Path]:
    """A new folder for the length of a block. `number`: of the server, as its processes are marked."""
    folder, lock = _new_folder(_PREFIX + kind)
    os.write(lock, str(number).encode())
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def sweep() -> None:
    """Remove the folders of servers that are gone, and end the processes that they have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or another server sweeps it
            _remove_if_left(folder)


def _new_folder(prefix: str) -> tuple[Path, int]:
    """With the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        lock = os.open(folder / _OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / _OWNER).stat().st_ino == os.fstat(lock).st_ino:
                return folder, lock
        except (BlockingIOError, FileNotFoundError):  # a server that starts has just taken it for left
            os.close(lock)
        except OSError:  # a file system without locks, where nobody else gets one either
            return folder, lock


def _remove_if_left(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    lock = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        logger.info("%s was left by a server that was killed; it is removed", folder)
        if count := end_marked(_number_in(lock)):
            logger.info("%d processes were left by a server that was killed; they are ended", count)
        _remove(folder)
    finally:
        os.close(lock)


def _number_in(file: int) -> int:
    text = os.pread(file, _NUMBER_DIGITS, 0)
    return int(text) if text.isdigit() else 0


def _remove(folder: Path) -> None:
    """The file that tells whose it is goes last: whoever is killed in the middle leaves what can be swept."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name != _OWNER:
                remove_tree(path)
    remove_tree(folder)
