"""What a source and a key may look like, and how buckets and folders are read, also when they fail."""

from __future__ import annotations

import os
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhost.artifacts.stores import (
    S3,
    FolderStore,
    S3Store,
    check_key,
    split_archive_url,
    split_source,
)
from polyhost.artifacts.transfers import ArtifactChanged, ArtifactForbidden, Listed
from polyhost.service_errors import ArtifactMissing, ArtifactUnusable, EndpointError, StoreFailed, ValidationError
from support.packing import noise

from endpoint.conftest import SECRET_KEY, environ_for
from endpoint.faults import FaultyBucket, faulty_bucket


@pytest.mark.parametrize(
    "key",
    ["a.tar.gz", "a/b/c.tar.gz", "…/модель №1.tar.gz", "a b+c%2F.tar.gz", "...", "a..b", ".hidden", "x" * 1024],
)
def test_keys_that_may_be(key: str) -> None:
    """
    Any text that names one place below its source.
    """
    check_key(key)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("", "it has 0 characters"),
        ("x" * 1025, "it has 1025 characters"),
        ("/a.tar.gz", "begins with a slash"),
        ("//", "begins with a slash"),
        ("a//b", "an empty name"),
        ("a/", "an empty name"),
        (".", 'between slashes it has an empty name, "." or ".."'),
        ("./a", '"." or ".."'),
        ("../a", '"." or ".."'),
        ("a/../b", '"." or ".."'),
        ("a/..", '"." or ".."'),
        ("a\\b", "backslash"),
        ("a\0b", "control character"),
        ("a\nb", "control character"),
        ("a\x7f", "control character"),
        ("a\x85", "control character"),
        ("a\ud800", "half a character"),
    ],
)
def test_keys_that_may_not_be(key: str, words: str) -> None:
    """
    What leads out of the source, or is no name, is refused in a sentence.
    """
    with pytest.raises(ValidationError, match=words) as refused:
        check_key(key)

    assert refused.value.status == 400
    refused.value.message.encode()


@given(st.one_of(st.text(max_size=40), st.text(alphabet="./\\a\0\n", max_size=8)))
def test_no_key_leads_out(key: str) -> None:
    """
    Whatever passes has one place, below the source, that any store can name.
    """
    try:
        check_key(key)
    except ValidationError:
        return

    path = os.path.normpath(f"/source/{key}")
    assert path == f"/source/{key}"
    assert path.startswith("/source/")
    key.encode()


def test_sources_and_the_urls_of_single_archives() -> None:
    """
    A bucket's prefix or a folder; an archive's url is one of them and a key.
    """
    assert split_source("s3://bucket/") == ("bucket", "")
    assert split_source("s3://bucket/a/b/") == ("bucket", "a/b/")
    assert split_source("/models/") == ("", "/models/")
    assert split_archive_url("s3://bucket/a/b.tar.gz") == ("s3://bucket/a/", "b.tar.gz")
    assert split_archive_url("s3://bucket/b.tar.gz") == ("s3://bucket/", "b.tar.gz")
    assert split_archive_url("/b.tar.gz") == ("/", "b.tar.gz")


