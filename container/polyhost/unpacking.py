"""
Unpacking for the container half: in a process of its own, so that no archive takes the server's memory or time.

It is the endpoint half's fetcher, without the libraries for buckets. It starts with the first archive.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from polyhost.artifacts.fetching import Fetcher
from polyhost.artifacts.transfers import Settings


class Unpacker:
    def __init__(self, environ: Mapping[str, str], unpack_secs: float) -> None:
        settings = Settings(
            dict(environ), connect_secs=0, read_secs=0, fetch_secs=0, unpack_secs=unpack_secs, expects_buckets=False
        )
        self._process = Fetcher(settings)
        self._has_started = False

    async def unpack(self, archive: Path, to: Path) -> None:
        """
        Into the new folder `to`. Whoever is cancelled cancels it, at whichever entry it is.

        Raises EndpointError with a sentence that says why.
        """
        if not self._has_started:
            self._process.start()
            self._has_started = True
        await self._process.unpack(str(archive), str(to))

    async def stop(self) -> None:
        await self._process.stop()
