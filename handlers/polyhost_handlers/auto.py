"""The default handler: looks into the archive and picks the handler that fits, model by model."""

from __future__ import annotations

import importlib

from polyhost_handlers.artifacts import recognise
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point


class AutoHandler(Handler):
    kind = "auto"

    @classmethod
    def kind_of(cls, source: ModelSource) -> str:
        return recognise(source.model_dir, source.environ).name

    @classmethod
    def load(cls, source: ModelSource) -> Handler:
        """Load with the handler that knows this archive; the answer is that handler, not this one."""
        kind = recognise(source.model_dir, source.environ)
        handler: type[Handler] = importlib.import_module(kind.module).HANDLER
        return handler.load(source)

    def predict(self, request: Request) -> Response:
        raise NotImplementedError  # pragma: no cover - load() never returns an AutoHandler


HANDLER = AutoHandler
handle = entry_point(AutoHandler)
