"""What is compiled of a model is kept beside its archive: the next load needs no worker, and nobody else changes it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import xgboost
from polyhost_handlers.compiled.library import library
from support.endpoint import EndpointServer, fill
from support.tree import living, wait_until

pytestmark = pytest.mark.skipif(library is None, reason="the library in C was not built: there was no compiler")

ROW = "1998,2150,3,2.5,0.4,2"
ROWS = f"{ROW}\n1971,1400,2,1,0.2,1"
DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: data[:-1],
    lambda _: b"",
    lambda _: b"\x92\xa1x\x92\xc4\x03abc\xa0",
)
DAMAGED = [f"damaged-{number}.tar.gz" for number in range(len(DAMAGES))]
STRANGE = [f"strange-{kind}.tar.gz" for kind in ("pipe", "link", "folder", "huge")]
HOUSTON = ["a.tar.gz", "changed.tar.gz", "overwritten.tar.gz", "settings.tar.gz", *DAMAGED, *STRANGE]
BOSTON = ["b.tar.gz", "another.tar.gz"]
SETTINGS = ({"SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv"}, {"SAGEMAKER_INFERENCE_OUTPUT": "predicted_score"})


@dataclass
class Restarted:
    """
    A server, on the state of those before it, and what is compiled of each archive.

    `good`: what is compiled of Houston's model. `taken_bytes`: what they all take of the disk.
    """

    server: EndpointServer
    files: dict[str, Path]
    good: bytes
    taken_bytes: int
    # What servers with other settings have answered.
    by_settings: list[str]


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Iterator[Restarted]:
    """Before it starts some of the files were damaged, and an archive was overwritten."""
    folder = tmp_path_factory.mktemp("compiled")
    models = fill(folder / "models", HOUSTON, samples_folder / "houston.tar.gz")
    fill(models, BOSTON, samples_folder / "boston.tar.gz")

    @contextlib.contextmanager
    def serving(**environ: str) -> Iterator[EndpointServer]:
        server = EndpointServer("native", models, state=folder / "state", environ=environ)
        try:
            yield server
        finally:
            server.stop()

    with serving() as server:
        for target in (*HOUSTON, *BOSTON):
            server.predict(target, ROW)
        found = files(server, len(HOUSTON) + len(BOSTON))
        assert server.predict("settings.tar.gz", ROW).startswith("[")
    by_settings = []
    for environ in SETTINGS:
        with serving(**environ) as server:
            by_settings.append(server.predict("settings.tar.gz", ROW))
    good = found["a.tar.gz"].read_bytes()
    for target, damage in zip(DAMAGED, DAMAGES, strict=True):
        found[target].write_bytes(damage(good))
    shutil.copy(samples_folder / "boston.tar.gz", models / "new")
    (models / "new").replace(models / "overwritten.tar.gz")
    entries = (folder / "state" / "cache" / "models").iterdir()
    taken_bytes = sum(path.stat().st_blocks * 512 for entry in entries for path in (entry, *entry.rglob("*")))
    with serving() as server:
        yield Restarted(server, found, good, taken_bytes, by_settings)


def files(server: EndpointServer, count: int) -> dict[str, Path]:
    """By their archives' keys. They are written behind the first answer."""
    folder = server.state / "cache" / "models"
    found = wait_until(lambda: [*some] if len(some := [*folder.glob("*/compiled")]) == count else [], 60, "files")
    return {json.loads((file.parent / "meta.json").read_text())["key"]: file for file in found}


def right(samples_folder: Path, name: str) -> list[float]:
    """XGBoost's own."""
    booster = xgboost.Booster(model_file=str(samples_folder / name / "xgboost-model"))
    rows = [[float(field) for field in line.split(",")] for line in ROWS.split("\n")]
    return [float(value) for value in booster.predict(xgboost.DMatrix(rows), validate_features=False)]


