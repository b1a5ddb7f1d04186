"""The models of --preload: loaded before anybody asks for them, and never evicted."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Collection

from polyhost.endpoint.cache import ModelCache
from polyhost.endpoint.shelf import Shelf
from polyhost.engine.errors import EngineError, EnvironmentBuilding
from polyhost.service_errors import EndpointError, ModelNotReady, StoreFailed, ValidationError

logger = logging.getLogger("polyhost.endpoint")

# Between tries of what cannot be loaded now.
_RETRY_DELAYS_SECS = (0.5, 1.0, 2.0, 5.0, 10.0)


class Preloading:
    def __init__(self, cache: ModelCache, find_shelf: Callable[[], Shelf | None], targets: Collection[str]) -> None:
        """`find_shelf`: where the models are; None where there is no such endpoint, or not yet."""
        self._cache = cache
        self._find_shelf = find_shelf
        self._targets = dict.fromkeys(targets)

    async def load_all(self, tell: Callable[[str], None]) -> None:
        """Returns when all are loaded or have failed. `tell`: how far it is."""
        shelf, targets = self._find_shelf(), self._targets
        if shelf is None:
            return
        for done, target in enumerate(targets):
            tell(f"{done} of {len(targets)} models of --preload are loaded.")
            await self._load(shelf, target)

    async def change(self, targets: Collection[str]) -> None:
        """Load those that are new, and let those be evicted again that are not listed any more."""
        before, self._targets = self._targets, dict.fromkeys(targets)
        new = [target for target in self._targets if target not in before]
        gone = [target for target in before if target not in self._targets]
        if new or gone:
            logger.info("--preload has changed. New in it: %d. May be evicted again: %d.", len(new), len(gone))
        shelf = self._find_shelf()
        if shelf is None:  # then `load_all` is still to come
            return
        for target in gone:
            self._release(shelf, target)
        for target in new:
            await self._load(shelf, target)

    async def _load(self, shelf: Shelf, target: str) -> None:
        """
        A store that does not answer is asked until it does: a server without what it is to hold would only be slow.

        A model that is not there, or cannot be loaded, is logged and keeps no server from its work.
        """
        for delay_secs in itertools.chain(_RETRY_DELAYS_SECS, itertools.repeat(_RETRY_DELAYS_SECS[-1])):
            if target not in self._targets:
                return
            try:
                await self._cache.load(shelf, target, pin=True)
            except (StoreFailed, ModelNotReady, EnvironmentBuilding) as error:
                logger.warning("--preload %s is tried again: %s", target, error.message)
            except (EndpointError, EngineError) as error:
                logger.warning("--preload %s: %s", target, error.message)
                return
            else:
                if target not in self._targets:  # it was taken from the list meanwhile
                    self._release(shelf, target)
                return
            await asyncio.sleep(delay_secs)

    def _release(self, shelf: Shelf, target: str) -> None:
        with contextlib.suppress(ValidationError):  # it is not loaded
            self._cache.pin(shelf, target, is_pinned=False)
