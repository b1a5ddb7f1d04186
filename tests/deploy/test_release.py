"""What a release is made of: the version, the changelog, the tags of images, and the wheel in an empty environment."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from polyhost import __version__
from support.forms import IS_LONG
from support.server import Process, free_port, request

sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "build_backend"))
import polyhost_build
from release import CHANGELOG, CHART, ELF_MACHINES, VERSION_FILE, notes_of, refusals, version_in, wrong_libraries

LOG = "# Changes\n\n## 0.2.0\n\n* New.\n\n## 0.1.0\n\n* Old.\n"
GOOD = {
    "version": "0.2.0",
    "changelog": LOG,
    "chart": "name: polyhost\nversion: 0.2.0\n",
    "tags": "v0.1.0\n",
    "changes": "",
}


def test_a_release_that_is_ready_is_not_refused() -> None:
    assert list(refusals(**GOOD)) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"version": "0.2"}, "has the version 0.2: write it as 1.2.3"),
        ({"changes": " M README.md\n"}, "the tree is not clean"),
        ({"tags": "v0.1.0\nv0.2.0\n"}, "v0.2.0 is tagged already"),
        ({"changelog": LOG.replace("0.2.0", "Unreleased")}, "CHANGELOG.md begins with 'Unreleased'"),
        ({"changelog": ""}, "CHANGELOG.md begins with 'None'"),
        ({"changelog": LOG.replace("* New.\n", "")}, "CHANGELOG.md says nothing below 0.2.0"),
        ({"chart": "version: 0.1.0\nappVersion: 0.2.0\n"}, "Chart.yaml has another version: write 0.2.0"),
    ],
)
def test_what_speaks_against_a_release_is_said(wrong: dict[str, str], words: str) -> None:
    assert words in "\n".join(refusals(**{**GOOD, **wrong}))


def test_notes_are_the_newest_section() -> None:
    assert notes_of("0.2.0", LOG) == "* New."
    assert notes_of("0.1.0", LOG) == "* Old."


def test_this_version_is_the_same_everywhere() -> None:
    """Once the newest section has its name, nothing else is in the way."""
    assert version_in(VERSION_FILE.read_text()) == __version__
    changelog = CHANGELOG.read_text().replace(f"\n## {__version__}\n", "\n## 0.0.0\n")
    changelog = changelog.replace("\n## Unreleased\n", f"\n## {__version__}\n")

    assert list(refusals(__version__, changelog, CHART.read_text(), "", "")) == []


@pytest.mark.parametrize(
    ("arguments", "tags"),
    [
        ([], ["polyhost:mms", f"polyhost:{__version__}-mms"]),
        (["native"], ["polyhost:native", f"polyhost:{__version__}-native"]),
        (["native", "mine:1", "xgboost"], ["mine:1"]),
    ],
)
def test_tags_of_images_carry_the_version(tmp_path: Path, arguments: list[str], tags: list[str]) -> None:
    """By a docker that only writes down what it is told."""
    (tmp_path / "docker").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    (tmp_path / "docker").chmod(0o755)
    environ = {**os.environ, "DOCKER": str(tmp_path / "docker"), "BASE_IMAGE": "debian:mine"}
    subprocess.run([ROOT / "scripts" / "image", *arguments], env=environ, capture_output=True, timeout=60, check=True)

    built = (tmp_path / "told").read_text().splitlines()[-1].split()
    assert [word.removeprefix("--tag=") for word in built if word.startswith("--tag=")] == tags
    assert f"org.opencontainers.image.version={__version__}" in built


def library(machine: str) -> bytes:
    """As much of an ELF file as says for which machine it is."""
    return b"\x7fELF".ljust(18, b"\0") + ELF_MACHINES[machine].to_bytes(2, "little")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("aarch64", library("aarch64"), None),
        ("x86_64", library("x86_64"), None),
        ("aarch64", library("x86_64"), "libtrees.so is not of the machine in the wheel's name."),
        ("x86_64", b"", "libtrees.so is not of the machine in the wheel's name."),
        ("riscv64", library("x86_64"), "libtrees.so is not of the machine in the wheel's name."),
        ("aarch64", None, "has no library: it was not compiled."),
    ],
)
def test_a_wheel_is_for_the_machine_in_its_name(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    with zipfile.ZipFile(tmp_path / f"polyhost-1-py3-none-manylinux_2_17_{name}.whl", "w") as wheel:
        wheel.writestr("polyhost/__init__.py", "")
        if content is not None:
            wheel.writestr("polyhost_handlers/compiled/libtrees.so", content)

    said = list(wrong_libraries(Path(wheel.filename)))
    assert [words in text for text in said] == ([] if words is None else [True])


def test_a_library_for_another_machine_is_compiled_by_zig_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a Zig that only writes down what it is told, and by one that fails."""
    target, tell = tmp_path / "libtrees.so", "import sys, pathlib; pathlib.Path(sys.argv[-3]).write_text(str(sys.argv))"
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setenv("POLYHOST_BUILD_FOR", "aarch64")
    monkeypatch.setattr(polyhost_build, "_ZIG", (sys.executable, "-c", tell, "cc"))
    assert polyhost_build.compile_library(Path("trees.c"), target)
    assert "'-target', 'aarch64-linux-gnu.2.17', '-O2'" in target.read_text()
    assert polyhost_build.foreign_tag() == "manylinux_2_17_aarch64"
    assert polyhost_build._compilers() == ["ziglang"]

    monkeypatch.setattr(polyhost_build, "_ZIG", (sys.executable, "-c", "raise SystemExit('no')"))
    with pytest.raises(polyhost_build.NotCompiled, match=r"trees\.c is not compiled: no"):
        polyhost_build.compile_library(Path("trees.c"), target)
    assert not target.exists()
    monkeypatch.setenv("POLYHOST_BUILD_FOR", "vax")
    with pytest.raises(polyhost_build.NotCompiled, match="write one of aarch64, or leave it out"):
        polyhost_build.foreign_tag()
    monkeypatch.delenv("POLYHOST_BUILD_FOR")
    assert polyhost_build.foreign_tag() is None


