from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from support.server import Server

ENGINES = ("mms", "native")
MODELS = Path(__file__).parent / "contract" / "models"
ROOT = Path(__file__).parent.parent
SAMPLES = ROOT / "samples" / "models"
MXNET_PYTHON = ROOT / ".venv" / "envs" / "mxnet" / "bin" / "python"


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Every test of the contract runs on every engine."""
    return str(request.param)


class Servers:
    """At most one server at a time, kept between tests that want the same: the toolkit allows one MMS a machine."""

    def __init__(self) -> None:
        self._wanted: object = None
        self._server: Server | None = None

    def get(self, engine: str, arguments: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Server:
        wanted = (engine, tuple(arguments), tuple(sorted((environ or {}).items())))
        if self._server is None or wanted != self._wanted:
            self.stop()
            self._server, self._wanted = Server(engine, arguments, environ), wanted
        return self._server

    def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            assert server.stop() == 0, server.process.log


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def samples_folder() -> Path:
    """The sample models, trained if they are missing."""
    subprocess.run([ROOT / "scripts" / "make-models"], check=True)
    return SAMPLES


@pytest.fixture
def server(engine: str, servers: Servers) -> Server:
    """A multi-model server with the default handler."""
    return servers.get(engine, environ={"SAGEMAKER_MULTI_MODEL": "true"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("mxnet") and not MXNET_PYTHON.exists():
            reason = "MXNet's environment is not installed (scripts/install-mxnet): it needs Python 3.11 at most"
            if os.environ.get("CI"):
                continue  # there it must be: the test fails instead
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The image's tests need the image: they run when they are asked for (scripts/image-test)."""
    if collection_path.name == "image" and "image" not in (config.option.markexpr or ""):
        return True
    return None
