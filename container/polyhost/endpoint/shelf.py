"""The models of a container, as the cache knows them. Facts only; who changes which is said beside each."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from polyhost.artifacts import Artifact, split_archive_url
from polyhost.endpoint.definitions import Container
from polyhost.engine.errors import EngineError
from polyhost.service_errors import EndpointError, ServiceUnavailable
from polyhost.tasks import SingleFlight

Failure = EndpointError | EngineError | OSError
# Variables of a container, with local paths in the place of urls.
Environ = tuple[tuple[str, str], ...]


class ShelfClosed(ServiceUnavailable):
    """The endpoint was deleted or updated meanwhile: what is asked of it now goes elsewhere, or nowhere."""


@dataclass(eq=False)
class Loaded:
    """One version of a model in the engine. `name` is the engine's for it."""

    name: str
    artifact: Artifact
    users: int = 0
    # When its store was asked for it last, by time.perf_counter().
    looked_at: float = field(default_factory=time.perf_counter)
    # Whether its files are not needed again either: the archive was overwritten or deleted.
    is_stale: bool = False


@dataclass(eq=False)
class Model:
    """
    A target of a shelf. While `loading` is under way, `loaded` may be an older version that still answers.

    `Residents` changes `loaded` and what is known of its use, `Loader` changes `waiting`, `seen` and `too_large`.
    """

    shelf: Shelf
    target: str
    loaded: Loaded | None = None
    loading: SingleFlight[None] = field(default_factory=SingleFlight)
    # What a look has found in the store since the load under way began to fetch: a version, "" for no archive.
    seen: str | None = None
    # Callers who wait for the load.
    waiting: int = 0
    is_pinned: bool = False
    uses: int = 0
    # By time.time(); 0.0 for never.
    last_used: float = 0.0
    # The version that needs more memory than there is, and the sentence that says so.
    too_large: tuple[str, str] | None = None

    @property
    def is_idle(self) -> bool:
        return self.loaded is not None and not self.loaded.users and not self.waiting


class ShelfKey(NamedTuple):
    """What makes a shelf another. `since`: when its variant was deployed, 0.0 where an update keeps it."""

    endpoint: str
    variant: str
    container: Container
    since: float


@dataclass(eq=False)
class Shelf:
    """
    The models of one container of a variant of an endpoint, in whose metrics they count.

    `Shelves` opens and closes it, `Environs` changes `environ` and `code`, `Residents` changes `versions`.
    """

    container: Container
    source: str
    endpoint: str
    variant: str
    # By time.monotonic(). What a store was asked before is not believed: a new endpoint has the archives of now.
    made_at: float = field(default_factory=time.monotonic)
    models: dict[str, Model] = field(default_factory=dict)
    # None until its code has been fetched, and when the shelf has been closed.
    environ: Environ | None = None
    code: Artifact | None = None
    localising: SingleFlight[Environ] = field(default_factory=SingleFlight)
    # Its result: why it cannot be served.
    preparing: asyncio.Task[Failure | None] | None = None
    # Versions of its models in the engine. A version that was replaced counts until its last user is answered.
    versions: int = 0
    is_closed: bool = False

    @property
    def only_target(self) -> str:
        """The target of a single-model container; "" where clients choose the target."""
        return "" if self.container.is_multi_model else split_archive_url(self.container.source)[1]

    def model(self, target: str) -> Model:
        if target not in self.models:
            self.models[target] = Model(self, target)
        return self.models[target]
