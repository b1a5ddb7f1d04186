"""Compiled models that are kept beside their archives, so that their next load needs no worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from polyhost_handlers.compiled.rows import PlainRows

from polyhost.engine.native.registry import Model, Registry
from polyhost.engine.native.rows import Kept, kept_of, stamp_of
from polyhost.engine.protocol import Registration
from polyhost.engine.source import Inspector, Source


class Found(NamedTuple):
    """`content`: what both were read from."""

    source: Source
    rows: PlainRows
    content: bytes


class KeptRows:
    def __init__(
        self, registry: Registry, inspector: Inspector, keep_task: Callable[[asyncio.Task[None]], None]
    ) -> None:
        self._registry = registry
        self._environ = inspector.environ
        self._default_handler = inspector.default_handler
        self._keep_task = keep_task
        self._stamps: dict[tuple[str, tuple[tuple[str, str], ...], str], str] = {}

    async def find(self, registration: Registration) -> Found | None:
        """What an earlier load has compiled of the archive, and found it to be."""
        place = registration.compiled
        if place is None or not place.is_there:
            return None
        content = place.take()  # in any case, or it would be kept
        # Where a container has a script, what serves an archive depends on more than the archive.
        if self._has_script(registration.environ):
            return None
        if content is None:
            content = await asyncio.to_thread(place.read)
        kept = None if content is None else kept_of(content, self._stamp(registration))
        if content is None or kept is None:
            return None
        source = Source(
            path=Path(registration.url), handler=kept.handler, environment="", has_code=False, is_pickle=False,
            artifact_bytes=kept.artifact_bytes,
        )  # fmt: skip
        return Found(source, kept.rows, content)

    def give_back(self, registration: Registration, found: Found) -> None:
        """There was no room for it: it is found again when the load is tried again."""
        if registration.compiled is not None:
            registration.compiled.give_back(found.content)

    def _has_script(self, environ: tuple[tuple[str, str], ...]) -> bool:
        return bool({**self._environ, **dict(environ)}.get("SAGEMAKER_SUBMIT_DIRECTORY"))

    def wants(self, model: Model) -> bool:
        """Whether the model's first load may end with the front."""
        return model.rows is None and self.may_keep(model)

    def may_keep(self, model: Model) -> bool:
        """A model of data, which shares its worker, and whose calls go there one by one."""
        return not model.is_dedicated and model.batcher is None and not model.source.environment

    def keep(self, model: Model, rows: PlainRows) -> bool:
        """Keep a compiled model. Returns whether the front has it from now on, after the next load, too."""
        if not self._registry.has(model) or not self._registry.adopt_rows(model, rows):
            return False
        place = model.registration.compiled
        if place is not None:
            source = model.source
            kept = Kept(self._stamp(model.registration), source.handler, source.artifact_bytes, rows)
            self._keep_task(asyncio.create_task(place.write(kept.encoded())))
        return True

    def _stamp(self, registration: Registration) -> str:
        key = (registration.handler, registration.environ, registration.image)
        if key not in self._stamps:
            handlers = (registration.handler, self._default_handler)
            told = {**self._environ, **dict(registration.environ)}
            self._stamps[key] = stamp_of(handlers, told, registration.image)
        return self._stamps[key]
