"""Archives get to disk once, whole, and stay as long as somebody holds them; whatever fails leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from polyhost.artifacts import Artifact, Artifacts, Listed, catalogue, fetching
from polyhost.artifacts.eviction import plan_eviction
from polyhost.artifacts.fetcher import hide
from polyhost.artifacts.fetching import Fetcher
from polyhost.artifacts.transfers import Settings
from polyhost.errors import StartFailed
from polyhost.service_errors import (
    ArtifactMissing,
    ArtifactUnusable,
    DiskFull,
    EndpointError,
    StoreFailed,
    ValidationError,
)
from support.packing import claim, gzipped_nonsense, lying_zip, noise, special, tar, zipped

from endpoint.conftest import ACCESS_KEY, SECRET_KEY, environ_for
from endpoint.faults import FaultyBucket, faulty_bucket

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A source; `source_of` is what it is called."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def faulty() -> Iterator[FaultyBucket]:
    """One with an archive, s3://bucket/p/ a.tar.gz."""
    with faulty_bucket() as bucket:
        bucket.objects["/bucket/p/a.tar.gz"] = tar(("model", noise(100_000)))
        yield bucket


def source_of(folder: Path) -> str:
    return f"{folder}/"


@contextlib.asynccontextmanager
async def running(cache: Path, url: str = NOWHERE, attempts: int = 1, **settings: Any) -> AsyncIterator[Artifacts]:
    settings = {"budget_bytes": 10_000_000, "refresh_secs": 60, "environ": environ_for(url, attempts), **settings}
    artifacts = Artifacts(cache, expects_buckets=url != NOWHERE, **settings)
    await artifacts.start()
    try:
        yield artifacts
    finally:
        await artifacts.stop()


def run(test: Coroutine[Any, Any, None]) -> None:
    """On the loop that the server uses."""
    uvloop.run(test)


def files_of(artifact: Artifact) -> dict[str, bytes]:
    return {
        str(file.relative_to(artifact.path)): file.read_bytes() for file in artifact.path.rglob("*") if file.is_file()
    }


def entries(cache: Path) -> list[Path]:
    return list((cache / "models").iterdir())


def halves(cache: Path) -> list[Path]:
    """What a fetch that failed could have left behind; to be looked at after the stop."""
    return list((cache / "tmp").iterdir()) if (cache / "tmp").exists() else []


async def until_gone(path: Path) -> None:
    """Deletions run in threads, after whoever caused them."""
    while path.exists():  # noqa: ASYNC110, ASYNC240 - there is no event for what a file system has done
        await asyncio.sleep(0.005)


# Fetching


def test_an_archive_is_fetched_and_unpacked(s3: Any, bucket: str, s3_url: str, cache: Path) -> None:
    """From a bucket: its files, its version and sizes; the second time without a fetch."""
    data = tar(("model", b"weights"), ("code/inference.py", b"pass"))
    s3.put_object(Bucket=bucket, Key="p/a/b.tar.gz", Body=data)
    source = f"s3://{bucket}/p/"

    async def test() -> None:
        async with running(cache, s3_url, 5) as artifacts:
            artifact = await artifacts.get(source, "a/b.tar.gz")
            assert files_of(artifact) == {"model": b"weights", "code/inference.py": b"pass"}
            assert (artifact.source, artifact.key) == (source, "a/b.tar.gz")
            assert await artifacts.look_up(source, "a/b.tar.gz") == Listed(artifact.version, artifact.archive_bytes)
            assert (artifact.archive_bytes, artifact.unpacked_bytes) == (len(data), len(b"weights" + b"pass"))
            assert artifact.fetch_secs > 0

            again = await artifacts.get(source, "a/b.tar.gz")
            assert (again.path, again.fetch_secs) == (artifact.path, 0.0)
            assert set(artifacts.on_disk()) == {(source, "a/b.tar.gz")}

    run(test())
    assert halves(cache) == []


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar", "a.mar", "a.zip"])
def test_every_kind_of_archive_from_a_folder(folder: Path, cache: Path, name: str) -> None:
    """A tar, compressed or not, or a zip, as their bytes say; the folder stays as it was."""
    make = {".mar": zipped, ".zip": zipped}.get(Path(name).suffix, tar)
    data = make(("model", b"weights"), ("code/inference.py", b"pass"))
    (folder / name).write_bytes(data)

    async def test() -> None:
        async with running(cache) as artifacts:
            artifact = await artifacts.get(source_of(folder), name)
            assert files_of(artifact) == {"model": b"weights", "code/inference.py": b"pass"}

    run(test())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {name: data}


@pytest.mark.parametrize("key", ["модель №1/b c+%2F.tar.gz", "d/" * 200 + "x" * 200 + ".tar.gz", "x" * 1022])
def test_unusual_keys(s3: Any, bucket: str, s3_url: str, cache: Path, key: str) -> None:
    """A key may be in any script, deep, or longer than a file's name can be."""
    s3.put_object(Bucket=bucket, Key=f"p/{key}", Body=tar(("model", b"weights")))

    async def test() -> None:
        async with running(cache, s3_url, 5) as artifacts:
            artifact = await artifacts.get(f"s3://{bucket}/p/", key)
            assert files_of(artifact) == {"model": b"weights"}

    run(test())


@pytest.mark.parametrize("key", ["../a.tar.gz", "/etc/passwd", "", "x" * 1025, "a\0b"])
def test_keys_that_lead_out_are_refused(cache: Path, folder: Path, key: str) -> None:
    """By whatever way they come in, before anything is asked."""

    async def test() -> None:
        async with running(cache) as artifacts:
            for ask in (artifacts.get, artifacts.look_up):
                with pytest.raises(ValidationError, match="TargetModel"):
                    await ask(source_of(folder), key)

    run(test())


def test_ten_callers_wait_for_one_download(faulty: FaultyBucket, cache: Path) -> None:
    """One HEAD, one GET; each holds it: nine releases leave it in use."""

    async def test() -> None:
        async with running(cache, faulty.url) as artifacts:
            got = await asyncio.gather(*(artifacts.get("s3://bucket/p/", "a.tar.gz") for _ in range(10)))
            assert len({artifact.path for artifact in got}) == 1
            assert faulty.requests == ["HEAD /bucket/p/a.tar.gz", "GET /bucket/p/a.tar.gz"]
            for artifact in got[:-1]:
                artifacts.release(artifact)
            artifacts.discard(got[-1])
            await until_gone(got[-1].path)

    run(test())