@pytest.mark.parametrize(
    "url", ["", "a.tar.gz", "s3://bucket", "s3:///a", "http://host/a", "s3://bucket/a/", "s3://b c/a"]
)
def test_urls_that_name_no_archive(url: str) -> None:
    """
    They are refused before anything is asked.
    """
    with pytest.raises(ValidationError):
        split_archive_url(url)


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With an archive, and one outside that must stay there."""
    folder = tmp_path / "models"
    (folder / "team").mkdir(parents=True)
    (folder / "a.tar.gz").write_bytes(b"archive")
    (folder / "team" / "b.MAR").write_bytes(b"archive too")
    (tmp_path / "outside.tar.gz").write_bytes(b"secret")
    return folder


def store_of(folder: Path) -> FolderStore:
    return FolderStore(f"{folder}/")


def test_a_folder_is_listed_with_what_is_below(folder: Path) -> None:
    """
    Archives by their endings, whatever the case; no other files, and no links that lead out.
    """
    (folder / "notes.txt").write_text("no archive")
    (folder / "folder.tar.gz").mkdir()
    (folder / "out.tar.gz").symlink_to(folder.parent / "outside.tar.gz")
    (folder / "same.tar.gz").symlink_to(folder / "a.tar.gz")
    (folder / "nowhere.tar.gz").symlink_to(folder / "nowhere")

    (archives,) = store_of(folder).pages()
    assert sorted(archives) == ["a.tar.gz", "same.tar.gz", "team/b.MAR"]
    assert archives["team/b.MAR"].size_bytes == len(b"archive too")
    assert archives["a.tar.gz"] == store_of(folder).look_up("a.tar.gz")


def test_links_do_not_lead_out_of_a_folder(folder: Path) -> None:
    """
    Neither a file that is a link nor a folder on the way: to clients, nothing is there.
    """
    (folder / "out.tar.gz").symlink_to(folder.parent / "outside.tar.gz")
    (folder / "up").symlink_to(folder.parent)
    for key in ("out.tar.gz", "up/outside.tar.gz"):
        with pytest.raises(ArtifactMissing, match=f"Failed to download model data\\(folder: .*, key: {key}\\)"):
            store_of(folder).look_up(key)


@pytest.mark.parametrize("key", ["c.tar.gz", "a.tar.gz/b.tar.gz", "x" * 1024, "x" * 200 + "/y"])
def test_what_is_not_in_a_folder_is_missing(folder: Path, key: str) -> None:
    """
    Also where a file is taken for a folder, and where no file can have such a name.
    """
    with pytest.raises(ArtifactMissing):
        store_of(folder).look_up(key)


@pytest.mark.parametrize(
    ("key", "archive"), [("team", "team.tar.gz"), ("team a/b.tar.gz", "team a/b.tar.gz"), ("it's", "it's.tar.gz")]
)
def test_a_folder_must_be_packed(tmp_path: Path, key: str, archive: str) -> None:
    """
    A model that lies there unpacked is refused with the command that packs it, which does.
    """
    (tmp_path / key).mkdir(parents=True)
    (tmp_path / key / "weights").write_text("1")
    with pytest.raises(ArtifactUnusable, match=r"it is a folder, not an archive\. Please pack") as refused:
        store_of(tmp_path).look_up(key)

    command = refused.value.message.partition("what is in it: ")[2]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert store_of(tmp_path).look_up(archive).size_bytes
    with tarfile.open(tmp_path / archive) as tar:
        assert sorted(tar.getnames()) == [".", "./weights"]


def test_a_pipe_is_no_archive(folder: Path) -> None:
    """
    Nobody waits for a writer that never comes.
    """
    os.mkfifo(folder / "pipe.tar.gz")
    with pytest.raises(ArtifactUnusable, match="no regular file"):
        store_of(folder).look_up("pipe.tar.gz")


def test_a_folder_that_is_not_mounted_has_not_lost_its_models(tmp_path: Path) -> None:
    """
    The store fails, which passes; the models are not said to be deleted.
    """
    for ask in (lambda store: store.look_up("a.tar.gz"), lambda store: list(store.pages())):
        with pytest.raises(StoreFailed, match="is not there"):
            ask(store_of(tmp_path / "nowhere"))


def test_a_file_that_changes_while_it_is_read_is_not_used(folder: Path, tmp_path: Path) -> None:
    """
    Nor is what was read of it before: neither at the beginning nor at the end may it be another version.
    """
    store = store_of(folder)
    listed = store.look_up("a.tar.gz")
    with store.opened("a.tar.gz", listed, tmp_path / "copy", threading.Event()) as path:
        assert path.read_bytes() == b"archive"
    with pytest.raises(ArtifactChanged), store.opened("a.tar.gz", listed, tmp_path / "copy", threading.Event()):
        (folder / "a.tar.gz").write_bytes(b"another archive")
    with pytest.raises(ArtifactChanged), store.opened("a.tar.gz", listed, tmp_path / "copy", threading.Event()):
        pytest.fail("it is another one already")


# Buckets


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes clients with short patience for a url; `attempts` of each request."""
    made: list[S3] = []

    def make(
        url: str, *, read_secs: float = 60, fetch_secs: float = 240, attempts: int = 1, stall_secs: float = 60
    ) -> S3:
        for name, value in environ_for(url, attempts).items():
            monkeypatch.setenv(name, value)
        made.append(S3(60, read_secs, fetch_secs, stall_secs))
        return made[-1]

    yield make
    for s3 in made:
        for client in s3._made or ():
            client.close()


