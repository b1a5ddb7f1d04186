"""
Where archives come from: a bucket's prefix or a folder.

What a source and a key may look like is decided here, by pure functions that the front calls too. The stores
themselves block and are used in the fetcher alone; they raise errors of `polyhost.service_errors`, in AWS's words.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import heapq
import logging
import os
import re
import shlex
import stat
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from polyhost.artifacts.transfers import ArtifactChanged, ArtifactForbidden, Listed
from polyhost.service_errors import ArtifactMissing, ArtifactUnusable, DiskFull, StoreFailed, ValidationError

logger = logging.getLogger("polyhost.fetcher")

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".mar", ".zip")
_MAX_KEY = 1024  # characters, as TargetModel; S3 counts the whole key's bytes
_MAX_S3_KEY_BYTES = 1024
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PAGE = 1000
# Parts of large archives that are on their way at the same time, over all transfers.
_PARTS = 16
_CONNECTIONS = 64
_CHUNK_BYTES = 64 * 1024
_MAX_IO_QUEUE = 400  # chunks that wait to be written
# A transfer is started again when no chunk has come for so long: it may have met a server that hangs.
_STALL_SECS = 10.0
_MAX_STARTS = 3
# Somebody waits for a look-up, which S3 answers in milliseconds.
_LOOK_UP_READ_SECS = 5.0
_LOOK_SECS = 0.1
_UNCHANGED = 304
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
_SECRET_IN_URL = re.compile(r"//[^/@\s]*@")


def check_key(key: str) -> None:
    """The key of an archive below its source. Raises ValidationError."""
    reason = _remembered_reason(key) if len(key) <= _MAX_KEY else _key_reason(key)
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
    if not key.isprintable() and any(unicodedata.category(character) in ("Cc", "Cs") for character in key):
        return "it has a control character or half a character"
    return ""


_remembered_reason = functools.lru_cache(maxsize=1024)(_key_reason)


@functools.lru_cache(maxsize=256)  # sources are few, and each load asks
def split_source(source: str) -> tuple[str, str]:
    """`s3://bucket/prefix/` is ("bucket", "prefix/"), `/folder/` is ("", "/folder/"). Raises ValidationError."""
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

    def pages(self, after: str = "", most: int | None = None) -> Iterator[dict[str, Listed]]:
        """
        The archives of the source whose names come after `after`, by name, some at a time.

        Whoever wants no more than `most` reads no further.
        """

    def look_up(self, key: str, known: Listed | None = None) -> Listed:
        """`known`: what it was before."""

    def opened(
        self, key: str, listed: Listed, copy: Path, cancelled: threading.Event
    ) -> contextlib.AbstractContextManager[Path]:
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

    def pages(self, after: str = "", most: int | None = None) -> Iterator[dict[str, Listed]]:
        self._check_folder()
        page: dict[str, Listed] = {}
        keys = (key for key in self._files() if key > after and is_archive(key))
        for key in sorted(keys) if most is None else heapq.nsmallest(most, keys):
            with contextlib.suppress(ArtifactMissing, ArtifactUnusable):  # gone since, or a link that leads out
                page[key] = self.look_up(key)
            if len(page) == _PAGE:
                yield page
                page = {}
        yield page

    def _files(self, prefix: str = "") -> Iterator[str]:
        """`prefix`: how the first part of their keys begins."""
        for path, folders, names in os.walk(self._folder):
            below = os.path.relpath(path, self._folder)
            if below == ".":
                folders[:] = [name for name in folders if name.startswith(prefix)]
                yield from (name for name in names if name.startswith(prefix))
            else:
                yield from (f"{below}/{name}" for name in names)

    def look_up(self, key: str, known: Listed | None = None) -> Listed:  # noqa: ARG002 - a file tells it as quickly
        return self._found(key)[1]

    @contextlib.contextmanager
    def opened(
        self,
        key: str,
        listed: Listed,
        copy: Path,  # noqa: ARG002 - it is read in place
        cancelled: threading.Event,  # noqa: ARG002
    ) -> Iterator[Path]:
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
            f"Please pack what is in it: {_packing(url)}"
        )


def _packing(folder: str) -> str:
    """A command that makes a folder's archive; where the folder has an archive's name, the archive takes its place."""
    name = os.path.basename(folder)
    if not name.endswith(".tar.gz"):
        return shlex.join(["tar", "-czf", f"{name}.tar.gz", "-C", folder, "."])
    folder, unpacked = shlex.quote(folder), shlex.quote(folder.removesuffix(".tar.gz"))
    return f"mv {folder} {unpacked} && tar -czf {folder} -C {unpacked} ."


class S3:
    """The client, made once; importing boto3 takes 0.2 s: `client` is asked for early where it will be needed."""

    def __init__(
        self, connect_secs: float, read_secs: float, fetch_secs: float, stall_secs: float = _STALL_SECS
    ) -> None:
        self._connect_secs = connect_secs
        self._read_secs = read_secs
        self.fetch_secs = fetch_secs
        self.stall_secs = stall_secs
        self._lock = threading.Lock()
        self._made: tuple[Any, Any] | None = None

    @property
    def client(self) -> Any:
        """For listings and transfers."""
        return self._clients()[0]

    @property
    def look_up_client(self) -> Any:
        return self._clients()[1]

    def new_manager(self) -> Any:
        """
        It fetches a large object in parts, several at a time.

        One for each transfer: threads that wait for a server which hangs keep no other transfer waiting.
        """
        from boto3.s3.transfer import TransferConfig, TransferManager

        class Manager(TransferManager):  # type: ignore[misc]
            # A body that changes in the middle must never be mixed.
            ALLOWED_DOWNLOAD_ARGS = (*TransferManager.ALLOWED_DOWNLOAD_ARGS, "IfMatch")

        transfers = TransferConfig(max_concurrency=_PARTS, io_chunksize=_CHUNK_BYTES, max_io_queue=_MAX_IO_QUEUE)
        return Manager(self.client, transfers)

    def _clients(self) -> tuple[Any, Any]:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> tuple[Any, Any]:
        import boto3
        from botocore.config import Config

        # Endpoint, region, credentials, profile, how often to try: by the usual variables and files.
        os.environ.setdefault("AWS_RETRY_MODE", "standard")
        session = boto3.Session()
        region = session.region_name or "us-east-1"

        def client(read_secs: float) -> Any:
            config = Config(
                max_pool_connections=_CONNECTIONS, connect_timeout=self._connect_secs, read_timeout=read_secs
            )
            return session.client("s3", region_name=region, config=config)

        return client(self._read_secs), client(min(self._read_secs, _LOOK_UP_READ_SECS))


class S3Store:
    def __init__(self, s3: S3, bucket: str, prefix: str) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._prefix = prefix

    def url_of(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def pages(self, after: str = "", most: int | None = None) -> Iterator[dict[str, Listed]]:  # noqa: ARG002
        start = {"StartAfter": self._prefix + after} if after else {}
        with self._errors_translated(""):
            pages = self._s3.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix, **start):
                keys = ((entry["Key"][len(self._prefix) :], entry) for entry in page.get("Contents", ()))
                yield {key: _listed(entry, "Size") for key, entry in keys if is_archive(key)}

    def look_up(self, key: str, known: Listed | None = None) -> Listed:
        with self._errors_translated(key):
            return self._head(self._full(key), known)

    def _head(self, full_key: str, known: Listed | None) -> Listed:
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": f'"{known.version}"'} if known else {}
        try:
            head = self._s3.look_up_client.head_object(Bucket=self._bucket, Key=full_key, **condition)
        except ClientError as error:
            if known is not None and error.response["ResponseMetadata"]["HTTPStatusCode"] == _UNCHANGED:
                return known
            raise
        return _listed(head, "ContentLength")

    @contextlib.contextmanager
    def opened(self, key: str, listed: Listed, copy: Path, cancelled: threading.Event) -> Iterator[Path]:
        with self._errors_translated(key):
            self._download(self._full(key), listed, copy, cancelled)
        try:
            yield copy
        finally:
            copy.unlink()

    def _download(self, full_key: str, listed: Listed, copy: Path, cancelled: threading.Event) -> None:
        """Started again where nothing comes any more, a few times. Raises StoreFailed and what libraries raise."""
        url = f"s3://{self._bucket}/{full_key}"
        deadline = time.monotonic() + self._s3.fetch_secs
        for start in range(1, _MAX_STARTS + 1):
            if self._transfer(full_key, listed, copy, lambda: self._check(url, deadline, cancelled)):
                return
            logger.warning("%s: nothing has come for %g s (%d of %d)", url, self._s3.stall_secs, start, _MAX_STARTS)
        raise self._failed(f"{url} was not fetched: its server has stopped sending {_MAX_STARTS} times")

    def _check(self, url: str, deadline: float, cancelled: threading.Event) -> None:
        if cancelled.is_set():
            raise self._failed(f"{url} was not fetched: nobody waits for it any more")
        if time.monotonic() > deadline:
            raise self._failed(f"{url} took longer than {self._s3.fetch_secs:g} s")

    def _transfer(self, full_key: str, listed: Listed, copy: Path, check: Callable[[], None]) -> bool:
        """False when nothing comes any more. What it has written then is gone, or goes when its threads notice."""
        from botocore.exceptions import ClientError

        etag = f'"{listed.version}"'
        watch = _Watch(listed.size_bytes, etag)
        manager = self._s3.new_manager()
        future = manager.download(
            self._bucket, full_key, str(copy), extra_args={"IfMatch": etag}, subscribers=[watch],
        )  # fmt: skip
        try:
            while not watch.is_done.wait(_LOOK_SECS):
                check()
                if time.monotonic() - watch.last_progress > self._s3.stall_secs:
                    return False
        finally:
            future.cancel()  # which takes as long as the reads that wait yet; nothing for one that is done
        try:
            future.result()
        except Exception as error:
            if isinstance(error.__context__, ClientError):  # newer managers have words of their own for a 412
                raise error.__context__ from error
            raise
        manager.shutdown()
        return True

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
        # By time.monotonic().
        self.last_progress = time.monotonic()
        self._size_bytes = size_bytes
        self._etag = etag

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_transfer_size(self._size_bytes)
        if hasattr(future.meta, "provide_object_etag"):  # since s3transfer 0.11
            future.meta.provide_object_etag(self._etag)

    def on_progress(self, **_: Any) -> None:
        self.last_progress = time.monotonic()

    def on_done(self, **_: Any) -> None:
        self.is_done.set()
