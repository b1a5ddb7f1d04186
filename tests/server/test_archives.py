"""Hostile archives are refused whole: nothing is written where they were to go, nor outside."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhost.archives import Limits, unpack
from polyhost.errors import ArchiveRefused
from support.packing import special, tar


def tar_of(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    path.write_bytes(tar(*members))
    return path


def test_files_and_folders_are_unpacked(tmp_path: Path) -> None:
    """
    What a model's archive holds, also in folders that have no entry of their own.
    """
    archive = tar_of(tmp_path / "a.tar.gz", ("model", b"weights"), ("./code/inference.py", b"pass"))
    unpack(archive, tmp_path / "to")

    assert (tmp_path / "to" / "model").read_bytes() == b"weights"
    assert (tmp_path / "to" / "code" / "inference.py").read_bytes() == b"pass"


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (("../evil", b"x"), "leads out of it"),
        (("a/../../evil", b"x"), "leads out of it"),
        (("/etc/evil", b"x"), "leads out of it"),
        (special("link", tarfile.SYMTYPE, "/etc/passwd"), "neither file nor folder"),
        (special("link", tarfile.SYMTYPE, "model"), "neither file nor folder"),
        (special("link", tarfile.LNKTYPE, "model"), "neither file nor folder"),
        (special("device", tarfile.CHRTYPE), "neither file nor folder"),
        (special("pipe", tarfile.FIFOTYPE), "neither file nor folder"),
    ],
)
def test_an_entry_that_would_harm_refuses_the_archive(
    tmp_path: Path, member: tuple[str, bytes] | tarfile.TarInfo, words: str,
) -> None:  # fmt: skip
    """
    Also what came before it is not there.
    """
    archive = tar_of(tmp_path / "a.tar.gz", ("model", b"weights"), member)
    with pytest.raises(ArchiveRefused, match=words):
        unpack(archive, tmp_path / "in" / "to")

    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz", "in"] or not (tmp_path / "evil").exists()
    assert list((tmp_path / "in").iterdir()) == []


def many(tmp_path: Path) -> Path:
    return tar_of(tmp_path / "a.tar.gz", *((f"file{number}", b"") for number in range(20)))


def large(tmp_path: Path) -> Path:
    return tar_of(tmp_path / "a.tar.gz", ("zeros", bytes(2_000_000)))


def twice(tmp_path: Path) -> Path:
    return tar_of(tmp_path / "a.tar.gz", ("model", b"first"), ("model", b"second"))


def truncated(tmp_path: Path) -> Path:
    path = tar_of(tmp_path / "a.tar.gz", ("noise", bytes(range(256)) * 100))
    path.write_bytes(path.read_bytes()[:-40])
    return path


def no_tar(tmp_path: Path) -> Path:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(b"hello"))
    return path


@pytest.mark.parametrize("make", [many, large, twice, truncated, no_tar])
def test_bombs_and_broken_archives_are_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """
    Too many entries, too many bytes, a name twice, an archive that ends too early, or none at all.
    """
    with pytest.raises(ArchiveRefused):
        unpack(make(tmp_path), tmp_path / "in" / "to", Limits(entries=10, ratio=20, ratio_floor_bytes=1000))

    assert list((tmp_path / "in").iterdir()) == []


@given(st.binary(max_size=600))
def test_any_bytes_are_an_archive_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """
    Nothing but ArchiveRefused comes out of bytes that somebody else chose.
    """
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.tar").write_bytes(data)
    with pytest.raises(ArchiveRefused):
        unpack(folder / "a.tar", folder / "to")
