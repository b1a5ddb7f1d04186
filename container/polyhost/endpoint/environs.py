"""The variables that containers' models are loaded with, and the code of containers that those name."""

from __future__ import annotations

from collections import Counter

from polyhost_handlers.artifacts import missing_script

from polyhost.artifacts import Artifacts, split_archive_url
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.shelf import Environ, Shelf, ShelfClosed
from polyhost.engine.protocol import Engine
from polyhost.environment import FETCHED_CODE, definition_environ
from polyhost.service_errors import ArtifactUnusable, EndpointError
from polyhost.tasks import FlightCancelled, Tasks

_SUBMIT_DIRECTORY = "SAGEMAKER_SUBMIT_DIRECTORY"


class Environs:
    """Each shelf's variables, found once; the engine is told which of them nobody needs any more."""

    def __init__(self, engine: Engine, artifacts: Artifacts, tasks: Tasks) -> None:
        self._engine = engine
        self._artifacts = artifacts
        self._tasks = tasks
        # How many shelves have each.
        self._uses: Counter[Environ] = Counter()

    async def of(self, shelf: Shelf) -> Environ:
        """The container's variables, with its code fetched. Raises EndpointError."""
        if shelf.environ is not None:
            return shelf.environ
        try:
            return await shelf.localising.join(
                lambda: self._tasks.start(self._localise(shelf), expected=(EndpointError,)),
            )
        except FlightCancelled:
            raise ShelfClosed(f"The container of {shelf.source} is no longer served here.") from None

    async def _localise(self, shelf: Shelf) -> Environ:
        environ = definition_environ(dict(shelf.container.environ))
        if not shelf.container.is_multi_model:
            environ["SAGEMAKER_MULTI_MODEL"] = "false"
        if code := code_of(shelf.container):
            shelf.code = await self._artifacts.get(*split_archive_url(code), asked_after=shelf.made_at)
            environ[_SUBMIT_DIRECTORY] = environ[FETCHED_CODE] = str(shelf.code.path)
        shelf.environ = tuple(sorted(environ.items()))
        self._uses[shelf.environ] += 1
        return shelf.environ

    async def forget(self, shelf: Shelf) -> None:
        """Forget a closed shelf once its last version has left the engine. It may have been forgotten before."""
        environ, shelf.environ = shelf.environ, None
        code, shelf.code = shelf.code, None
        if environ is not None:
            self._uses[environ] -= 1
            if not self._uses[environ]:
                del self._uses[environ]
                await self._engine.forget(environ)
        if code is not None:
            self._artifacts.release(code)


def code_of(container: Container) -> str:
    """Where the archive of the container's own code is, "" if it has none."""
    code = dict(container.environ).get(_SUBMIT_DIRECTORY, "").removeprefix("file://")
    return code if code.endswith(".tar.gz") else ""


def require_script(container: Container, environ: Environ) -> None:
    """
    Check that a multi-model container has its script, before any model is loaded. Raises ArtifactUnusable.

    One with a single model loads it at once, which says more.
    """
    if container.is_multi_model and code_of(container) and (script := missing_script(dict(environ))):
        raise ArtifactUnusable(
            f"The container's script {script} is not at the top of {_SUBMIT_DIRECTORY}: "
            "pack it there, or correct SAGEMAKER_PROGRAM."
        )
