"""What a killed server has left in the temporary folder goes at the next start; what a running one has there stays."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from polyhost.temporary import own_folder, sweep

HOLDER = "from polyhost.temporary import own_folder\nwith own_folder('code-') as f: print(f, flush=True); input()"


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    tempfile.tempdir = None


def test_the_folder_of_a_killed_process_is_swept(temp: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout
        folder = Path(holder.stdout.readline().strip())
        (folder / "model" / "deep").mkdir(parents=True)
        sweep()
        assert (folder / "model" / "deep").is_dir()  # its owner lives
        holder.kill()
        holder.wait(120)
        assert folder.is_dir()
        sweep()
    assert list(temp.iterdir()) == []


def test_what_is_not_ours_stays(temp: Path) -> None:
    (temp / "polyhost-models").mkdir()
    (temp / "polyhost-file").touch()
    (temp / "elsewhere").mkdir()
    (temp / "elsewhere" / ".owner").touch()
    (temp / "polyhost-link").symlink_to(temp / "elsewhere")
    (temp / "polyhost-odd").mkdir()
    (temp / "polyhost-odd" / ".owner").symlink_to(temp / "elsewhere" / ".owner")
    before = sorted(temp.rglob("*"))

    with own_folder() as folder:
        sweep()
        assert folder.is_dir()
    assert sorted(temp.rglob("*")) == before
