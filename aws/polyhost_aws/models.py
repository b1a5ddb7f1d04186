"""The archives below a prefix of a bucket, or in a folder: listed, added, removed."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from polyhost.artifacts.stores import check_key, is_archive, split_source
from polyhost.errors import DeployFailed, InvalidSetting, PolyhostError
from polyhost.service_errors import ValidationError

from polyhost_aws.session import Aws, CallFailed, translated

# In an object's metadata: what it holds.
_DIGEST = "polyhost-sha256"
_CHUNK_BYTES = 1024**2


@dataclass(frozen=True)
class Archive:
    name: str
    size_bytes: int
    modified: dt.datetime


class AlreadyThere(DeployFailed):
    exit_code = 1


class Place(Protocol):
    """Where archives are. All raise PolyhostError."""

    def url_of(self, name: str) -> str: ...

    def archives(self) -> Iterator[Archive]: ...

    def digest_of(self, name: str) -> str | None:
        """The SHA-256 of an archive, "" if it is there but nobody knows, None if there is none."""

    def add(self, file: Path, name: str, digest: str, show: Callable[[int, int], None], *, overwrite: bool) -> None:
        """All or nothing. Raises AlreadyThere."""

    def remove(self, name: str) -> None: ...


def place_of(models: str, region: str) -> Place:
    """`s3://bucket/prefix/` or a folder. Raises InvalidSetting."""
    url = models if models.endswith("/") else f"{models}/"
    if "://" not in url:
        return Folder(Path(url))
    try:
        bucket, prefix = split_source(url)
    except ValidationError as error:
        raise InvalidSetting(f"--models: {error}") from error
    return Bucket(Aws(region, needs_region=False), bucket, prefix)


def check_name(name: str) -> None:
    """Raises InvalidSetting."""
    try:
        check_key(name)
    except ValidationError as error:
        raise InvalidSetting(str(error)) from error
    if not is_archive(name):
        raise InvalidSetting(f"{name}: the name of an archive ends with .tar.gz.")


def digest_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class Bucket:
    def __init__(self, aws: Aws, bucket: str, prefix: str) -> None:
        self._aws = aws
        self._bucket = bucket
        self._prefix = prefix

    def url_of(self, name: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{name}"

    def archives(self) -> Iterator[Archive]:
        for item in self._aws.pages("s3", "ListObjectsV2", "Contents", Bucket=self._bucket, Prefix=self._prefix):
            name = item["Key"].removeprefix(self._prefix)
            if is_archive(name):
                yield Archive(name, item["Size"], item["LastModified"])

    def digest_of(self, name: str) -> str | None:
        try:
            head = self._aws.call("s3", "HeadObject", self._object(name))
        except CallFailed as error:
            if error.code == "404":
                return None
            if error.is_forbidden:  # S3 answers so for what is not there, too, to who may not list
                raise CallFailed(f"{error} Both s3:GetObject and s3:ListBucket are needed.", error.code) from error
            raise
        return str(head["Metadata"].get(_DIGEST, ""))

    def add(self, file: Path, name: str, digest: str, show: Callable[[int, int], None], *, overwrite: bool) -> None:
        from boto3.s3.transfer import S3UploadFailedError
        from botocore.exceptions import ClientError

        counter = _Counter(file.stat().st_size, show)
        extra = {"Metadata": {_DIGEST: digest}, "ContentType": "application/gzip"}
        with self._new_only(not overwrite) as client, translated("s3", "PutObject"):
            try:
                client.upload_file(str(file), **self._object(name), ExtraArgs=extra, Callback=counter)
            except S3UploadFailedError as error:
                cause = error.__context__
                if not isinstance(cause, ClientError):
                    raise CallFailed(f"{self.url_of(name)} was not uploaded: {error}") from error
                if cause.response["Error"]["Code"] in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                    raise AlreadyThere(f"{self.url_of(name)} was added by somebody else meanwhile.") from error
                raise cause from error

    @contextlib.contextmanager
    def _new_only(self, is_on: bool) -> Iterator[Any]:
        """The client, whose uploads then fail where there is something already: in the one request that counts."""
        client = self._aws.client("s3")
        events = [f"before-call.s3.{operation}" for operation in ("PutObject", "CompleteMultipartUpload")]
        for event in events if is_on else ():
            client.meta.events.register(event, _if_none_match)
        try:
            yield client
        finally:
            for event in events if is_on else ():
                client.meta.events.unregister(event, _if_none_match)

    def remove(self, name: str) -> None:
        self._aws.call("s3", "DeleteObject", self._object(name))

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}


def _if_none_match(params: dict[str, Any], **_: Any) -> None:
    params["headers"]["If-None-Match"] = "*"


class _Counter:
    """What parts report from several threads."""

    def __init__(self, all_bytes: int, show: Callable[[int, int], None]) -> None:
        self._all_bytes = all_bytes
        self._show = show
        self._done_bytes = 0
        self._lock = threading.Lock()

    def __call__(self, more_bytes: int) -> None:
        with self._lock:
            self._done_bytes += more_bytes
            self._show(self._done_bytes, self._all_bytes)


class Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def url_of(self, name: str) -> str:
        return str(self._folder / name)

    def archives(self) -> Iterator[Archive]:
        if not self._folder.is_dir():
            raise InvalidSetting(f"--models: there is no folder {self._folder}.")
        with _system_errors_told():
            found = (Path(path, name) for path, _, names in os.walk(self._folder) for name in names)
            for path in sorted(found):
                name = path.relative_to(self._folder).as_posix()
                if is_archive(name) and path.is_file():
                    status = path.stat()
                    yield Archive(name, status.st_size, dt.datetime.fromtimestamp(status.st_mtime, dt.timezone.utc))

    def digest_of(self, name: str) -> str | None:
        path = self._folder / name
        with _system_errors_told():
            return digest_of(path) if path.is_file() else None

    def add(self, file: Path, name: str, digest: str, show: Callable[[int, int], None], *, overwrite: bool) -> None:  # noqa: ARG002 - it is what it holds
        target = self._folder / name
        with _system_errors_told():
            target.parent.mkdir(parents=True, exist_ok=True)
            # A server that looks meanwhile takes it for no archive.
            descriptor, temp = tempfile.mkstemp(prefix=".adding-", dir=target.parent)
            try:
                with open(descriptor, "wb") as copy:
                    _copy(file, copy, show)
                os.chmod(temp, 0o644)
                if overwrite:
                    os.replace(temp, target)
                else:
                    os.link(temp, target)  # which fails where there is something
            except FileExistsError as error:
                raise AlreadyThere(f"{target} was added by somebody else meanwhile.") from error
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temp)

    def remove(self, name: str) -> None:
        with _system_errors_told():
            (self._folder / name).unlink()


def _copy(file: Path, to: Any, show: Callable[[int, int], None]) -> None:
    all_bytes, done_bytes = file.stat().st_size, 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            to.write(chunk)
            done_bytes += len(chunk)
            show(done_bytes, all_bytes)
    to.flush()
    os.fsync(to.fileno())


@contextlib.contextmanager
def _system_errors_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PolyhostError(f"{error.filename}: {error.strerror or error}.") from error
