"""
Unpacking archives that may be hostile.

An archive is refused whole, with nothing written where it was to go: paths that lead out, links that lead out,
devices, or more entries and bytes than a model has.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from polyhost.errors import ArchiveRefused

_CHUNK_BYTES = 1024**2


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to."""

    entries: int = 100_000
    total_bytes: int = 64 * 1024**3
    # gzip packs text about 5:1 and zeros 1000:1; beyond this, and beyond a size worth the question, it is a bomb.
    ratio: int = 200
    ratio_floor_bytes: int = 256 * 1024**2


def unpack(archive: Path, to: Path, limits: Limits = Limits()) -> None:
    """
    Unpack a tar, plain or compressed, into the new folder `to`, all or nothing.

    Raises ArchiveRefused.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=to.parent, prefix=".unpacking-"))
    try:
        _unpack_tar(archive, staging, limits)
        staging.chmod(0o755)
        staging.rename(to)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ArchiveRefused(f"{archive.name} is not a readable tar archive: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unpack_tar(archive: Path, to: Path, limits: Limits) -> None:
    written = 0
    allowed = min(limits.total_bytes, max(limits.ratio_floor_bytes, archive.stat().st_size * limits.ratio))
    with tarfile.open(archive, "r:*") as tar:
        for count, member in enumerate(tar, 1):
            if count > limits.entries:
                raise ArchiveRefused(f"{archive.name} has more than {limits.entries} entries.")
            written += member.size if member.isreg() else 0
            if written > allowed:
                raise ArchiveRefused(f"{archive.name} unpacks to more than {allowed} bytes.")
            _write_member(tar, member, to, archive.name)


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path, archive_name: str) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\0" in member.name:
        raise ArchiveRefused(f"{archive_name} has an entry that leads out of it: {member.name[:200]}")
    target = to / path
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    # A link inside the archive would be harmless, but no packer of models writes one: fewer cases, fewer holes.
    if not member.isreg():
        raise ArchiveRefused(f"{archive_name} has an entry that is neither file nor folder: {member.name[:200]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise ArchiveRefused(f"{archive_name} has an entry that cannot be read: {member.name[:200]}")
    with source, target.open("xb") as file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)
