"""
The locale that ONNX's text networks ask for, where the system does not have it.

StringNormalizer changes case by the rules of the locale `en_US.UTF-8`, unless a network names another. A fresh Debian
and most images have only `C.UTF-8`, whose rules for letters are the same: glibc takes both from one table. So the one
is lent the other's name, in a folder that glibc is shown while the network loads. onnxruntime 1.23, the last for
Python 3.10, asks again at each run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from polyhost_handlers.errors import LoadFailed

_ASKED_FOR = re.compile(r"Failed to construct locale with name:(.*?):")
# Turkish and its relatives have two letters i; what else differs is not worth a wrong letter.
_ENGLISH = re.compile(r"en_[A-Z]{2}\.(UTF-8|utf8)")
_NEUTRAL = ("/usr/lib/locale/C.utf8", "/usr/lib/locale/C.UTF-8")


def missing_locale(error: Exception) -> str | None:
    """The locale that onnxruntime did not find, None where it failed for another reason."""
    found = _ASKED_FOR.search(str(error))
    return found[1] if found else None


@contextlib.contextmanager
def english_locale(name: str) -> Iterator[None]:
    """
    Have glibc find `C.UTF-8` under the name of an English locale that is not installed.

    Raises LoadFailed for any other language, whose rules may differ, and where there is no `C.UTF-8` either.
    """
    neutral = next((folder for folder in _NEUTRAL if Path(folder).is_dir()), None)
    if neutral is None or not _ENGLISH.fullmatch(name):
        raise LoadFailed(
            f"Unable to load model: it changes case by the locale {name or 'with no name'}, which this system does not "
            "have: install it (on Debian: apt-get install locales-all).",
        )
    before = os.environ.get("LOCPATH")
    with _shown(name, neutral) as folder:
        os.environ["LOCPATH"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["LOCPATH"]
            else:
                os.environ["LOCPATH"] = before


@contextlib.contextmanager
def _shown(name: str, neutral: str) -> Iterator[str]:
    """
    A folder in which glibc finds the locale. It goes at once: workers are killed, and nobody could remove it then.
    """
    folder = _folder_of(os.getpid())
    os.mkdir(folder, 0o700)  # fails where somebody has it already
    try:
        (Path(folder) / name).symlink_to(neutral)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _folder_of(pid: int) -> str:
    """The same one each time in a process: glibc remembers each that it has looked into."""
    return os.path.join(tempfile.gettempdir(), f"polyhost-locale-{pid}-{secrets.token_hex(8)}")