@pytest.mark.skipif(not IS_LONG, reason="it takes a minute: make test LONG=1 runs it")
def test_the_wheel_is_complete(tmp_path: Path) -> None:
    """Built as for a release, with all extras in an empty environment, in which a demo answers: there is no clone."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    subprocess.run([ROOT / "scripts" / "release", "--dry-run"], env={**os.environ, "DIST": str(tmp_path)}, check=True)
    (wheel,) = tmp_path.glob(f"*{platform.machine()}.whl")
    if sys.platform == "linux" and platform.machine() == "x86_64":
        (other,) = set(tmp_path.glob("*.whl")) - {wheel}
        assert other.name == f"polyhost-{__version__}-py3-none-manylinux_2_17_aarch64.whl"
        assert list(wrong_libraries(other)) == []
    install = f'make_venv "$BIN/python" {tmp_path}/venv; pip_install {tmp_path}/venv -c constraints.txt "{wheel}[all]"'
    subprocess.run(["bash", "-c", f"source scripts/lib; {install}"], cwd=ROOT, check=True)
    port = free_port()
    (tmp_path / "tmp").mkdir()
    process = Process(
        [str(tmp_path / "venv" / "bin" / "polyhost"), "demo", "--port", str(port)],
        {**environ, "TMPDIR": str(tmp_path / "tmp")},
        cwd=tmp_path,
    )
    try:
        process.wait_for_line("Ctrl-C ends the server")
        target = {"X-Amzn-SageMaker-Target-Model": "houston.tar.gz", "Content-Type": "text/csv"}
        answer = request(port, "POST", "/invocations", "1998,2150,3,2.5,0.4,2", target)
        page = request(port, "GET", "/")
        process.send(signal.SIGINT)
        assert process.wait() == 0, process.log
    finally:
        process.kill_tree()

    assert float(answer.text.strip("[]\n")) > 0
    assert page.status == 200
    assert "manylinux" in wheel.name or sys.platform != "linux"
    assert list((tmp_path / "tmp").iterdir()) == []
