"""Loads of models, for which more than one may wait."""

from __future__ import annotations

import asyncio
import logging
from typing import TypeVar

from polyhost.engine.errors import EngineError, ModelNotFound, OutOfMemory
from polyhost.engine.protocol import Registration
from polyhost.tasks import FlightCancelled, result_of

logger = logging.getLogger("polyhost.engine")
T = TypeVar("T")


async def loaded(loading: asyncio.Task[T], name: str) -> T:
    """The result of a load that others may wait for too. Raises ModelNotFound if the model was unloaded meanwhile."""
    try:
        return await result_of(loading)
    except FlightCancelled:
        raise ModelNotFound(f"Model not found: {name}: it was unloaded while it was loading.") from None


def log_failed_load(registration: Registration, error: EngineError) -> None:
    """An endpoint makes room where memory was short, for each model that is new to it, and tells if it cannot."""
    makes_room = bool(registration.title) and isinstance(error, OutOfMemory)
    level = logging.DEBUG if makes_room else logging.WARNING
    logger.log(level, "model %s: %d: %s", registration.title or registration.name, error.status, error.message)
