"""An object of a bucket as a thread beside the event loop sees it; the fetcher reads and writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from polyhost.artifacts.fetching import Fetcher
from polyhost.artifacts.transfers import Content

T = TypeVar("T")


class StoredObject:
    """Its methods block, and raise the errors of the Fetcher's."""

    def __init__(self, fetcher: Fetcher, source: str, key: str) -> None:
        self._fetcher = fetcher
        self._source = source
        self._key = key

    @property
    def url(self) -> str:
        return self._source + self._key

    def read(self, known: str) -> Content | None:
        """None where it is still of the version `known`."""
        return self._wait(self._fetcher.read_object(self._source, self._key, known))

    def write(self, body: bytes, expected: str) -> str:
        """The new version. `expected`: the one that it has, "" for none. Raises ArtifactChanged where it is another."""
        return self._wait(self._fetcher.write_object(self._source, self._key, body, expected))

    def _wait(self, asking: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asking, self._fetcher.loop).result()
