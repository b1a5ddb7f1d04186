"""Archives, well and ill made."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile

import numpy as np

Member = tuple[str, bytes] | tarfile.TarInfo


def tar(*members: Member, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zipped(*members: tuple[str, bytes], link: str = "") -> bytes:
    """`link`: the name of a symbolic link that is put in, too."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def lying_zip(member: str, data: bytes, declared_bytes: int) -> bytes:
    """Its headers declare another size than there is."""
    honest = zipped((member, data))
    return honest.replace(len(data).to_bytes(4, "little"), declared_bytes.to_bytes(4, "little"))


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress."""
    return np.random.default_rng(seed).bytes(size)


def claim(member: str, size: int) -> bytes:
    """A tar whose one entry says that it is so large."""
    info = tarfile.TarInfo(member)
    info.size = size
    return gzip.compress(info.tobuf())


def gzipped_nonsense() -> bytes:
    return gzip.compress(b"this is no tar")
