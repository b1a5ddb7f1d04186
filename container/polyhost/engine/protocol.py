"""
What every engine offers, and what passes between it and those who call it.

Errors are those of `polyhost.engine.errors`; OutOfMemory is the one after which the caller unloads something and
asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from polyhost.engine.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What a client asks for when it loads a model."""

    url: str
    name: str = ""
    handler: str = ""
    batch_size: int = 1
    max_batch_delay_ms: int = 100
    initial_workers: int | None = None
    response_timeout_secs: float | None = None
    is_synchronous: bool = True
    # MMS loads once and forks; each of our copies is loaded by itself. Passed on, and otherwise without effect.
    preload_model: bool = False
    # Loaded with the server, by no client's request.
    is_startup: bool = False
    # Variables that its workers see besides the server's own.
    environ: tuple[tuple[str, str], ...] = ()


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One client's request as it came; header names in lower case, `query` without its question mark."""

    request_id: str
    headers: dict[str, str]
    query: str
    body: bytes


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What one client gets."""

    status: int
    headers: dict[str, str]
    body: bytes


class HandlerMetric(msgspec.Struct, frozen=True, array_like=True):
    """What a handler counted or measured by MMS's `context.metrics`. `line` is how MMS logs it."""

    name: str
    unit: str
    value: float
    is_counter: bool
    line: str


class Engine(Protocol):
    """`has_ended`: by itself, after which nothing can be served; `on_end` is called when that happens."""

    # What all models together may use.
    budget_bytes: int
    has_ended: bool
    on_end: Callable[[], None]

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def load(self, registration: Registration) -> str:
        """Load a model; the status text. Nothing is registered after an error."""

    async def unload(self, name: str) -> None:
        """Returns when the memory has been given back."""

    async def scale(self, name: str, minimum: int, maximum: int | None, is_synchronous: bool) -> str:
        """Have `minimum` copies of a model; the status text."""

    async def invoke(self, name: str, item: Item) -> Answer: ...

    def invoke_soon(
        self, name: str, item: Item, done: Callable[[Answer], None], failed: Callable[[EngineError], None],
    ) -> bool:  # fmt: skip
        """
        As `invoke`, without a task, where nothing is to be waited for but the answer; False where something is.

        One of `done` and `failed` is called later, unless it is False.
        """

    def used_bytes(self) -> int:
        """What models use, measured now."""

    def names(self) -> list[str]:
        """Of what is registered, sorted."""

    def url_of(self, name: str) -> str: ...

    async def prepare(self, environ: tuple[tuple[str, str], ...]) -> None:
        """Models with these variables will be loaded: what can be started before is."""

    async def forget(self, environ: tuple[tuple[str, str], ...]) -> None:
        """No more of them will be: nothing is kept running for them. All are unloaded."""

    async def describe(self, name: str) -> dict[str, Any]:
        """As MMS describes a model: keys in its order, what is unknown left out."""
