"""A model's folder becomes a `model.tar.gz`: the same files are the same bytes, whoever packs them and when."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from polyhost.archives import unpack
from polyhost.errors import ArchiveRefused
from polyhost_handlers.artifacts import recognise
from polyhost_handlers.errors import LoadFailed

# What tools leave in folders, and no model needs.
_LEFT_OUT = frozenset(("__pycache__", ".git", ".ipynb_checkpoints", ".DS_Store"))


def pack(folder: Path, to: Path) -> None:
    """The files, not the folder itself, in the order of their names. Raises ArchiveRefused."""
    files = sorted(_files_in(folder))
    if not files:
        raise ArchiveRefused(f"{folder} holds no file.")
    # Without its name and time, which gzip would note.
    with (
        to.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in files:
            _add(tar, folder / name, name)


def _files_in(folder: Path) -> Iterator[str]:
    for path, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in folders:
            if os.path.islink(os.path.join(path, name)):
                raise ArchiveRefused(f"{path}/{name} is a link to a folder: copy the folder there instead.")
        for name in names:
            if name not in _LEFT_OUT:
                yield os.path.relpath(os.path.join(path, name), folder)


def _refuse(error: OSError) -> None:
    raise ArchiveRefused(f"{error.filename} cannot be read ({error.strerror}).") from error


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Linked files as if they lay there."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ArchiveRefused(f"{path} is no regular file.")
            entry = tarfile.TarInfo(name)
            entry.size = status.st_size
            entry.mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
            tar.addfile(entry, file)
    except OSError as error:
        raise ArchiveRefused(f"{path} cannot be packed ({error.strerror or error}).") from error


def kind_in(path: Path) -> str:
    """The kind of model in a folder or archive. Raises ArchiveRefused, and LoadFailed if there is none."""
    if path.is_dir():
        return recognise(path, {}).name
    with tempfile.TemporaryDirectory(prefix="polyhost-") as temp:
        unpack(path, Path(temp, "model"), called=str(path))
        try:
            return recognise(Path(temp, "model"), {}).name
        except LoadFailed as error:
            raise LoadFailed(str(error).replace(temp, "")) from error
