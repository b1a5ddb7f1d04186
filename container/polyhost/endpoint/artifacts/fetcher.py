"""
The fetcher: the one process that has AWS credentials. It asks the stores, fetches archives and unpacks them.

    python -m polyhost.endpoint.artifacts.fetcher FD FRONT_PID

Model code runs under the same user, so nothing secret is in the command or the environment that this process is
started with: its settings come over its socket, once it has made itself unreadable. Several threads carry out
orders; each removes what it did not finish. It ends when its socket closes or its front dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from polyhost.archives import ArchiveTooLarge, Limits, NoRoomToUnpack, unpack
from polyhost.endpoint.artifacts.disk import MODEL, describe
from polyhost.endpoint.artifacts.stores import S3, Store, store_of
from polyhost.endpoint.artifacts.transfers import (
    ArtifactTooLarge,
    Done,
    Fetch,
    Fetched,
    Found,
    List,
    LookUp,
    Page,
    Question,
    Settings,
    ToFetcher,
    ToFront,
    failed,
)
from polyhost.endpoint.errors import ArtifactUnusable, DiskFull, EndpointError, StoreFailed
from polyhost.engine.native.framing import frame, received
from polyhost.errors import ArchiveRefused
from polyhost.log import configure
from polyhost.processes import die_with_parent
from polyhost.trees import remove_tree

logger = logging.getLogger("polyhost.fetcher")

_TRANSFERS = 8
_QUESTIONS = 8
_PR_SET_DUMPABLE = 4
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
    with contextlib.suppress(ConnectionError):
        _serve(connection)
    os._exit(0)  # transfers that are under way are of no use to anyone


def hide() -> None:
    """Nobody but root reads our memory or environment, not even processes of the same user."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _serve(connection: socket.socket) -> None:
    orders = received(connection, ToFetcher)
    settings, _ = next(orders, (None, False))
    if settings is None:  # the front has changed its mind
        return
    os.environ.clear()
    os.environ.update(settings.environ)
    _Fetcher(connection, settings).serve(order for order, _ in orders)


class _Fetcher:
    def __init__(self, connection: socket.socket, settings: Settings) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._s3 = S3(settings.connect_secs, settings.read_secs, settings.fetch_secs)
        # A question never waits for a transfer.
        self._transfers = ThreadPoolExecutor(_TRANSFERS)
        self._questions = ThreadPoolExecutor(_QUESTIONS)

    def serve(self, orders: Iterator[Question]) -> None:
        self._questions.submit(self._warm_up)
        for order in orders:
            threads = self._transfers if isinstance(order, Fetch) else self._questions
            threads.submit(self._carry_out, order)

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
        self._send(answer)

    def _answer(self, order: Question) -> ToFront:
        store = store_of(order.source, self._s3)
        if isinstance(order, List):
            for archives in store.pages():
                self._send(Page(order.id, archives))
            return Done(order.id)
        if isinstance(order, LookUp):
            return Found(order.id, store.look_up(order.key))
        return _fetch(store, order)

    def _send(self, answer: ToFront) -> None:
        with self._sending, contextlib.suppress(ConnectionError):
            self._connection.sendall(frame(answer))


def _fetch(store: Store, order: Fetch) -> Fetched:
    since = time.perf_counter()
    place, to = Path(order.place), Path(order.to)
    for path in (place, to):  # of a fetcher that was killed in the middle
        remove_tree(path)
    try:
        place.mkdir()
        with store.opened(order.key, order.listed, place / "archive") as archive:
            _unpack(archive, place / MODEL, order.limit_bytes, store.url_of(order.key))
        meta = describe(place, order.source, order.key, order.listed)
        meta.write(place)
        place.rename(to)
    except OSError as error:
        raise DiskFull(f"The disk cache cannot be written: {error.strerror}. Ask again later.") from error
    finally:
        remove_tree(place)
    return Fetched(order.id, meta.unpacked_bytes, meta.disk_bytes, time.perf_counter() - since)


def _unpack(archive: Path, to: Path, limit_bytes: int, url: str) -> None:
    limits = Limits(total_bytes=min(Limits.total_bytes, limit_bytes))
    try:
        unpack(archive, to, limits, called="it")
    except NoRoomToUnpack as error:
        raise DiskFull(f"The disk is full: {url} was not unpacked. Ask again later.") from error
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
