"""
Random trees of archives: names, links, depth, duplicates, modes, PAX records.

What may be unpacked is said by a model of a few lines below, in which a tree is a dictionary. What was unpacked is
also held against Python's own tarfile.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from polyhost.archives import Limits, unpack
from polyhost.errors import ArchiveRefused
from support.forms import examples

DEPTH = 6
FILE, FOLDER, HARD, SOFT, PIPE, DEVICE = (
    tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
)  # fmt: skip


class Refused(Exception):
    """The model would not unpack it."""


@dataclass(frozen=True)
class Entry:
    """`link`: the name that a link leads to."""

    name: str
    kind: bytes = FILE
    data: bytes = b""
    link: str = ""
    mode: int = 0o644
    comment: str = ""


PARTS = st.sampled_from(["a", "b", "c", "ä", ".", "..", "...", "a b", " ", "-", "\\", "x" * 120, "$HOME", "~"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
NAMES = st.one_of(
    PATHS, PATHS, PATHS, PATHS.map("./{}".format), PATHS.map("/{}".format), PATHS.map("{}//d".format),
    st.integers(DEPTH - 2, DEPTH + 2).map(lambda depth: "/".join(["d"] * depth)),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
    st.just("bad-\udcff"),
)  # fmt: skip
KINDS = st.one_of(st.just(FILE), st.sampled_from([FILE, FILE, FOLDER, HARD, HARD, SOFT, PIPE, DEVICE]))
ENTRIES = st.builds(
    Entry, NAMES, KINDS, st.binary(max_size=20), NAMES, st.integers(0, 0o7777), st.text("ab=\n ", max_size=5)
)
# Many of them are whole, so that what comes behind the first entries is reached, too.
GOOD = st.builds(
    Entry, st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), st.just(FILE), st.binary(max_size=20)
)
TREES = st.one_of(
    st.lists(ENTRIES, min_size=1, max_size=4), st.lists(st.one_of(GOOD, GOOD, ENTRIES), min_size=1, max_size=8)
)
FORMS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


def expected(entries: Sequence[Entry]) -> dict[str, bytes | None]:
    """Files and folders (None) by their paths. Raises Refused."""
    tree: dict[str, bytes | None] = {}
    for entry in entries:
        place = place_of(entry.name)
        if entry.kind == FOLDER:
            add(tree, place, None)
        elif entry.kind == FILE:
            add(tree, place, entry.data)
        elif entry.kind == HARD:
            original = tree.get(place_of(entry.link))
            if original is None:
                raise Refused
            add(tree, place, original)
        else:
            raise Refused
    if not any(data is not None for data in tree.values()):
        raise Refused
    return tree


def place_of(name: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or len(parts) > DEPTH or "\udcff" in name:
        raise Refused
    return "/".join(parts)


def add(tree: dict[str, bytes | None], place: str, data: bytes | None) -> None:
    """The folders above it, too. Raises Refused where a name is both a file and a folder."""
    parts = place.split("/")
    for count in range(1, len(parts)):
        if tree.setdefault("/".join(parts[:count]), None) is not None:
            raise Refused
    is_folder = not place or tree.get(place, b"") is None
    is_file = tree.get(place) is not None
    if is_file if data is None else is_folder:
        raise Refused
    if place:
        tree[place] = data


def packed(entries: Sequence[Entry], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=form) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.linkname = entry.kind, entry.mode, entry.link
            info.size = len(entry.data) if entry.kind == FILE else 0
            if entry.comment and form == tarfile.PAX_FORMAT:
                info.pax_headers = {"comment": entry.comment, "mtime": "1.5", "SCHILY.xattr.user.a": "b"}
            archive.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def on_disk(folder: Path) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for path in folder.rglob("*"):
        assert not path.is_symlink()
        found[path.relative_to(folder).as_posix()] = None if path.is_dir() else path.read_bytes()
    return found


def unpacked(data: bytes, folder: Path) -> dict[str, bytes | None] | None:
    """The tree, None where it is refused. Whatever becomes of it, nothing lies anywhere else."""
    (folder / "archive").write_bytes(data)
    target = folder / "models" / "model"
    try:
        files = unpack(folder / "archive", target, Limits(depth=DEPTH))
    except ArchiveRefused:
        assert os.listdir(folder / "models") == []
        return None
    finally:
        assert sorted(os.listdir(folder)) == ["archive", "models"]
    assert os.listdir(folder / "models") == ["model"]
    found = on_disk(target)
    assert {name: one.size for name, one in files.items()} == {
        name: len(content) for name, content in found.items() if content is not None
    }
    modes = {stat.S_IMODE(path.lstat().st_mode) for path in target.rglob("*")}
    assert modes <= {0o644, 0o755}
    return found


def by_tarfile(data: bytes, folder: Path) -> dict[str, bytes | None]:
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive.getmembers():
            member.mode = 0o755
            archive.extract(member, folder, **safely)
    return on_disk(folder)


@settings(max_examples=examples(75))
@given(TREES, FORMS)
def test_a_tar_is_what_the_model_says(entries: list[Entry], form: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        found = unpacked(packed(entries, form), Path(name))
    try:
        tree: dict[str, bytes | None] | None = expected(entries)
    except Refused:
        tree = None
    event("refused" if tree is None else "unpacked")
    assert found == tree


@settings(max_examples=examples(25))
@given(st.lists(GOOD, min_size=1, max_size=8), st.data(), FORMS)
def test_a_tar_is_what_python_unpacks(entries: list[Entry], data: st.DataObject, form: int) -> None:
    """Where both unpack it. Links at the end: Python's would change with a later entry of their file's name."""
    names = [entry.name for entry in entries]
    links = [
        Entry(f"link{number}", HARD, link=data.draw(st.sampled_from(names)))
        for number in range(data.draw(st.integers(0, 3)))
    ]
    content = packed([*entries, *links], form)
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as pythons:
        found = unpacked(content, Path(ours))
        event("refused" if found is None else "unpacked")
        if found is not None:
            assert found == by_tarfile(content, Path(pythons))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(max_examples=examples(25))
@given(st.lists(st.one_of(GOOD, ENTRIES), min_size=1, max_size=5))
def test_a_zip_is_what_the_model_says(entries: list[Entry]) -> None:
    """A zip has no hard links, and tells a folder by the slash behind its name."""
    entries = [entry for entry in entries if "\udcff" not in entry.name and entry.kind != HARD]
    written = [as_in_zip(entry) for entry in entries]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in written:
            info = zipfile.ZipInfo(entry.name)
            kind = {SOFT: stat.S_IFLNK, PIPE: stat.S_IFIFO, DEVICE: stat.S_IFCHR}.get(entry.kind, 0)
            info.external_attr = (kind | entry.mode) << 16
            archive.writestr(info, entry.data)
    try:
        tree: dict[str, bytes | None] | None = expected(written)
    except Refused:
        tree = None
    with tempfile.TemporaryDirectory() as name:
        assert unpacked(buffer.getvalue(), Path(name)) == tree


def as_in_zip(entry: Entry) -> Entry:
    name = entry.name.rstrip("/") + "/" if entry.kind == FOLDER else entry.name
    kind = FOLDER if name.endswith("/") and entry.kind == FILE else entry.kind
    return Entry(name, kind, b"" if kind == FOLDER else entry.data, mode=entry.mode)
