"""
An inference, whichever way its tensors came: the caller is asked for, the tensors are read, the model answers.

It goes the way of all others. The tensors become a body that the model's handler takes (bodies.py), which the model
answers as it answers InvokeEndpoint's clients or MMS's, and the answer becomes tensors (answers.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from polyhost.api.http import Reply, Request
from polyhost.api.open_inference.answers import Output, chosen, outputs_of
from polyhost.api.open_inference.bodies import Body, body_of
from polyhost.api.open_inference.replies import Failure, answer_within
from polyhost.api.open_inference.requests import Asked
from polyhost.api.open_inference.served import Served
from polyhost.engine.errors import EngineError, ModelNotFound
from polyhost.engine.protocol import answer_of
from polyhost.service_errors import ArtifactMissing, EndpointError, EndpointMissing

VERSION = "1"
# What is done at once. More is done one after the other, in a thread.
_AT_ONCE_BYTES = 32 * 1024
_T = TypeVar("_T")


class Call(NamedTuple):
    """`request`: of whom the policies are asked. `size`: of what came, in bytes. `read`: raises BadRequest."""

    request_id: str
    name: str
    version: str
    request: Request
    size: int
    read: Callable[[], Asked]
    # What else the model sees of the request's header.
    headers: Mapping[str, str] = {}


class Answered(NamedTuple):
    """`own_headers`: lines of the reply's header."""

    asked: Asked
    outputs: list[Output]
    own_headers: bytes


class Inference:
    def __init__(self, served: Served) -> None:
        self._served = served
        self._working = asyncio.Lock()

    async def answered(self, call: Call) -> Answered:
        """Raises Failure, EngineError, EndpointError."""
        try:
            await self._served.require_infer(call.request, call.name, call.size)
            require_version(call.version)
            asked, body = await self.aside(call.size, lambda: _both(call.read()))
        except (EngineError, EndpointError) as error:
            self._served.refused(call.name, call.request_id, call.size, error)
            raise
        reply = await self._reply(call, body)
        try:
            answer, content_type = answer_within(reply)
        except Failure as failure:
            if failure.status == 400 and await self._is_missing(call.name):
                failure.status = 404
            raise
        outputs = await self.aside(len(answer), lambda: outputs_of(answer, content_type))
        return Answered(asked, chosen(outputs, asked.wanted), reply.own_headers)

    async def _is_missing(self, name: str) -> bool:
        """SageMaker's routes tell it by a sentence alone."""
        try:
            await self._served.require_model(None, name)
        except (EndpointMissing, ArtifactMissing, ModelNotFound):
            return True
        except (EngineError, EndpointError):
            return False
        return False

    async def _reply(self, call: Call, body: Body) -> Reply:
        headers = {**call.headers, **body.headers, "content-type": body.content_type, "accept": "application/json"}
        request = Request("POST", "/invocations", "", headers, body.content)
        leaving: list[Callable[[], object]] = []

        def begin(done: Callable[[Reply | Exception], None]) -> None:
            leave = self._served.infer(call.name, request, call.request_id, done)
            if leave is not None:
                leaving.append(leave)

        return await answer_of(begin, lambda: [leave() for leave in leaving])

    async def aside(self, size: int, work: Callable[[], _T]) -> _T:
        """Large work goes to a thread: others are answered meanwhile. One at a time, which bounds its memory."""
        if size <= _AT_ONCE_BYTES:
            return work()
        async with self._working:
            return await asyncio.get_running_loop().run_in_executor(None, work)


def require_version(version: str) -> None:
    """Raises ModelNotFound."""
    if version not in ("", VERSION):
        raise ModelNotFound(f"A model has one version here, {VERSION}: ask for that, or for none.")


def _both(asked: Asked) -> tuple[Asked, Body]:
    return asked, body_of(asked)
