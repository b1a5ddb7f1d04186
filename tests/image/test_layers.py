"""No layer of an image holds a secret, nor does the record of how it was made."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from containers import DOCKER, IMAGE, NATIVE_IMAGE, docker
from support.layers import secrets_in

pytestmark = pytest.mark.image


@pytest.mark.parametrize("image", [IMAGE, NATIVE_IMAGE])
def test_no_layer_holds_a_secret(image: str, tmp_path: Path) -> None:
    saved = tmp_path / "image.tar"
    subprocess.run([DOCKER, "save", "--output", saved, image], check=True, timeout=300)
    found, layers = [], 0
    with tarfile.open(saved) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is None or file.read(2) in (b"", b'{"', b"[{"):
                continue
            file.seek(0)
            try:
                found += list(secrets_in(file))
                layers += 1
            except tarfile.ReadError:
                continue  # no layer

    assert layers > 1
    assert found == []


@pytest.mark.parametrize("image", [IMAGE, NATIVE_IMAGE])
def test_the_history_names_no_secret(image: str) -> None:
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)

    assert history
    assert not re.search(r"(?i)(password|secret|token|api_?key)\s*=\s*\S|://[^/\s]+:[^/\s]+@", history)
