"""
Where archives come from: a bucket's prefix or a folder.

What a source and a key may look like is decided here, by pure functions that the front calls too. The stores
themselves block and are used in the fetcher alone; they raise errors of `polyhost.endpoint.errors`, in AWS's words.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from polyhost.endpoint.artifacts.transfers import ArtifactChanged, ArtifactForbidden, Listed
from polyhost.endpoint.errors import ArtifactMissing, ArtifactUnusable, DiskFull, StoreFailed, ValidationError

logger = logging.getLogger("polyhost.fetcher")

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".mar", ".zip")
_MAX_KEY = 1024  # characters, as TargetModel; S3 counts the whole key's bytes
_MAX_S3_KEY_BYTES = 1024
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PAGE = 1000
# Parts of large archives that are on their way at the same time, over all transfers.
_PARTS = 16
_QUESTIONS = 8
_MAX_IO_QUEUE = 100  # chunks of 256 KiB that wait to be written
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_SECRET_IN_URL = re.compile(r"//[^/@\s]*@")


def check_key(key: str) -> None:
    """The key of an archive below its source. Raises ValidationError."""
    reason = _key_reason(key)
    if reason:
        raise ValidationError(f"TargetModel {key[:100]!r} cannot be the name of a model: {reason}.")


def _key_reason(key: str) -> str:
    if not key or len(key) > _MAX_KEY:
        return f"it has {len(key)} characters, from 1 to {_MAX_KEY} are allowed"
    if key.startswith("/"):
        return "it begins with a slash; it is taken relative to the container's ModelDataUrl"
    if not {"", ".", ".."}.isdisjoint(key.split("/")):
        return 'between slashes it has an empty name, "." or ".."'
    if "\\" in key:
        return "it has a backslash"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in key):
        return "it has a control character or half a character"
    return ""


def split_source(source: str) -> tuple[str, str]:
    """
    `s3://bucket/prefix/` is ("bucket", "prefix/"), `/folder/` is ("", "/folder/"). Raises ValidationError.
    """
    if not source.endswith("/") or any(unicodedata.category(character) in ("Cc", "Cs") for character in source):
        raise ValidationError(f"The models' location {source[:200]!r} must end with a slash and be readable text.")
    if source.startswith("/"):
        return "", source
    if not source.startswith("s3://"):
        raise ValidationError(f"The models' location {source[:200]!r} is neither s3://BUCKET/PREFIX/ nor a path.")
    bucket, _, prefix = source[len("s3://") :].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValidationError(f"The models' location {source[:200]!r} does not name a bucket.")
    return bucket, prefix


def split_archive_url(url: str) -> tuple[str, str]:
    """The source and key of one archive, `s3://bucket/a/b.tar.gz` or `/folder/b.tar.gz`. Raises ValidationError."""
    start, slash, key = url.rpartition("/")
    source = start + slash
    split_source(source)
    check_key(key)
    return source, key


class Store(Protocol):
    """One source."""

    def url_of(self, key: str) -> str: ...

    def pages(self) -> Iterator[dict[str, Listed]]:
        """All archives of the source, some at a time."""

    def look_up(self, key: str) -> Listed: ...

    def opened(self, key: str, listed: Listed, copy: Path) -> contextlib.AbstractContextManager[Path]:
        """
        A file with that version of the archive, for a while; where it must be fetched, that is `copy`.

        Raises ArtifactChanged, also at the end, when it is, or was in the meantime, another version.
        """


def store_of(source: str, s3: S3) -> Store:
    bucket, prefix = split_source(source)
    return S3Store(s3, bucket, prefix) if bucket else FolderStore(prefix)


def is_archive(key: str) -> bool:
    return key.lower().endswith(ARCHIVE_SUFFIXES) and not _key_reason(key)


class FolderStore:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def url_of(self, key: str) -> str:
        return self._folder + key

    def pages(self) -> Iterator[dict[str, Listed]]:
        self._check_folder()
        page: dict[str, Listed] = {}
        for key in filter(is_archive, self._files()):
            with contextlib.suppress(ArtifactMissing, ArtifactUnusable):  # gone since, or a link that leads out
                page[key] = self.look_up(key)
            if len(page) == _PAGE:
                yield page
                page = {}
        yield page

    def _files(self) -> Iterator[str]:
        for path, _, names in os.walk(self._folder):
            below = os.path.relpath(path, self._folder)
            yield from names if below == "." else (f"{below}/{name}" for name in names)

    def look_up(self, key: str) -> Listed:
        return self._found(key)[1]

    @contextlib.contextmanager
    def opened(self, key: str, listed: Listed, copy: Path) -> Iterator[Path]:  # noqa: ARG002 - it is read in place
        path, found = self._found(key)
        try:
            if found != listed:
                raise ArtifactChanged(f"{self.url_of(key)} has been changed.")
            yield path
        finally:
            # What was read while it was being written is not that version, nor is what was wrong with it.
            if self._found(key) != (path, listed):
                raise ArtifactChanged(f"{self.url_of(key)} was changed while it was being read.")

    def _found(self, key: str) -> tuple[Path, Listed]:
        try:
            root = os.path.realpath(self._folder)
            path = os.path.realpath(os.path.join(root, key))
            if os.path.commonpath((root, path)) != root:
                raise self._missing(key)
            status = os.stat(path)
            if not os.access(path, os.R_OK):
                raise self._missing(key, ArtifactForbidden)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._check_folder()
            raise self._missing(key) from error
        except PermissionError as error:
            raise self._missing(key, ArtifactForbidden) from error
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                raise self._missing(key) from error
            raise StoreFailed(f"{self.url_of(key)} cannot be read now: {error.strerror}. Ask again later.") from error
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactUnusable(self._not_packed(key, stat.S_ISDIR(status.st_mode)))
        return Path(path), Listed(f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}", status.st_size)

    def _check_folder(self) -> None:
        """A folder that is not there is a disk that is not mounted: what was in it has not been deleted."""
        if not os.path.isdir(self._folder):
            raise StoreFailed(f"The folder of models, {self._folder}, is not there. Ask again later.")

    def _missing(self, key: str, kind: type[ArtifactMissing] = ArtifactMissing) -> ArtifactMissing:
        return kind(
            f"Failed to download model data(folder: {self._folder}, key: {key}). Please ensure that there is a file "
            "of this name, that no link leads out of the folder, and that the server has permissions to read it.",
        )

    def _not_packed(self, key: str, is_folder: bool) -> str:
        url = self.url_of(key)
        if not is_folder:
            return f'Failed to extract model data archive from URL "{url}": it is no regular file.'
        return (
            f'Failed to extract model data archive from URL "{url}": it is a folder, not an archive. '
            f"Please pack what is in it: tar -czf {os.path.basename(key)}.tar.gz -C {url} ."
        )


class S3:
    """The client, made once; importing boto3 takes half a second, so `client` is asked for early."""

    def __init__(self, connect_secs: float, read_secs: float, fetch_secs: float) -> None:
        self._timeouts = {"connect_timeout": connect_secs, "read_timeout": read_secs}
        self.fetch_secs = fetch_secs
        self._lock = threading.Lock()
        self._made: tuple[Any, Any] | None = None

    @property
    def client(self) -> Any:
        return self._client_and_manager()[0]

    @property
    def manager(self) -> Any:
        """It fetches large objects in parts, several at a time."""
        return self._client_and_manager()[1]

    def _client_and_manager(self) -> tuple[Any, Any]:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> tuple[Any, Any]:
        import boto3
        from boto3.s3.transfer import TransferConfig, TransferManager
        from botocore.config import Config

        class Manager(TransferManager):  # type: ignore[misc]
            # A body that changes in the middle must never be mixed.
            ALLOWED_DOWNLOAD_ARGS = (*TransferManager.ALLOWED_DOWNLOAD_ARGS, "IfMatch")

        # Endpoint, region, credentials, profile, how often to try: by the usual variables and files.
        os.environ.setdefault("AWS_RETRY_MODE", "standard")
        session = boto3.Session()
        config = Config(max_pool_connections=_PARTS + _QUESTIONS, **self._timeouts)
        client = session.client("s3", region_name=session.region_name or "us-east-1", config=config)
        transfers = TransferConfig(max_concurrency=_PARTS, max_io_queue=_MAX_IO_QUEUE)
        return client, Manager(client, transfers)


class S3Store:
    def __init__(self, s3: S3, bucket: str, prefix: str) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._prefix = prefix

    def url_of(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def pages(self) -> Iterator[dict[str, Listed]]:
        with self._errors_translated(""):
            pages = self._s3.client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            for page in pages:
                keys = ((entry["Key"][len(self._prefix) :], entry) for entry in page.get("Contents", ()))
                yield {key: _listed(entry, "Size") for key, entry in keys if is_archive(key)}

    def look_up(self, key: str) -> Listed:
        with self._errors_translated(key):
            return _listed(self._s3.client.head_object(Bucket=self._bucket, Key=self._full(key)), "ContentLength")

    @contextlib.contextmanager
    def opened(self, key: str, listed: Listed, copy: Path) -> Iterator[Path]:
        with self._errors_translated(key):
            self._download(self._full(key), listed, copy)
        try:
            yield copy
        finally:
            copy.unlink()

    def _download(self, full_key: str, listed: Listed, copy: Path) -> None:
        from botocore.exceptions import ClientError

        etag = f'"{listed.version}"'
        watch = _Watch(listed.size_bytes, etag)
        future = self._s3.manager.download(
            self._bucket, full_key, str(copy), extra_args={"IfMatch": etag}, subscribers=[watch],
        )  # fmt: skip
        if not watch.is_done.wait(self._s3.fetch_secs):
            future.cancel()  # which takes as long as the reads that wait yet
            raise self._failed(f"s3://{self._bucket}/{full_key} took longer than {self._s3.fetch_secs:g} s")
        try:
            future.result()
        except Exception as error:
            if isinstance(error.__context__, ClientError):  # newer managers have words of their own for a 412
                raise error.__context__ from error
            raise

    def _full(self, key: str) -> str:
        full = self._prefix + key
        if len(full.encode()) > _MAX_S3_KEY_BYTES:  # S3 has none such, and would answer 400
            raise self._missing(key)
        return full

    def _missing(self, key: str, kind: type[ArtifactMissing] = ArtifactMissing) -> ArtifactMissing:
        return kind(
            f"Failed to download model data(bucket: {self._bucket}, key: {self._prefix}{key}). Please ensure that "
            "there is an object located at the URL and that the role passed to CreateModel has permissions to "
            "download the model.",
        )

    @contextlib.contextmanager
    def _errors_translated(self, key: str) -> Iterator[None]:
        from boto3.s3.transfer import S3TransferRetriesExceededError as RetriesExceededError
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise self._answered(key, error.response) from error
        except OSError as error:
            if error.errno in _DISK_IS_FULL:
                raise DiskFull(f"The disk is full: {self.url_of(key)} was not fetched. Ask again later.") from error
            reason = error.strerror or type(error).__name__
            raise self._failed(f"{self.url_of(key)} was not fetched: {reason}") from error
        except (BotoCoreError, RetriesExceededError, ValueError) as error:  # of settings, too
            cause = getattr(error, "last_exception", error)
            logger.warning("%s: %s", self.url_of(key), _SECRET_IN_URL.sub("//***@", str(cause)))
            raise self._failed(f"Bucket {self._bucket} cannot be read now ({type(cause).__name__})") from error

    def _answered(self, key: str, response: Any) -> Exception:
        status, code = response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]
        if status == 404:
            return self._missing(key)
        if status == 412:
            return ArtifactChanged(f"{self.url_of(key)} has been changed.")
        logger.warning("%s: S3 answers %s %s", self.url_of(key), status, code)
        if status == 403:
            return self._missing(key, ArtifactForbidden)
        return self._failed(f"Bucket {self._bucket} does not answer as it should ({status} {code})")

    def _failed(self, what: str) -> StoreFailed:
        return StoreFailed(f"{what}. Ask again later.")


def _listed(entry: Any, size: str) -> Listed:
    return Listed(entry["ETag"].strip('"'), entry[size])


class _Watch:
    """Tells the transfer manager what is known of an object, so that it does not ask again, and when it is done."""

    def __init__(self, size_bytes: int, etag: str) -> None:
        self.is_done = threading.Event()
        self._size_bytes = size_bytes
        self._etag = etag

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_transfer_size(self._size_bytes)
        if hasattr(future.meta, "provide_object_etag"):  # since s3transfer 0.11
            future.meta.provide_object_etag(self._etag)

    def on_done(self, **_: Any) -> None:
        self.is_done.set()
