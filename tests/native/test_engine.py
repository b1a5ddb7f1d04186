"""The native engine without its processes."""

from __future__ import annotations

import asyncio
import gc
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from polyhost.engine.errors import ModelNotFound
from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.protocol import Registration


class _Interrupted(NativeEngine):
    """Its loads end with an error when the model is unloaded, and with nothing before."""

    def __init__(self) -> None:
        self._inspector: Any = SimpleNamespace(inspect=lambda *_: SimpleNamespace(has_code=False, manifest_name=""))
        self._models = {}
        self._numbers = itertools.count(1)
        self._timeout_secs = 1.0
        self._isolation = "auto"
        self._workers_per_model = 1
        self.has_begun, self.is_unloaded = asyncio.Event(), asyncio.Event()

    async def _load_copies(self, model: Any, count: int) -> None:
        self.has_begun.set()
        await self.is_unloaded.wait()
        raise ModelNotFound("it was unloaded while it was loading")


def test_a_load_that_fails_when_nobody_waits_for_it_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """As when an endpoint is deleted while a model loads."""

    async def interrupt() -> None:
        engine = _Interrupted()
        load = asyncio.create_task(engine.load(Registration(url="/models/a", name="a")))
        await engine.has_begun.wait()
        load.cancel()
        await asyncio.wait({load})
        engine.is_unloaded.set()
        await asyncio.sleep(0.01)

    asyncio.run(interrupt())
    gc.collect()
    assert "never retrieved" not in caplog.text
