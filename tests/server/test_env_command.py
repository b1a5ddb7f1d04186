"""`polyhost env`: what it builds with, where it puts it, what it says. A stand-in for uv needs no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from polyhost.cli import cli
from polyhost.engine.environments import environment_of
from polyhost.engine.errors import EngineError
from polyhost.environments.build import Options, arguments_of, commands, find_python
from polyhost.errors import EnvironmentFailed
from polyhost.interpreters import imports_of, interpreter_of, variables_of
from polyhost_handlers.artifacts import kind_named
from support.stand_in_uv import put_uv

MINE = """
about = "ours"
python = ">=3.10"
kinds = ["script", "sklearn"]
requirements = ["numpy"]
images = ["ours:1.*"]
imports = ["json"]
constraints = ["numpy==1.0"]
[variables]
OURS = "1"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a definition of ones own; environments go to `envs` in it."""
    put_uv(tmp_path)
    (tmp_path / "mine.toml").write_text(MINE)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("UV_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("POLYHOST_ENVIRONMENTS", str(tmp_path / "envs"))
    return tmp_path


def env(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, ["env", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_from_a_definition_to_a_model_that_is_served_in_it(place: Path) -> None:
    """Built, listed, chosen by word and by image, and removed."""
    environ = {"POLYHOST_ENVIRONMENTS": str(place / "envs")}
    model = place / "model"
    model.mkdir()
    sklearn = kind_named("sklearn")

    assert "mine is built" in env("build", place / "mine.toml", "--find-links", "/wheels")
    assert "--find-links /wheels --no-index" in (place / "log").read_text()
    assert "mine is there already" in env("build", place / "mine.toml")
    assert "mine              built           ours" in env("list")
    python = interpreter_of("mine", environ)
    assert python == str(place / "envs" / "mine" / "bin" / "python")
    assert subprocess.run([python, "-c", "import polyhost_handlers.base"], check=True).returncode == 0
    assert (variables_of("mine", environ), imports_of("mine", environ)) == ({"OURS": "1"}, ("json",))
    assert environment_of(model, "", sklearn, {**environ, "POLYHOST_ENVIRONMENT": "mine"}).environment == "mine"
    assert environment_of(model, "", sklearn, environ, "ours:1.7").environment == "mine"
    assert environment_of(model, "", sklearn, environ, "ours:2").environment == ""
    assert environment_of(model, "", kind_named("onnx"), environ, "ours:1.7").environment == ""

    assert "mine is removed" in env("remove", "mine")
    assert not (place / "envs" / "mine").exists()
    with pytest.raises(EngineError, match="environment mine, which POLYHOST_ENVIRONMENT names, is not installed"):
        environment_of(model, "", kind_named("script"), {**environ, "POLYHOST_ENVIRONMENT": "mine"})


def test_what_is_not_as_its_definition_says(place: Path) -> None:
    env("build", place / "mine.toml")
    with pytest.raises(EnvironmentFailed, match="1 environments are not as their definitions say"):
        env("check")
    (place / "envs" / "mine" / "polyhost-environment.toml").write_text("about = ")
    with pytest.raises(EnvironmentFailed):
        env("check", "mine")


def test_nothing_is_left_of_one_that_could_not_be_built(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_CODE", "2")
    with pytest.raises(EnvironmentFailed, match=r"mine could not be built: .* ended with 2"):
        env("build", place / "mine.toml")
    monkeypatch.delenv("UV_CODE")
    (place / "mine.toml").write_text(MINE.replace('"json"', '"no_such_module"'))
    with pytest.raises(EnvironmentFailed, match="No module named 'no_such_module'"):
        env("build", place / "mine.toml")

    assert list((place / "envs").iterdir()) == []


def test_one_is_built_anew_in_the_place_of_the_old(place: Path) -> None:
    env("build", place / "mine.toml")
    (place / "mine.toml").write_text(MINE.replace("ours", "newer"))
    env("build", place / "mine.toml")

    assert [path.name for path in (place / "envs").iterdir()] == ["mine"]
    assert "newer" in env("list")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "there is no environment 'nowhere': name one of catboost, lightgbm"),
        ("/nowhere/mine.toml", "cannot be read|No such file"),
        ("../up", "there is no environment"),
    ],
)
def test_what_cannot_be_built(place: Path, name: str, words: str) -> None:
    with pytest.raises(EnvironmentFailed, match=words):
        env("build", name)
    with pytest.raises(EnvironmentFailed, match="has no environment"):
        env("remove", name)


def test_no_python_fits(place: Path) -> None:
    (place / "old.toml").write_text(MINE.replace(">=3.10", "<3"))
    with pytest.raises(EnvironmentFailed, match="old needs a Python <3, and none of these is one"):
        env("build", place / "old.toml")


def test_which_python_is_taken() -> None:
    assert find_python(">=3.10", ["no-such-python", sys.executable]) == sys.executable
    assert find_python("<3", [sys.executable]) is None
    assert find_python(">=3.10", ["false"]) is None


def test_by_uv_or_by_pip() -> None:
    by_uv = commands("/bin/uv", Path("/e"), "/usr/bin/python3", ["--no-index"])
    by_pip = commands(None, Path("/e"), "/usr/bin/python3", ["--no-index"])

    assert [command[0] for command in by_uv] == ["/bin/uv", "/bin/uv"]
    assert by_pip[0] == ["/usr/bin/python3", "-m", "venv", "/e"]
    assert by_pip[1][:4] == ["/e/bin/python", "-m", "pip", "install"]
    for install in (by_uv[1], by_pip[1]):
        assert install[-5:] == ["-r", "/e/requirements.txt", "-c", "/e/constraints.txt", "--no-index"]


def test_where_packages_come_from() -> None:
    """From a folder of wheels nothing is asked of an index, unless one is named too."""
    folder = Path("/e")
    assert arguments_of(Options(folder=folder)) == []
    assert arguments_of(Options(folder=folder, find_links=["/w"])) == ["--find-links", "/w", "--no-index"]
    both = Options(folder=folder, find_links=["/w"], index_url="http://index")
    assert arguments_of(both) == ["--find-links", "/w", "--index-url", "http://index"]
