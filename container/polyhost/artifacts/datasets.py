"""
Objects of transform jobs, listed, copied to a file, and written whole; and payloads of asynchronous calls.

Used in the fetcher alone; all of it blocks.

An object is there with all that belongs to it, or not at all: S3 does that by itself, a folder by a rename.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from polyhost.artifacts.stores import S3, FolderStore, S3Store, split_source
from polyhost.artifacts.transfers import (
    CopyObject,
    Done,
    Listed,
    ListObjects,
    Payload,
    PutObject,
    ReadPayload,
    WritePayload,
)
from polyhost.service_errors import ArtifactMissing, StoreFailed, ValidationError


class Objects(Protocol):
    """The objects of one bucket or folder."""

    def below(self, prefix: str) -> Iterator[dict[str, Listed]]:
        """All whose keys begin so, some at a time; empty ones are none. A folder's prefix has no slash."""

    def copy(self, key: str, to: Path, cancelled: threading.Event) -> None: ...

    def put(self, file: Path, key: str, kms_key: str) -> None: ...

    def read(self, key: str, most_bytes: int) -> tuple[bytes, str]:
        """Its body and its content type, "" where it has none. Raises ValidationError for one with more bytes."""

    def write(self, body: bytes, key: str, content_type: str, kms_key: str) -> None: ...


def objects_of(source: str, s3: S3) -> Objects:
    bucket, prefix = split_source(source)
    return S3Objects(s3, bucket, prefix) if bucket else FolderObjects(prefix)


def list_objects(objects: Objects, order: ListObjects) -> Iterator[dict[str, Listed]]:
    """Raises ValidationError where there are more than `order.most`."""
    count = 0
    for page in objects.below(order.prefix):
        count += len(page)
        if count > order.most:
            raise ValidationError(
                f"Below {order.source}{order.prefix} there are more than {order.most} objects: "
                "make a job for each of several prefixes."
            )
        yield page


def carry_out(objects: Objects, order: CopyObject | PutObject, cancelled: threading.Event) -> None:
    if isinstance(order, CopyObject):
        objects.copy(order.key, Path(order.to), cancelled)
    else:
        objects.put(Path(order.file), order.key, order.kms_key)


def carry_out_payload(objects: Objects, order: ReadPayload | WritePayload) -> Payload | Done:
    if isinstance(order, ReadPayload):
        return Payload(order.id, *objects.read(order.key, order.most_bytes))
    objects.write(order.body, order.key, order.content_type, order.kms_key)
    return Done(order.id)


class S3Objects(S3Store):
    def below(self, prefix: str) -> Iterator[dict[str, Listed]]:
        with self._errors_translated(prefix):
            pages = self._s3.client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            for page in pages:
                entries = (entry for entry in page.get("Contents", ()) if entry["Size"])
                yield {entry["Key"]: Listed(entry["ETag"].strip('"'), entry["Size"]) for entry in entries}

    def copy(self, key: str, to: Path, cancelled: threading.Event) -> None:
        with self._errors_translated(key):
            self._download(self._full(key), self.look_up(key), to, cancelled)

    def put(self, file: Path, key: str, kms_key: str) -> None:
        from boto3.s3.transfer import TransferConfig, TransferManager

        encryption = _encryption(kms_key)
        with self._errors_translated(key), TransferManager(self._s3.client, TransferConfig()) as manager:
            manager.upload(str(file), self._bucket, self._full(key), extra_args=encryption).result()

    def read(self, key: str, most_bytes: int) -> tuple[bytes, str]:
        with self._errors_translated(key):
            found = self._s3.client.get_object(Bucket=self._bucket, Key=self._full(key))
            with contextlib.closing(found["Body"]) as body:
                _require_small(self.url_of(key), found["ContentLength"], most_bytes)
                return body.read(), found.get("ContentType", "")

    def write(self, body: bytes, key: str, content_type: str, kms_key: str) -> None:
        more = {**_encryption(kms_key), **({"ContentType": content_type} if content_type else {})}
        with self._errors_translated(key):
            self._s3.client.put_object(Bucket=self._bucket, Key=self._full(key), Body=body, **more)

    def _check(self, url: str, deadline: float, cancelled: threading.Event) -> None:  # noqa: ARG002 - data may be large
        if cancelled.is_set():
            raise self._failed(f"{url} was not fetched: nobody waits for it any more")

    def _missing(self, key: str, kind: type[ArtifactMissing] = ArtifactMissing) -> ArtifactMissing:
        return kind(
            f"{self.url_of(key)} cannot be read or written: there is no such bucket or object, or the server's "
            "credentials do not allow it."
        )


def _encryption(kms_key: str) -> dict[str, str]:
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}


def _require_small(url: str, size_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise ValidationError(f"{url} has {size_bytes} bytes, {most_bytes} are allowed in one call: send less.")


class FolderObjects(FolderStore):
    def below(self, prefix: str) -> Iterator[dict[str, Listed]]:
        self._check_folder()
        for key in self._files(prefix):
            with contextlib.suppress(ArtifactMissing, ValidationError):  # gone since, or a link that leads out
                listed = self.look_up(key)
                if listed.size_bytes:
                    yield {key: listed}

    def copy(self, key: str, to: Path, cancelled: threading.Event) -> None:
        listed = self.look_up(key)
        with self.opened(key, listed, to, cancelled) as path:
            shutil.copyfile(path, to)

    def put(self, file: Path, key: str, kms_key: str) -> None:  # noqa: ARG002 - a folder has no keys
        with file.open("rb") as content:
            self._put(content, key)

    def read(self, key: str, most_bytes: int) -> tuple[bytes, str]:
        listed = self.look_up(key)
        _require_small(self.url_of(key), listed.size_bytes, most_bytes)
        with self.opened(key, listed, Path(), threading.Event()) as path:
            return path.read_bytes(), ""

    def write(self, body: bytes, key: str, content_type: str, kms_key: str) -> None:  # noqa: ARG002 - it has neither
        self._put(io.BytesIO(body), key)

    def _put(self, content: BinaryIO, key: str) -> None:
        try:
            self._put_whole(content, key)
        except OSError as error:
            raise StoreFailed(f"{self.url_of(key)} cannot be written: {error.strerror}.") from error

    def _put_whole(self, content: BinaryIO, key: str) -> None:
        root = Path(self._folder).resolve()
        place = (root / key).resolve()
        if not place.is_relative_to(root):
            raise ArtifactMissing(f"{self.url_of(key)} cannot be written: a link leads out of the folder.")
        place.parent.mkdir(parents=True, exist_ok=True)
        # With the suffix of outputs, so that no job takes what a crash has left for an input.
        new = place.with_name(f".{secrets.token_hex(8)}.new.out")
        nameless = _nameless(new.parent)
        try:
            with nameless or new.open("xb") as stream:
                shutil.copyfileobj(content, stream)
                stream.flush()
                os.fsync(stream.fileno())
                if nameless is not None:
                    _name(nameless, new)
            new.rename(place)
        finally:
            new.unlink(missing_ok=True)


def _nameless(folder: Path) -> BinaryIO | None:
    """A new file there that goes with this process if that is killed; None where the file system has none such."""
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666), "wb")
    except OSError:
        return None


def _name(stream: BinaryIO, path: Path) -> None:
    """Only with a descriptor of a folder, which counts for nothing here, does Python follow the link."""
    os.link(f"/proc/self/fd/{stream.fileno()}", path, src_dir_fd=stream.fileno())
