"""The load test itself, short: real servers, Locust's real processes, a report with everything in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from support.forms import by_form
from support.server import gone

from benchmarks.locust import make_models
from benchmarks.locust.run import parsed_options

PANELS = {
    "Throughput": 1, "Latency": 3, "Users": 1, "Loaded models": 1, "Loads and evictions": 2, "Loading wait time": 1,
    "CPU": 1, "Memory": 2,
}  # fmt: skip
SIZINGS = ("memory for all", "memory for a third")
USERS = 12
# Between two calls of a user: so short that many more models are called than a third, on a slow machine, too.
PAUSE_SECS = "0.3-0.6"


def loadtest(*arguments: str, results: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.locust", "--results", str(results), *arguments]
    environ = {**os.environ, "LOADTEST_WAIT_SECS": PAUSE_SECS, **environ}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_models, "ROUNDS", 10)  # a twentieth as long to train
        make_models.make(folder / "models")
    minutes = by_form(short=0.15, long=1.0)
    done = loadtest("--minutes", str(minutes), "--users", str(USERS), "--spawn-rate", "12", results=folder)
    assert done.returncode == 0, done.stderr
    assert f"report: {folder / 'report.html'}" in done.stdout
    return folder


@pytest.fixture(scope="module")
def figures(results: Path) -> Any:
    return json.loads((results / "report.json").read_text())


def test_there_are_models_of_all_states_and_rows_for_them(results: Path) -> None:
    """
    Fifty states and the District of Columbia, and no half made folder.
    """
    states = {path.name.removesuffix(".tar.gz") for path in (results / "models" / "models" / "churn").iterdir()}
    rows = (results / "models" / "rows.csv").read_text().splitlines()

    assert len(states) == 51
    assert {row.split(",")[0] for row in rows[1:]} <= states
    assert len({len(row.split(",")) for row in rows}) == 1
    assert not list(results.glob(".models-*"))


def test_no_request_failed(figures: Any) -> None:
    """
    All users of both sizings were answered.
    """
    assert figures["errors"] == {"memory for all": {}, "memory for a third": {}}
    for name in SIZINGS:
        assert int(figures["summary"][name]["requests"].replace(",", "")) > USERS
        assert figures["summary"][name]["failed"] == "0"
        assert max(value for _, value in figures["series"]["Users"][name]) == USERS


def test_the_report_has_every_series_of_both_sizings(results: Path, figures: Any) -> None:
    """
    As pictures in the page, which asks nobody else for anything.
    """
    page = (results / "report.html").read_text()

    assert {title: len(lines) // 2 for title, lines in figures["series"].items()} == PANELS
    assert all(points for lines in figures["series"].values() for points in lines.values())
    assert page.count("<svg") == page.count("<figure>") == len(PANELS)
    assert all(f">{title}<" in page for title in PANELS)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)", page)
    assert set(re.findall(r"https?://[^\"'<\s]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_a_third_of_the_memory_evicts_and_all_of_it_does_not(figures: Any) -> None:
    """
    The two servers are of the two sizes; the advice says which to take.
    """
    large, small = (figures["looks"][name][-1]["figures"] for name in SIZINGS)

    assert large["evictions"] == 0
    assert small["evictions"] > 0
    assert small["loaded"] < large["loaded"] <= 51
    assert figures["advice"].startswith("Take memory for ")


def test_nothing_stays_behind(results: Path) -> None:
    """
    No server and none of Locust's processes.
    """
    assert gone([process for process in psutil.process_iter(["cmdline"]) if _is_of(process, results)])


def _is_of(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in part for part in process.info["cmdline"] or ())


@pytest.mark.second_stage
def test_an_endpoint_that_is_not_ours_needs_no_server(results: Path) -> None:
    """
    As SageMaker's: Locust calls the name it is given at whatever address boto3 finds; here nobody answers there.
    """
    aws = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    # As long as a busy machine needs for a first call.
    for minutes in ("0.1", "0.3", "1", "2"):
        done = loadtest(
            "--endpoint", "mme", "--minutes", minutes, "--users", "2", "--spawn-rate", "2", results=results,
            AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME="http://127.0.0.1:9", **aws,
        )  # fmt: skip
        if "Locust wrote no figures" not in done.stderr:
            break

    assert done.returncode == 0, done.stderr
    found = json.loads((results / "report.json").read_text())
    assert found["advice"].startswith("Take none of them yet: requests failed, ")
    assert all("127.0.0.1:9" in error for error in found["errors"]["mme"])
    assert set(found["series"]) == {"Throughput", "Latency", "Users"}


@pytest.mark.parametrize(
    "arguments",
    [["--minutes", "0"], ["--minutes", "nan"], ["--users", "0"], ["--users", "many"], ["--spawn-rate", "0"]],
)
def test_flags_that_make_no_sense_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """
    In words, before anything is trained or started.
    """
    with pytest.raises(SystemExit) as stopped:
        parsed_options(arguments)

    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