def test_a_caller_who_leaves_does_not_end_the_download(faulty: FaultyBucket, cache: Path) -> None:
    """Nor do all of them: it is on disk when the next one comes."""
    faulty.faults.extend(["", "hang"])

    async def test() -> None:
        async with running(cache, faulty.url) as artifacts:
            callers = [asyncio.create_task(artifacts.get("s3://bucket/p/", "a.tar.gz")) for _ in range(2)]
            await asyncio.to_thread(faulty.is_halfway.wait)
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)
            faulty.resume.set()
            artifact = await artifacts.get("s3://bucket/p/", "a.tar.gz")
            assert len(files_of(artifact)["model"]) == 100_000
            # The first transfer's body was cut off; it was tried again, but nobody began another.
            assert [request for request in faulty.requests if request.startswith("HEAD")] == ["HEAD /bucket/p/a.tar.gz"]
            artifacts.discard(artifact)  # the one who is left holds it alone
            await until_gone(artifact.path)

    run(test())


def test_a_missing_archive(s3: Any, bucket: str, s3_url: str, cache: Path, folder: Path) -> None:
    """In a bucket or a folder: the sentence names it."""

    async def test() -> None:
        async with running(cache, s3_url, 5) as artifacts:
            for source in (f"s3://{bucket}/", source_of(folder)):
                with pytest.raises(ArtifactMissing, match=r"Failed to download model data\(.*, key: no\.tar\.gz\)"):
                    await artifacts.get(source, "no.tar.gz")

    run(test())
    assert entries(cache) == halves(cache) == []


WHOLE = tar(("model", noise(100_000)))
HOSTILE: dict[str, Callable[[], bytes]] = {
    "leads out": lambda: tar(("model", b"x"), ("../evil", b"x")),
    "zip leads out": lambda: zipped(("model", b"x"), ("../evil", b"x")),
    "absolute": lambda: tar(("/tmp/evil", b"x")),
    "link": lambda: tar(("model", b"x"), special("link", tarfile.SYMTYPE, "/etc/passwd")),
    "zip link": lambda: zipped(("model", b"x"), link="link"),
    "device": lambda: tar(special("device", tarfile.CHRTYPE)),
    "bomb": lambda: claim("zeros", 270_000_000),
    "zip bomb": lambda: lying_zip("zeros", bytes(100_000), 270_000_000),
    "lying zip": lambda: lying_zip("model", noise(100_000), 1000),
    "cut": lambda: WHOLE[: len(WHOLE) // 2],
    "checksum cut": lambda: WHOLE[:-8],
    "checksum wrong": lambda: WHOLE[:-8] + bytes(8),
    "no archive": lambda: noise(1000),
    "no tar": gzipped_nonsense,
    "no bytes": lambda: b"",
    "empty": tar,
    "empty zip": zipped,
    "only folders": lambda: tar(special("folder", tarfile.DIRTYPE)),
}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("leads out", r"it has an entry that leads out of it: \.\./evil"),
        ("zip leads out", r"it has an entry that leads out of it: \.\./evil"),
        ("absolute", "it has an entry that leads out of it: /tmp/evil"),
        ("link", "it has an entry that is neither file nor folder: link"),
        ("zip link", "it has an entry that is neither file nor folder: link"),
        ("device", "it has an entry that is neither file nor folder: device"),
        ("bomb", "it unpacks to more than 268435456 bytes"),
        ("zip bomb", "it unpacks to more than 268435456 bytes"),
        ("lying zip", "it is not a readable archive: Bad CRC-32"),
        ("cut", "it is not a readable archive"),
        ("checksum cut", "it is not a readable archive"),
        ("checksum wrong", "it is not a readable archive"),
        ("no archive", "it is not a readable archive"),
        ("no tar", "it is not a readable archive"),
        ("no bytes", "it is empty, not an archive: an upload or download was cut off"),
        ("empty", "it holds no file"),
        ("empty zip", "it holds no file"),
        ("only folders", "it holds no file"),
    ],
)
def test_what_is_no_good_archive_is_refused(folder: Path, cache: Path, kind: str, words: str) -> None:
    """Whole, in a sentence of AWS's that says what is wrong with it; nothing of it stays."""
    (folder / "a.tar.gz").write_bytes(HOSTILE[kind]())

    async def test() -> None:
        async with running(cache, budget_bytes=10**9) as artifacts:
            with pytest.raises(ArtifactUnusable) as refused:
                await artifacts.get(source_of(folder), "a.tar.gz")
            before, after = refused.value.message.split(f'from URL "{folder}/a.tar.gz": ')
            assert before == "Failed to extract model data archive "
            assert after.endswith(". Please ensure that the object located at the URL is a valid tar.gz archive.")
            assert re.match(words, after), after
            assert str(cache) not in refused.value.message
            assert artifacts.used_bytes == 0

    run(test())
    assert entries(cache) == halves(cache) == []
    assert not (folder.parent / "evil").exists()


# What a store says, and for how long it is believed


def test_a_changed_archive_is_fetched_again(s3: Any, bucket: str, s3_url: str, cache: Path) -> None:
    """As soon as a listing or a look-up shows it; who holds the old one keeps it until it is released."""
    source = f"s3://{bucket}/"

    def put(content: bytes) -> None:
        s3.put_object(Bucket=bucket, Key="a.tar.gz", Body=tar(("model", content)))

    async def test() -> None:
        async with running(cache, s3_url, 5) as artifacts:
            put(b"first")
            first = await artifacts.get(source, "a.tar.gz")
            put(b"second")
            assert (await artifacts.get(source, "a.tar.gz")).version == first.version, "it is believed for a while"

            await artifacts.look_up(source, "a.tar.gz")
            second = await artifacts.get(source, "a.tar.gz")
            assert (files_of(first), files_of(second)) == ({"model": b"first"}, {"model": b"second"})

            put(b"third")
            await artifacts.list(source)
            third = await artifacts.get(source, "a.tar.gz")
            assert files_of(third) == {"model": b"third"}

            artifacts.release(first)
            artifacts.release(first)
            artifacts.release(second)
            await until_gone(first.path)
            await until_gone(second.path)
            assert files_of(third) == {"model": b"third"}

    run(test())
    assert len(entries(cache)) == 1


def test_a_changed_archive_is_seen_by_itself_in_time(folder: Path, cache: Path) -> None:
    """When nobody lists or looks up, the store is asked again after the time for which it is believed."""

    async def test() -> None:
        async with running(cache, refresh_secs=1e-9) as artifacts:
            for content in (b"first", b"second"):
                (folder / "a.tar.gz").write_bytes(tar(("model", content)))
                assert files_of(await artifacts.get(source_of(folder), "a.tar.gz")) == {"model": content}

    run(test())


