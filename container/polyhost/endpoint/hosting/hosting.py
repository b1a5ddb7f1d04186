"""
The control plane: SageMaker's models, endpoint configurations and endpoints, at home.

Owns the definitions of all endpoints in memory, where a request finds its own without waiting. Operations run one
after the other in a thread of their own, which owns the file; what one has changed is seen here before it is answered.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from polyhost.endpoint.definitions import Endpoint
from polyhost.endpoint.hosting.arns import Arns
from polyhost.endpoint.hosting.operations import Check, HostingError, Operations, Outcome
from polyhost.endpoint.hosting.requests import OPERATIONS
from polyhost.endpoint.hosting.state import State

__all__ = ["Hosting", "HostingError"]

logger = logging.getLogger("polyhost.endpoint")

# Clients of the control plane wait 60 s for an answer. What takes longer is seen by DescribeEndpoint.
_DEPLOYED_SECS = 30.0


async def _serve_at_once(_: Endpoint) -> str | None:
    return None


class Hosting:
    """
    `own` is the endpoint of the command line, always there. `allowed_folders`: where models may lie but in buckets.

    `check` is told all containers that there would be and says in a sentence why that cannot be, or None; it runs in
    the file's thread and must only look at what it is given. `on_change` is called on the event loop whenever
    `endpoints` are others. Then `deploy` is run for each that is new or has changed, and says why it cannot be served,
    or None: a new endpoint has failed then, and one that was updated is again what it was before.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        account_id: str,
        region: str,
        own: Endpoint | None,
        allowed_folders: Sequence[Path] = (),
        check: Check = lambda _: None,
        on_change: Callable[[], None] = lambda: None,
        deploy: Callable[[Endpoint], Awaitable[str | None]] = _serve_at_once,
    ) -> None:
        self._state_dir = state_dir
        self._arns = Arns(account_id, region)
        self._own = own
        self._allowed_folders = tuple(allowed_folders)
        self._check = check
        self._on_change = on_change
        self._deploy = deploy
        self._deployments: dict[str, asyncio.Task[None]] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polyhost-state")
        self._state: State | None = None
        self._operations: Operations | None = None

    async def start(self) -> None:
        """Raises StartFailed."""
        self._loop = asyncio.get_running_loop()
        self._endpoints = await self._loop.run_in_executor(self._thread, self._open)
        if self._own:
            self._endpoints[self._own.name] = self._own
        for endpoint in self._endpoints.values():
            self._begin_deployment(endpoint)

    async def stop(self) -> None:
        """Operations under way are done first. A deployment begins again when the server does."""
        for task in self._deployments.values():
            task.cancel()
        await asyncio.gather(*self._deployments.values(), return_exceptions=True)
        if self._state:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._state.close)
        self._thread.shutdown()

    def endpoint(self, name: str) -> Endpoint | None:
        return self._endpoints.get(name)

    def endpoints(self) -> Sequence[Endpoint]:
        return list(self._endpoints.values())

    async def call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to an operation, done and kept. Raises HostingError."""
        _require_known(operation)
        outcome = await self._loop.run_in_executor(self._thread, self._perform, operation, parameters)
        deployments = {self._deployments[name] for name in outcome.changed if name in self._deployments}
        if deployments:
            await asyncio.wait(deployments, timeout=_DEPLOYED_SECS)
        return outcome.answer

    def resources_of(self, operation: str, parameters: Mapping[str, Any]) -> list[str]:
        """The ARNs that policies for this operation must allow, every one. Raises HostingError for an unknown one."""
        _require_known(operation)
        return self._arns.touched_by(operation, parameters)

    def _publish(self, changed: Mapping[str, Endpoint | None]) -> None:
        for name, endpoint in changed.items():
            if name in self._deployments:
                self._deployments.pop(name).cancel()
            if endpoint is None:
                self._endpoints.pop(name, None)
            else:
                self._endpoints[name] = endpoint
        self._on_change()
        for endpoint in changed.values():
            if endpoint is not None:
                self._begin_deployment(endpoint)

    def _begin_deployment(self, endpoint: Endpoint) -> None:
        task = self._deployments[endpoint.name] = self._loop.create_task(self._deploy_and_settle(endpoint))
        task.add_done_callback(lambda task: self._deployment_ended(endpoint.name, task))

    async def _deploy_and_settle(self, endpoint: Endpoint) -> None:
        failure = await self._deploy(endpoint)
        await self._loop.run_in_executor(self._thread, self._settle, endpoint, failure)

    def _deployment_ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._deployments.get(name) is task:
            del self._deployments[name]
        if not task.cancelled() and (error := task.exception()):
            logger.error("endpoint %s", name, exc_info=error)

    # In the thread

    def _open(self) -> dict[str, Endpoint]:
        self._state = State(self._state_dir)
        self._operations = Operations(
            self._state, self._arns, own=self._own, allowed_folders=self._allowed_folders, check=self._check
        )
        return self._operations.restore()

    def _settle(self, endpoint: Endpoint, failure: str | None) -> None:
        """What came of a deployment."""
        assert self._operations
        try:
            changed = self._operations.settle(endpoint, failure)
        except sqlite3.Error as error:
            logger.error("endpoint %s: the state was not written: %s", endpoint.name, error)  # noqa: TRY400
            return
        if changed:
            self._loop.call_soon_threadsafe(self._publish, changed)

    def _perform(self, operation: str, parameters: Mapping[str, Any]) -> Outcome:
        assert self._operations
        try:
            outcome = self._operations.perform(operation, parameters)
        except sqlite3.Error as error:
            logger.error("%s: the state was not written: %s", operation, error)  # noqa: TRY400 - its words say all
            raise HostingError(
                "InternalFailure", f"The server cannot write its state ({error}): nothing was changed.", 500
            ) from error
        # From here, not from `call`: a caller that has gone away takes nothing back.
        if outcome.changed:
            self._loop.call_soon_threadsafe(self._publish, outcome.changed)
        return outcome


def _require_known(operation: str) -> None:
    if operation not in OPERATIONS:
        raise HostingError(
            "UnknownOperationException",
            f"{operation[:100]} is not an operation of Polyhost, which serves models: it does not train, "
            f"transform in batches, stream or answer asynchronously. Operations: {', '.join(OPERATIONS)}.",
        )
