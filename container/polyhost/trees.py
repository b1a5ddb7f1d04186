"""
Removing folders of which others decide what is in them: models' code writes there, too.

However deep a tree is, and whatever its folders' modes, nothing here recurses, fails or follows a link.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger("polyhost")

# What lies deeper is brought up to the top before it is looked at: so no path grows beyond what the system takes.
_LIFTED = ".polyhost-lifted-"


def remove_tree(folder: Path) -> bool:
    """
    Remove a folder and all below it, or a file; returns whether it is gone. Nothing happens where there is none.

    What cannot be removed is logged and left: a clean-up must not keep a server from starting, serving or stopping.
    """
    failures: list[OSError] = []
    try:
        if stat.S_ISDIR(folder.lstat().st_mode):
            _empty(folder, failures)
            folder.rmdir()
        else:
            folder.unlink()
    except FileNotFoundError:
        return True
    except OSError as error:
        logger.warning("%s cannot be removed: %s", folder, (failures or [error])[0].strerror)
        return False
    return True


def _empty(top: Path, failures: list[OSError]) -> None:
    """Folder by folder: files are removed, folders lifted to the top until nothing but empty ones is left."""
    numbers = itertools.count()
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            folder.chmod(0o700)  # whoever made it may have taken its own permissions away
            with os.scandir(folder) as found:
                entries = list(found)
        except OSError as error:
            failures.append(error)
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(_lift(entry, top / f"{_LIFTED}{next(numbers)}"))
                else:
                    os.unlink(entry.path)
            except OSError as error:  # the rest goes all the same
                failures.append(error)
        if folder != top:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lift(entry: os.DirEntry[str], to: Path) -> Path:
    os.chmod(entry.path, 0o700)  # a folder that may not be written to cannot be moved either
    os.rename(entry.path, to)
    return to


def tree_bytes(folder: Path) -> int:
    """What a folder and all below it take of the disk, as far as it can be read."""
    total, folders = 0, [str(folder)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
    return total
