"""What the protocol's names mean, and how their models are asked: an endpoint's and a container's differ in that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from polyhost_handlers.signature import Signature

from polyhost.api.http import Reply, Request
from polyhost.api.open_inference.requests import Parameters


class Served(Protocol):
    """
    `request` is the client's, who may have signed it, or what stands for its call by gRPC; None where nobody is asked.
    All may raise EngineError and EndpointError.
    """

    async def require_infer(self, request: Request | None, name: str, size: int) -> None:
        """That the caller may ask the model, and with so many bytes."""

    def infer(
        self, name: str, asked: Request, request_id: str, done: Callable[[Reply], None]
    ) -> Callable[[], object] | None:
        """
        Have the model answer what its handler takes. `done` is called once with a reply of SageMaker's or MMS's.

        Returns what to call when the client has gone.
        """

    def refused(self, name: str, request_id: str, size: int, error: Exception) -> None:
        """A request was not passed on, because of its caller or its tensors: where requests are counted it counts."""

    async def signature(self, name: str) -> Signature:
        """What the model takes and answers, as far as that is known, of one that is in memory."""

    async def require_model(self, request: Request | None, name: str) -> None:
        """That there is such a model, and that the caller may know it."""

    async def load(self, request: Request | None, name: str, parameters: Parameters) -> None: ...

    async def unload(self, request: Request | None, name: str) -> None: ...

    def index(self) -> list[dict[str, Any]]:
        """Models in memory, and those that need no loading, as the protocol describes them."""
