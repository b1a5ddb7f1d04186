"""Archives that the container half is told to load are unpacked in a process of their own, never by the front."""

from __future__ import annotations

import asyncio
import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from polyhost.service_errors import EndpointError
from polyhost.unpacking import Unpacker
from support.packing import noise, special, tar
from support.server import Server

from native.conftest import start_native

MIB = 1024**2


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def server(roots: Path) -> Iterator[Server]:
    temporary = roots / "tmp"
    temporary.mkdir()
    server = start_native("--model-root", str(roots), environ={"TMPDIR": str(temporary)})
    yield server
    server.stop()


def pax_bomb(size_bytes: int) -> bytes:
    """A record that unpacks to so much."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, size_bytes
    record = f"{size_bytes} comment=".encode()
    piece = gzip.compress(b"a" * 16 * MIB, 1)
    return gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + record) + piece * (size_bytes // (16 * MIB))


def test_an_archive_does_not_take_the_front_s_memory(server: Server, roots: Path) -> None:
    """One of 1.4 MB took 4.4 GB."""
    (roots / "pax.tar.gz").write_bytes(pax_bomb(1024 * MIB))
    front = psutil.Process(server.process.pid)
    before = front.memory_info().rss

    answer = server.load("pax", roots / "pax.tar.gz")
    assert answer.status == 500
    assert "take more than 1048576 bytes" in answer.message
    assert front.memory_info().rss - before < 20 * MIB
    assert front.memory_info().vms < 4096 * MIB


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tar(("model", b"x"), special("link", tarfile.SYMTYPE, "/etc/passwd")), "neither file nor folder"),
        (tar(("a/" * 40 + "model", b"x")), "folders more than 32 deep"),
        (tar(("a" * 300, b"x")), "longer than the file system allows"),
        (tar(("model", noise(9000)))[:5000], "is not a readable archive"),
        (b"no archive", "is not a readable archive"),
    ],
    ids=["link", "deep", "name", "cut", "none"],
)
def test_what_is_no_good_archive_is_refused(server: Server, roots: Path, content: bytes, words: str) -> None:
    (roots / "a.tar.gz").write_bytes(content)
    answer = server.load("a", roots / "a.tar.gz")

    assert answer.status == 500
    assert answer.message.startswith("Unable to load model: a.tar.gz ")
    assert words in answer.message
    assert [path.name for path in (roots / "tmp").glob("*/*model-*")] == []


@pytest.mark.parametrize("url", ["a" * 300, "/".join(["a" * 200] * 30), "a\0b"])
def test_a_url_that_cannot_be_a_path(server: Server, url: str) -> None:
    answer = server.load("m", url)
    assert answer.status == 400
    assert "The model's url cannot be a path: " in answer.message


def test_a_model_s_name_may_be_long(server: Server, roots: Path) -> None:
    """It is no file's name."""
    (roots / "none").mkdir(exist_ok=True)
    answer = server.load("n" * 2000, roots / "none")
    assert (answer.status, "Traceback" in answer.text) == (500, False)
    assert "too long" not in answer.message


def test_whoever_leaves_cancels_it(tmp_path: Path) -> None:
    """At the next entry; nothing is left of it."""
    (tmp_path / "a.tar").write_bytes(tar(*((f"f{n}", b"x") for n in range(30_000)), mode="w"))

    async def cancel(unpacker: Unpacker, to: Path) -> None:
        staging = to.with_name(f".unpacking-{to.name}")
        order = asyncio.create_task(unpacker.unpack(tmp_path / "a.tar", to))
        while not (staging / "f0").exists() and not order.done():  # noqa: ASYNC110 - another process's folder
            await asyncio.sleep(0.001)
        order.cancel()
        while staging.exists():  # noqa: ASYNC110 - another process's folder
            await asyncio.sleep(0.001)

    async def test() -> None:
        unpacker = Unpacker({}, unpack_secs=100)
        try:
            for number in range(3):
                await cancel(unpacker, tmp_path / "in" / f"to-{number}")
        finally:
            await unpacker.stop()

    asyncio.run(test())
    # One that was quicker than we were is there.
    assert len(list((tmp_path / "in").iterdir())) < 3


def test_it_has_a_deadline(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar(("model", b"x"), mode="w"))

    async def test() -> None:
        unpacker = Unpacker({}, unpack_secs=0)
        try:
            with pytest.raises(EndpointError, match=r"a\.tar was not unpacked within 0 s"):
                await unpacker.unpack(tmp_path / "a.tar", tmp_path / "to")
        finally:
            await unpacker.stop()

    asyncio.run(test())
