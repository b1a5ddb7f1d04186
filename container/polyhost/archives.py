"""
Unpacking archives that may be hostile.

An archive is refused whole, with nothing written where it was to go: paths that lead out, symbolic links, devices, or
more entries and bytes than a model has. What it is, a tar (plain or compressed) or a zip, its first bytes tell.
As with tar, the last of several entries of one name wins. A hard link to an earlier entry becomes a copy of it: GNU tar
and Python write such entries when a file is packed twice.
"""

from __future__ import annotations

import errno
import lzma
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from polyhost_handlers.artifacts import raw_file

from polyhost.errors import ArchiveRefused
from polyhost.trees import remove_tree

_CHUNK_BYTES = 1024**2
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
# All that the libraries raise over bytes that somebody else chose.
_UNREADABLE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
    ArithmeticError, LookupError, RuntimeError, MemoryError,
)  # fmt: skip


class ArchiveTooLarge(ArchiveRefused):
    """It unpacks to more than `Limits.total_bytes`."""


class NoRoomToUnpack(ArchiveRefused):
    """Nothing is wrong with the archive: the disk is full."""


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to."""

    entries: int = 100_000
    # Folders within folders. Models have a handful; whoever walks through a tree must be able to.
    depth: int = 32
    total_bytes: int = 64 * 1024**3
    # gzip packs text about 5:1 and zeros 1000:1; beyond this, and beyond a size worth the question, it is a bomb.
    ratio: int = 200
    ratio_floor_bytes: int = 256 * 1024**2


def unpack(archive: Path, to: Path, limits: Limits = Limits(), called: str = "") -> None:
    """
    Unpack a tar or a zip into the new folder `to`, all or nothing.

    `called`: what errors call the archive, its file's name unless given. Raises ArchiveRefused.
    """
    called = called or archive.name
    to.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=to.parent, prefix=".unpacking-"))
    try:
        target = _Target(staging, limits, archive.stat().st_size, called)
        _unpack_zip(archive, target) if _is_zip(archive) else _unpack_tar(archive, target)
        if not target.files:
            raise ArchiveRefused(f"{called} holds no file.")
        staging.chmod(0o755)
        staging.rename(to)
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoomToUnpack(f"{called} cannot be unpacked: the disk is full.") from error
        raise ArchiveRefused(f"{called} {_reason(archive, error)}") from error
    finally:
        remove_tree(staging)


class _Target:
    """Where an archive's entries go; refuses those that would harm."""

    def __init__(self, path: Path, limits: Limits, archive_bytes: int, called: str) -> None:
        self._path = path
        self._limits = limits
        self._ratio_bytes = max(limits.ratio_floor_bytes, archive_bytes * limits.ratio)
        self._entries = 0
        self._bytes = 0
        self._called = called
        self.files = 0

    def add_folder(self, name: str) -> None:
        self._make_folder(self._place(name), name)

    def add_file(self, name: str, source: IO[bytes] | None, declared_bytes: int) -> None:
        """What is declared refuses a bomb before it is written; what is written, one that lies."""
        target = self._place(name)
        if source is None:
            raise ArchiveRefused(f"{self._called} has an entry that cannot be read: {name[:200]}")
        with source:
            self._write(target, name, source, declared_bytes)

    def _write(self, target: Path, name: str, source: IO[bytes], declared_bytes: int) -> None:
        self._check_bytes(self._bytes + declared_bytes)
        self._clear(target, name)
        with target.open("xb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                self.count_bytes(len(chunk))
                file.write(chunk)
        self.files += 1

    def add_copy(self, name: str, of: str) -> None:
        """A hard link: `of` is the name of an entry that came before it."""
        target, original = self._place(name), self._inside(of)
        if target == original and target.is_file():  # the same file packed twice
            return
        if not original.is_file():
            raise ArchiveRefused(
                f"{self._called} has a hard link to a file that does not come before it: {name[:200]} to {of[:200]}",
            )
        with original.open("rb") as source:
            self._write(target, name, source, original.stat().st_size)

    def count_bytes(self, count: int) -> None:
        self._bytes += count
        self._check_bytes(self._bytes)

    def refuse(self, name: str, is_link: bool) -> None:
        # A link inside the archive would be harmless, but no packer of models writes one: fewer cases, fewer holes.
        cure = " (a symbolic link: pack the file itself, with tar --dereference)" if is_link else ""
        raise ArchiveRefused(f"{self._called} has an entry that is neither file nor folder: {name[:200]}{cure}")

    def _place(self, name: str) -> Path:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise ArchiveRefused(f"{self._called} has more than {self._limits.entries} entries.")
        return self._inside(name)

    def _inside(self, name: str) -> Path:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ArchiveRefused(f"{self._called} has an entry that leads out of it: {name[:200]}")
        if len(path.parts) > self._limits.depth:
            raise ArchiveRefused(
                f"{self._called} has folders more than {self._limits.depth} deep: {name[:80]}… Pack it flatter.",
            )
        return self._path / path

    def _clear(self, target: Path, name: str) -> None:
        """Make room for a file: its folder is there, and an earlier file of its name is not."""
        self._make_folder(target.parent, name)
        if target.is_dir():
            raise self._is_both(name)
        target.unlink(missing_ok=True)

    def _make_folder(self, folder: Path, name: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise self._is_both(name) from None

    def _is_both(self, name: str) -> ArchiveRefused:
        return ArchiveRefused(f"{self._called} has a name that is both a file and a folder: {name[:200]}")

    def _check_bytes(self, count: int) -> None:
        if count > self._limits.total_bytes:
            raise ArchiveTooLarge(f"{self._called} unpacks to more than {self._limits.total_bytes} bytes.")
        if count > self._ratio_bytes:
            raise ArchiveRefused(f"{self._called} unpacks to more than {self._ratio_bytes} bytes.")


def _unpack_tar(archive: Path, target: _Target) -> None:
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            if member.isdir():
                target.add_folder(member.name)
            elif member.isreg():
                target.add_file(member.name, tar.extractfile(member), member.size)
            elif member.islnk():
                target.add_copy(member.name, member.linkname)
            else:
                target.refuse(member.name, member.issym())
        # To the end, where compressed files have their checksum: one that was cut off short of it is refused.
        while tar.fileobj and (rest := tar.fileobj.read(_CHUNK_BYTES)):
            target.count_bytes(len(rest))


def _reason(archive: Path, error: BaseException) -> str:
    """Why bytes are no archive: what they are instead, or what the library says."""
    what, cure = raw_file(archive)
    if what:
        return f"is {what}, not an archive: {cure}."
    # What the system says names paths of ours; what the libraries say does not.
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"is not a readable archive: {said.splitlines()[0].rstrip(':')}"


def _is_zip(archive: Path) -> bool:
    """zipfile.is_zipfile looks at the end: a tar whose last file is a zip would be taken for one."""
    with archive.open("rb") as file:
        return file.read(4) in _ZIP_STARTS


def _unpack_zip(archive: Path, target: _Target) -> None:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                target.refuse(info.filename, kind == stat.S_IFLNK)
            elif info.is_dir():
                target.add_folder(info.filename)
            else:
                target.add_file(info.filename, file.open(info), info.file_size)
