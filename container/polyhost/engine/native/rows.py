"""
Compiled models, which the front keeps: in memory that it shares with workers, so that each is there once.

A worker compiles the model, sends the blob, and keeps nothing. Here every place in it that a prediction can visit is
checked before it is used. One row of CSV is answered here too: that costs less than to ask a worker. What would hold
the event loop for long, or is no plain row, goes to a worker that reads the same blob, and answers the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from importlib import metadata

import msgspec
from polyhost_handlers.compiled.library import DamagedBlob, library
from polyhost_handlers.compiled.rows import VARIABLES, PlainRows, RowPredictor, Shape, number_body, row_accept
from polyhost_handlers.environments.evidence import ENVIRONMENT, OLD_ENVIRONMENT

import polyhost
from polyhost.engine.native.blobs import Blob, Blobs
from polyhost.engine.native.fields import is_raw
from polyhost.engine.native.leases import Leases
from polyhost.engine.native.messages import Borrowed
from polyhost.engine.native.pool import Worker
from polyhost.engine.protocol import Answer, Item
from polyhost.interpreters import installed_environments

logger = logging.getLogger("polyhost.engine")

# Names the release that made a file of `Kept`. A file of another release is made anew.
_MADE_BY = f"2 {polyhost.__version__}"

# What a row may cost the event loop, how long its body may be, and how many nodes a model may have: were they one long
# chain, as nobody trains it, the loop would be held for a millisecond.
MOST_MICROSECS = 20.0
MOST_NODES = 100_000
_MOST_BYTES = 16 * 1024
ROW_HEADERS = {accept: {"content-type": accept} for accept in ("text/csv", "application/json")}


class Rows:
    """What answers the rows of a compiled model, wherever it is mapped."""

    __slots__ = ("_predictor", "default_accept")

    def __init__(self, predictor: RowPredictor | None, default_accept: str) -> None:
        """`predictor`: None where a row is its worker's too."""
        self._predictor = predictor
        self.default_accept = default_accept

    @classmethod
    def at(cls, address: int, default_accept: str) -> Rows:
        """The rows of a blob at this address. The blob was checked, and the C library is loaded."""
        assert library is not None
        return cls(RowPredictor(address, Shape.at(address).groups, library), default_accept)

    @property
    def are_answered(self) -> bool:
        return self._predictor is not None

    @property
    def answers_rows(self) -> bool:
        return self._predictor is not None

    def answer(self, item: Item) -> Answer | None:
        """None where the model's worker must be asked."""
        if self._predictor is None or len(item.body) > _MOST_BYTES or not is_raw(item):
            return None
        headers = item.headers
        accept = row_accept(headers.get("content-type", ""), headers.get("accept", ""), self.default_accept)
        if accept is None:
            return None
        value = self._predictor.predict_csv_row(item.body)
        return None if value is None else Answer(200, ROW_HEADERS[accept], number_body(value, accept))


class RowModel(Rows):
    """A model as the front keeps it."""

    __slots__ = ("blob",)

    def __init__(self, blob: Blob, predictor: RowPredictor | None, default_accept: str) -> None:
        super().__init__(predictor, default_accept)
        self.blob = blob


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """
    What of a compiled model is written beside its archive: also what a look at the archive has found, so that the next
    load need not look again.

    `stamp`: see `stamp_of`.
    """

    stamp: str
    handler: str
    artifact_bytes: int
    rows: PlainRows

    def encoded(self) -> bytes:
        return msgspec.msgpack.encode(self)


def stamp_of(handlers: Sequence[str], environ: Mapping[str, str], image: str = "") -> str:
    """
    What a compiled model depends on besides its archive.

    `handlers`: what was asked for, and what serves where nothing was. `image`: of the container. It may mean an
    environment, and then the answers are those of its frameworks.
    """
    told = [(name, environ.get(name)) for name in (*VARIABLES, "SAGEMAKER_PROGRAM", ENVIRONMENT, OLD_ENVIRONMENT)]
    environments = image, sorted(installed_environments(environ, ()))
    made = _MADE_BY, _xgboost(), handlers, told, environments
    return hashlib.blake2b(repr(made).encode(), digest_size=16).hexdigest()


@functools.lru_cache
def _xgboost() -> str:
    """The release that each compiled model was compared with."""
    for name in ("xgboost-cpu", "xgboost"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return ""


def kept_of(content: bytes, stamp: str) -> Kept | None:
    """What was kept, if it was made by such a server as this one."""
    try:
        kept = msgspec.msgpack.decode(content, type=Kept)
    except msgspec.MsgspecError:
        return None
    return kept if kept.stamp == stamp else None


class RowModels:
    """Keeps them, and the memory that they lie in."""

    def __init__(self, *, has_readers: bool) -> None:
        """`has_readers`: whether workers may borrow them."""
        self._has_readers = has_readers
        self._blobs = Blobs()
        self.leases = Leases(self._blobs)

    @property
    def used_bytes(self) -> int:
        return self._blobs.used_bytes

    def adopt(self, rows: PlainRows, title: str) -> RowModel | None:
        """None for a model that is of no use here."""
        if library is None:
            return None
        try:
            blob = self._blobs.put(rows.trees + rows.names)
        except OSError as error:
            logger.warning("model %s is answered by its worker: no memory is left for its trees (%s)", title, error)
            return None
        try:
            library.check(blob.address, len(rows.trees))
        except DamagedBlob as error:
            logger.error("model %s is answered by its worker: %s", title, error)  # noqa: TRY400
            self._blobs.drop(blob)
            return None
        shape = Shape.of(rows.trees)
        is_answered = is_quick(shape) and shape.answers_with_one_number
        if not is_answered and not self._has_readers:
            self._blobs.drop(blob)
            return None
        predictor = RowPredictor(blob.address, shape.groups, library) if is_answered else None
        return RowModel(blob, predictor, rows.default_accept)

    def drop(self, model: RowModel) -> None:
        self.leases.revoke(model)
        self._blobs.drop(model.blob)

    def lend(self, model: RowModel, worker: Worker) -> Borrowed | None:
        """For a worker to read until it gives it back; None for a worker that may not, or where it cannot be passed."""
        blob = model.blob
        if worker.channel is None or not worker.channel.has_passed(blob.segment):
            return None
        self._blobs.lend(blob, worker)
        return Borrowed(blob.segment.number, blob.offset, blob.length_bytes)

    def give_back(self, model: RowModel, worker: Worker) -> None:
        """The worker reads it no more."""
        self._blobs.give_back(model.blob, worker)

    def give_back_all(self, worker: Worker, but: RowModel | None = None) -> None:
        self._blobs.give_back_all(worker, but.blob if but else None)


def is_quick(shape: Shape) -> bool:
    return shape.cost_microsecs <= MOST_MICROSECS and shape.nodes <= MOST_NODES
