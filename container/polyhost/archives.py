"""
Unpacking archives that may be hostile.

An archive is refused whole, with nothing written where it was to go: paths that lead out, symbolic links, devices, or
more entries and bytes than a model has. What it is, a tar (plain or compressed) or a zip, its first bytes tell.
As with tar, the last of several entries of one name wins. A hard link to an earlier entry becomes a copy of it: GNU tar
and Python write such entries when a file is packed twice.

No step takes long or much memory: what stands before an entry's bytes is limited, a deadline holds, and whoever gives
the order may withdraw it at any entry and after each MiB.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import stat
import struct
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from polyhost_handlers.artifacts import raw_file

from polyhost.errors import ArchiveRefused
from polyhost.trees import remove_tree

_CHUNK_BYTES = 1024**2
_BLOCK_BYTES = 4096
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
# What a compressed tar begins with, and what reads it.
_COMPRESSIONS: Mapping[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.GzipFile, b"BZh": bz2.BZ2File, b"\xfd7zXZ\0": lzma.LZMAFile, b"\x5d\0\0": lzma.LZMAFile,
}  # fmt: skip
# tarfile reads all that stands before an entry's bytes into memory: long names, PAX records, maps of sparse files.
_MAX_HEADER_BYTES = 1024**2
# zipfile reads a zip's directory into memory. 100,000 entries with long names and times take 20 MB.
_MAX_DIRECTORY_BYTES = 32 * 1024**2
# All that the libraries raise over bytes that somebody else chose.
_UNREADABLE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError,
    ArithmeticError, LookupError, RuntimeError, MemoryError,
)  # fmt: skip


class ArchiveTooLarge(ArchiveRefused):
    """It unpacks to more than `Limits.total_bytes`."""


class NoRoomToUnpack(ArchiveRefused):
    """Nothing is wrong with the archive: the disk is full. `need_bytes`: what all of it takes, blocks counted whole."""

    def __init__(self, message: str, need_bytes: int = 0) -> None:
        super().__init__(message)
        self.need_bytes = need_bytes


class UnpackingTooSlow(ArchiveRefused):
    """It took longer than `Limits.secs`."""


class UnpackingCancelled(ArchiveRefused):
    """The caller no longer wants the archive."""


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to, and how long that may take."""

    entries: int = 100_000
    # Folders within folders. Models have a handful; whoever walks through a tree must be able to.
    depth: int = 32
    total_bytes: int = 64 * 1024**3
    # gzip packs text about 5:1 and zeros 1000:1; beyond this, and beyond a size worth the question, it is a bomb.
    ratio: int = 200
    ratio_floor_bytes: int = 256 * 1024**2
    secs: float = 300.0


class Unpacked(NamedTuple):
    """One file as it was written: what tells whether somebody has changed it since."""

    size: int
    sha256: str
    inode: int
    mtime_ns: int
    ctime_ns: int


def unpack(
    archive: Path,
    to: Path,
    limits: Limits = Limits(),
    called: str = "",
    *,
    file_mode: int = 0o644,
    cancelled: threading.Event | None = None,
) -> dict[str, Unpacked]:
    """
    Unpack a tar or a zip into the new folder `to`, all or nothing; returns its files by their paths below `to`.

    `called`: what errors call the archive, its file's name unless given. `cancelled`: may be set by another thread.
    Raises ArchiveRefused.
    """
    called = called or archive.name
    to.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_of(to)
    remove_tree(staging)  # of a process that was killed in the middle
    staging.mkdir(0o700)
    watch = _Watch(limits.secs, called, cancelled or threading.Event())
    try:
        target = _Target(staging, limits, archive.stat().st_size, called, file_mode, watch)
        _unpack_zip(archive, target) if _is_zip(archive) else _unpack_tar(archive, target)
        if not target.files:
            raise ArchiveRefused(f"{called} holds no file.")
        if target.is_full:
            raise NoRoomToUnpack(f"{called} cannot be unpacked: the disk is full.", target.disk_bytes)
        staging.chmod(0o755)
        staging.rename(to)
    except _UNREADABLE as error:
        if _says_full(error):
            raise NoRoomToUnpack(f"{called} cannot be unpacked: the disk is full.") from error
        raise ArchiveRefused(f"{called} {_reason(archive, error)}") from error
    finally:
        remove_tree(staging)
    return target.files


