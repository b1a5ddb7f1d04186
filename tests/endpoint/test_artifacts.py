"""Archives get to disk once, whole, and stay as long as somebody holds them; whatever fails leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from polyhost.endpoint.artifacts import Artifact, Artifacts, Listed
from polyhost.endpoint.artifacts.disk import Entry, plan_eviction
from polyhost.endpoint.artifacts.fetcher import hide
from polyhost.endpoint.errors import (
    ArtifactMissing,
    ArtifactUnusable,
    DiskFull,
    EndpointError,
    StoreFailed,
    ValidationError,
)
from polyhost.errors import StartFailed
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
async def running(cache: Path, url: str = NOWHERE, **settings: Any) -> AsyncIterator[Artifacts]:
    settings = {"budget_bytes": 10_000_000, "refresh_secs": 60, "environ": environ_for(url), **settings}
    artifacts = Artifacts(cache, **settings)
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
    """
    From a bucket: its files, its version and sizes; the second time without a fetch.
    """
    data = tar(("model", b"weights"), ("code/inference.py", b"pass"))
    s3.put_object(Bucket=bucket, Key="p/a/b.tar.gz", Body=data)
    source = f"s3://{bucket}/p/"

    async def test() -> None:
        async with running(cache, s3_url) as artifacts:
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
    """
    A tar, compressed or not, or a zip, as their bytes say; the folder stays as it was.
    """
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
    """
    A key may be in any script, deep, or longer than a file's name can be.
    """
    s3.put_object(Bucket=bucket, Key=f"p/{key}", Body=tar(("model", b"weights")))

    async def test() -> None:
        async with running(cache, s3_url) as artifacts:
            artifact = await artifacts.get(f"s3://{bucket}/p/", key)
            assert files_of(artifact) == {"model": b"weights"}

    run(test())


@pytest.mark.parametrize("key", ["../a.tar.gz", "/etc/passwd", "", "x" * 1025, "a\0b"])
def test_keys_that_lead_out_are_refused(cache: Path, folder: Path, key: str) -> None:
    """
    By whatever way they come in, before anything is asked.
    """

    async def test() -> None:
        async with running(cache) as artifacts:
            for ask in (artifacts.get, artifacts.look_up):
                with pytest.raises(ValidationError, match="TargetModel"):
                    await ask(source_of(folder), key)

    run(test())


def test_ten_callers_wait_for_one_download(faulty: FaultyBucket, cache: Path) -> None:
    """
    One HEAD, one GET; each holds it: nine releases leave it in use.
    """

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
    """
    Nor do all of them: it is on disk when the next one comes.
    """
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
    """
    In a bucket or a folder: the sentence names it.
    """

    async def test() -> None:
        async with running(cache, s3_url) as artifacts:
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
    """
    Whole, in a sentence of AWS's that says what is wrong with it; nothing of it stays.
    """
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
    """
    As soon as a listing or a look-up shows it; who holds the old one keeps it until it is released.
    """
    source = f"s3://{bucket}/"

    def put(content: bytes) -> None:
        s3.put_object(Bucket=bucket, Key="a.tar.gz", Body=tar(("model", content)))

    async def test() -> None:
        async with running(cache, s3_url) as artifacts:
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
    """
    When nobody lists or looks up, the store is asked again after the time for which it is believed.
    """

    async def test() -> None:
        async with running(cache, refresh_secs=1e-9) as artifacts:
            for content in (b"first", b"second"):
                (folder / "a.tar.gz").write_bytes(tar(("model", content)))
                assert files_of(await artifacts.get(source_of(folder), "a.tar.gz")) == {"model": content}

    run(test())


def test_without_refresh_what_is_on_disk_stays(folder: Path, cache: Path) -> None:
    """
    It is never asked about again, also after a restart; a listing still tells of new versions.
    """
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
    """
    Once the store says so: for new callers at once, on disk when the last one has released it.
    """
    source = f"s3://{bucket}/"
    s3.put_object(Bucket=bucket, Key="a.tar.gz", Body=tar(("model", b"weights")))

    async def test() -> None:
        async with running(cache, s3_url) as artifacts:
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


def test_a_new_archive_is_served_at_once(s3: Any, bucket: str, s3_url: str, cache: Path) -> None:
    """
    Also right after a listing that did not have it, and where the listing knew an older one.
    """
    source = f"s3://{bucket}/"
    s3.put_object(Bucket=bucket, Key="old.tar.gz", Body=tar(("model", b"old")))

    async def test() -> None:
        async with running(cache, s3_url) as artifacts:
            assert list(await artifacts.list(source)) == ["old.tar.gz"]
            s3.put_object(Bucket=bucket, Key="new.tar.gz", Body=tar(("model", b"new")))
            s3.put_object(Bucket=bucket, Key="old.tar.gz", Body=tar(("model", b"old, renewed")))
            assert files_of(await artifacts.get(source, "new.tar.gz")) == {"model": b"new"}
            assert files_of(await artifacts.get(source, "old.tar.gz")) == {"model": b"old, renewed"}

    run(test())


def test_a_copy_serves_while_its_store_does_not(
    faulty: FaultyBucket, cache: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """
    When the bucket cannot say whether it is the newest; with a warning. What is not on disk fails.
    """

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
    """
    What is on disk is found; the bucket is asked for its version alone.
    """

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


def empty_everything(entry: Path) -> None:
    (entry / "meta.json").write_text('{"source": "", "key": "", "version": "", "archive_bytes": 0, "files": {}}')
    shutil.rmtree(entry / "model")


@pytest.mark.parametrize(
    "damage",
    [
        cut_a_file, lose_a_file, empty_the_meta_file, lose_the_meta_file, nonsense_for_a_meta_file, empty_everything,
    ],
)  # fmt: skip
def test_what_a_crash_damaged_is_never_used(folder: Path, cache: Path, damage: Callable[[Path], None]) -> None:
    """
    It is noticed at the start, deleted and fetched again; so is what was half written.
    """
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
    """
    A copy with files more than its archive had is still whole.
    """
    (folder / "a.tar.gz").write_bytes(tar(("code/x.py", b"pass")))

    async def test() -> None:
        async with running(cache) as artifacts:
            path = (await artifacts.get(source_of(folder), "a.tar.gz")).path
        (path / "code" / "__pycache__").mkdir()
        (path / "code" / "__pycache__" / "x.pyc").write_bytes(b"compiled")
        async with running(cache) as artifacts:
            assert (await artifacts.get(source_of(folder), "a.tar.gz")).path == path

    run(test())


def test_a_killed_fetcher_is_replaced_and_asked_again(faulty: FaultyBucket, cache: Path) -> None:
    """
    Killed in the middle of a download: the caller gets the whole archive.
    """
    faulty.faults.extend(["", "hang"])
    restarts: list[None] = []

    async def test() -> None:
        settings = {"on_fetcher_restart": lambda: restarts.append(None), "read_secs": 60}
        async with running(cache, faulty.url, **settings) as artifacts:
            caller = asyncio.create_task(artifacts.get("s3://bucket/p/", "a.tar.gz"))
            await asyncio.to_thread(faulty.is_halfway.wait)
            assert artifacts.fetcher_pid is not None
            os.kill(artifacts.fetcher_pid, signal.SIGKILL)
            assert len(files_of(await caller)["model"]) == 100_000

    run(test())
    assert len(restarts) == 1
    assert len(entries(cache)) == 1
    assert halves(cache) == []


def test_a_download_that_kills_the_fetcher_twice_is_given_up(faulty: FaultyBucket, cache: Path) -> None:
    """
    The caller is told to come again; nothing half written stays, and the next archive is fetched.
    """
    faulty.last_fault = "hang"

    async def test() -> None:
        async with running(cache, faulty.url, read_secs=60) as artifacts:
            caller = asyncio.create_task(artifacts.get("s3://bucket/p/", "a.tar.gz"))
            for _ in range(2):
                await asyncio.to_thread(faulty.is_halfway.wait)
                faulty.is_halfway.clear()
                assert artifacts.fetcher_pid is not None
                os.kill(artifacts.fetcher_pid, signal.SIGKILL)
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
    """
    No caller is left waiting, and nothing half written is left.
    """
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
    """
    However the server ends: no process with credentials outlives it.
    """
    program = f"""