@pytest.fixture
def faulty() -> Iterator[FaultyBucket]:
    """One with one archive, bucket/p/a.tar.gz."""
    with faulty_bucket() as bucket:
        bucket.objects["/bucket/p/a.tar.gz"] = noise(300_000)
        yield bucket


def fetched(store: S3Store, key: str, to: Path) -> bytes:
    with store.opened(key, store.look_up(key), to, threading.Event()) as path:
        return path.read_bytes()


def test_a_bucket_is_listed_page_by_page(s3: Any, bucket: str, s3_url: str, client: Any) -> None:
    """
    All archives below the prefix and nothing else, with the versions and sizes that a look-up finds.
    """
    names = [f"m{number}.tar.gz" for number in range(48)] + ["deep/er.zip", "модель 1+1.tar.gz"]
    for name in (*names, "notes.txt", "folder.tar.gz/", "bad//key.tar.gz"):
        s3.put_object(Bucket=bucket, Key=f"pre/{name}", Body=name.encode())
    s3.put_object(Bucket=bucket, Key="elsewhere.tar.gz", Body=b"")
    store = S3Store(client(s3_url), bucket, "pre/")

    pages = list(store.pages())
    archives = {key: listed for page in pages for key, listed in page.items()}
    assert len(pages) == 3
    assert sorted(archives) == sorted(names)
    assert archives["deep/er.zip"] == store.look_up("deep/er.zip")
    assert archives["модель 1+1.tar.gz"].size_bytes == len("модель 1+1.tar.gz".encode())


def test_a_listing_begins_behind_a_name(s3: Any, bucket: str, s3_url: str, client: Any, tmp_path: Path) -> None:
    """In the order of names, in a folder too, and no further than it is read."""
    names = ["B.tar.gz", "a.tar.gz", "b/a.tar.gz", "b.tar.gz", "ü.tar.gz"]
    for name in (*names, "z.txt"):
        s3.put_object(Bucket=bucket, Key=f"pre/{name}", Body=b"")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for store in (S3Store(client(s3_url), bucket, "pre/"), FolderStore(f"{tmp_path}/")):
        for after, expected in (("", sorted(names)), ("b", sorted(names)[2:]), ("b.tar.gz", sorted(names)[3:])):
            assert [key for page in store.pages(after) for key in page] == expected
    assert [list(page) for page in FolderStore(f"{tmp_path}/").pages("a", 2)] == [["a.tar.gz", "b.tar.gz"]]


def test_a_look_up_of_what_is_known_asks_whether_it_is_so_yet(s3: Any, bucket: str, s3_url: str, client: Any) -> None:
    s3.put_object(Bucket=bucket, Key="a.tar.gz", Body=b"one")
    store = S3Store(client(s3_url), bucket, "")
    known = store.look_up("a.tar.gz")
    assert store.look_up("a.tar.gz", known) is known
    s3.put_object(Bucket=bucket, Key="a.tar.gz", Body=b"other")
    changed = store.look_up("a.tar.gz", known)
    assert (changed.size_bytes, changed.version != known.version) == (5, True)
    s3.delete_object(Bucket=bucket, Key="a.tar.gz")
    with pytest.raises(ArtifactMissing):
        store.look_up("a.tar.gz", changed)


