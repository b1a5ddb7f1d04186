"""Whatever is in a folder, it can be removed, and nothing else is."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from polyhost.trees import remove_tree, tree_bytes


def nest(folder: Path, depth: int, name: str) -> None:
    """Folders in folders, made as a program does it that changes into each: the whole path may be of any length."""
    home = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
            Path("file").touch()
    finally:
        os.chdir(home)
        os.close(home)


@pytest.mark.parametrize(("depth", "name"), [(5, "a"), (1500, "a"), (100, "a" * 200)])
def test_however_deep_it_is(tmp_path: Path, depth: int, name: str) -> None:
    (tmp_path / "tree").mkdir()
    nest(tmp_path / "tree", depth, name)

    remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "tree" / "file").symlink_to(tmp_path / "outside" / "file")

    remove_tree(tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert (tmp_path / "outside" / "file").exists()


def test_folders_without_permissions(tmp_path: Path) -> None:
    """A model's code may have taken them from its own folders."""
    folder = tmp_path / "tree" / "locked" / "inner"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    folder.chmod(0)
    folder.parent.chmod(0o500)

    remove_tree(tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_nothing_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    remove_tree(tmp_path / "file")
    remove_tree(tmp_path / "nothing")

    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller goes on: a clean-up that fails must not stop a server."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        remove_tree(tmp_path / "tree")
    assert f"{tmp_path / 'tree'} cannot be removed: Operation not permitted" in caplog.text


def test_what_cannot_be_removed_does_not_keep_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another user owns, or that is immutable."""
    for name in ("a/stays", "a/goes", "b/goes", "goes"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(bytes(5000))
    unlink = os.unlink

    def refuse(path: str) -> None:
        if path.endswith("stays"):
            raise PermissionError(1, "Operation not permitted")
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    assert not remove_tree(tmp_path / "tree")
    assert [path.name for path in (tmp_path / "tree").rglob("*") if path.is_file()] == ["stays"]
    assert tree_bytes(tmp_path / "tree") >= 5000
    monkeypatch.undo()
    assert remove_tree(tmp_path / "tree")
    assert remove_tree(tmp_path / "tree")
