"""
Removing folders of which others decide what is in them: models' code writes there, too.

However deep a tree is, and whatever its folders' modes, nothing here recurses, fails or follows a link.
"""

from __future__ import annotations

import itertools
import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger("polyhost")

# What lies deeper is brought up to the top before it is looked at: so no path grows beyond what the system takes.
_LIFTED = ".polyhost-lifted-"


def remove_tree(folder: Path) -> None:
    """
    Remove a folder and all below it, or a file; nothing happens where there is none.

    What cannot be removed is logged and left: a clean-up must not keep a server from starting, serving or stopping.
    """
    try:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            folder.unlink()
            return
        _empty(folder)
        folder.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("%s cannot be removed: %s", folder, error.strerror)


def _empty(top: Path) -> None:
    """Folder by folder: files are removed, folders lifted to the top until nothing but empty ones is left."""
    numbers = itertools.count()
    folders = [top]
    while folders:
        folder = folders.pop()
        folder.chmod(0o700)  # whoever made it may have taken its own permissions away
        with os.scandir(folder) as entries:
            for entry in list(entries):
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, 0o700)  # a folder that may not be written to cannot be moved either
                lifted = top / f"{_LIFTED}{next(numbers)}"
                os.rename(entry.path, lifted)
                folders.append(lifted)
        if folder != top:
            folder.rmdir()
