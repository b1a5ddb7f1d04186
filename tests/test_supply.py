"""What is installed is pinned, reported in words, and listed whole; nothing secret is among it."""

from __future__ import annotations

import importlib.metadata
import io
import re
import sys
import tarfile
from typing import Any

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.layers import secrets_in

sys.path.insert(0, str(ROOT / "scripts"))
from supply import merged, report

# What makes an environment, and ourselves.
NOT_PINNED = {"pip", "polyhost", "uv", "wheel", "setuptools"}


def pinned() -> dict[str, str]:
    """By name, for this Python."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(one.name): str(one.specifier).removeprefix("==")
        for one in requirements
        if one.marker is None or one.marker.evaluate()
    }


def test_every_distribution_that_is_installed_is_pinned() -> None:
    installed = {canonicalize_name(one.name): one.version for one in importlib.metadata.distributions()}
    wanted = pinned()

    assert len(installed) > 50
    strays = {name: version for name, version in installed.items() if wanted.get(name) != version}
    assert strays.keys() - NOT_PINNED == set(), f"pin {strays}, or make .venv anew if it is older"


@pytest.mark.parametrize("file", sorted(ROOT.glob("constraints*.txt")), ids=lambda file: file.name)
def test_constraints_are_exact_versions(file: Any) -> None:
    for line in file.read_text().splitlines():
        assert not line or line.startswith("#") or re.fullmatch(r"[\w.-]+==[\w.+!-]+( ; .+)?", line), line


FOUND = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
GOOD = {"name": "b", "version": "2", "vulns": []}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (3)"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([GOOD], 0, "1 packages audited, 0 with known vulnerabilities"),
        ([FOUND, GOOD], 1, "a 1: PYSEC-1, mended in 1.1"),
        ([GOOD, UNKNOWN], 0, "not audited, since the service does not know them: c"),
        ([UNKNOWN], 2, "knows none of these packages"),
        ([], 2, "knows none of these packages"),
    ],
)
def test_an_audit_in_words(packages: list[dict[str, Any]], code: int, words: str) -> None:
    """Where nothing could be asked, nothing is said to be good."""
    text, exit_code = report(packages)

    assert (exit_code, words in text) == (code, True)


def test_debians_packages_join_the_list() -> None:
    document = {"bomFormat": "CycloneDX", "components": [{"name": "numpy"}]}
    both = merged(document, "libc6 2.36-9+deb12u9 amd64\nzlib1g 1:1.2.13 amd64\n")

    assert [component["name"] for component in both["components"]] == ["numpy", "libc6", "zlib1g"]
    assert both["components"][2]["purl"] == "pkg:deb/debian/zlib1g@1%3A1.2.13?arch=amd64"


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("app/model.py", b"key = load()", False),
        ("root/.aws/credentials", b"", True),
        ("app/.env", b"A=b", True),
        ("app/.git/config", b"", True),
        ("root/.pip/pip.conf", b"[global]\nindex-url = https://anna:secret@example.org/simple", True),
        ("app/notes.txt", b"-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA", True),
        ("app/settings.py", b"aws_access_key_id = 'AKIAABCDEFGHIJKLMNOP'", True),
    ],
)
def test_secrets_in_a_layer_are_found(name: str, content: bytes, found: bool) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    stream.seek(0)

    assert [found_in for found_in, _ in secrets_in(stream)] == ([name] if found else [])
