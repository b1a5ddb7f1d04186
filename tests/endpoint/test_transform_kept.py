"""What is kept of transform jobs, and the objects that they write in a folder: no process."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from polyhost.artifacts import datasets
from polyhost.artifacts.datasets import FolderObjects, carry_out, list_objects
from polyhost.artifacts.transfers import CopyObject, ListObjects, PutObject
from polyhost.endpoint.arns import Arns
from polyhost.endpoint.hosting import transforms
from polyhost.endpoint.hosting.hosting import Plane, on_state
from polyhost.endpoint.hosting.outcomes import HostingError
from polyhost.endpoint.hosting.records import now
from polyhost.endpoint.hosting.sqlite_state import SqliteState
from polyhost.service_errors import ArtifactMissing, StoreFailed, ValidationError

ROLE = "arn:aws:iam::123456789012:role/any"
PLANE = Plane(arns=Arns("123456789012", "us-east-1"), own=None)


class Kept:
    """The control plane's thread, without its thread."""

    def __init__(self, folder: Path) -> None:
        self.state = SqliteState(folder)
        _, self._operations = on_state(self.state, PLANE)
        self.transforms = self._operations.transforms

    def perform(self, operation: str, **asked: Any) -> dict[str, Any]:
        return self._operations.perform(operation, asked).answer

    def create(self, name: str) -> None:
        data = {"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/in/"}}}
        self.perform(
            "CreateTransformJob", TransformJobName=name, ModelName="model", TransformInput=data,
            TransformOutput={"S3OutputPath": "s3://b/out"},
            TransformResources={"InstanceType": "ml.m5.large", "InstanceCount": 1},
        )  # fmt: skip

    def names(self) -> list[str]:
        listed = self.perform("ListTransformJobs", MaxResults=100, SortBy="Name", SortOrder="Ascending")
        return [one["TransformJobName"] for one in listed["TransformJobSummaries"]]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path)
    container = {"Image": "any", "ModelDataUrl": "s3://b/model.tar.gz"}
    kept.perform("CreateModel", ModelName="model", ExecutionRoleArn=ROLE, PrimaryContainer=container)
    yield kept
    kept.state.close()


def test_an_interrupted_job_is_known_to_the_next_server(kept: Kept, tmp_path: Path) -> None:
    """With its model as it was, though that has gone since; the oldest first."""
    kept.create("b")
    created = now()
    while now() == created:  # jobs of the same millisecond are equally old
        pass
    kept.create("a")
    kept.transforms.begun("b")
    kept.perform("DeleteModel", ModelName="model")
    kept.state.close()

    again = Kept(tmp_path)
    jobs = again.transforms.unfinished()
    again.state.close()

    assert [job.name for job in jobs] == ["b", "a"]
    assert {container.source for job in jobs for container in job.containers} == {"s3://b/model.tar.gz"}


def test_a_job_that_was_to_stop_is_not_begun(kept: Kept) -> None:
    kept.create("a")
    kept.perform("StopTransformJob", TransformJobName="a")

    (job,) = kept.transforms.unfinished()
    assert job.is_stopping
    kept.transforms.ended("a", "Stopped", "")
    assert kept.transforms.unfinished() == []


def test_no_more_jobs_wait_than_may(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "_MOST_UNFINISHED", 2)
    kept.create("a")
    kept.create("b")

    with pytest.raises(HostingError, match="2 transform jobs are waiting") as refused:
        kept.create("c")

    assert refused.value.code == "ResourceLimitExceeded"
    kept.transforms.ended("a", "Completed", "")
    kept.create("c")


def test_the_oldest_that_are_over_are_forgotten(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "_MOST_KEPT", 3)
    for name in ("a", "b", "c"):
        kept.create(name)
    kept.transforms.ended("b", "Completed", "")
    kept.transforms.ended("c", "Failed", "x" * 2000)

    kept.create("d")

    assert kept.names() == ["a", "c", "d"]
    assert kept.perform("DescribeTransformJob", TransformJobName="c")["FailureReason"] == "x" * 1024


def test_servers_that_share_their_state_take_no_jobs(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """And begin none, which another one may have at work."""
    kept.create("a")
    monkeypatch.setattr(kept.state, "poll_secs", 1.0)

    with pytest.raises(HostingError, match="share their state"):
        kept.create("b")

    assert kept.transforms.unfinished() == []


# Folders


def put(folder: Path, key: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "content"
    file.write_bytes(content)
    carry_out(FolderObjects(f"{folder}/"), PutObject(1, f"{folder}/", key, str(file), ""), threading.Event())


def test_objects_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for key, content in (("data/a", b"1"), ("data/below/b", b"2"), ("data/empty", b""), ("other/c", b"3")):
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(content)
    (folder / "data" / "out").symlink_to("/etc/hostname")
    objects = FolderObjects(f"{folder}/")

    found = [key for page in list_objects(objects, ListObjects(1, "", "data", 9)) for key in page]
    carry_out(objects, CopyObject(1, "", "data/below/b", str(tmp_path / "copy")), threading.Event())

    assert sorted(found) == ["data/a", "data/below/b"]
    assert (tmp_path / "copy").read_bytes() == b"2"


def test_more_objects_than_a_job_may_have(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"1")

    with pytest.raises(ValidationError, match="more than 2 objects"):
        list(list_objects(FolderObjects(f"{tmp_path}/"), ListObjects(1, f"{tmp_path}/", "", 2)))


def test_a_written_object_replaces_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for content in (b"first", b"second"):
        put(folder, "below/a.out", content, tmp_path)

    assert (folder / "below" / "a.out").read_bytes() == b"second"
    assert [path.name for path in (folder / "below").iterdir()] == ["a.out"]


class Watching(io.BytesIO):
    """What is written from it; `seen`: what a folder has while that goes on."""

    def __init__(self, content: bytes, folder: Path) -> None:
        super().__init__(content)
        self._folder = folder
        self.seen: list[list[str]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.seen.append(sorted(os.listdir(self._folder)))
        return super().read(size)


@pytest.mark.parametrize("has_nameless", [True, False])
def test_an_object_has_no_name_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, has_nameless: bool
) -> None:
    """A fetcher that is killed meanwhile leaves nothing, where the file system has files without a name."""
    if not has_nameless:
        monkeypatch.setattr(datasets, "_nameless", lambda _: None)
    elif (probe := datasets._nameless(tmp_path)) is None:
        pytest.skip("this file system has no files without a name")
    else:
        probe.close()
    folder = tmp_path / "folder"
    folder.mkdir()
    content = Watching(b"x" * 200_000, folder)
    FolderObjects(f"{folder}/")._put(content, "a.out")

    assert (content.seen[0] == []) is has_nameless
    assert (folder / "a.out").read_bytes() == b"x" * 200_000
    assert os.listdir(folder) == ["a.out"]
    (tmp_path / "plain").touch()
    assert (folder / "a.out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("key", ["../a.out", "link/a.out"])
def test_nothing_is_written_outside_of_the_folder(key: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "link").symlink_to(outside)

    with pytest.raises(ArtifactMissing, match="leads out of the folder"):
        put(folder, key, b"1", tmp_path)

    assert list(outside.iterdir()) == []
    assert not (tmp_path / "a.out").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder").write_bytes(b"a file")

    with pytest.raises(StoreFailed, match="cannot be written"):
        put(tmp_path / "folder", "a.out", b"1", tmp_path)
