"""The command, on the sample models and on what users mistype."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
from click.testing import CliRunner
from polyhost.cli import cli
from polyhost.errors import PolyhostError
from polyhost.sizing import printing
from polyhost.sizing.printing import plain
from polyhost.sizing.report import Table, ms_words, percent_words, size_words
from support.server import gone

CITIES = ("austin", "boston", "chicago", "houston", "miami", "seattle")


def size(*arguments: str | Path, temp: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "polyhost", "size", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "TMPDIR": str(temp)}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def temp() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ph-size-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def source(samples_folder: Path, temp: Path) -> Path:
    """Six cities, a script that takes no row of zeros, and a file that is no archive."""
    folder = temp / "models"
    folder.mkdir()
    for name in (*CITIES, "listing_tone"):
        shutil.copy(samples_folder / f"{name}.tar.gz", folder)
    (folder / "broken.tar.gz").write_bytes(b"no archive")
    return folder


@pytest.fixture(scope="module")
def found(source: Path, temp: Path) -> Any:
    """One real run."""
    trace = temp / "trace"
    trace.write_text("".join(f"{city}.tar.gz\n" for city in CITIES * 5) + "elsewhere.tar.gz\n")
    done = size(
        source, "--sample", "20", "--trace", trace, "--requests-per-sec", "1", "--host", "small=2:2:0.02",
        "--host", "large=16:8:0.4", "--json", temp=temp,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of 8: houston.tar.gz" in done.stderr
    return json.loads(done.stdout)


def test_models_are_measured(found: Any) -> None:
    """
    Each of a kind, with what it takes and how long: a booster less than code, which has a process of its own.
    """
    assert {one["model"] for one in found["measured"] if one["kind"] == "xgboost"} == {f"{c}.tar.gz" for c in CITIES}
    boosters, code = found["kinds"]["xgboost"], found["kinds"]["own code"]
    assert boosters["measured"] == 6
    assert 500 < code["models_per_gib"] * 4 < boosters["models_per_gib"] < 1024**3 / 4096 + 1
    assert found["idle_bytes"] > 20 * 1024**2
    for one in found["measured"]:
        assert one["first_call_ms"] > 0
        assert one["from_disk_ms"] > 0
        if one["kind"] == "xgboost":
            assert 0 < len(one["in_memory_ms"]) <= 20
            assert min(one["in_memory_ms"]) < one["from_disk_ms"]


def test_what_could_not_be_measured_is_said(found: Any) -> None:
    """
    Which archive did not load and why, which model took no row of zeros, what of the trace is elsewhere.
    """
    assert list(found["refused"]) == ["broken.tar.gz"]
    words = " ".join(found["words"])
    assert "1 of the sample could not be loaded, for example broken.tar.gz: " in words
    assert (
        "1 of 7 models answered no request (listing_tone.tar.gz): give one that they take by --request FILE." in words
    )
    assert "1 requests of the trace were for models that the source has not" in words


def test_traffic_is_replayed_and_hosts_are_compared(found: Any) -> None:
    """
    The more memory the more hits; the cheaper host does; an endpoint for each model costs as many times more.

    So few requests need no second host, however slow the CPU is that was measured.
    """
    ratios = [mix["hit_ratio"] for mix in found["mixes"]]
    assert ratios == sorted(ratios)
    assert found["mixes"][-1]["loads_per_request"] == pytest.approx(6 / 30)
    assert found["mixes"][-1]["p50_ms"] < found["mixes"][-1]["p99_ms"]
    assert found["recommended"]["host"] == "small"
    assert found["recommended"]["price_per_month"] == pytest.approx(0.02 * 720)
    assert found["layouts"][-1]["endpoints"] == found["models"] == 8
    assert found["layouts"][-1]["price_per_month"] == pytest.approx(8 * 0.02 * 720)


@pytest.mark.second_stage
def test_a_request_of_the_users_own_and_tables(samples_folder: Path, temp: Path) -> None:
    """
    A model that takes none of ours answers the user's; nothing stays behind, no process and no file.
    """
    folder = temp / "tone"
    folder.mkdir()
    shutil.copy(samples_folder / "listing_tone.tar.gz", folder)
    body = temp / "listing.json"
    body.write_text('{"text": "A sunny house with a modern kitchen"}')

    done = size(folder, "--request", body, "--zipf", "0.5", temp=temp)

    assert done.returncode == 0, done.stderr
    assert "Zipf's law, exponent 0.5" in done.stdout
    assert "answered no request" not in done.stdout
    assert "Take " in done.stdout
    assert not list(temp.glob("polyhost-size-*"))
    assert gone([process for process in psutil.process_iter(["cmdline"]) if _is_of(process, temp)])


def _is_of(process: psutil.Process, temp: Path) -> bool:
    return any(str(temp) in part for part in process.info["cmdline"] or ())


def test_a_source_of_which_nothing_loads_is_said(temp: Path) -> None:
    """
    With the first reason, and no figures.
    """
    folder = temp / "bad"
    folder.mkdir()
    (folder / "broken.tar.gz").write_bytes(b"no archive")

    done = size(folder, temp=temp)

    assert done.returncode == 1
    assert "none of the 1 models that were tried could be loaded. broken.tar.gz: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{temp}/nowhere"], "SOURCE: there is no folder"),
        (["{temp}/empty"], "has no archives"),
        (["http://x/"], "SOURCE: 'http://x/' is neither s3://BUCKET/PREFIX/ nor a folder"),
        (["{source}", "--host", "c5.large"], "--host: 'c5.large' is not NAME=GiB:CPUS:PRICE_PER_HOUR"),
        (["{source}", "--zipf", "-1"], "--zipf: -1 is not a number of at least 0"),
        (["{source}", "--zipf", "nan"], "--zipf: nan is not a number"),
        (["{source}", "--zipf", "many"], "'many' is not a valid float"),
        (["{source}", "--zipf", "1", "--trace", "x"], "--trace and --zipf: give one of them"),
        (["{source}", "--trace", "{temp}/none"], "--trace: "),
        (["{source}", "--trace", "{temp}"], "cannot be read (Is a directory)"),
        (["{source}", "--trace", "{source}/broken.tar.gz"], "it names no model of the source"),
        (["{source}", "--request", "{temp}/none"], "--request: "),
        (["{source}", "--sample", "0"], "--sample: 0 is not a number of at least 1"),
        (["{source}", "--copies", "0"], "--copies: 0 is not a number of at least 1"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(arguments: list[str], words: str, source: Path, temp: Path) -> None:
    """
    Before any server is started.
    """
    (temp / "empty").mkdir(exist_ok=True)
    given = [argument.format(temp=temp, source=source) for argument in arguments]

    error = CliRunner().invoke(cli, ["size", *given], standalone_mode=False).exception

    assert isinstance(error, (PolyhostError, click.ClickException))
    assert error.exit_code == 2
    assert words in (error.message if isinstance(error, click.ClickException) else str(error))


@pytest.mark.parametrize(
    ("arguments", "words"), [([], "Missing argument 'SOURCE'"), (["/nowhere"], "polyhost: SOURCE: there is no folder")]
)
def test_bad_input_of_the_command(arguments: list[str], words: str, temp: Path) -> None:
    """
    The same as users see it, without a traceback.
    """
    done = size(*arguments, temp=temp)

    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_server_imports_nothing_of_it() -> None:
    """
    Neither what serves nor the command's own module.
    """
    code = (
        "import sys, polyhost.cli, polyhost.server, polyhost.endpoint_server, polyhost.engine.native.start\n"
        "print([name for name in sys.modules if name.startswith('polyhost.sizing')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_table_without_rich() -> None:
    """
    Columns of equal width, numbers to the right.
    """
    table = Table("Models", ("kind", "per GiB"), [("xgboost", "23,525"), ("onnx", "9")])

    assert plain(table) == "Models\nkind     per GiB\n-------  -------\nxgboost   23,525\nonnx           9"


def test_a_table_with_rich_has_every_cell_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Also on a narrow terminal, and names with brackets are no markup.
    """
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "20")
    text = printing.printed([Table("Models", ("a kind", "per GiB"), [("x" * 60, "[bold]9")])])

    assert "x" * 60 in text
    assert "[bold]9" in text


def test_figures_have_three_digits_and_units() -> None:
    """
    And no ratio below 1 is 100 %.
    """
    assert [size_words(size) for size in (512, 50_000, 123 * 2**20, 5 * 2**30)] == [
        "0.5 KiB", "48.8 KiB", "123 MiB", "5 GiB",
    ]  # fmt: skip
    assert [ms_words(secs) for secs in (0.00054, 1.234, None)] == ["0.54 ms", "1,234 ms", "?"]
    assert [percent_words(ratio) for ratio in (1.0, 0.9999, 0.5)] == ["100 %", "99.9 %", "50 %"]
