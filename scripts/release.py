"""Of a release: its version, what speaks against it, its notes. `scripts/release` calls it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSION_FILE = ROOT / "container" / "polyhost" / "__init__.py"
CHANGELOG = ROOT / "CHANGELOG.md"
CHART = ROOT / "deploy" / "helm" / "polyhost" / "Chart.yaml"


# What stands in the header of a library, by the machine's name in a wheel's.
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


def main(what: str, folder: str = "") -> int:
    version = version_in(VERSION_FILE.read_text())
    found: list[str] = []
    if what == "version":
        print(version)
    elif what == "notes":
        print(f"Polyhost {version}\n\n{notes_of(version, CHANGELOG.read_text())}")
    elif what == "wheels":
        found = [words for wheel in sorted(Path(folder).glob("*linux*.whl")) for words in wrong_libraries(wheel)]
    else:
        texts = CHANGELOG.read_text(), CHART.read_text()
        found = list(refusals(version, *texts, git("tag"), git("status", "--porcelain")))
    for words in found:
        print(f"error: {words}", file=sys.stderr)
    return bool(found)


def wrong_libraries(wheel: Path) -> Iterator[str]:
    """Why the wheel does not run where its name says."""
    machine = next((name for name in ELF_MACHINES if wheel.stem.endswith(name)), None)
    with zipfile.ZipFile(wheel) as archive:
        libraries = {name: archive.read(name) for name in archive.namelist() if name.endswith(".so")}
    if not libraries:
        yield f"{wheel.name} has no library: it was not compiled."
    for name, content in libraries.items():
        if content[:4] != b"\x7fELF" or int.from_bytes(content[18:20], "little") != ELF_MACHINES.get(machine or ""):
            yield f"{wheel.name}: {name} is not of the machine in the wheel's name."


def version_in(module: str) -> str:
    match = re.search(r'(?m)^__version__ = "(.+)"$', module)
    assert match is not None
    return match[1]


def refusals(version: str, changelog: str, chart: str, tags: str, changes: str) -> Iterator[str]:
    """Why no release can be made. `tags` and `changes`: what git prints, a line each."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        yield f"{VERSION_FILE.name} has the version {version}: write it as 1.2.3 or 1.2.3rc1."
    if changes:
        yield f"the tree is not clean: commit, or remove, these files.\n{changes.rstrip()}"
    if f"v{version}" in tags.split():
        yield f"v{version} is tagged already: raise the version in {VERSION_FILE.name}."
    newest = re.search(r"(?m)^## (\S+)", changelog)
    if newest is None or newest[1] != version:
        yield f"CHANGELOG.md begins with '{newest and newest[1]}': name its newest section {version}."
    elif not notes_of(version, changelog):
        yield f"CHANGELOG.md says nothing below {version}: say what changes for users."
    if not re.search(rf"(?m)^version: {re.escape(version)}$", chart):
        yield f"deploy/helm/polyhost/Chart.yaml has another version: write {version} there, too."


def notes_of(version: str, changelog: str) -> str:
    """What stands below its heading."""
    _, _, after = changelog.partition(f"\n## {version}\n")
    return re.split(r"(?m)^## ", after)[0].strip()


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