def test_without_refresh_what_is_on_disk_stays(folder: Path, cache: Path) -> None:
    """It is never asked about again, also after a restart; a listing still tells of new versions."""
    (folder / "a.tar.gz").write_bytes(tar(("model", b"first")))

    async def test() -> None:
        async with running(cache, refresh_secs=0) as artifacts:
            await artifacts.get(source_of(folder), "a.tar.gz")
        (folder / "a.tar.gz").write_bytes(tar(("model", b"second")))
        async with running(cache, refresh_secs=0) as artifacts:
            assert files_of(await artifacts.get(source_of(folder), "a.tar.gz")) == {"model": b"first"}
            await artifacts.list(source_of(folder))
            assert files_of(await artifacts.get(source_of(folder), "a.tar.gz")) == {"model": b"second"}

    run(test())


@pytest.mark.parametrize("refresh_secs", [0, 60])
def test_what_is_believed_may_not_be_older_than_is_asked_for(folder: Path, cache: Path, refresh_secs: float) -> None:
    """
    A new endpoint has what is there when it is made; those from before have what they had, until it is looked for.
    """
    (folder / "a.tar").write_bytes(tar(("model", b"old")))

    async def test() -> None:
        async with running(cache, refresh_secs=refresh_secs) as artifacts:
            old = await artifacts.get(source_of(folder), "a.tar")
            (folder / "a.tar").write_bytes(tar(("model", b"new")))
            assert (await artifacts.get(source_of(folder), "a.tar")).version == old.version
            new = await artifacts.get(source_of(folder), "a.tar", asked_after=time.monotonic())
            assert (files_of(new), files_of(old)) == ({"model": b"new"}, {"model": b"old"})

        async with running(cache, refresh_secs=refresh_secs) as artifacts:
            (folder / "a.tar").write_bytes(tar(("model", b"newest")))
            newest = await artifacts.get(source_of(folder), "a.tar", asked_after=time.monotonic())
            assert files_of(newest) == {"model": b"newest"}

    run(test())


def test_a_deleted_archive_is_gone(s3: Any, bucket: str, s3_url: str, cache: Path) -> None:
    """Once the store says so: for new callers at once, on disk when the last one has released it."""
    source = f"s3://{bucket}/"
    s3.put_object(Bucket=bucket, Key="a.tar.gz", Body=tar(("model", b"weights")))

    async def test() -> None:
        async with running(cache, s3_url, 5) as artifacts:
            await artifacts.list(source)
            artifact = await artifacts.get(source, "a.tar.gz")
            s3.delete_object(Bucket=bucket, Key="a.tar.gz")
            assert await artifacts.list(source) == {}
            for _ in range(2):
                with pytest.raises(ArtifactMissing):
                    await artifacts.get(source, "a.tar.gz")
            assert files_of(artifact) == {"model": b"weights"}
            artifacts.release(artifact)
            await until_gone(artifact.path)

    run(test())


