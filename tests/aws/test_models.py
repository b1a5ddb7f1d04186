"""`polyhost models`: in a bucket of moto's and in a folder, by the same commands."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from moto.s3.models import s3_backends
from polyhost.archives import unpack
from polyhost_aws.models import AlreadyThere, place_of

from aws.conftest import ACCOUNT, Cloud, Shell


@pytest.fixture(params=["bucket", "folder"])
def place(request: pytest.FixtureRequest, cloud: Cloud, tmp_path: Path) -> Place:
    if request.param == "bucket":
        return Place("s3://our-models/houses/", cloud.shell, lambda name: object_in(cloud, f"houses/{name}"))
    folder = tmp_path / "store"
    folder.mkdir()
    return Place(str(folder), Shell({}), lambda name: file_in(folder / name))


class Place:
    """Where models are, a shell that reaches it, and a look at what is really there."""

    def __init__(self, url: str, shell: Shell, content: Callable[[str], bytes | None]) -> None:
        self.url = url
        self.shell = shell
        self.content = content

    def names(self) -> list[str]:
        rows = self.shell.run("models", "list", "--models", self.url, "--json").json()
        return [row["name"] for row in rows]


def object_in(cloud: Cloud, key: str) -> bytes | None:
    try:
        body: bytes = cloud.client("s3").get_object(Bucket="our-models", Key=key)["Body"].read()
    except ClientError:
        return None
    return body


def file_in(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@pytest.fixture
def model(tmp_path: Path, samples_folder: Path) -> Path:
    """A data scientist's folder, with what notebooks leave there."""
    folder = tmp_path / "houston"
    shutil.copytree(samples_folder / "houston", folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"1")
    (folder / "notes").mkdir()
    (folder / "notes" / "read me.txt").write_text("a")
    return folder


def test_a_folder_is_packed_listed_and_removed(place: Place, model: Path, tmp_path: Path) -> None:
    """
    houston becomes houston.tar.gz: its files, not the folder; it is what every handler unpacks.
    """
    added = place.shell.run("models", "add", "--models", place.url, str(model))
    assert f"{model}: xgboost" in added.said
    content = place.content("houston.tar.gz")
    assert content
    (tmp_path / "back.tar.gz").write_bytes(content)
    unpack(tmp_path / "back.tar.gz", tmp_path / "back")
    there = {
        path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*") if path.is_file()
    }
    wanted = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert there == wanted - {"__pycache__/x.pyc"}

    (row,) = place.shell.run("models", "list", "--models", place.url, "--json").json()
    assert (row["name"], row["size"]) == ("houston.tar.gz", len(content))
    line = place.shell.run("models", "list", "--models", place.url).out.split()
    assert (line[0], line[1], line[-1]) == (str(len(content)), row["modified"][:10], "houston.tar.gz")

    assert place.shell.try_("models", "remove", "--models", place.url, "houston.tar.gz", answers="n\n").code == 1
    assert place.names() == ["houston.tar.gz"]
    place.shell.run("models", "remove", "--models", place.url, "houston.tar.gz", answers="y\n")
    assert place.names() == []
    assert place.content("houston.tar.gz") is None


def test_nothing_is_overwritten_unless_told(place: Place, model: Path) -> None:
    """
    The same content again is no error; another is, before anything is uploaded.
    """
    add = ("models", "add", "--models", place.url)
    place.shell.run(*add, str(model))
    first = place.content("houston.tar.gz")
    assert "is there already, and the same" in place.shell.run(*add, str(model)).said

    (model / "notes" / "read me.txt").write_text("b")
    other = shutil.copytree(model, model.parent / "boston")
    done = place.shell.try_(*add, str(other), str(model))
    assert done.code == 1
    assert "--overwrite replaces it" in done.said
    assert place.content("houston.tar.gz") == first
    assert place.names() == ["houston.tar.gz"]

    place.shell.run(*add, "--overwrite", str(other), str(model))
    assert place.content("houston.tar.gz") == place.content("boston.tar.gz") != first


@pytest.mark.parametrize("mebibytes", [1, 20], ids=["one part", "many parts"])
def test_who_adds_at_the_same_time_does_not_overwrite(
    place: Place, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mebibytes: int
) -> None:
    """
    The last request itself refuses, whatever was there when it was looked; nothing is left behind.
    """
    for name, value in place.shell.environ.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    file = tmp_path / "big"
    file.write_bytes(os.urandom(mebibytes * 2**20))
    store = place_of(place.url, "")
    assert store.digest_of("a.tar.gz") is None
    shown: list[tuple[int, int]] = []

    store.add(file, "a.tar.gz", "digest", lambda *progress: shown.append(progress), overwrite=False)
    assert hashlib.sha256(place.content("a.tar.gz") or b"").digest() == hashlib.sha256(file.read_bytes()).digest()
    assert shown[-1] == (file.stat().st_size, file.stat().st_size)

    other = tmp_path / "other"
    other.write_bytes(os.urandom(mebibytes * 2**20))
    with pytest.raises(AlreadyThere, match="meanwhile"):
        store.add(other, "a.tar.gz", "digest", lambda *_: None, overwrite=False)
    assert place.content("a.tar.gz") == file.read_bytes()
    assert "Uploads" not in cloud.client("s3").list_multipart_uploads(Bucket="our-models")
    assert not list(tmp_path.rglob(".adding-*"))

    store.add(other, "a.tar.gz", "digest", lambda *_: None, overwrite=True)
    assert place.content("a.tar.gz") == other.read_bytes()


