"""The native engine without its processes."""

from __future__ import annotations

import asyncio
import gc
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from polyhost.engine.errors import EngineError, ModelNotFound, OutOfMemory
from polyhost.engine.loads import log_failed_load
from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.protocol import Registration
from polyhost.limits import Limits


async def _nothing_special(*_: object) -> SimpleNamespace:
    return SimpleNamespace(has_code=False, is_pickle=False, model_name=lambda registration: registration.name)


async def _nothing(*_: object) -> None:
    pass


class _Interrupted(NativeEngine):
    """Its loads end with an error when the model is unloaded, and with nothing before."""

    def __init__(self) -> None:
        self._inspector: Any = SimpleNamespace(inspect=_nothing_special)
        self._registry: Any = SimpleNamespace(find=lambda _: None, add=lambda _: None)
        self._numbers = itertools.count(1)
        self._kept_rows: Any = SimpleNamespace(find=_nothing)
        self._isolation, self._has_own_workers_for_pickles = "auto", False
        self._limits = Limits.of({"default_workers_per_model": "1"})
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


@pytest.mark.parametrize(
    ("registration", "error", "level", "line"),
    [
        (Registration(url="u", name="mine"), EngineError("it is damaged"), "WARNING", "model mine: 500: it is damaged"),
        (Registration(url="u", name="mine"), OutOfMemory("no room"), "WARNING", "model mine: 507: no room"),
        (Registration(url="u", name="0f-1", title="a.tar.gz"), EngineError("it is damaged"), "WARNING",
         "model a.tar.gz: 500: it is damaged"),
        # Each model that is new to a full endpoint meets it, before another makes room.
        (Registration(url="u", name="0f-1", title="a.tar.gz"), OutOfMemory("no room"), "DEBUG",
         "model a.tar.gz: 507: no room"),
    ],
)  # fmt: skip
def test_who_hears_of_a_load_that_fails(
    caplog: pytest.LogCaptureFixture, registration: Registration, error: EngineError, level: str, line: str
) -> None:
    caplog.set_level("DEBUG")
    log_failed_load(registration, error)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [(level, line)]
