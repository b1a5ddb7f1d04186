"""Calls of one model that are sent to its worker together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Batcher(Generic[T]):
    """Collects what is added until there are `size` of them, or the first has waited `delay_secs`."""

    def __init__(self, size: int, delay_secs: float, send: Callable[[list[T]], None]) -> None:
        self._size = size
        self._delay_secs = delay_secs
        self._send = send
        self._batch: list[T] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, one: T) -> None:
        self._batch.append(one)
        if len(self._batch) >= self._size:
            self._end()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay_secs, self._end)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._batch = self._batch, []
        self._send(batch)
