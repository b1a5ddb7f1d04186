"""Files with holes, as GNU tar packs them in each of its formats: what comes out is what went in."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from polyhost.archives import unpack

KIB = 1024
# Each file's size, and where its bytes are.
FILES = {
    "with-holes": (4096 * KIB, [(0, b"a" * 5000), (1024 * KIB, b"b" * 7000), (3072 * KIB, b"c" * 10)]),
    "with-a-hole-first": (2048 * KIB, [(1024 * KIB, b"x" * 4096)]),
    "a-hole-alone": (1024 * KIB, []),
    "with-more-pieces-than-a-header-holds": (3840 * KIB, [(n * 64 * KIB, b"%d" % n * 800) for n in range(60)]),
}


@pytest.mark.parametrize(
    "form",
    [
        ["--format=oldgnu"],
        ["--format=gnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
    ids=" ".join,
)
def test_holes_are_zeros(form: list[str], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, (size, pieces) in FILES.items():
        with (tmp_path / "in" / name).open("wb") as file:
            file.truncate(size)
            for offset, content in pieces:
                file.seek(offset)
                file.write(content)
    subprocess.run(["tar", "--sparse", *form, "-cf", tmp_path / "a.tar", "-C", tmp_path / "in", *FILES], check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1024 * KIB  # it has left the holes out

    assert set(unpack(tmp_path / "a.tar", tmp_path / "out")) == set(FILES)
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes(), name
