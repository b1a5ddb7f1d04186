from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from support.clock import FairClock
from support.server import Answer, Server, request
from support.traffic import Traffic

# Two rows: a worker answers them. One row of a compiled model is answered by the front (test_rows.py).
HOUSE = b"1998,2150,3,2.5,0.4,2\n1971,1400,2,1,0.2,1"
MODELS_IN_FLEET = 20
# As users have it: the frameworks are there before the first model.
EARLY = {"POLYHOST_IMPORT_FRAMEWORKS": "early"}


@dataclass
class Fleet:
    """A server with XGBoost models, and the right answer of each to two houses."""

    server: Server
    folders: list[Path]
    answers: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def load(self, models: int = MODELS_IN_FLEET) -> None:
        for number in range(models):
            name = f"house-{number}"
            answer = self.server.load(name, self.folders[number % len(self.folders)])
            assert answer.status == 200, answer.text + self.server.process.log
            self.answers[name] = self.server.invoke(name, HOUSE).body

    def load_again(self) -> None:
        """Every model is in a shared worker then, also one that a slow machine has made look slow."""
        for name in self.answers:
            assert self.server.unload(name).status == 200
        self.load()

    def traffic(self, **bounds: Any) -> Traffic:
        return Traffic(self.server.port, self.answers, HOUSE, pid=self.server.process.pid, **bounds)

    @property
    def clock(self) -> FairClock:
        return FairClock(self.server.process.pid)

    def answers_of_all(self) -> dict[str, bytes]:
        return {name: self.server.invoke(name, HOUSE).body for name in self.answers}

    def is_healthy(self) -> bool:
        try:
            return sorted(self.answers) == self.server.names() and self.answers_of_all() == self.answers
        except OSError:
            return False


@pytest.fixture(scope="session")
def house_folders(samples_folder: Path) -> list[Path]:
    """Ten XGBoost models that take the same rows and answer differently."""
    return sorted(file.parent for file in samples_folder.glob("*/xgboost-model"))


class NativeServer(Server):
    def request(self, method: str, target: str, body: bytes | str | None = None, **headers: str) -> Answer:
        """A server that hangs fails its test, and says in its log where."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            return request(self.port, method, target, body, named)
        except TimeoutError:
            raise AssertionError(f"{method} {target} was not answered:\n{self.process.log[-4000:]}") from None


StartServer = Callable[..., Server]


def start_native(*arguments: str, environ: Mapping[str, str] | None = None) -> Server:
    path = ":".join(str(ROOT / folder) for folder in ("container", "handlers", "tests"))
    told = {"SAGEMAKER_MULTI_MODEL": "true", "PYTHONPATH": path, **(environ or {})}
    return NativeServer("native", arguments, told)


@pytest.fixture
def start() -> Iterator[StartServer]:
    """Starts servers for one test alone."""
    servers: list[Server] = []

    def start_one(*arguments: str, environ: Mapping[str, str] | None = None) -> Server:
        servers.append(start_native(*arguments, environ=environ))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


@pytest.fixture
def start_fleet(start: StartServer, house_folders: list[Path]) -> Callable[..., Fleet]:
    def start_one(*arguments: str) -> Fleet:
        fleet = Fleet(start(*arguments, environ=EARLY), house_folders)
        fleet.load()
        return fleet

    return start_one


class Fleets:
    """One fleet for all tests that leave it as they found it; another after a test that did not."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._fleet: Fleet | None = None

    def get(self) -> Fleet:
        if self._fleet is not None and not self._fleet.is_healthy():
            self.stop()
        if self._fleet is None:
            self._fleet = Fleet(start_native(environ=EARLY), self._folders)
            self._fleet.load()
        return self._fleet

    def stop(self) -> None:
        if self._fleet is not None:
            fleet, self._fleet = self._fleet, None
            fleet.server.kill()


@pytest.fixture(scope="session")
def fleets(house_folders: list[Path]) -> Iterator[Fleets]:
    fleets = Fleets(house_folders)
    yield fleets
    fleets.stop()


@pytest.fixture
def fleet(fleets: Fleets) -> Fleet:
    return fleets.get()


@pytest.fixture
def together() -> Callable[..., list[Any]]:
    """Calls several functions at once; their results in order."""

    def call_all(calls: list[Callable[[], Answer]]) -> list[Answer]:
        with ThreadPoolExecutor(len(calls)) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls]]

    return call_all
