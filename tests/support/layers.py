"""Secrets in the layers of an image: what a later layer removes is still there for whoever pulls it."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import IO

_NAMES = re.compile(
    r"(^|/)(\.env|\.git|\.netrc|\.pypirc|\.docker/config\.json|\.aws/credentials|id_(rsa|ed25519))(/|$)"
)
_CONTENTS = (
    ("a private key", re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{8}")),
    ("an access key of AWS", re.compile(rb"\b(AKIA|ASIA)(?![A-Z0-9]*EXAMPLE)[A-Z0-9]{16}\b")),
    ("a password in an address", re.compile(rb"https?://[\w.-]{1,60}:[^@/\s:'\"{}$<>]{3,60}@[\w.-]+")),
)
# Larger files are libraries and models.
_MOST_BYTES = 1024**2
# Packages document and test such things with examples.
_EXAMPLES = re.compile(r"site-packages/|dist-packages/|usr/lib/python|usr/share/doc/|usr/share/perl")


def secrets_in(layer: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Of a layer's tar: the names of files that hold a secret, and what each seems to be."""
    with tarfile.open(fileobj=layer, mode="r|*") as archive:
        for member in archive:
            if _NAMES.search(member.name):
                yield member.name, "a file that is kept private"
            elif member.isreg() and member.size <= _MOST_BYTES and not _EXAMPLES.search(member.name):
                file = archive.extractfile(member)
                content = file.read() if file else b""
                yield from ((member.name, what) for what, pattern in _CONTENTS if pattern.search(content))