import asyncio, pathlib
from polyhost.endpoint.artifacts import Artifacts
async def main():
    cache, environ = pathlib.Path({str(cache)!r}), {environ_for(NOWHERE)!r}
    artifacts = Artifacts(cache, budget_bytes=1, environ=environ, refresh_secs=1)
    await artifacts.start()
    while artifacts.fetcher_pid is None:
        await asyncio.sleep(0.01)
    try:
        await artifacts.look_up("/nowhere/", "a")
    except Exception:
        print(artifacts.fetcher_pid, flush=True)
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
    """
    The second does not start, and says why; when the first has ended, it does.
    """

    async def test() -> None:
        async with running(cache):
            with pytest.raises(StartFailed, match="in use by another server"):
                await Artifacts(cache, budget_bytes=1, environ={}, refresh_secs=1).start()
        async with running(cache):
            pass

    run(test())


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    """
    The server does not start.
    """
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
    """
    Never one that somebody holds; and not more than is needed.
    """
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
    """
    What was used last before it stays; so does the budget, a smaller one too.
    """
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
    """
    Not now, says the answer, before anything is fetched; after a release it works.
    """
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
    """
    While it is fetched a model takes twice its room: where that is there once, two come one after the other.
    """
    for key in "ab":
        s3.put_object(Bucket=bucket, Key=key, Body=tar(("model", noise(400_000)), mode="w"))

    async def test() -> None:
        async with running(cache, s3_url, budget_bytes=1_300_000) as artifacts:
            await asyncio.gather(*(artifacts.get(f"s3://{bucket}/", key) for key in "ab"))
            assert len(artifacts.on_disk()) == 2

    run(test())