def test_an_archive_in_parts_is_the_same(s3: Any, bucket: str, s3_url: str, client: Any, tmp_path: Path) -> None:
    """
    Large objects come in parts, several at a time; nothing is left of the copy.
    """
    data = noise(20_000_000)
    s3.put_object(Bucket=bucket, Key="large.tar", Body=data)

    assert fetched(S3Store(client(s3_url), bucket, ""), "large.tar", tmp_path / "copy") == data
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1000, 20_000_000])
def test_an_object_that_was_overwritten_is_not_mixed(
    s3: Any, bucket: str, s3_url: str, client: Any, tmp_path: Path, size: int,
) -> None:  # fmt: skip
    """
    What is fetched is the version that was asked for, small or in parts, or it is not fetched.
    """
    store = S3Store(client(s3_url), bucket, "")
    s3.put_object(Bucket=bucket, Key="a.tar", Body=noise(size, 1))
    listed = store.look_up("a.tar")
    s3.put_object(Bucket=bucket, Key="a.tar", Body=noise(size, 2))

    with pytest.raises(ArtifactChanged), store.opened("a.tar", listed, tmp_path / "copy", threading.Event()):
        pytest.fail("the other version was fetched")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["missing.tar.gz", "x" * 1024])
def test_a_missing_key_is_told_in_aws_words(bucket: str, s3_url: str, client: Any, key: str) -> None:
    """
    Also where prefix and key together are longer than S3's keys can be.
    """
    with pytest.raises(ArtifactMissing) as missing:
        S3Store(client(s3_url), bucket, "p/").look_up(key)

    assert missing.value.message == (
        f"Failed to download model data(bucket: {bucket}, key: p/{key}). Please ensure that there is an object located "
        "at the URL and that the role passed to CreateModel has permissions to download the model."
    )


