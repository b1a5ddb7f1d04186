"""Whether the script that a container brings can serve at all, known before any model is asked for."""

from __future__ import annotations

from dataclasses import replace

from polyhost_handlers.artifacts import container_script
from polyhost_handlers.script_trial import Blame, Fault

from polyhost.artifacts import Artifact, Artifacts
from polyhost.endpoint.events import ModelForTrialMissing, Publisher
from polyhost.endpoint.shelf import Environ, Shelf
from polyhost.engine.errors import EngineError
from polyhost.engine.handlers import handler_spec
from polyhost.engine.protocol import Engine, Registration
from polyhost.service_errors import EndpointError


class ScriptTrials:
    def __init__(self, engine: Engine, artifacts: Artifacts, events: Publisher, *, timeout_secs: float) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._events = events
        self._timeout_secs = timeout_secs

    async def require_living_script(self, shelf: Shelf, environ: Environ) -> None:
        """Raises EngineError where a multi-model container's own script cannot serve any model."""
        if not shelf.container.is_multi_model or container_script(dict(environ)) is None:
            return
        handler = handler_spec(shelf.container.handler)
        trial = Registration(
            url="", handler=handler, environ=environ, image=shelf.container.image, load_timeout_secs=self._timeout_secs
        )
        fault = await self._engine.try_script(trial)
        if fault is not None and fault.blame is not Blame.SCRIPT:
            fault = await self._fault_beside_a_model(shelf, trial, fault)
        if fault is not None:
            raise EngineError(f"The container's script cannot serve: {fault.message}.")

    async def _fault_beside_a_model(self, shelf: Shelf, trial: Registration, fault: Fault) -> Fault | None:
        """
        The fault that is left in the folder of a real model, which may bring what was missing.

        Where no archive is to be had, a missing file may be a model's; anything else is taken for the script's.
        """
        artifact = await self._smallest(shelf)
        if artifact is None:
            return None if fault.blame is Blame.MODEL else fault
        try:
            return await self._engine.try_script(replace(trial, url=str(artifact.path)))
        finally:
            self._artifacts.release(artifact)

    async def _smallest(self, shelf: Shelf) -> Artifact | None:
        """The smallest model, held; None where there is none, or none can be fetched."""
        try:
            listed = await self._artifacts.list(shelf.source)
            target = min(listed, key=lambda key: listed[key].size_bytes, default="")
            return await self._artifacts.get(shelf.source, target) if target else None
        except EndpointError as error:
            self._events.publish(ModelForTrialMissing(shelf, error))
            return None
