"""The commands as such: light to start, clear about what is missing, at home in a terminal."""

from __future__ import annotations

import functools
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest
from conftest import ROOT
from polyhost.cli import cli
from support.endpoint import EndpointServer

from aws.conftest import Shell

POLYHOST = [sys.executable, "-m", "polyhost"]


def in_terminal(*arguments: str, environ: Mapping[str, str]) -> tuple[bytes, str]:
    """What a command printed, and what the terminal that is its stderr has shown."""
    leader, follower = pty.openpty()
    with open(leader, "rb", buffering=0) as terminal, subprocess.Popen(
        [*POLYHOST, *arguments], env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **environ},
        stdout=subprocess.PIPE, stderr=follower,
    ) as process:  # fmt: skip
        os.close(follower)
        # Read while it runs: a terminal that nobody reads holds a command up.
        shown = b"".join(iter(functools.partial(read_of, terminal), b""))
        printed, _ = process.communicate()
    assert process.returncode == 0, shown
    return printed, shown.decode()


def read_of(terminal: IO[bytes]) -> bytes:
    """What it has shown next; nothing at its end."""
    try:
        return terminal.read(65536)
    except OSError:  # how a terminal ends
        return b""


def test_a_terminal_shows_bars(samples_folder: Path, tmp_path: Path) -> None:
    """
    rich's, where stderr is a terminal; what is printed stays clean.
    """
    out, shown = in_terminal("models", "add", "--models", str(tmp_path), str(samples_folder / "houston"), environ={})

    assert out == b""
    assert "━" in shown
    assert (tmp_path / "houston.tar.gz").exists()


def test_a_terminal_shows_how_long_it_waits(home: EndpointServer, folder: Path, name: str) -> None:
    """
    The endpoint's state and a clock.
    """
    environ = {"AWS_ENDPOINT_URL_SAGEMAKER": home.url, "AWS_EC2_METADATA_DISABLED": "true"}

    out, shown = in_terminal("deploy", name, "--models", str(folder), environ=environ)

    assert out == b""
    assert f"endpoint {name}: InService" in shown
    assert "0:00:0" in shown
    Shell(environ).run("destroy", name)


def test_the_server_starts_without_what_these_commands_need() -> None:
    """
    None of AWS's, Docker's and the terminal's libraries is imported before its command runs.
    """
    code = "import json, sys, polyhost.cli; print(json.dumps(list(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)

    assert "polyhost_aws.commands" in modules
    assert not {"boto3", "botocore", "docker", "requests", "rich"} & set(modules)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    `push` needs docker's package, and says where it comes from.
    """
    monkeypatch.setitem(sys.modules, "docker", None)

    done = Shell({}).try_("push", "polyhost:mms")

    assert (done.code, "pip install 'polyhost[aws]'" in done.said) == (3, True)


def test_bars_are_not_needed(home: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without rich a terminal gets lines, and a hint.
    """
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr("polyhost_aws.progress._is_terminal", lambda: True)

    done = Shell({"AWS_ENDPOINT_URL_SAGEMAKER": home.url}).run("destroy", "none")

    assert "pip install 'polyhost[aws]' shows progress bars" in done.said
    assert "there is nothing to remove" in done.said


def test_the_guides_commands_are_real() -> None:
    """
    Every option in docs/aws.md is one of its command.
    """
    text = (ROOT / "docs" / "aws.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"(?m)^polyhost (deploy|destroy|push|models \w+) (.*?)(?:#|$)", text)
    assert len(commands) > 10
    for words, rest in commands:
        command = functools.reduce(lambda group, word: group.commands[word], words.split(), cli)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, (words, rest)
