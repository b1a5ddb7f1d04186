"""An engine in the tests' own process: it adopts what its workers leave, and no server that the tests have started."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import pytest
from polyhost import processes


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Children that were there before belong to other tests: servers that are shared, for example."""
    others, children = set(processes._children()), processes._children

    def own_children() -> list[int]:
        return [pid for pid in children() if pid not in others]

    _be_subreaper(True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(processes, "_children", own_children)
            yield
    finally:
        _be_subreaper(False)


def _be_subreaper(is_one: bool) -> None:
    ctypes.CDLL(None).prctl(processes._PR_SET_CHILD_SUBREAPER, int(is_one), 0, 0, 0)
