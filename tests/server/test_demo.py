"""`polyhost demo` and `polyhost serve FOLDER`, as somebody who has just installed Polyhost meets them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from polyhost.demo import command
from polyhost.errors import MissingDependency, StartFailed
from support.server import Process, free_port, gone, request

CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("POLYHOST_", "SAGEMAKER", "AWS"))}
POLYHOST = (sys.executable, "-m", "polyhost")
HOUSE = "1998,2150,3,2.5,0.4,2"


def commands_in(greeting: str) -> list[str]:
    """What it tells to type: each begins below its comment."""
    return [piece.partition("\n")[2] for piece in re.split(r"(?m)^  # ", greeting)[1:]]


def answers_of(greeting: str, folder: Path) -> list[str]:
    """All that it tells to try, tried by bash."""
    *commands, last = commands_in(greeting)
    last = last[: last.index("\nPYTHON\n") + len("\nPYTHON\n")]
    return [said_by(["bash", "-c", one], folder) for one in (*commands, last)]


def said_by(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=CLEAN, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout.strip()


def test_a_demo_serves_what_it_says_and_leaves_nothing(tmp_path: Path) -> None:
    """Each of its lines, typed by somebody, is answered; Ctrl-C ends all processes and removes all files."""
    (tmp_path / "tmp").mkdir()
    port = free_port()
    environ = {**CLEAN, "TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path)}
    process = Process([*POLYHOST, "demo", "--port", str(port)], environ, cwd=tmp_path)
    try:
        process.wait_for_line("Ctrl-C ends the server")
        houston, boston, prepared, linear, network, tone, by_boto3 = answers_of(process.log, tmp_path)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send(signal.SIGINT)
        assert process.wait() == 0, process.log
    finally:
        process.kill_tree()

    assert float(houston.strip("[]\n")) < float(boston.strip("[]\n"))
    assert by_boto3 == houston
    assert len(prepared.split(",")) == 8
    assert json.loads(linear)["predictions"][0]["score"] > 0
    assert json.loads(network)
    assert json.loads(tone) == {"tone": "warm", "score": 4}  # of `sunny` and `charming`, two each
    assert gone(family)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_one_archive_in_a_folder_is_served_by_both_halves(samples_folder: Path, tmp_path: Path) -> None:
    """By SageMaker's API as the greeting says; by MMS's, whose urls may lie in that folder."""
    models = tmp_path / "my models"
    models.mkdir()
    shutil.copy(samples_folder / "houston.tar.gz", models / "model.tar.gz")
    port = free_port()
    environ = {**CLEAN, "TMPDIR": str(tmp_path), "HOME": str(tmp_path), "POLYHOST_FRONTS": "1"}
    process = Process([*POLYHOST, "serve", "my models", "--port", str(port)], environ, cwd=tmp_path)
    try:
        process.wait_for_line("Ctrl-C ends the server")
        (by_curl, by_boto3) = answers_of(process.log.replace("1,2,3", HOUSE), tmp_path)
        loaded = request(port, "POST", f"/models?model_name=mine&url={models / 'model.tar.gz'}".replace(" ", "%20"))
        by_mms = request(port, "POST", "/models/mine/invoke", HOUSE, {"Content-Type": "text/csv"})
    finally:
        process.kill_tree()

    assert float(by_curl.strip("[]")) > 0
    assert by_boto3 == by_curl
    assert loaded.status == 200, loaded.text
    assert by_mms.text == by_curl


def test_hardened_models_may_not_read_the_served_folder(samples_folder: Path, tmp_path: Path) -> None:
    """So MMS's API loads nothing from there."""
    port = free_port()
    environ = {**CLEAN, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    command = [*POLYHOST, "serve", str(samples_folder), "--port", str(port), "--hardened"]
    process = Process(command, environ, cwd=tmp_path)
    try:
        process.wait_for_line("ready on")
        answer = request(port, "POST", f"/models?model_name=mine&url={samples_folder / 'houston.tar.gz'}")
    finally:
        process.kill_tree()

    assert answer.status == 400
    assert "not under a model root" in answer.message


def test_a_demo_without_its_packages_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_NEEDED", ("joblib", "no_such_package"))

    with pytest.raises(MissingDependency, match=r"not installed \(no_such_package\): pip install 'polyhost\[all\]'"):
        command.demo(tmp_path / "models", free_port(), {})


def test_a_demo_whose_models_cannot_be_made_says_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StartFailed, match=f"could not be made in {tmp_path / 'file' / 'models'}"):
        command.demo(tmp_path / "file" / "models", free_port(), {})
    assert "NotADirectoryError" in capfd.readouterr().err
