"""Models of the container, by the names that Multi Model Server's API gave them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polyhost_handlers.signature import Signature

from polyhost.api.http import Reply, Request
from polyhost.api.open_inference.requests import Parameters
from polyhost.engine.protocol import Engine, Registration

Invoke = Callable[[Request, str, str, Callable[[Reply], None]], None]


class ContainerModels:
    """A `Served`. Without an endpoint everybody may do everything."""

    def __init__(self, engine: Engine, invoke: Invoke) -> None:
        self._engine = engine
        self._invoke = invoke

    async def require_infer(self, request: Request | None, name: str, size: int) -> None: ...

    def infer(self, name: str, asked: Request, request_id: str, done: Callable[[Reply], None]) -> None:
        self._invoke(asked, name, request_id, done)

    def refused(self, name: str, request_id: str, size: int, error: Exception) -> None: ...

    async def require_model(self, _: Request | None, name: str) -> None:
        await self._engine.describe(name)

    async def signature(self, name: str) -> Signature:
        return await self._engine.signature(name)

    async def load(self, _: Request | None, name: str, parameters: Parameters) -> None:
        """`url` among the parameters; without it the model's name is the archive's in the model store."""
        await self._engine.load(Registration(url=str(parameters.get("url") or name), name=name))

    async def unload(self, _: Request | None, name: str) -> None:
        await self._engine.unload(name)

    def index(self) -> list[dict[str, Any]]:
        return [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in self._engine.names()]