def stop_workers(server: EndpointServer) -> list[psutil.Process]:
    """Template and workers, so that only front and fetcher can do anything."""
    children = [one for one in living(server) if "fetcher" not in " ".join(one.cmdline())]
    for child in children:
        child.send_signal(signal.SIGSTOP)
    return children


def test_after_a_restart_the_front_answers_by_itself(restarted: Restarted, samples_folder: Path) -> None:
    """
    Without a worker: all of them are stopped. What is no single row waits for one, and is right too.
    """
    houston, boston = right(samples_folder, "houston"), right(samples_folder, "boston")
    server = restarted.server
    stopped = stop_workers(server)
    assert server.predict("a.tar.gz", ROW) == str(houston[:1])
    assert server.predict("b.tar.gz", ROW) == str(boston[:1])
    for child in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):  # those that are stopped for long are ended
            child.send_signal(signal.SIGCONT)
    assert server.predict("a.tar.gz", ROWS) == str(houston)
    assert server.predict("b.tar.gz", ROWS) == str(boston)


def test_a_file_that_another_process_has_changed_is_not_used(restarted: Restarted, samples_folder: Path) -> None:
    """
    It is a good one, of another model: a model's process could put it there while the server runs.
    """
    one, other = restarted.files["changed.tar.gz"], restarted.files["another.tar.gz"]
    shutil.copy(one, other)

    assert restarted.server.predict("changed.tar.gz", ROW) == str(right(samples_folder, "houston")[:1])
    assert restarted.server.predict("another.tar.gz", ROW) == str(right(samples_folder, "boston")[:1])
    restarted.server.process.wait_for_line(rf"{other}: another process has changed it; it is made anew")
    wait_until(lambda: one.read_bytes() != other.read_bytes(), 60, "made anew")


@pytest.mark.parametrize("target", DAMAGED)
def test_a_damaged_file_is_made_anew(restarted: Restarted, samples_folder: Path, target: str) -> None:
    """
    A crash, or a disk, has left it so.
    """
    assert restarted.server.predict(target, ROW) == str(right(samples_folder, "houston")[:1])
    wait_until(lambda: restarted.files[target].read_bytes() == restarted.good, 60, "it is made anew")


def test_what_is_no_file_in_its_place_neither_hangs_nor_fills_the_server(
    restarted: Restarted, samples_folder: Path, tmp_path: Path
) -> None:
    """
    A model's process has put it there while the server runs: a pipe, a link to a good one, a folder, a huge file.
    """
    pipe, link, folder, huge = found = [restarted.files[target] for target in STRANGE]
    (tmp_path / "good").write_bytes(restarted.good)
    for file in found:
        file.unlink()
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "good")
    folder.mkdir()
    with huge.open("wb") as file:
        file.truncate(100 * 1024**3)

    for target, file in zip(STRANGE, found, strict=True):
        assert restarted.server.predict(target, ROW) == str(right(samples_folder, "houston")[:1])
        restarted.server.process.wait_for_line(f"{file}: another process has changed it")
    assert psutil.Process(restarted.server.process.pid).memory_info().rss < 200 * 1024**2


def test_other_settings_make_another_file(restarted: Restarted) -> None:
    """
    What is answered depends on the container's variables.
    """
    as_csv, as_scores = restarted.by_settings
    assert not as_csv.startswith("[")
    assert "predicted_score" in as_scores


def test_an_overwritten_archive_is_compiled_anew(restarted: Restarted, samples_folder: Path) -> None:
    assert restarted.server.predict("overwritten.tar.gz", ROW) == str(right(samples_folder, "boston")[:1])


def test_the_disk_counts_it(restarted: Restarted) -> None:
    """
    As long as it is there.
    """
    count = len(HOUSTON) + len(BOSTON)
    line = restarted.server.process.wait_for_line(rf"{count} models, 0 held")
    assert restarted.taken_bytes <= int(line.split("| ")[1].split(" of")[0])