def test_archives_are_looked_at_and_may_have_another_name(place: Place, samples_folder: Path, tmp_path: Path) -> None:
    """
    An archive is uploaded as it is; what no handler of ours knows is a warning, what is hostile or none an error.
    """
    add = ("models", "add", "--models", place.url)
    archive = samples_folder / "houston.tar.gz"
    place.shell.run(*add, "--name", "texas/houston v2.tar.gz", str(archive))
    assert place.content("texas/houston v2.tar.gz") == archive.read_bytes()

    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "weights.bin").write_bytes(b"1")
    assert "WARNING: only a handler of your own will load this" in place.shell.run(*add, str(unknown)).said
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        tar.add(archive, "../../escaped")
    (tmp_path / "none.tar.gz").write_text("no archive")
    for bad in ("bad.tar.gz", "none.tar.gz"):
        assert place.shell.try_(*add, str(tmp_path / bad)).code == 1
    assert place.names() == ["texas/houston v2.tar.gz", "unknown.tar.gz"]


def test_what_cannot_be_added_is_said(place: Place, model: Path, tmp_path: Path) -> None:
    """
    Names that no server would serve, folders with nothing or with links out, two of one name.
    """
    add = ("models", "add", "--models", place.url)
    empty = tmp_path / "empty"
    empty.mkdir()
    linked = shutil.copytree(model, tmp_path / "linked")
    (linked / "elsewhere").symlink_to("/etc")
    text = tmp_path / "model.txt"
    text.write_text("1")
    twin = shutil.copytree(model, tmp_path / "twin" / "houston")
    for arguments, code, words in [
        (("--name", "../a.tar.gz", str(model)), 2, "cannot be the name of a model"),
        (("--name", "a", str(model)), 2, "ends with .tar.gz"),
        (("--name", "a.tar.gz", str(model), str(linked)), 2, "--name is for a single PATH"),
        ((str(text),), 2, "ends with .tar.gz"),
        ((str(model), str(twin)), 2, "the same name"),
        ((str(empty),), 1, "holds no file"),
        ((str(linked),), 1, "is a link to a folder"),
    ]:
        done = place.shell.try_(*add, *arguments)
        assert (done.code, words in done.said) == (code, True), done.said
    assert place.shell.try_("models", "remove", "--models", place.url, "none.tar.gz", "--yes").code == 6
    assert place.names() == []


def test_a_long_prefix_is_listed_whole(cloud: Cloud) -> None:
    """
    Thousands of keys are many pages; what is no archive is left out.
    """
    bucket = s3_backends[ACCOUNT]["aws"]  # by HTTP it would take minutes
    for number in range(2500):
        bucket.put_object("our-models", f"many/{number:05}.tar.gz", b"1")
    cloud.client("s3").put_object(Bucket="our-models", Key="many/readme.txt", Body=b"1")

    rows = cloud.shell.run("models", "list", "--models", "s3://our-models/many", "--json").json()

    assert [row["name"] for row in rows] == [f"{number:05}.tar.gz" for number in range(2500)]


def test_places_that_are_none(cloud: Cloud, model: Path, tmp_path: Path) -> None:
    """
    A bucket or a folder that is not there is a sentence.
    """
    for models, words in [
        ("s3://no-such-bucket/", "no-such-bucket"),
        (str(tmp_path / "none"), "there is no folder"),
        ("http://x/", "neither s3://BUCKET/PREFIX/ nor a path"),
    ]:
        done = cloud.shell.try_("models", "list", "--models", models)
        assert done.code in (2, 6)
        assert words in done.said or "bucket does not exist" in done.said
    assert cloud.shell.try_("models", "add", "--models", "s3://no-such-bucket/", str(model)).code == 6


def test_the_same_files_are_the_same_archive(place: Place, model: Path) -> None:
    """
    Times, owners and the order on disk leave no trace; the right to execute does.
    """
    again = model.parent / "again"
    again.mkdir()
    for path in sorted((path for path in model.rglob("*") if path.is_file()), reverse=True):
        target = again / path.relative_to(model)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
        os.utime(target, (1, 1))
    place.shell.run("models", "add", "--models", place.url, str(model), str(again))
    assert place.content("houston.tar.gz") == place.content("again.tar.gz")

    (again / "notes" / "read me.txt").chmod(0o755)
    place.shell.run("models", "add", "--models", place.url, "--overwrite", str(again))
    assert place.content("houston.tar.gz") != place.content("again.tar.gz")