def test_a_listing_of_a_large_source_is_a_part_of_it(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next part begins behind it."""
    monkeypatch.setattr(catalogue, "MOST_LISTED", 3)
    for number in range(7):
        (folder / f"m{number}.tar.gz").write_bytes(b"")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar.gz"))

    async def test() -> None:
        async with running(cache) as artifacts:
            found: list[str] = []
            for _ in range(len(names) // 3 + 1):
                found += await artifacts.list(source_of(folder), found[-1] if found else "")
                listing = artifacts.last_listing(source_of(folder))
                assert listing is not None
                assert (listing.has_more, len(listing.archives) <= 3) == (found != names, True)
            assert found == names

    run(test())


def test_what_is_known_of_a_store_is_bounded(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be millions of archives, of which each was asked for once: those asked for last are known."""
    monkeypatch.setattr(catalogue, "_MOST_LOOK_UPS", 2)

    async def test() -> None:
        async with running(cache) as artifacts:
            for number in (0, 1, 0, 2):
                (folder / f"m{number}.tar.gz").write_bytes(b"")
                await artifacts.look_up(source_of(folder), f"m{number}.tar.gz")
            known = artifacts._catalogue.believed
            assert [known(source_of(folder), f"m{number}.tar.gz") is not None for number in range(3)] == [
                True, False, True,
            ]  # fmt: skip

    run(test())


def test_a_new_archive_is_served_at_once(s3: Any, bucket: str, s3_url: str, cache: Path) -> None:
    """Also right after a listing that did not have it, and where the listing knew an older one."""
    source = f"s3://{bucket}/"
    s3.put_object(Bucket=bucket, Key="old.tar.gz", Body=tar(("model", b"old")))

    async def test() -> None:
        async with running(cache, s3_url, 5) as artifacts:
            assert list(await artifacts.list(source)) == ["old.tar.gz"]
            s3.put_object(Bucket=bucket, Key="new.tar.gz", Body=tar(("model", b"new")))
            s3.put_object(Bucket=bucket, Key="old.tar.gz", Body=tar(("model", b"old, renewed")))
            assert files_of(await artifacts.get(source, "new.tar.gz")) == {"model": b"new"}
            assert files_of(await artifacts.get(source, "old.tar.gz")) == {"model": b"old, renewed"}

    run(test())


def test_a_copy_serves_while_its_store_does_not(
    faulty: FaultyBucket, cache: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """When the bucket cannot say whether it is the newest; with a warning. What is not on disk fails."""

    async def test() -> None:
        async with running(cache, faulty.url, refresh_secs=1e-9) as artifacts:
            first = await artifacts.get("s3://bucket/p/", "a.tar.gz")
            faulty.last_fault = "500"
            assert (await artifacts.get("s3://bucket/p/", "a.tar.gz")).path == first.path
            assert "served from disk, its store does not answer" in caplog.text
            with pytest.raises(StoreFailed, match=r"500 .*Ask again later"):
                await artifacts.get("s3://bucket/p/", "b.tar.gz")
            faulty.last_fault = "403"
            with pytest.raises(ArtifactMissing):  # that is an answer
                await artifacts.get("s3://bucket/p/", "a.tar.gz")
            faulty.last_fault = ""
            assert (await artifacts.get("s3://bucket/p/", "a.tar.gz")).path == first.path

    run(test())


# Restarts, ours and the fetcher's


def test_after_a_restart_nothing_is_fetched(faulty: FaultyBucket, cache: Path) -> None:
    """What is on disk is found; the bucket is asked for its version alone."""

    async def test() -> None:
        async with running(cache, faulty.url) as artifacts:
            before = await artifacts.get("s3://bucket/p/", "a.tar.gz")
        faulty.requests.clear()
        async with running(cache, faulty.url) as artifacts:
            assert set(artifacts.on_disk()) == {("s3://bucket/p/", "a.tar.gz")}
            after = await artifacts.get("s3://bucket/p/", "a.tar.gz")
            assert (after.path, after.fetch_secs) == (before.path, 0.0)
            assert (after.version, after.archive_bytes) == (before.version, before.archive_bytes)
            assert after.unpacked_bytes == before.unpacked_bytes
        assert faulty.requests == ["HEAD /bucket/p/a.tar.gz"]

    run(test())


def cut_a_file(entry: Path) -> None:
    os.truncate(entry / "model" / "weights", 10)


def lose_a_file(entry: Path) -> None:
    (entry / "model" / "code" / "x.py").unlink()


def empty_the_meta_file(entry: Path) -> None:
    (entry / "meta.json").write_bytes(b"")


def lose_the_meta_file(entry: Path) -> None:
    (entry / "meta.json").unlink()


def nonsense_for_a_meta_file(entry: Path) -> None:
    (entry / "meta.json").write_text('["no", "object"]')


def pipe_for_a_meta_file(entry: Path) -> None:
    (entry / "meta.json").unlink()
    os.mkfifo(entry / "meta.json")


def empty_everything(entry: Path) -> None:
    (entry / "meta.json").write_text('{"source": "", "key": "", "version": "", "archive_bytes": 0, "files": {}}')
    shutil.rmtree(entry / "model")


@pytest.mark.parametrize(
    "damage",
    [
        cut_a_file, lose_a_file, empty_the_meta_file, lose_the_meta_file, nonsense_for_a_meta_file,
        pipe_for_a_meta_file, empty_everything,
    ],
)  # fmt: skip
def test_what_a_crash_damaged_is_never_used(folder: Path, cache: Path, damage: Callable[[Path], None]) -> None:
    """It is noticed at the start, deleted and fetched again; so is what was half written."""
    files = {"weights": b"w" * 1000, "code/x.py": b"pass"}
    (folder / "a.tar.gz").write_bytes(tar(*files.items()))

    async def test() -> None:
        async with running(cache) as artifacts:
            damaged = (await artifacts.get(source_of(folder), "a.tar.gz")).path.parent
        damage(damaged)
        (cache / "tmp" / "half" / "model").mkdir(parents=True)
        async with running(cache) as artifacts:
            assert not damaged.exists()
            assert list((cache / "tmp").iterdir()) == []
            assert (set(artifacts.on_disk()), artifacts.used_bytes) == (set(), 0)
            assert files_of(await artifacts.get(source_of(folder), "a.tar.gz")) == files

    run(test())


def test_what_a_handler_wrote_into_its_folder_does_no_harm(folder: Path, cache: Path) -> None:
    """A copy with files more than its archive had is still whole."""
    (folder / "a.tar.gz").write_bytes(tar(("code/x.py", b"pass")))

    async def test() -> None:
        async with running(cache) as artifacts:
            path = (await artifacts.get(source_of(folder), "a.tar.gz")).path
        (path / "code" / "__pycache__").mkdir()
        (path / "code" / "__pycache__" / "x.pyc").write_bytes(b"compiled")
        async with running(cache) as artifacts:
            assert (await artifacts.get(source_of(folder), "a.tar.gz")).path == path

    run(test())


def overwrite(model: Path) -> None:
    (model / "model").chmod(0o644)
    with (model / "model").open("r+b") as file:
        file.write(b"evil")


def overwrite_and_set_the_time_back(model: Path) -> None:
    before = (model / "model").stat()
    overwrite(model)
    os.utime(model / "model", ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_a_copy(model: Path) -> None:
    before = (model / "model").stat()
    (model / "model").unlink()
    (model / "model").write_bytes(b"evil" + bytes(996))
    os.utime(model / "model", ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_a_link(model: Path) -> None:
    (model / "model").rename(model.parent / "elsewhere")
    (model / "model").symlink_to(model.parent / "elsewhere")


def replace_by_a_pipe(model: Path) -> None:
    (model / "model").unlink()
    os.mkfifo(model / "model")


def replace_what_tells_of_it_by_a_pipe(model: Path) -> None:
    pipe_for_a_meta_file(model.parent)


def replace_what_tells_of_it_by_a_huge_file(model: Path) -> None:
    with (model.parent / "meta.json").open("r+b") as file:
        file.truncate(2**40)


def overwrite_what_tells_of_it(model: Path) -> None:
    overwrite(model)
    meta = json.loads((model.parent / "meta.json").read_bytes())
    status = (model / "model").stat()
    digest = hashlib.sha256((model / "model").read_bytes()).hexdigest()
    meta["files"]["model"] = [1000, digest, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
    (model.parent / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "attack",
    [
        overwrite, overwrite_and_set_the_time_back, replace_by_a_copy, replace_by_a_link, replace_by_a_pipe,
        overwrite_what_tells_of_it, replace_what_tells_of_it_by_a_pipe, replace_what_tells_of_it_by_a_huge_file,
    ],
)  # fmt: skip
def test_what_another_model_has_changed_is_fetched_again(
    folder: Path, cache: Path, attack: Callable[[Path], None], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """All models' processes run under one user: one can write where another's files are, but not unseen."""
    right = noise(1000)
    (folder / "a.tar").write_bytes(tar(("model", right), ("code/inference.py", b"pass"), mode="w"))

    async def test() -> None:
        async with running(cache) as artifacts:
            first = await artifacts.get(source_of(folder), "a.tar")
            artifacts.release(first)
            attack(first.path)
            second = await artifacts.get(source_of(folder), "a.tar")
            assert second.path != first.path
            assert (second.path / "model").read_bytes() == right
            await until_gone(first.path)

    run(test())
    assert "its files on disk are not those that were unpacked" in caplog.text


def test_what_is_looked_at_is_not_deleted_for_others(cache: Path, folder: Path) -> None:
    """From the moment at which somebody asks for it: the look at its files begins a moment later."""
    (folder / "a.tar.gz").write_bytes(tar(("model", b"weights")))

    async def test() -> None:
        async with running(cache) as artifacts:
            artifacts.release(await artifacts.get(source_of(folder), "a.tar.gz"))
            again = asyncio.create_task(artifacts.get(source_of(folder), "a.tar.gz"))
            await asyncio.sleep(0)
            await artifacts._disk.make_room(artifacts.budget_bytes)
            assert files_of(await again) == {"model": b"weights"}

    run(test())


def test_what_another_model_has_added_is_no_part_of_it(folder: Path, cache: Path) -> None:
    """Code beside data would be run, and a compiled script instead of the script. In use it stays: a copy is made."""
    (folder / "a.tar").write_bytes(tar(("model", b"x"), special("empty", tarfile.DIRTYPE), mode="w"))

    async def test() -> None:
        async with running(cache) as artifacts:
            first = await artifacts.get(source_of(folder), "a.tar")
            (first.path / "code").mkdir()
            (first.path / "code" / "inference.py").touch()
            other = await artifacts.get(source_of(folder), "a.tar")
            assert other.path != first.path
            assert (first.path / "code" / "inference.py").exists()
            (other.path / "link").symlink_to("/etc/passwd")
            artifacts.release(other)
            again = await artifacts.get(source_of(folder), "a.tar")
            assert again.path == other.path
            assert sorted(path.name for path in again.path.iterdir()) == ["empty", "model"]
            assert oct((again.path / "model").stat().st_mode)[-3:] == "444"

    run(test())


def test_a_cache_that_was_copied_is_believed_by_its_digests(folder: Path, cache: Path) -> None:
    """Inodes and times are others; each file is read once, not again and again."""
    (folder / "a.tar").write_bytes(tar(("model", b"x"), mode="w"))

    async def test() -> None:
        async with running(cache) as artifacts:
            artifacts.release(await artifacts.get(source_of(folder), "a.tar"))
        shutil.copytree(cache, cache.parent / "copy")
        async with running(cache.parent / "copy") as artifacts:
            for _ in range(2):
                artifact = await artifacts.get(source_of(folder), "a.tar")
                assert artifact.fetch_secs == 0.0
                artifacts.release(artifact)
            meta = json.loads((artifact.path.parent / "meta.json").read_bytes())
            assert meta["files"]["model"][2] == (artifact.path / "model").stat().st_ino

    run(test())


@pytest.mark.parametrize("source", ["s3://bucket/p/", "s3://other/"])
def test_look_ups_that_hang_do_not_delay_others(faulty: FaultyBucket, cache: Path, source: str) -> None:
    """Neither of another bucket, nor those of the same: eight that hung kept all from loading for minutes."""
    faulty.objects["/other/a.tar.gz"] = faulty.objects["/bucket/p/a.tar.gz"]
    keys = [f"{number}.tar" for number in range(20)]
    faulty.muted = {f"/bucket/p/{key}" for key in keys}

    async def test() -> None:
        async with running(cache, faulty.url, 3) as artifacts:
            waiting = [asyncio.create_task(artifacts.look_up("s3://bucket/p/", key)) for key in keys]
            while len(set(faulty.requests)) < len(keys):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.01)
            # Each one that hangs takes five seconds, and that three times.
            await asyncio.wait_for(artifacts.get(source, "a.tar.gz"), 12)
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting, return_exceptions=True)

    run(test())


def test_a_killed_fetcher_is_replaced_and_asked_again(faulty: FaultyBucket, cache: Path) -> None:
    """Killed in the middle of a download: the caller gets the whole archive."""
    faulty.faults.extend(["", "hang"])
    restarts: list[None] = []

    async def test() -> None:
        settings = {"on_fetcher_restart": lambda: restarts.append(None), "read_secs": 60}
        async with running(cache, faulty.url, **settings) as artifacts:
            caller = asyncio.create_task(artifacts.get("s3://bucket/p/", "a.tar.gz"))
            await asyncio.to_thread(faulty.is_halfway.wait)
            assert artifacts._fetcher.pid is not None
            os.kill(artifacts._fetcher.pid, signal.SIGKILL)
            assert len(files_of(await caller)["model"]) == 100_000

    run(test())
    assert len(restarts) == 1
    assert len(entries(cache)) == 1
    assert halves(cache) == []


def test_a_download_that_kills_the_fetcher_twice_is_given_up(faulty: FaultyBucket, cache: Path) -> None:
    """The caller is told to come again; nothing half written stays, and the next archive is fetched."""
    faulty.last_fault = "hang"

    async def test() -> None:
        async with running(cache, faulty.url, read_secs=60) as artifacts:
            caller = asyncio.create_task(artifacts.get("s3://bucket/p/", "a.tar.gz"))
            for _ in range(2):
                await asyncio.to_thread(faulty.is_halfway.wait)
                faulty.is_halfway.clear()
                assert artifacts._fetcher.pid is not None
                os.kill(artifacts._fetcher.pid, signal.SIGKILL)
            with pytest.raises(StoreFailed, match=r"ended twice over this\. Ask again later"):
                await caller
            for half in halves(cache):
                await until_gone(half)
            assert entries(cache) == []
            assert artifacts.used_bytes == 0
            faulty.last_fault = ""
            await artifacts.get("s3://bucket/p/", "a.tar.gz")

    run(test())


def test_whoever_waits_at_the_stop_is_told(faulty: FaultyBucket, cache: Path) -> None:
    """No caller is left waiting, and nothing half written is left."""
    faulty.last_fault = "hang"
    faulty.objects["/bucket"] = noise(1000)  # a listing

    async def test() -> None:
        async with running(cache, faulty.url, read_secs=60) as artifacts:
            callers = [
                asyncio.create_task(artifacts.get("s3://bucket/p/", "a.tar.gz")),
                asyncio.create_task(artifacts.list("s3://bucket/p/")),
            ]
            await asyncio.to_thread(faulty.is_halfway.wait)
        for failure in await asyncio.gather(*callers, return_exceptions=True):
            assert isinstance(failure, EndpointError)

    run(test())
    assert entries(cache) == halves(cache) == []


def test_the_fetcher_dies_with_the_server(cache: Path) -> None:
    """However the server ends: no process with credentials outlives it."""
    program = f"""
import asyncio, pathlib
from polyhost.artifacts import Artifacts
async def main():
    cache, environ = pathlib.Path({str(cache)!r}), {environ_for(NOWHERE)!r}
    artifacts = Artifacts(cache, budget_bytes=1, environ=environ, refresh_secs=1)
    await artifacts.start()
    while artifacts._fetcher.pid is None:
        await asyncio.sleep(0.01)
    try:
        await artifacts.look_up("/nowhere/", "a")
    except Exception:
        print(artifacts._fetcher.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    environ = environ_for(NOWHERE)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environ) as server:
        assert server.stdout is not None
        fetcher = psutil.Process(int(server.stdout.readline()))
        server.kill()
        assert psutil.wait_procs([fetcher], timeout=30)[1] == []


def test_two_servers_do_not_share_a_folder(cache: Path) -> None:
    """The second does not start, and says why; when the first has ended, it does."""

    async def test() -> None:
        async with running(cache):
            with pytest.raises(StartFailed, match="in use by another server"):
                await Artifacts(cache, budget_bytes=1, environ={}, refresh_secs=1).start()
        async with running(cache):
            pass

    run(test())


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    """The server does not start."""
    (tmp_path / "file").write_text("no folder")

    async def test() -> None:
        with pytest.raises(StartFailed, match=r"cannot be used: Not a directory"):
            await Artifacts(tmp_path / "file" / "cache", budget_bytes=1, environ={}, refresh_secs=1).start()

    run(test())


# The budget


@pytest.fixture
def three(folder: Path) -> list[str]:
    """Keys of archives that take a little more than 400,000 bytes each of the disk."""
    keys = [f"{name}.tar" for name in "abc"]
    for number, key in enumerate(keys):
        (folder / key).write_bytes(tar(("model", noise(400_000, number)), mode="w"))
    return keys


def test_the_least_recently_used_goes_first(folder: Path, cache: Path, three: list[str]) -> None:
    """Never one that somebody holds; and not more than is needed."""
    a, b, c = three
    source = source_of(folder)

    async def test() -> None:
        async with running(cache, budget_bytes=1_000_000) as artifacts:
            for key in (a, b, a):
                artifacts.release(await artifacts.get(source, key))
            held = await artifacts.get(source, c)
            assert set(artifacts.on_disk()) == {(source, a), (source, c)}
            await artifacts.get(source, b)
            assert set(artifacts.on_disk()) == {(source, b), (source, c)}
            assert len(files_of(held)["model"]) == 400_000
            assert 800_000 < artifacts.used_bytes <= artifacts.budget_bytes

    run(test())
    assert len(entries(cache)) == 2


def test_the_order_of_use_outlives_a_restart(folder: Path, cache: Path, three: list[str]) -> None:
    """What was used last before it stays; so does the budget, a smaller one too."""
    a, b, c = three
    source = source_of(folder)

    async def test() -> None:
        async with running(cache) as artifacts:
            for key in (a, b, c, a):
                artifacts.release(await artifacts.get(source, key))
        async with running(cache, budget_bytes=1_000_000) as artifacts:
            assert set(artifacts.on_disk()) == {(source, c), (source, a)}
            artifacts.release(await artifacts.get(source, b))
            assert set(artifacts.on_disk()) == {(source, a), (source, b)}

    run(test())


def test_a_disk_full_of_models_in_use(folder: Path, cache: Path, three: list[str]) -> None:
    """Not now, says the answer, before anything is fetched; after a release it works."""
    a, b, c = three
    source = source_of(folder)

    async def test() -> None:
        async with running(cache, budget_bytes=1_000_000) as artifacts:
            held = await artifacts.get(source, a)
            await artifacts.get(source, b)
            with pytest.raises(DiskFull, match=r"full of models in use\. Ask again later"):
                await artifacts.get(source, c)
            artifacts.release(held)
            await artifacts.get(source, c)

    run(test())


def test_fetches_at_the_same_time_wait_for_each_others_room(s3: Any, bucket: str, s3_url: str, cache: Path) -> None:
    """While it is fetched a model takes twice its room: where that is there once, two come one after the other."""
    for key in "ab":
        s3.put_object(Bucket=bucket, Key=key, Body=tar(("model", noise(400_000)), mode="w"))

    async def test() -> None:
        async with running(cache, s3_url, 5, budget_bytes=1_300_000) as artifacts:
            await asyncio.gather(*(artifacts.get(f"s3://{bucket}/", key) for key in "ab"))
            assert len(artifacts.on_disk()) == 2

    run(test())


def test_what_never_fits_is_said_to_be_too_large(folder: Path, cache: Path) -> None:
    """With its size and the budget: an archive that is larger, or one that unpacks to more."""
    (folder / "large.tar").write_bytes(tar(("model", noise(400_000)), mode="w"))
    (folder / "packed.tar.gz").write_bytes(tar(("zeros", bytes(400_000))))
    (folder / "many.tar.gz").write_bytes(tar(*((f"{number}", b"x") for number in range(100))))

    async def test() -> None:
        async with running(cache, budget_bytes=300_000) as artifacts:
            for key, words in (
                ("large.tar", "has 409600 bytes: the whole disk cache is 300000 bytes"),
                ("packed.tar.gz", "unpacks to more than 300000 bytes"),
                ("many.tar.gz", "takes 442368 bytes unpacked: the whole disk cache is 300000 bytes"),
            ):
                with pytest.raises(ValidationError, match=words):
                    await artifacts.get(source_of(folder), key)
            await artifacts._disk._cleaner.finished()
            assert artifacts.used_bytes == 0

    run(test())
    assert entries(cache) == halves(cache) == []


def test_a_model_takes_more_than_its_archive(folder: Path, cache: Path, three: list[str]) -> None:
    """The room is made when that is known."""
    a, b, _ = three
    (folder / "packed.tar.gz").write_bytes(tar(("zeros", bytes(400_000))))
    source = source_of(folder)

    async def test() -> None:
        async with running(cache, budget_bytes=1_000_000) as artifacts:
            held = await artifacts.get(source, a)
            artifacts.release(await artifacts.get(source, b))
            await artifacts.get(source, "packed.tar.gz")
            assert set(artifacts.on_disk()) == {(source, a), (source, "packed.tar.gz")}
            (folder / "more.tar.gz").write_bytes(tar(("zeros", bytes(400_001))))
            with pytest.raises(DiskFull):
                await artifacts.get(source, "more.tar.gz")
            assert artifacts.used_bytes <= artifacts.budget_bytes
            assert files_of(held)

    run(test())
    assert len(entries(cache)) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_a_file_system_that_is_full_before_the_budget_is(
    small_disk: Path, folder: Path, s3: Any, bucket: str, s3_url: str, place: str,
) -> None:  # fmt: skip
    """Downloading or unpacking: what nobody holds goes, and it is tried again; if all is held, not now."""
    keys = ["a.tar", "b.tar", "c.tar"]
    for number, key in enumerate(keys):
        data = tar(("model", noise(500_000, number)), mode="w")
        (folder / key).write_bytes(data)
        s3.put_object(Bucket=bucket, Key=key, Body=data)
    source = source_of(folder) if place == "folder" else f"s3://{bucket}/"
    # So that two models fit, and not a third: a bucket's takes twice its room while it is fetched.
    (small_disk / "filler").write_bytes(bytes(700_000 if place == "folder" else 200_000))

    async def test() -> None:
        async with running(small_disk, s3_url, 5, budget_bytes=10**9) as artifacts:
            for key in keys:
                artifacts.release(await artifacts.get(source, key))
            assert (source, keys[0]) not in artifacts.on_disk()

            held = [await artifacts.get(source, key) for key in (keys[2], keys[0])]
            with pytest.raises(DiskFull, match=r"The disk is full: .*Ask again later"):
                await artifacts.get(source, keys[1])
            assert [len(files_of(artifact)["model"]) for artifact in held] == [500_000, 500_000]
            await artifacts._disk._cleaner.finished()
            assert list((small_disk / "tmp").iterdir()) == []
            artifacts.release(held[0])
            await artifacts.get(source, keys[1])

    run(test())


def test_what_was_compiled_of_an_archive_that_is_gone_is_not_kept(folder: Path, cache: Path, three: list[str]) -> None:
    """The model was unloaded, and its archive deleted, before the file was written."""

    async def test() -> None:
        async with running(cache) as artifacts:
            artifact = await artifacts.get(source_of(folder), "a.tar")
            place = artifacts.compiled(artifact)
            await place.write(b"one")
            assert place.read() == b"one"
            used_bytes = artifacts.used_bytes
            await place.write(bytes(10_000))
            assert artifacts.used_bytes == used_bytes + 2 * 4096
            artifacts.discard(artifact)
            await place.write(b"another")
            assert artifacts.used_bytes == 0
        assert entries(cache) == []

    run(test())


def test_the_look_at_an_archive_reads_what_was_compiled_of_it(folder: Path, cache: Path, three: list[str]) -> None:
    """Once, for the load that follows; it is not kept in memory longer than the archive is held."""
    source = source_of(folder)

    async def test() -> None:
        async with running(cache) as artifacts:
            artifact = await artifacts.get(source, "a.tar")
            place = artifacts.compiled(artifact)
            await place.write(b"one")
            assert place.take() is None  # the look was before
            artifacts.release(artifact)

            artifact = await artifacts.get(source, "a.tar")
            assert [artifacts.compiled(artifact).take() for _ in range(2)] == [b"one", None]
            artifacts.release(artifact)

            artifacts.release(await artifacts.get(source, "a.tar"))
            assert place.take() is None

            artifact = await artifacts.get(source, "a.tar")
            for content in (b"one", b"much" * 2**20):  # a load that waits for room takes what is small once more
                place.take()
                place.give_back(content)
                assert place.take() == (content if content == b"one" else None)
            place.give_back(b"one")
            artifacts.release(artifact)
            assert place.take() is None

            await artifacts.get(source, "a.tar")
            (artifact.path.parent / "compiled").write_bytes(b"two")
            await artifacts.get(source, "a.tar")
            assert (place.take(), place.read()) == (b"", None)  # the load need not read it again

    run(test())


def test_a_discarded_archive_is_deleted(folder: Path, cache: Path, three: list[str]) -> None:
    """When the last one has let it go; whoever asks meanwhile gets another copy."""
    source = source_of(folder)

    async def test() -> None:
        async with running(cache) as artifacts:
            first = await artifacts.get(source, three[0])
            same = await artifacts.get(source, three[0])
            artifacts.discard(first)
            assert len(files_of(same)["model"]) == 400_000
            other = await artifacts.get(source, three[0])
            assert other.path != first.path
            artifacts.release(same)
            await until_gone(first.path)
            artifacts.discard(other)
            await until_gone(other.path)
            assert (artifacts.used_bytes, set(artifacts.on_disk())) == (0, set())

    run(test())


def test_what_could_not_be_removed_counts(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the budget, from then on and after a restart; it keeps nothing from working."""
    (folder / "a.tar").write_bytes(tar(("model", noise(100_000)), mode="w"))
    monkeypatch.setattr("polyhost.artifacts.cleaner.remove_tree", lambda _: False)

    async def test() -> None:
        async with running(cache, budget_bytes=10**6) as artifacts:
            artifacts.discard(await artifacts.get(source_of(folder), "a.tar"))
            await artifacts._disk._cleaner.finished()
            assert 100_000 < artifacts.used_bytes < 130_000
        async with running(cache, budget_bytes=10**6) as artifacts:
            assert 100_000 < artifacts.used_bytes < 130_000
        monkeypatch.undo()
        async with running(cache, budget_bytes=10**6) as artifacts:
            assert artifacts.used_bytes == 0

    run(test())
    assert halves(cache) == []


def test_the_budget_is_a_share_of_the_free_disk_by_default(cache: Path, folder: Path, three: list[str]) -> None:
    """What the cache holds already counts as room for it."""

    async def test() -> None:
        async with running(cache, budget_bytes=None) as artifacts:
            assert 0 < artifacts.budget_bytes < shutil.disk_usage(cache).total
            await artifacts.get(source_of(folder), three[0])

    run(test())


@dataclass(frozen=True)
class Sized:
    disk_bytes: int


@pytest.mark.parametrize(
    ("need_bytes", "free_bytes", "sizes", "evicted"),
    [
        (5, 5, (10, 20, 30), ()),
        (6, 5, (10, 20, 30), (10,)),
        (16, 5, (10, 20, 30), (20,)),  # the first would not be needed besides the second
        (40, 5, (10, 20, 30), (10, 30)),
        (65, 5, (10, 20, 30), (10, 20, 30)),
        (66, 5, (10, 20, 30), None),  # nothing is evicted in vain
        (100, 0, (1,) * 50 + (100,), (100,)),  # many small ones stay before a large one that is enough
        (100, 0, (1,) * 99, None),
        (100, 0, (1,) * 100, (1,) * 100),
        (1, 0, (0, 0, 7), (7,)),  # what others hold too gives nothing
        (1, -5, (4, 4), (4, 4)),
        (1, 0, (), None),
        (0, 0, (), ()),
    ],
)
def test_eviction_takes_no_more_than_it_must(
    need_bytes: int, free_bytes: int, sizes: tuple[int, ...], evicted: tuple[int, ...] | None
) -> None:
    """From the front, until it is enough; None when all would not be."""
    victims = plan_eviction(need_bytes, free_bytes, map(Sized, sizes))

    assert (victims and tuple(victim.disk_bytes for victim in victims)) == (list(evicted) if evicted == () else evicted)


@given(st.integers(0, 12), st.integers(-3, 6), st.lists(st.integers(0, 5), max_size=7))
def test_eviction_is_what_all_choices_say(need_bytes: int, free_bytes: int, sizes: list[int]) -> None:
    """
    Held against every choice there is: of those among the fewest least recently used, one that frees no more than it
    must, and that keeps the most recently used.
    """
    entries = [Sized(size) for size in sizes]
    victims = plan_eviction(need_bytes, free_bytes, entries)

    enough = [count for count in range(len(sizes) + 1) if free_bytes + sum(sizes[:count]) >= need_bytes]
    if not enough:
        assert victims is None
        return
    choices = itertools.product((False, True), repeat=enough[0])
    good = [
        choice for choice in choices if free_bytes + sum(itertools.compress(sizes[: enough[0]], choice)) >= need_bytes
    ]
    best = min(good, key=lambda choice: choice[::-1])
    assert victims is not None
    assert [id(victim) for victim in victims] == [id(entry) for entry in itertools.compress(entries, best)]


def test_what_cannot_fit_a_full_file_system_evicts_nothing(small_disk: Path, folder: Path) -> None:
    """One load evicted about 800 models, and failed all the same. What it takes is counted without being written."""
    for number in range(20):
        (folder / f"small{number}.tar").write_bytes(tar(("model", noise(1000)), mode="w"))
    (folder / "large.tar.gz").write_bytes(tar(("model", bytes(1_200_000)), ("more/again", bytes(50_000))))
    source = source_of(folder)

    async def test() -> None:
        async with running(small_disk, budget_bytes=10**9) as artifacts:
            for number in range(20):
                artifacts.release(await artifacts.get(source, f"small{number}.tar"))
            filler = small_disk / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 700_000))
            with pytest.raises(DiskFull, match=r"The disk is full: .* was not unpacked") as full:
                await artifacts.get(source, "large.tar.gz")
            assert len(artifacts.on_disk()) == 20
            blocks = 293 + 13 + 2  # of the two files and the two folders
            free_bytes = shutil.disk_usage(small_disk).free
            evictable_bytes = artifacts.used_bytes
            assert full.value.missing_bytes == blocks * 4096 - free_bytes - evictable_bytes

            filler.write_bytes(bytes(filler.stat().st_size - full.value.missing_bytes - evictable_bytes + 5 * 8192))
            await artifacts.get(source, "large.tar.gz")
            assert 10 < len(artifacts.on_disk()) < 20  # a few of the small ones are enough

    run(test())


@pytest.mark.parametrize("told_bytes", [0, 300_000])
@pytest.mark.parametrize("place", ["bucket", "folder"])
def test_room_that_others_took_at_each_transfer_is_told_as_missing(
    folder: Path, cache: Path, s3: Any, bucket: str, s3_url: str, place: str, told_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """So that its load has models unloaded for it. The disk has room when it is looked at, none when it is written."""
    data = tar(("model", noise(100_000)))
    (folder / "a.tar.gz").write_bytes(data)
    s3.put_object(Bucket=bucket, Key="a.tar.gz", Body=data)
    source = source_of(folder) if place == "folder" else f"s3://{bucket}/"
    transfers = []

    async def lose_the_room(_: Fetcher, source: str, key: str, *__: Any, **___: Any) -> None:
        transfers.append(key)
        raise DiskFull("The disk is full.", need_bytes=told_bytes)

    async def test() -> None:
        async with running(cache, s3_url, 5) as artifacts:
            monkeypatch.setattr(Fetcher, "fetch", lose_the_room)
            with pytest.raises(DiskFull, match=r"^The disk is full\.$") as full:
                await artifacts.get(source, "a.tar.gz")
            copy_bytes = 0 if place == "folder" else len(data)
            assert full.value.missing_bytes == copy_bytes + (told_bytes or len(data))
            assert len(transfers) > 1
            assert artifacts.used_bytes == 0

    run(test())


def test_a_fetcher_that_was_stopped_is_started_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that was not on the disk could be loaded any more."""
    monkeypatch.setattr(fetching, "_LOOK_SECS", 0.1)
    for key in ("a.tar.gz", "b.tar.gz"):
        (folder / key).write_bytes(tar(("model", b"weights")))

    async def test() -> None:
        async with running(cache) as artifacts:
            await artifacts.get(source_of(folder), "a.tar.gz")
            stopped = artifacts._fetcher.pid
            assert stopped is not None
            os.kill(stopped, signal.SIGSTOP)
            await asyncio.wait_for(artifacts.get(source_of(folder), "b.tar.gz"), 30)
            assert artifacts._fetcher.pid != stopped

    run(test())


# Secrets


def test_credentials_stay_with_the_fetcher(
    s3: Any, bucket: str, s3_url: str, cache: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """They are in no process's arguments nor in the environment it was started with, not in a log nor in a repr."""
    s3.put_object(Bucket=bucket, Key="a.tar.gz", Body=tar(("model", b"weights")))

    async def test() -> None:
        async with running(cache, s3_url, 5) as artifacts:
            await artifacts.get(f"s3://{bucket}/", "a.tar.gz")
            proc = Path(f"/proc/{artifacts._fetcher.pid}")
            shown = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
            assert b"polyhost.artifacts.fetcher" in shown
            for secret in (ACCESS_KEY, SECRET_KEY):
                assert secret.encode() not in shown
                assert secret not in repr(artifacts) + repr(vars(artifacts._fetcher))
            with pytest.raises(ArtifactMissing):
                await artifacts.get("s3://no-such-bucket/", "a.tar.gz")

    run(test())
    written = "".join(capfd.readouterr())
    assert ACCESS_KEY not in written
    assert SECRET_KEY not in written
    for file in cache.rglob("*"):
        assert not file.is_file() or SECRET_KEY.encode() not in file.read_bytes()


def test_processes_of_the_same_user_cannot_read_the_fetcher(tmp_path: Path) -> None:
    """Neither its environment nor its memory, unless they are root's."""
    program = f"""
import ctypes, os, sys
from {hide.__module__} import hide
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
print("open", flush=True)
sys.stdin.readline()
hide()
print("hidden", flush=True)
sys.stdin.readline()
"""
    reader = {"user": 65534, "group": 65534} if os.getuid() == 0 else {}

    def can_read(pid: int) -> bool:
        return not subprocess.run(
            ["cat", f"/proc/{pid}/environ"], capture_output=True, check=False, **reader
        ).returncode

    environ = environ_for(NOWHERE)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert can_read(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "hidden\n"
        assert not can_read(process.pid)
        process.stdin.close()


@pytest.mark.parametrize("steps", range(6))
def test_a_stop_while_the_fetcher_starts_leaves_no_process(steps: int) -> None:
    before = set(psutil.Process().children())

    async def stop_after(steps: int) -> None:
        settings = Settings({}, connect_secs=1, read_secs=1, fetch_secs=1, unpack_secs=1, expects_buckets=False)
        fetcher = Fetcher(settings)
        fetcher.start()
        for _ in range(steps):
            await asyncio.sleep(0)
        await fetcher.stop()
        assert set(psutil.Process().children()) <= before

    run(stop_after(steps))


def test_a_stop_while_the_fetcher_ends_leaves_no_process() -> None:
    """Its connection has ended before it has."""
    before = set(psutil.Process().children())

    async def stop() -> None:
        settings = Settings({}, connect_secs=1, read_secs=1, fetch_secs=1, unpack_secs=1, expects_buckets=False)
        fetcher = Fetcher(settings)
        fetcher.start()
        while fetcher._writer is None:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        fetcher._writer.transport.abort()
        while fetcher.pid is not None:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        await fetcher.stop()
        assert set(psutil.Process().children()) <= before

    run(stop())
