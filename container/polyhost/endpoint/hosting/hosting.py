"""
The control plane: SageMaker's models, endpoint configurations and endpoints, at home.

Owns the definitions of all endpoints in memory, where a request finds its own without waiting. Operations run one
after the other in a thread of their own, which owns the file; what one has changed is seen here before it is answered.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhost.endpoint.arns import Arns
from polyhost.endpoint.definitions import Endpoint
from polyhost.endpoint.hosting.deployments import SHADOWS, say_unready
from polyhost.endpoint.hosting.operations import Operations
from polyhost.endpoint.hosting.outcomes import HostingError, Outcome, unknown_operation
from polyhost.endpoint.hosting.records import Records
from polyhost.endpoint.hosting.requests import OPERATIONS, SCALING_OPERATIONS
from polyhost.endpoint.hosting.served import Check, Served
from polyhost.endpoint.hosting.state import State, StateFailed
from polyhost.endpoint.transform.definitions import TransformJob
from polyhost.tasks import SingleFlight, Tasks

__all__ = ["Hosting", "HostingError"]

logger = logging.getLogger("polyhost.endpoint")

# Clients of the control plane wait 60 s for an answer. What takes longer is seen by DescribeEndpoint.
_DEPLOYED_SECS = 30.0
# A stop does not wait for a store that does not answer.
_CLOSED_SECS = 0.2


@dataclass(frozen=True, kw_only=True)
class Plane:
    """
    What a server's control plane is, wherever its state is kept.

    `own` is the endpoint of the command line, always there. `allowed_folders`: where models may lie but in buckets.

    `check` is told all containers that there would be and says in a sentence why that cannot be, or None; it runs in
    the state's thread and must only look at what it is given.
    """

    arns: Arns
    own: Endpoint | None
    allowed_folders: Sequence[Path] = ()
    check: Check = lambda _: None


async def _serve_at_once(_: Endpoint) -> str | None:
    return None


class Hosting:
    """
    `open_state` is called in a thread of its own, and raises StartFailed.

    `on_change` is called on the event loop whenever
    `endpoints` are others. Then `deploy` is run for each that is new or has changed, and says why it cannot be served,
    or None: a new endpoint has failed then, and one that was updated is again what it was before.

    `unready_shadows`: of an endpoint, by their names why they cannot be prepared, "" while they are.

    `begin_job` and `stop_job` are called on the event loop for transform jobs that are made and stopped;
    `unfinished_jobs` are those that an earlier server has left, once this has started.
    """

    def __init__(
        self,
        open_state: Callable[[], State],
        plane: Plane,
        *,
        on_change: Callable[[], None] = lambda: None,
        deploy: Callable[[Endpoint], Awaitable[str | None]] = _serve_at_once,
        unready_shadows: Callable[[str], Mapping[str, str]] = lambda _: {},
        begin_job: Callable[[TransformJob], None] = lambda _: None,
        stop_job: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._open_state = open_state
        self.plane = plane
        self._on_change = on_change
        self._deploy = deploy
        self._unready_shadows = unready_shadows
        self._begin_job = begin_job
        self._stop_job = stop_job
        self.unfinished_jobs: Sequence[TransformJob] = ()
        self._deployments: dict[str, asyncio.Task[None]] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="polyhost-state")
        self._tasks = Tasks()
        self._looking: SingleFlight[None] = SingleFlight()
        self._is_out_of_reach = False
        self._is_stopping = False
        self._state: State | None = None
        self._served: Served | None = None
        self._operations: Operations | None = None

    async def start(self) -> None:
        """Raises StartFailed."""
        self._loop = asyncio.get_running_loop()
        found = await self._loop.run_in_executor(self._thread, self._open)
        self._endpoints = {name: endpoint for name, endpoint in found.items() if endpoint is not None}
        if self.plane.own:
            self._endpoints[self.plane.own.name] = self.plane.own
        for endpoint in self._endpoints.values():
            self._begin_deployment(endpoint, is_own=True)
        if self.is_shared:
            self._tasks.start(self._keep_looking())

    async def stop(self) -> None:
        """
        Operations under way are done first, but for those on a store that does not answer.

        A deployment begins again when the server does, and so does that of an endpoint which is made meanwhile.
        """
        self._is_stopping = True
        for task in self._deployments.values():
            task.cancel()
        await asyncio.gather(*self._deployments.values(), return_exceptions=True)
        await self._tasks.stop()
        if self._state:
            closing = asyncio.get_running_loop().run_in_executor(self._thread, self._state.close)
            await asyncio.wait({closing}, timeout=_CLOSED_SECS if self.is_shared else None)
        self._thread.shutdown(wait=False)

    @property
    def arns(self) -> Arns:
        return self.plane.arns

    @property
    def is_shared(self) -> bool:
        """Whether others than this server change what is served."""
        return self._state is not None and self._state.poll_secs > 0

    async def look(self) -> None:
        """
        See what others have changed: what they had written before this call is in force when it returns.

        All who call meanwhile wait for one look, and that has begun after they called.
        """
        if self._looking.is_under_way:
            await self._looking.ended()
        await self._looking.join(lambda: self._tasks.start(self._look()))

    async def _keep_looking(self) -> None:
        assert self._state is not None
        while True:
            await asyncio.sleep(self._state.poll_secs)
            await self.look()

    async def _look(self) -> None:
        try:
            await self._loop.run_in_executor(self._thread, self._read_newest)
        except StateFailed as error:
            if not self._is_out_of_reach:
                logger.warning("%s: what was read before stays in force", error)
            self._is_out_of_reach = True
        else:
            self._is_out_of_reach = False

    async def deployed(self) -> None:
        """Returns when the deployments that are under way have ended, whatever came of them."""
        if self._deployments:
            await asyncio.wait(set(self._deployments.values()))

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
        if operation == "DescribeEndpoint":
            say_unready(outcome.answer.get(SHADOWS, ()), self._unready_shadows(outcome.answer["EndpointName"]))
        return outcome.answer

    def resources_of(self, operation: str, parameters: Mapping[str, Any]) -> list[str]:
        """The ARNs that policies for this operation must allow, every one. Raises HostingError for an unknown one."""
        _require_known(operation)
        if operation in SCALING_OPERATIONS:
            return ["*"]
        return self.plane.arns.touched_by(operation, parameters)

    def _publish(self, changed: Mapping[str, Endpoint | None], own: Collection[str]) -> None:
        """`own`: the names of those that were changed here."""
        for name, endpoint in changed.items():
            if name in self._deployments:
                self._deployments.pop(name).cancel()
            if endpoint is None:
                self._endpoints.pop(name, None)
            else:
                self._endpoints[name] = endpoint
        self._on_change()
        for name, endpoint in changed.items():
            if endpoint is not None and not self._is_stopping:
                self._begin_deployment(endpoint, is_own=name in own)

    def _begin_deployment(self, endpoint: Endpoint, *, is_own: bool) -> None:
        task = self._deployments[endpoint.name] = self._loop.create_task(self._deploy_and_settle(endpoint, is_own))
        task.add_done_callback(lambda task: self._deployment_ended(endpoint.name, task))

    async def _deploy_and_settle(self, endpoint: Endpoint, is_own: bool) -> None:
        """One server that cannot serve what was made at another one must not fail it for all."""
        failure = await self._deploy(endpoint)
        if failure is not None and not is_own:
            logger.warning("endpoint %s, made at another server, cannot be served: %s", endpoint.name, failure)
            return
        await self._loop.run_in_executor(self._thread, self._settle, endpoint, failure)

    def _deployment_ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._deployments.get(name) is task:
            del self._deployments[name]
        if not task.cancelled() and (error := task.exception()):
            logger.error("endpoint %s", name, exc_info=error)

    async def job_begun(self, name: str) -> None:
        """A transform job is at work now."""
        assert self._operations
        await self._kept(name, functools.partial(self._operations.transforms.begun, name))

    async def job_ended(self, name: str, status: str, reason: str) -> None:
        """What came of a transform job. Where it cannot be kept, the job begins again when the server does."""
        assert self._operations
        await self._kept(name, functools.partial(self._operations.transforms.ended, name, status, reason))

    async def _kept(self, name: str, keep: Callable[[], None]) -> None:
        try:
            await self._loop.run_in_executor(self._thread, keep)
        except StateFailed as error:
            logger.error("transform job %s: the state was not written: %s", name, error)  # noqa: TRY400 - it says all

    # In the thread

    def _open(self) -> dict[str, Endpoint | None]:
        self._state = self._open_state()
        self._served, self._operations = on_state(self._state, self.plane)
        self.unfinished_jobs = self._operations.transforms.unfinished()
        return self._served.changes()

    def _read_newest(self) -> None:
        """Raises StateFailed."""
        assert self._state
        self._state.transact(lambda: None)
        self._find_changes({})

    def _find_changes(self, own: Mapping[str, Endpoint | None]) -> None:
        """`own`: what was changed here. What others have changed was read with it."""
        assert self._served
        assert self._state
        changed = {**self._served.changes(), **own} if self.is_shared else own
        # A file is read by each server for itself.
        names = changed.keys() if self._state.refusal else own.keys()
        if changed:
            self._loop.call_soon_threadsafe(self._publish, changed, names)

    def _settle(self, endpoint: Endpoint, failure: str | None) -> None:
        """What came of a deployment."""
        assert self._served
        try:
            changed = self._served.settle(endpoint, failure)
            self._find_changes(changed)
        except StateFailed as error:
            logger.error("endpoint %s: the state was not written: %s", endpoint.name, error)  # noqa: TRY400

    def _perform(self, operation: str, parameters: Mapping[str, Any]) -> Outcome:
        assert self._operations
        try:
            outcome = self._operations.perform(operation, parameters)
            # From here, not from `call`: a caller that has gone away takes nothing back.
            self._find_changes(outcome.changed)
        except StateFailed as error:
            logger.error("%s: the state was not written: %s", operation, error)  # noqa: TRY400 - its words say all
            raise HostingError(
                "InternalFailure", f"The server cannot write its state ({error}): nothing was changed.", 500
            ) from error
        if outcome.job:
            self._loop.call_soon_threadsafe(self._begin_job, outcome.job)
        if outcome.stopped:
            self._loop.call_soon_threadsafe(self._stop_job, outcome.stopped)
        return outcome


def on_state(state: State, plane: Plane) -> tuple[Served, Operations]:
    """The control plane on a state."""
    records = Records(state, plane.arns, plane.own)
    folders = plane.allowed_folders
    served = Served(state, records, own=plane.own, allowed_folders=folders, check=plane.check)
    return served, Operations(state, records, served, allowed_folders=folders)


def _require_known(operation: str) -> None:
    if operation not in OPERATIONS + SCALING_OPERATIONS:
        raise unknown_operation(operation, OPERATIONS)
