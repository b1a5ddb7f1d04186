"""Compiled models are there once: the front has them, and workers read them in its memory."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost.engine.errors import OutOfMemory
from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.native.models import PlainModel
from polyhost.engine.native.rows import Kept, stamp_of
from polyhost.engine.protocol import Item, Registration
from polyhost.limits import Limits
from polyhost.metrics import Metrics
from polyhost_handlers.base import ModelSource
from polyhost_handlers.compiled.library import library
from polyhost_handlers.xgboost_handler import XGBoostHandler
from support.forms import examples
from support.server import Server
from support.tree import wait_until, workers_of

from native.conftest import HOUSE, StartServer
from native.test_rows import OBJECTIVES, model_of

pytestmark = pytest.mark.skipif(library is None, reason="the library in C was not built: there was no compiler")

ROWS = HOUSE
ROW = ROWS.split(b"\n")[0]
FORMS = {
    "text/csv": (b"1,2,3\n4,5,6", b"1,2,3", b"c,a,b\n1,2,3", b"1,2", b"", b"1,x,3", b"1e39,1,1"),
    "text/csv; header=present": (b"a,b,c\n1,2,3", b"c,a,b\n1,2,3", b"x,y,z\n1,2,3"),
    "text/libsvm": (b"0 0:1 2:3\n1 1:2", b"1:1", b"7:1"),
    "application/json": (
        b'{"instances": [[1, 2, 3], [4, 5, 6]]}', b'{"instances": [{"features": [1, 2, 3]}]}', b"[[1,2,3]]",
        b'{"columns": ["c", "a", "b"], "data": [[1, 2, 3]]}', b'{"columns": ["x", "a", "b"], "data": [[1, 2, 3]]}',
        b"{}",
    ),
    "application/x-npy": (b"no npy",),
    "image/png": (b"1,2,3",),
}  # fmt: skip
CALLS = st.sampled_from([(kind, body) for kind, bodies in FORMS.items() for body in bodies])
ACCEPTS = st.sampled_from(
    ["", "text/csv", "application/json", "application/jsonlines", "application/x-recordio-protobuf"]
)


class Again(PlainModel):
    """A model made of what is compiled, as a worker that reads the front's memory makes it."""

    def __init__(self, model: Any) -> None:
        self._name = "again"
        self._model = model


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_handler_of_what_is_compiled_answers_as_that_of_the_archive(
    objective: str, names: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every form of body and answer, and every complaint, byte for byte."""
    monkeypatch.setenv("SAGEMAKER_MULTI_MODEL", "true")
    of_archive = model_of(tmp_path / "model", OBJECTIVES[objective], names=names)
    rows = of_archive.plain_rows()
    assert rows is not None
    memory = np.frombuffer(rows.trees + rows.names, np.uint8)
    source = ModelSource(tmp_path / "nowhere", "again", {"SAGEMAKER_MULTI_MODEL": "true"})
    again = Again(XGBoostHandler.of_compiled(memory.ctypes.data, len(memory), source))

    @settings(max_examples=examples(30))
    @given(call=CALLS, accept=ACCEPTS)
    def alike(call: tuple[str, bytes], accept: str) -> None:
        headers = {"content-type": call[0], **({"accept": accept} if accept else {})}
        item = Item("id", headers, "", call[1])
        assert again.predict([item]) == of_archive.predict([item])

    alike()
    assert again.plain_rows() == rows


def mapped(process: psutil.Process) -> list[str]:
    """The rights with which a process maps segments of compiled models."""
    lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if "memfd:polyhost-models" in line]


def right(folder: Path) -> list[float]:
    """XGBoost's own."""
    booster = xgboost.Booster(model_file=str(folder / "xgboost-model"))
    rows = [[float(field) for field in line.split(b",")] for line in ROWS.split(b"\n")]
    return [float(value) for value in booster.predict(xgboost.DMatrix(rows), validate_features=False)]


def test_workers_read_the_fronts_memory(start: StartServer, house_folders: list[Path]) -> None:
    """From the first call that the front cannot answer; never to write, and after the archive has gone, too."""
    server = start()
    for number, folder in enumerate(house_folders[:4]):
        assert server.load(f"m{number}", folder).status == 200
        assert json.loads(server.invoke(f"m{number}", ROW).body) == right(folder)[:1]
    assert not any(mapped(worker) for worker in workers_of(server))
    for number, folder in enumerate(house_folders[:4]):
        assert json.loads(server.invoke(f"m{number}", ROWS).body) == right(folder)
    maps = [one for worker in workers_of(server) for one in mapped(worker)]
    assert maps
    assert set(maps) == {"r--s"}

    workers_of(server)[0].kill()
    for number, folder in enumerate(house_folders[:4]):
        assert json.loads(server.invoke(f"m{number}", ROWS).body) == right(folder)
        assert server.unload(f"m{number}").status == 200
    assert server.names() == []


@pytest.mark.parametrize("mode", [("--isolation", "shared"), ("--hardened",)])
def test_where_workers_are_not_trusted_they_read_the_archive(
    mode: tuple[str, ...], start: StartServer, house_folders: list[Path]
) -> None:
    """Nobody gets the front's memory, and the answers are right."""
    server = start(*mode)
    assert server.load("m", house_folders[0]).status == 200
    for body in (ROW, ROWS):
        assert json.loads(server.invoke("m", body).body) == right(house_folders[0])[: len(body.split())]
    assert not any(mapped(worker) for worker in workers_of(server))


def shared_bytes(server: Server) -> int:
    text = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text()
    return int(re.findall(r"Pss_Shmem: +(\d+)", text)[0]) * 1024


def test_a_model_of_many_rows_is_there_once(start: StartServer, tmp_path: Path) -> None:
    """A large one, several times over in several workers; DELETE gives it back although workers have read it."""
    random = np.random.default_rng(1)
    data = random.normal(size=(3000, 6))
    matrix = xgboost.DMatrix(data, data[:, 0] * data[:, 1])
    (tmp_path / "large").mkdir()
    booster = xgboost.train({"max_depth": 8, "nthread": 1}, matrix, 300)
    (tmp_path / "large" / "xgboost-model").write_bytes(booster.save_raw("ubj"))
    server = start()
    before = shared_bytes(server)
    assert server.load("large", tmp_path / "large", initial_workers=4).status == 200
    assert len(json.loads(server.invoke("large", ROWS).body)) == 2
    (file,) = [
        one for one in Path(f"/proc/{server.process.pid}/fd").iterdir() if "polyhost-models" in str(one.readlink())
    ]
    assert file.stat().st_blocks * 512 > 2**18

    assert server.unload("large").status == 200
    wait_until(lambda: file.stat().st_blocks == 0, 60, "the memory is back")
    assert shared_bytes(server) <= before + 2**16


class Place:
    """What an earlier load has kept."""

    is_there = True

    def __init__(self, content: bytes) -> None:
        self._content = content

    def take(self) -> bytes | None:
        """It is to be read."""

    def give_back(self, content: bytes) -> None:
        raise AssertionError("there was room for it")

    def read(self) -> bytes:
        return self._content

    async def write(self, _: bytes) -> None:
        raise AssertionError("it was not made anew")


class ReadPlace(Place):
    """The look at the archive has read it, once."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left: bytes | None = content

    def take(self) -> bytes | None:
        taken, self.left = self.left, None
        return taken

    def give_back(self, content: bytes) -> None:
        self.left = content

    def read(self) -> bytes:
        raise AssertionError("it was read already")


@pytest.fixture
def new_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[NativeEngine, bytes]]:
    """An engine without a worker and with a memory budget, and what an earlier load has kept of a model."""
    monkeypatch.setenv("SAGEMAKER_MULTI_MODEL", "true")
    rows = model_of(tmp_path / "model", OBJECTIVES["number"]).plain_rows()
    assert rows is not None
    environ = {"SAGEMAKER_MULTI_MODEL": "true"}
    inspector: Any = SimpleNamespace(environ=environ, default_handler="polyhost_handlers.auto:handle")
    inspector.has_unpacked = lambda _: False
    kept = Kept(stamp_of(("", inspector.default_handler), environ), "polyhost_handlers.xgboost_handler:handle", 9, rows)

    def make(budget_bytes: int) -> tuple[NativeEngine, bytes]:
        engine = NativeEngine(
            inspector=inspector, environ=environ, shared_workers=0,
            limits=Limits.of({"default_workers_per_model": "1"}),
            isolation="auto", budget_bytes=budget_bytes, metrics=Metrics(),
        )  # fmt: skip
        return engine, kept.encoded()

    return make


def test_a_load_that_waits_for_room_does_not_read_the_model_again(
    tmp_path: Path, new_engine: Callable[[int], tuple[NativeEngine, bytes]]
) -> None:
    async def test() -> None:
        engine, content = new_engine(1)  # a model alone has it to itself
        await engine.load(Registration(url=str(tmp_path), name="first", compiled=ReadPlace(content)))
        place = ReadPlace(content)
        second = Registration(url=str(tmp_path), name="second", compiled=place)
        for _ in range(2):
            with pytest.raises(OutOfMemory):
                await engine.load(second)
        await engine.unload("first")
        await engine.load(second)
        assert engine.names() == ["second"]
        assert place.left is None

    asyncio.run(test())


def test_an_unloaded_model_leaves_nothing_for_the_garbage_collector(
    tmp_path: Path, new_engine: Callable[[int], tuple[NativeEngine, bytes]]
) -> None:
    """The front keeps its models out of the collector's sight: what were a ring would stay for ever. And no worker."""

    async def come_and_go() -> tuple[list[str], list[weakref.ref[Any]]]:
        engine, content = new_engine(2**30)
        for number in range(600):
            place = Place(content)
            await engine.load(Registration(url=str(tmp_path), name=f"m{number}", compiled=place))
        names, models = engine.names(), [weakref.ref(engine._registry.get(name)) for name in engine.names()]
        for name in names:
            await engine.unload(name)
        assert engine.used_bytes() == 0
        return names, models

    gc.disable()
    try:
        names, models = asyncio.run(come_and_go())
        assert len(names) == 600
        assert [model for model in models if model() is not None] == []
    finally:
        gc.enable()
        gc.unfreeze()
