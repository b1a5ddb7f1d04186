"""
The fetcher: the one process that has AWS credentials. It asks the stores, fetches archives and unpacks them.

    python -m polyhost.artifacts.fetcher FD FRONT_PID

Model code runs under the same user, so nothing secret is in the command or the environment that this process is
started with: its settings come over its socket, once it has made itself unreadable. Several threads carry out
orders; each removes what it did not finish. It ends when its socket closes or its front dies.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from polyhost.archives import ArchiveTooLarge, Limits, NoRoomToUnpack, Unpacked, unpack
from polyhost.artifacts.datasets import carry_out, carry_out_payload, list_objects, objects_of
from polyhost.artifacts.entries import MODEL, Meta
from polyhost.artifacts.objects import ObjectOf
from polyhost.artifacts.stores import S3, Store, store_of
from polyhost.artifacts.threads import SourceThreads
from polyhost.artifacts.transfers import (
    ArtifactTooLarge,
    Cancel,
    Content,
    CopyObject,
    Done,
    Fetch,
    Fetched,
    Found,
    List,
    ListObjects,
    LookUp,
    Page,
    PutObject,
    Question,
    ReadObject,
    ReadPayload,
    Settings,
    ToFetcher,
    ToFront,
    Unpack,
    WriteObject,
    WritePayload,
    failed,
)
from polyhost.errors import ArchiveRefused
from polyhost.framing import Inbox, frame
from polyhost.log import configure
from polyhost.processes import die_with_parent, hide
from polyhost.service_errors import ArtifactUnusable, DiskFull, EndpointError, StoreFailed
from polyhost.trees import remove_tree

logger = logging.getLogger("polyhost.fetcher")

_TRANSFERS = 8
# What waits for a place among those.
_TRANSFERRING = (Fetch, Unpack, CopyObject, PutObject, ReadPayload, WritePayload)
# How many questions each source may have open. Some may hang: the others are answered all the same.
_QUESTIONS = 32
# Files in the cache cannot be written, so that no model's code overwrites one by mistake.
_FILE_MODE = 0o444
# An archive's headers are read into memory, whatever size they claim: that ends here, not with the machine's memory.
_MAX_MEMORY_BYTES = 2 * 1024**3
_OOM_SCORE_ADJ = "500"


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides when we end
    # Where CPUs are short the front goes first; the kernel that must free memory takes us, never the front.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    hide()
    configure(os.environ.get("POLYHOST_LOG_FORMAT", "text"))
    logging.getLogger("botocore").setLevel(logging.WARNING)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each connection that it does not keep
    with contextlib.suppress(ConnectionError):
        _serve(connection)
    os._exit(0)  # nobody needs the transfers that are still under way


def _serve(connection: socket.socket) -> None:
    orders = iter(Inbox(connection, ToFetcher))
    settings = next(orders, None)
    if settings is None:  # the front has changed its mind
        return
    os.environ.clear()
    os.environ.update(settings.environ)
    _Fetcher(connection, settings).serve(orders)


class _Fetcher:
    def __init__(self, connection: socket.socket, settings: Settings) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._unpack_secs = settings.unpack_secs
        self._expects_buckets = settings.expects_buckets
        # By order, while it is carried out: set when it is not wanted any more.
        self._cancelled: dict[int, threading.Event] = {}
        self._s3 = S3(settings.connect_secs, settings.read_secs, settings.fetch_secs)
        # A question never waits for a transfer, nor for another source's that hangs.
        self._transfers = SourceThreads(_TRANSFERS)
        self._questions = SourceThreads(_QUESTIONS)

    def serve(self, orders: Iterator[Question | Cancel]) -> None:
        if self._expects_buckets:
            threading.Thread(target=self._warm_up, daemon=True).start()
        for order in orders:
            if isinstance(order, Cancel):
                cancelled = self._cancelled.get(order.id)
                if cancelled is not None:  # a thread may end it just now
                    cancelled.set()
                continue
            self._cancelled[order.id] = threading.Event()
            self._begin(order)

    def _begin(self, order: Question) -> None:
        threads = self._transfers if isinstance(order, _TRANSFERRING) else self._questions
        source = "" if isinstance(order, Unpack) else order.source
        try:
            threads.submit(source, functools.partial(self._carry_out, order))
        except RuntimeError as error:
            del self._cancelled[order.id]
            message = f"{order.source} cannot be read now: {error}. Ask again later."
            self._send(failed(order.id, StoreFailed(message)))

    def _warm_up(self) -> None:
        try:
            _ = self._s3.client
        except Exception as error:  # noqa: BLE001 - whoever only has folders needs no S3
            logger.info("no S3: %s", type(error).__name__)

    def _carry_out(self, order: Question) -> None:
        try:
            answer = self._answer(order)
        except EndpointError as error:
            answer = failed(order.id, error)
        except BaseException as error:
            logger.exception("%s: %s failed", order.source, type(order).__name__)
            message = f"{order.source} cannot be read now ({type(error).__name__}). Ask again later."
            answer = failed(order.id, StoreFailed(message))
        del self._cancelled[order.id]
        self._send(answer)

    def _answer(self, order: Question) -> ToFront:
        limits = Limits(secs=self._unpack_secs)
        cancelled = self._cancelled[order.id]
        if isinstance(order, Unpack):
            _unpack_file(order, limits, cancelled)
            return Done(order.id)
        if isinstance(order, ListObjects):
            for objects in list_objects(objects_of(order.source, self._s3), order):
                self._send(Page(order.id, objects))
            return Done(order.id)
        if isinstance(order, (CopyObject, PutObject)):
            carry_out(objects_of(order.source, self._s3), order, cancelled)
            return Done(order.id)
        if isinstance(order, (ReadPayload, WritePayload)):
            return carry_out_payload(objects_of(order.source, self._s3), order)
        if isinstance(order, (ReadObject, WriteObject)):
            return _on_condition(ObjectOf(self._s3, order.source, order.key), order)
        store = store_of(order.source, self._s3)
        if isinstance(order, List):
            return self._list(store, order)
        if isinstance(order, LookUp):
            return Found(order.id, store.look_up(order.key, order.known))
        return _fetch(store, order, limits, cancelled)

    def _list(self, store: Store, order: List) -> Done:
        left = order.most
        for archives in store.pages(order.after, order.most + 1):
            self._send(Page(order.id, dict(itertools.islice(archives.items(), left))))
            left -= len(archives)
            if left < 0:
                return Done(order.id, has_more=True)
        return Done(order.id)

    def _send(self, answer: ToFront) -> None:
        with self._sending, contextlib.suppress(ConnectionError):
            self._connection.sendall(frame(answer))


def _on_condition(found: ObjectOf, order: ReadObject | WriteObject) -> Content:
    if isinstance(order, ReadObject):
        return Content(order.id, *found.read(order.known))
    return Content(order.id, found.write(order.body, order.expected))


def _unpack_file(order: Unpack, limits: Limits, cancelled: threading.Event) -> None:
    try:
        unpack(Path(order.source), Path(order.to), limits, cancelled=cancelled)
    except NoRoomToUnpack as error:
        raise DiskFull(str(error)) from error
    except (ArchiveRefused, OSError) as error:
        raise ArtifactUnusable(str(error)) from error
    if cancelled.is_set():  # too late to be told
        remove_tree(Path(order.to))


def _fetch(store: Store, order: Fetch, limits: Limits, cancelled: threading.Event) -> Fetched:
    since = time.perf_counter()
    place, to = Path(order.place), Path(order.to)
    for path in (place, to):  # of a fetcher that was killed in the middle
        remove_tree(path)
    try:
        place.mkdir()
        with store.opened(order.key, order.listed, place / "archive", cancelled) as archive:
            limits = replace(limits, total_bytes=min(limits.total_bytes, order.limit_bytes))
            files = _unpack(archive, place / MODEL, limits, store.url_of(order.key), cancelled)
        meta = Meta(order.source, order.key, order.listed.version, order.listed.size_bytes, files)
        meta_sha256 = meta.write(place)
        place.rename(to)
    except OSError as error:
        raise DiskFull(f"The disk cache cannot be written: {error.strerror}. Ask again later.") from error
    finally:
        remove_tree(place)
    return Fetched(order.id, meta.unpacked_bytes, meta.disk_bytes, meta_sha256, time.perf_counter() - since)


def _unpack(archive: Path, to: Path, limits: Limits, url: str, cancelled: threading.Event) -> dict[str, Unpacked]:
    try:
        return unpack(archive, to, limits, called="it", file_mode=_FILE_MODE, cancelled=cancelled)
    except NoRoomToUnpack as error:
        message = f"The disk is full: {url} was not unpacked. Ask again later."
        raise DiskFull(message, need_bytes=error.need_bytes) from error
    except ArchiveTooLarge as error:
        message = f"{url} unpacks to more than {limits.total_bytes} bytes, all that the disk cache may hold of a model."
        raise ArtifactTooLarge(message) from error
    except ArchiveRefused as error:
        reason = str(error).rstrip(".")
        raise ArtifactUnusable(
            f'Failed to extract model data archive from URL "{url}": {reason}. '
            "Please ensure that the object located at the URL is a valid tar.gz archive.",
        ) from error


if __name__ == "__main__":
    main()