def test_what_never_fits_is_said_to_be_too_large(folder: Path, cache: Path) -> None:
    """
    With its size and the budget: an archive that is larger, or one that unpacks to more.
    """
    (folder / "large.tar").write_bytes(tar(("model", noise(400_000)), mode="w"))
    (folder / "packed.tar.gz").write_bytes(tar(("zeros", bytes(400_000))))
    (folder / "many.tar.gz").write_bytes(tar(*((f"{number}", b"x") for number in range(100))))

    async def test() -> None:
        async with running(cache, budget_bytes=300_000) as artifacts:
            for key, words in (
                ("large.tar", "has 409600 bytes: the whole disk cache is 300000 bytes"),
                ("packed.tar.gz", "unpacks to more than 300000 bytes"),
                ("many.tar.gz", "takes 425984 bytes unpacked: the whole disk cache is 300000 bytes"),
            ):
                with pytest.raises(ValidationError, match=words):
                    await artifacts.get(source_of(folder), key)
            await asyncio.gather(*artifacts._disk._deletions)
            assert artifacts.used_bytes == 0

    run(test())
    assert entries(cache) == halves(cache) == []


def test_a_model_takes_more_than_its_archive(folder: Path, cache: Path, three: list[str]) -> None:
    """
    The room is made when that is known.
    """
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
    """
    Downloading or unpacking: what nobody holds goes, and it is tried again; if all is held, not now.
    """
    keys = ["a.tar", "b.tar", "c.tar"]
    for number, key in enumerate(keys):
        data = tar(("model", noise(500_000, number)), mode="w")
        (folder / key).write_bytes(data)
        s3.put_object(Bucket=bucket, Key=key, Body=data)
    source = source_of(folder) if place == "folder" else f"s3://{bucket}/"
    # So that two models fit, and not a third: a bucket's takes twice its room while it is fetched.
    (small_disk / "filler").write_bytes(bytes(700_000 if place == "folder" else 200_000))

    async def test() -> None:
        async with running(small_disk, s3_url, budget_bytes=10**9) as artifacts:
            for key in keys:
                artifacts.release(await artifacts.get(source, key))
            assert (source, keys[0]) not in artifacts.on_disk()

            held = [await artifacts.get(source, key) for key in (keys[2], keys[0])]
            with pytest.raises(DiskFull, match=r"The disk is full: .*Ask again later"):
                await artifacts.get(source, keys[1])
            assert [len(files_of(artifact)["model"]) for artifact in held] == [500_000, 500_000]
            await asyncio.gather(*artifacts._disk._deletions)
            assert list((small_disk / "tmp").iterdir()) == []
            artifacts.release(held[0])
            await artifacts.get(source, keys[1])

    run(test())


def test_a_discarded_archive_is_deleted(folder: Path, cache: Path, three: list[str]) -> None:
    """
    When the last one has let it go; whoever asks meanwhile gets another copy.
    """
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


def test_the_budget_is_a_share_of_the_free_disk_by_default(cache: Path, folder: Path, three: list[str]) -> None:
    """
    What the cache holds already counts as room for it.
    """

    async def test() -> None:
        async with running(cache, budget_bytes=None) as artifacts:
            assert 0 < artifacts.budget_bytes < shutil.disk_usage(cache).total
            await artifacts.get(source_of(folder), three[0])

    run(test())


def test_eviction_takes_no_more_than_it_must() -> None:
    """
    From the front, until it is enough; None when all would not be.
    """
    entries = [Entry(artifact=None, folder=Path(), disk_bytes=size) for size in (10, 20, 30)]  # type: ignore[arg-type]

    assert plan_eviction(5, 5, entries) == []
    assert plan_eviction(6, 5, entries) == entries[:1]
    assert plan_eviction(16, 5, entries) == entries[:2]
    assert plan_eviction(65, 5, entries) == entries
    assert plan_eviction(66, 5, entries) is None


# Secrets


def test_credentials_stay_with_the_fetcher(
    s3: Any, bucket: str, s3_url: str, cache: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """
    They are in no process's arguments nor in the environment it was started with, not in a log nor in a repr.
    """
    s3.put_object(Bucket=bucket, Key="a.tar.gz", Body=tar(("model", b"weights")))

    async def test() -> None:
        async with running(cache, s3_url) as artifacts:
            await artifacts.get(f"s3://{bucket}/", "a.tar.gz")
            proc = Path(f"/proc/{artifacts.fetcher_pid}")
            shown = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
            assert b"polyhost.endpoint.artifacts.fetcher" in shown
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
    """
    Neither its environment nor its memory, unless they are root's.
    """
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
