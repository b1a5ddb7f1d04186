"""
An entry of the disk cache: the folder of one unpacked archive, with a file that says what must be there.

The fetcher writes it. The front looks whether all of it is there, and still what was unpacked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from polyhost.archives import Unpacked
from polyhost.artifacts.cleaner import bytes_left
from polyhost.artifacts.compiled import BLOCK_BYTES, Compiled, read_compiled
from polyhost.artifacts.files import read_file
from polyhost.artifacts.integrity import Changed, checked

logger = logging.getLogger("polyhost.endpoint")

MODEL = "model"
_META = "meta.json"
_OWN_FILES = 3  # the entry's folder, its model's folder, meta.json
_META_LINE_BYTES = 200
# More than 100,000 files with the longest paths take.
_MOST_META_BYTES = 512 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One version of one archive, unpacked."""

    source: str
    key: str
    version: str
    path: Path
    archive_bytes: int
    unpacked_bytes: int
    # 0.0 when it was on disk already.
    fetch_secs: float


@dataclass(frozen=True)
class Meta:
    """What an entry is and what must be there of it."""

    source: str
    key: str
    version: str
    archive_bytes: int
    # By path, relative to the model's folder.
    files: dict[str, Unpacked]

    @property
    def unpacked_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    @property
    def disk_bytes(self) -> int:
        """Blocks counted whole, folders too."""
        folders = {os.path.dirname(path) for path in self.files}
        blocks = sum(-(-file.size // BLOCK_BYTES) for file in self.files.values())
        lines = len(self.files) * _META_LINE_BYTES // BLOCK_BYTES
        return (blocks + lines + len(folders) + _OWN_FILES) * BLOCK_BYTES

    def write(self, entry: Path) -> str:
        """Returns the digest of what was written: the front remembers it, so that nobody can change it unseen."""
        data = msgspec.json.encode(self)
        new = entry / f"{_META}.new"
        new.write_bytes(data)
        new.rename(entry / _META)
        return hashlib.sha256(data).hexdigest()


def _has(folder: Path, name: str, size: int) -> bool:
    found = (folder / name).lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size == size


class Found(NamedTuple):
    """An entry's folder, what it holds, the digest of the file that says so, and what was compiled of it."""

    folder: Path
    meta: Meta
    meta_sha256: str
    compiled: Compiled | None


def whole(entry: Path) -> Found | None:
    """
    What is there, if all that the archive brought still is.

    None for a copy that a crash left damaged or cut.
    """
    try:
        data = read_file(entry / _META, _MOST_META_BYTES)
        meta = msgspec.json.decode(data, type=Meta)
        is_whole = meta.files and all(_has(entry / MODEL, name, file.size) for name, file in meta.files.items())
    except (OSError, ValueError):
        return None
    if not is_whole:
        return None
    compiled = read_compiled(entry)
    return Found(entry, meta, hashlib.sha256(data).hexdigest(), None if compiled is None else Compiled.of(compiled))


def require_unchanged(entry: Path, meta_sha256: str, may_clean: bool) -> str:
    """The digest of its meta file from now on: another one where files had other times and inodes. Raises Changed."""
    try:
        data = read_file(entry / _META, _MOST_META_BYTES)
        if hashlib.sha256(data).hexdigest() != meta_sha256:
            raise Changed(f"{_META} is another")
        meta = msgspec.json.decode(data, type=Meta)
        files = checked(entry / MODEL, meta.files, may_clean=may_clean)
        return meta_sha256 if files == meta.files else dataclasses.replace(meta, files=files).write(entry)
    except OSError as error:
        raise Changed(error.strerror) from error


def newest_whole(entries: list[Path]) -> tuple[list[Found], int]:
    """
    The latest version of each archive. Older versions, and entries that are not whole, are deleted.

    Also the bytes of what could not be deleted.
    """
    left_bytes = of_no_use = 0
    newest: dict[tuple[str, str], Found] = {}
    for entry in entries:
        found = whole(entry)
        if found is None:
            of_no_use += 1
            left_bytes += bytes_left(entry)
            continue
        name = (found.meta.source, found.meta.key)
        older = newest.pop(name, None)
        if older is not None:
            left_bytes += bytes_left(older.folder)
        newest[name] = found
    if of_no_use:
        logger.warning(
            "%d models in the disk cache are not whole, or of another release: they are deleted, and fetched again "
            "when they are called",
            of_no_use,
        )
    return list(newest.values()), left_bytes