def staging_of(to: Path) -> Path:
    """Where an archive lies until all of it is there."""
    return to.with_name(f".unpacking-{to.name}")


def _says_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class _Watch:
    """Says when to stop."""

    secs: float
    called: str
    cancelled: threading.Event
    begin: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Raises UnpackingCancelled, UnpackingTooSlow."""
        if self.cancelled.is_set():
            raise UnpackingCancelled(f"{self.called} was not unpacked: nobody waits for it any more.")
        if time.monotonic() - self.begin > self.secs:
            raise UnpackingTooSlow(
                f"{self.called} was not unpacked within {self.secs:g} s. Pack fewer or smaller files, or give it more "
                "time with --unpack-timeout-secs.",
            )


class _Target:
    """Where an archive's entries go; refuses those that would harm."""

    def __init__(
        self, path: Path, limits: Limits, archive_bytes: int, called: str, file_mode: int, watch: _Watch
    ) -> None:
        self._path = str(path)
        self.limits = limits
        self._ratio_bytes = max(limits.ratio_floor_bytes, archive_bytes * limits.ratio)
        self._entries = 0
        self._bytes = 0
        self._file_mode = file_mode
        # Folders that exist already, so that a folder of many files is made once.
        self._folders = {""}
        self.called = called
        self.watch = watch
        self.files: dict[str, Unpacked] = {}
        # The disk is: from then on nothing is written, only counted, so that room can be made for all of it.
        self.is_full = False

    @property
    def disk_bytes(self) -> int:
        blocks = sum(-(-file.size // _BLOCK_BYTES) for file in self.files.values())
        return (blocks + len(self._folders)) * _BLOCK_BYTES

    def add_folder(self, name: str) -> None:
        self._make_folder(self._place(name), name)

    def add_file(self, name: str, chunks: Iterable[bytes], declared_bytes: int) -> None:
        """What is declared refuses a bomb before it is written; what is written, one that lies."""
        self._write(self._place(name), name, chunks, declared_bytes)

    def _write(self, place: str, name: str, chunks: Iterable[bytes], declared_bytes: int) -> None:
        self._check_bytes(self._bytes + declared_bytes)
        self._clear(place, name)
        before, rest = self._bytes, iter(chunks)
        try:
            if not self.is_full:
                self.files[place] = self._written(place, rest)
                return
        except OSError as error:
            if not _says_full(error):
                raise
            self.is_full = True
        for chunk in rest:
            self._count(chunk)
        self.files[place] = Unpacked(self._bytes - before, "", 0, 0, 0)

    def _written(self, place: str, chunks: Iterator[bytes]) -> Unpacked:
        digest = hashlib.sha256()
        file = os.open(f"{self._path}/{place}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, self._file_mode)
        try:
            for chunk in chunks:
                self._count(chunk)
                digest.update(chunk)
                _write_all(file, chunk)
            status = os.fstat(file)
        finally:
            os.close(file)
        return Unpacked(status.st_size, digest.hexdigest(), status.st_ino, status.st_mtime_ns, status.st_ctime_ns)

    def _count(self, chunk: bytes) -> None:
        self.watch.look()
        self.count_bytes(len(chunk))

    def add_copy(self, name: str, of: str) -> None:
        """A hard link: `of` is the name of an entry that came before it."""
        place, original = self._place(name), self._inside(of)
        if place == original and place in self.files:  # the same file packed twice
            return
        if original not in self.files:
            raise ArchiveRefused(
                f"{self.called} has a hard link to a file that does not come before it: {name[:200]} to {of[:200]}",
            )
        if self.is_full:  # the original may not be there
            self._clear(place, name)
            self.count_bytes(self.files[original].size)
            self.files[place] = self.files[original]
            return
        with open(f"{self._path}/{original}", "rb") as source:
            self._write(place, name, chunks_of(source), self.files[original].size)

    def count_bytes(self, count: int) -> None:
        self._bytes += count
        self._check_bytes(self._bytes)

    def refuse(self, name: str, is_link: bool) -> None:
        # A link inside the archive would be harmless, but no packer of models writes one: fewer cases, fewer holes.
        cure = " (a symbolic link: pack the file itself, with tar --dereference)" if is_link else ""
        raise ArchiveRefused(f"{self.called} has an entry that is neither file nor folder: {name[:200]}{cure}")

    def _place(self, name: str) -> str:
        self.watch.look()
        self._entries += 1
        if self._entries > self.limits.entries:
            raise ArchiveRefused(f"{self.called} has more than {self.limits.entries} entries.")
        return self._inside(name)

    def _inside(self, name: str) -> str:
        """The path below the target, "" for the target itself."""
        try:
            name.encode()
        except UnicodeEncodeError as error:
            written = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise ArchiveRefused(f"{self.called} has a name that is not UTF-8: {written[:200]}. Rename it.") from error
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ArchiveRefused(f"{self.called} has an entry that leads out of it: {name[:200]}")
        if len(path.parts) > self.limits.depth:
            raise ArchiveRefused(
                f"{self.called} has folders more than {self.limits.depth} deep: {name[:80]}… Pack it flatter.",
            )
        return "/".join(path.parts)

    def _clear(self, place: str, name: str) -> None:
        """Make room for a file: its folder is there, and an earlier file of its name is not."""
        self._make_folder(place.rpartition("/")[0], name)
        if place in self._folders:
            raise self._is_both(name)
        if place in self.files:
            Path(self._path, place).unlink(missing_ok=self.is_full)
            del self.files[place]

    def _make_folder(self, folder: str, name: str) -> None:
        if folder in self._folders:
            return
        parts = folder.split("/")
        for count in range(1, len(parts) + 1):
            outer = "/".join(parts[:count])
            if outer in self.files:
                raise self._is_both(name)
            if outer not in self._folders:
                self._add_to_folders(outer)
                if not self.is_full:
                    os.mkdir(f"{self._path}/{outer}", 0o755)

    def _add_to_folders(self, folder: str) -> None:
        """One entry may name as many new folders as may lie in each other."""
        self._folders.add(folder)
        if len(self._folders) - 1 > self.limits.entries:  # the archive's own is among them
            raise ArchiveRefused(f"{self.called} has more than {self.limits.entries} folders.")

    def _is_both(self, name: str) -> ArchiveRefused:
        return ArchiveRefused(f"{self.called} has a name that is both a file and a folder: {name[:200]}")

    def _check_bytes(self, count: int) -> None:
        if count > self.limits.total_bytes:
            raise ArchiveTooLarge(f"{self.called} unpacks to more than {self.limits.total_bytes} bytes.")
        if count > self._ratio_bytes:
            raise ArchiveRefused(f"{self.called} unpacks to more than {self._ratio_bytes} bytes.")


def _write_all(file: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(file, left) :]


def chunks_of(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk


class _TarStream(io.RawIOBase):
    """
    What tarfile reads from, forwards only.

    Between entries it reads headers into memory, of sizes that the archive claims: more than a limit is refused before
    it is read. A position before what was read, as a negative size leads to, would make it read for ever.
    """

    def __init__(self, source: IO[bytes], watch: _Watch) -> None:
        self._source = source
        self._watch = watch
        self._headers_left = 0
        self._is_in_headers = False
        # The last block tells whether an archive ended where tarfile stopped.
        self.last_block = b""

    def begin_headers(self) -> None:
        self._is_in_headers, self._headers_left = True, _MAX_HEADER_BYTES

    def begin_data(self) -> None:
        self._is_in_headers = False

    def read(self, count: int = -1) -> bytes:
        self._watch.look()
        if not self._is_in_headers:
            return self._source.read(count)
        self._headers_left -= count
        if not 0 <= self._headers_left <= _MAX_HEADER_BYTES:
            raise ArchiveRefused(
                f"{self._watch.called} has an entry whose name and attributes (PAX records, a sparse file's map) take "
                f"more than {_MAX_HEADER_BYTES} bytes. Pack it with tar --format=gnu, without extended attributes.",
            )
        self.last_block = self._source.read(count)
        return self.last_block

    def tell(self) -> int:
        return self._source.tell()

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        at = self._source.tell()
        if whence != io.SEEK_SET or position < at:
            raise tarfile.ReadError("an entry's size is wrong")
        while at < position and (skipped := self._source.read(min(_CHUNK_BYTES, position - at))):
            self._watch.look()
            at += len(skipped)
        return at


def _unpack_tar(archive: Path, target: _Target) -> None:
    with _decompressed(archive) as source:
        stream = _TarStream(source, target.watch)
        for member, chunks in _tar_members(stream):
            if member.isdir():
                target.add_folder(member.name)
            elif member.isreg():
                target.add_file(member.name, chunks, member.size)
            elif member.islnk():
                target.add_copy(member.name, member.linkname)
            else:
                target.refuse(member.name, member.issym())
        # To the end, where compressed files have their checksum: one that was cut off short of it is refused.
        for rest in chunks_of(source):
            target.watch.look()
            target.count_bytes(len(rest))


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(8)
    opened = next((opened for magic, opened in _COMPRESSIONS.items() if start.startswith(magic)), None)
    return cast("IO[bytes]", opened(archive)) if opened else archive.open("rb")


def _tar_members(stream: _TarStream) -> Iterator[tuple[tarfile.TarInfo, Iterator[bytes]]]:
    """Each entry with what it holds, which is to be read before the next one is asked for."""
    stream.begin_headers()
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        # None where the first header is damaged. `next` would go on behind it, and that entry would be missing.
        has_any = tar.firstmember is not None  # type: ignore[attr-defined]
        while has_any and (member := tar.next()):
            if "size" in tar.pax_headers or not _is_sized(member):
                raise tarfile.ReadError("an entry's size is wrong")
            stream.begin_data()
            yield member, _data_of(stream, tar, member)
            tar.members.clear()  # type: ignore[attr-defined] # it would keep all of them
            if sum(map(len, tar.pax_headers.values())) > _MAX_HEADER_BYTES:
                raise tarfile.ReadError("its global PAX records are too long")
            stream.begin_headers()
    # It stops silently at a damaged header: all that follows would be missing.
    if stream.last_block.strip(b"\0"):
        raise tarfile.ReadError("it is damaged, or was cut off, in the middle")


def _is_sized(member: tarfile.TarInfo) -> bool:
    """Whether its bytes, or its pieces where it has holes, lie within its size. tarfile takes negative numbers, too."""
    end = 0
    for offset, length in cast("Iterable[tuple[int, int]]", member.sparse or ()):
        if length == 0:  # old archives have some at the end, of no place
            continue
        if offset < end or length < 0:
            return False
        end = offset + length
    return end <= member.size


def _data_of(stream: _TarStream, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    if member.issparse():
        source = tar.extractfile(member)
        yield from chunks_of(source) if source else ()
        return
    left = member.size
    while left > 0:
        chunk = stream.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise tarfile.ReadError("unexpected end of data")
        left -= len(chunk)
        yield chunk


def _reason(archive: Path, error: BaseException) -> str:
    """Why bytes are no archive: what they are instead, or what the library says."""
    what, cure = raw_file(archive)
    if what:
        return f"is {what}, not an archive: {cure}."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "has a name that is longer than the file system allows. Give its files shorter names."
    if isinstance(error, MemoryError):
        return "takes too much memory to unpack. Pack it as tar.gz."
    # What the system says names paths of ours; what the libraries say does not.
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"is not a readable archive: {said.splitlines()[0].rstrip(':')}"


def _is_zip(archive: Path) -> bool:
    """zipfile.is_zipfile looks at the end: a tar whose last file is a zip would be taken for one."""
    with archive.open("rb") as file:
        return file.read(4) in _ZIP_STARTS


class _ZipStream(io.FileIO):
    """What zipfile reads from. It reads a zip's whole directory at once, of the size that the zip claims."""

    def __init__(self, archive: Path, target: _Target) -> None:
        super().__init__(archive)
        self._target = target

    def read(self, count: int | None = -1) -> bytes:
        self._target.watch.look()
        if count is None or count < 0:
            count = os.fstat(self.fileno()).st_size - self.tell()
        if count > _MAX_DIRECTORY_BYTES:
            raise ArchiveRefused(f"{self._target.called} has more than {self._target.limits.entries} entries.")
        return super().read(count) or b""


def _unpack_zip(archive: Path, target: _Target) -> None:
    with _ZipStream(archive, target) as stream, zipfile.ZipFile(stream) as file:
        for info in file.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                target.refuse(info.filename, kind == stat.S_IFLNK)
            elif info.is_dir():
                target.add_folder(info.filename)
            else:
                with file.open(info) as source:
                    target.add_file(info.filename, chunks_of(source), info.file_size)
