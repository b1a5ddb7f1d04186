"""`--build-environments`: what is missing is built once, one at a time, beside the traffic, by a stand-in for uv."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from polyhost.engine.building import EnvironmentBuilder
from polyhost.engine.errors import EngineError, EnvironmentBuilding, EnvironmentMissing
from polyhost.interpreters import installed_environments
from polyhost.processes import has_ended
from support.stand_in_uv import put_uv
from support.tree import wait_until

Build = Callable[..., EnvironmentBuilder]


def missing(name: str) -> EnvironmentMissing:
    return EnvironmentMissing(f"Unable to load model: {name} is not installed.", name)


@pytest.fixture
def envs(tmp_path: Path) -> Path:
    put_uv(tmp_path)
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "envs"


def environ_of(envs: Path, **more: str) -> dict[str, str]:
    path = f"{envs.parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "UV_LOG": str(envs.parent / "log"), "AWS_SECRET_ACCESS_KEY": "x", **more}


def gated(envs: Path) -> dict[str, str]:
    return environ_of(envs, UV_GATE=str(envs.parent / "gate"))


async def open_gate(envs: Path) -> None:
    """Returns when a build has come as far, and goes on."""
    await asyncio.to_thread(lambda: (envs.parent / "gate").open("w").close())


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))


def log_of(envs: Path) -> list[str]:
    """What the installer was asked, by its first word, and its ends."""
    return [line.split()[0] for line in (envs.parent / "log").read_text().splitlines()]


def names_in(envs: Path) -> set[str]:
    return set(installed_environments({"POLYHOST_ENVIRONMENTS": str(envs)}, ()))


def test_it_is_built_once_however_many_ask(envs: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        builder = EnvironmentBuilder(envs, gated(envs))
        first, second = (builder.refusal(missing("lightgbm")) for _ in range(2))
        assert isinstance(first, EnvironmentBuilding)
        assert isinstance(second, EnvironmentBuilding)
        assert first.build is second.build
        assert (first.status, first.message) == (
            429,
            "The environment lightgbm, which the model needs, is being built. Ask again.",
        )
        assert names_in(envs) == set()
        await open_gate(envs)
        await first.build
        await builder.stop()

    with caplog.at_level("INFO"):
        run(test)
    assert names_in(envs) == {"lightgbm"}
    assert log_of(envs) == ["pip", "end"]
    assert "building the environment lightgbm beside the traffic: Unable to load model: lightgbm is not" in caplog.text
    assert "the environment lightgbm is built, after" in caplog.text


def test_one_is_built_at_a_time(envs: Path) -> None:
    async def test() -> None:
        builder = EnvironmentBuilder(envs, gated(envs))
        builds = [builder.refusal(missing(name)).build for name in ("lightgbm", "sklearn-current")]
        for build in builds:  # a second one that had begun would not wait at the gate any more
            await open_gate(envs)
            await build

    run(test)
    assert names_in(envs) == {"lightgbm", "sklearn-current"}
    assert log_of(envs) == ["pip", "end", "pip", "end"]


def test_what_cannot_be_built_is_not_tried_again_for_a_while(envs: Path) -> None:
    async def test() -> None:
        now = 0.0
        builder = EnvironmentBuilder(envs, environ_of(envs, UV_CODE="2"), now=lambda: now)
        assert builder.builds("lightgbm")
        await builder.refusal(missing("lightgbm")).build

        assert not builder.builds("lightgbm")
        now = 300.0
        refused = builder.refusal(missing("lightgbm"))
        assert type(refused) is EngineError
        assert refused.message.startswith(
            "Unable to load model: the environment lightgbm is needed and could not be built: "
        )
        assert "ended with 2" in refused.message
        assert refused.message.endswith("It is tried again after 5 min; or run polyhost env build lightgbm.")
        now = 601.0
        assert builder.builds("lightgbm")
        await builder.refusal(missing("lightgbm")).build

    run(test)
    assert log_of(envs) == ["pip", "end"] * 2
    assert list(envs.iterdir()) == []


def test_a_build_that_takes_too_long_is_ended(envs: Path) -> None:
    async def test() -> None:
        builder = EnvironmentBuilder(envs, gated(envs), timeout_secs=1.0)
        await builder.refusal(missing("lightgbm")).build
        assert "it was not built within 1 s." in builder.refusal(missing("lightgbm")).message

    run(test)
    assert names_in(envs) == set()


def test_a_build_that_is_killed_leaves_nothing_that_counts(envs: Path) -> None:
    """The next one waits until what it has left has ended, and clears that."""
    code = (
        "import subprocess, sys; process = subprocess.Popen([sys.executable, '-m', 'polyhost.environments.beside', "
        "str(__import__('os').getpid()), 'lightgbm', sys.argv[1]]); print(process.pid, flush=True); process.wait()"
    )
    environ = gated(envs)
    with subprocess.Popen([sys.executable, "-c", code, envs], env=environ, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        build = int(server.stdout.readline())
        wait_until((envs.parent / "log").exists, 60, "the installer has begun")
        server.send_signal(signal.SIGKILL)
    assert has_ended(build, 60.0)
    assert [path.name[:10] for path in envs.iterdir()] == [".lightgbm-"]
    assert names_in(envs) == set()

    async def test() -> None:
        builder = EnvironmentBuilder(envs, environ)
        build = builder.refusal(missing("lightgbm")).build
        await open_gate(envs)  # of the installer that lives on
        await asyncio.to_thread(wait_until, lambda: log_of(envs).count("pip") == 2, 60, "the new one has begun")
        await open_gate(envs)
        await build

    run(test)
    assert [path.name for path in envs.iterdir()] == ["lightgbm"]


def test_an_end_of_the_server_ends_the_build(envs: Path) -> None:
    async def test() -> None:
        builder = EnvironmentBuilder(envs, gated(envs))
        build = builder.refusal(missing("lightgbm")).build
        await asyncio.to_thread(wait_until, (envs.parent / "log").exists, 60, "the installer has begun")
        await builder.stop()
        assert build.cancelled()

    run(test)
    assert names_in(envs) == set()


def test_a_build_knows_of_no_secrets(envs: Path) -> None:
    """It gets what installers know: indexes and proxies."""
    builder = EnvironmentBuilder(envs, environ_of(envs, PIP_INDEX_URL="i", https_proxy="p", UV_INDEX_URL="u"))

    assert builder._environ.keys() == {"PATH", "UV_LOG", "PIP_INDEX_URL", "https_proxy", "UV_INDEX_URL"}