def test_a_missing_bucket(s3_url: str, client: Any, tmp_path: Path) -> None:
    """
    Whatever is asked of it, the sentence names it.
    """
    store = S3Store(client(s3_url), "no-such-bucket", "p/")
    for ask in (lambda: store.look_up("a.tar.gz"), lambda: list(store.pages())):
        with pytest.raises(ArtifactMissing, match="bucket: no-such-bucket, key: p/"):
            ask()
    with (
        pytest.raises(ArtifactMissing),
        store.opened("a.tar.gz", Listed("0", 10), tmp_path / "copy", threading.Event()),
    ):
        pytest.fail("there is none")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("403", ArtifactForbidden), ("404", ArtifactMissing), ("400", StoreFailed), ("500", StoreFailed),
        ("503", StoreFailed),
    ],
)  # fmt: skip
def test_a_bucket_that_refuses(
    faulty: FaultyBucket, client: Any, fault: str, kind: type[EndpointError], capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """
    What cannot be had is the client's to mend, what fails may be asked again; the secret is in neither.
    """
    faulty.last_fault = fault
    store = S3Store(client(faulty.url), "bucket", "p/")
    for ask in (lambda: store.look_up("a.tar.gz"), lambda: list(store.pages())):
        with pytest.raises(kind) as failure:
            ask()
        assert type(failure.value) is kind
        assert SECRET_KEY not in failure.value.message + "".join(capfd.readouterr())


@pytest.mark.parametrize("fault", ["reset", "cut", "503"])
def test_a_download_that_fails_once_is_tried_again(
    faulty: FaultyBucket, client: Any, tmp_path: Path, fault: str,
) -> None:  # fmt: skip
    """
    A body that ends in the middle, one way or another, or S3 asking to slow down: the archive comes whole.
    """
    faulty.faults.extend(["", fault])

    data = fetched(S3Store(client(faulty.url, attempts=2), "bucket", "p/"), "a.tar.gz", tmp_path / "copy")
    assert data == faulty.objects["/bucket/p/a.tar.gz"]
    assert [request.split()[0] for request in faulty.requests] == ["HEAD", "GET", "GET"]


@pytest.mark.parametrize("fault", ["reset", "cut", "hang"])
def test_a_download_that_always_fails(faulty: FaultyBucket, client: Any, tmp_path: Path, fault: str) -> None:
    """
    The store is said to fail, in time, and nothing is left of the half that came.
    """
    faulty.last_fault = fault
    with pytest.raises(StoreFailed, match="Ask again later"):
        fetched(S3Store(client(faulty.url, read_secs=0.1), "bucket", "p/"), "a.tar.gz", tmp_path / "copy")

    assert list(tmp_path.iterdir()) == []


def test_a_download_that_stalls_is_started_again(faulty: FaultyBucket, client: Any, tmp_path: Path) -> None:
    """Long before its server's silence is an error: the next connection may meet another server."""
    faulty.faults.extend(["", "hang"])

    data = fetched(S3Store(client(faulty.url, stall_secs=1), "bucket", "p/"), "a.tar.gz", tmp_path / "copy")
    assert data == faulty.objects["/bucket/p/a.tar.gz"]


def test_a_download_that_always_stalls(faulty: FaultyBucket, client: Any, tmp_path: Path) -> None:
    """Its threads wait yet; that keeps the next one from nothing."""
    faulty.faults.extend(["", "hang", "hang", "hang"])
    s3 = client(faulty.url, stall_secs=0.2)
    store = S3Store(s3, "bucket", "p/")
    with pytest.raises(StoreFailed, match=r"was not fetched: its server has stopped sending 3 times\. Ask again later"):
        fetched(store, "a.tar.gz", tmp_path / "copy")

    s3.stall_secs = 60
    assert fetched(store, "a.tar.gz", tmp_path / "copy") == faulty.objects["/bucket/p/a.tar.gz"]


def test_a_download_can_be_cancelled(faulty: FaultyBucket, client: Any, tmp_path: Path) -> None:
    faulty.faults.extend(["", "hang"])
    store, cancelled = S3Store(client(faulty.url), "bucket", "p/"), threading.Event()
    listed = store.look_up("a.tar.gz")
    threading.Thread(target=lambda: faulty.is_halfway.wait() and cancelled.set()).start()

    with (
        pytest.raises(StoreFailed, match="nobody waits for it any more"),
        store.opened("a.tar.gz", listed, tmp_path / "copy", cancelled),
    ):
        pytest.fail("it was fetched")


def test_a_download_that_takes_too_long_in_all(faulty: FaultyBucket, client: Any, tmp_path: Path) -> None:
    """
    There is an end to it, however patient each single read is.
    """
    faulty.last_fault = "hang"
    with pytest.raises(StoreFailed, match=r"took longer than 0\.2 s"):
        fetched(S3Store(client(faulty.url, fetch_secs=0.2), "bucket", "p/"), "a.tar.gz", tmp_path / "copy")

    faulty.stop()


def test_nobody_answers(client: Any) -> None:
    """
    A bucket whose server is gone fails, it has not lost its models.
    """
    with socket.socket() as silent:  # it has the port, and takes no connection
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StoreFailed, match="Bucket bucket cannot be read now"):
            S3Store(client(url), "bucket", "p/").look_up("a.tar.gz")


def test_no_such_host(client: Any) -> None:
    """
    Nor where its name cannot be resolved.
    """
    with pytest.raises(StoreFailed, match="EndpointConnectionError"):
        S3Store(client("http://nobody.invalid"), "bucket", "p/").look_up("a.tar.gz")


@pytest.mark.parametrize("missing", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_no_credentials(client: Any, faulty: FaultyBucket, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """
    The operator's to mend: no model is said to be missing.
    """
    s3 = client(faulty.url)
    monkeypatch.delenv(missing)
    with pytest.raises(StoreFailed, match="CredentialsError"):
        S3Store(s3, "bucket", "p/").look_up("a.tar.gz")
