"""
Reads and searches index files of faiss with numpy alone: flat, IVF with flat lists, IVF with product quantization.

The layout is what faiss's write_index has written since 2018: a code of four letters for the kind of index, a header,
then the fields of that kind; an index that has another inside writes it in the same way. Distances are computed as
the differences of the float32 vectors in float64, so that near neighbours of far-off points keep their order.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

_INNER_PRODUCT, _L2 = 0, 1
_FLAT = (b"IxF2", b"IxFI", b"IxFl")
_ID_MAPS = (b"IxMp", b"IxM2")
_IVF_FLAT, _IVF_PQ = b"IwFl", b"IwPQ"
_HASHTABLE = 2
# Approximate distances that are held at a time: 16 MB of float32.
_MAX_CELLS = 4_000_000
_CHUNK_ROWS = 8192


class BrokenIndex(ValueError):
    """The bytes are not an index that is read here; the text says why."""


class Index(Protocol):
    """`features`: how wide a vector is. `count`: how many it holds. `is_similarity`: the nearest is the largest."""

    features: int
    count: int
    is_similarity: bool

    def search(self, rows: Array, k: int) -> list[tuple[Array, Array]]:
        """For each row the ids and the distances (as faiss's: squared, or inner products) of its k nearest, at most."""


def read_index(data: bytes) -> Index:
    """Raises BrokenIndex."""
    reader = _Reader(data)
    try:
        return _read_index(reader)
    except (ValueError, OverflowError, struct.error) as error:
        if isinstance(error, BrokenIndex):
            raise
        raise BrokenIndex(f"its numbers do not fit together ({error})") from error


@dataclass
class Flat:
    """All vectors in a row; an id is a vector's place."""

    vectors: Array  # (count, features), float32
    is_similarity: bool

    def __post_init__(self) -> None:
        self.count, self.features = self.vectors.shape
        # L2 distances do not change when all points move; near the origin products are the most precise.
        self._centre = np.zeros(self.features, np.float32)
        self._squares = np.empty(self.count, np.float32)  # of the distances to the centre
        with np.errstate(over="ignore", invalid="ignore"):
            if not self.is_similarity:
                self._centre = self.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
            for start in range(0, self.count, _CHUNK_ROWS):
                moved = self.vectors[start : start + _CHUNK_ROWS] - self._centre
                self._squares[start : start + len(moved)] = np.einsum("ij,ij->i", moved, moved)
        _check_squares(self._squares)
        self._radius = math.sqrt(self._squares.max())
        self._farthest = self._radius + float(np.linalg.norm(self._centre.astype(np.float64)))

    def search(self, rows: Array, k: int) -> list[tuple[Array, Array]]:
        rows = rows.astype(np.float32)
        at_once = max(1, _MAX_CELLS // max(self.count, 1))
        blocks = (rows[start : start + at_once] for start in range(0, len(rows), at_once))
        return [found for block in blocks for found in self._search(block, min(k, self.count))]

    def _search(self, rows: Array, k: int) -> Iterator[tuple[Array, Array]]:
        """
        Two steps: approximate costs of all vectors by matrix products, then exact ones of those that may be nearest.

        A matrix product of float32 is off by no more than its bound, so no neighbour is lost.
        """
        costs, bounds = self._costs(rows)
        for row, cost, bound in zip(rows, costs, bounds, strict=True):
            limit = np.partition(cost, k - 1)[k - 1] + 2 * bound
            candidates = np.flatnonzero(~(cost > limit))  # also what is no number, of a row that is far too large
            yield _nearest(self.vectors[candidates], candidates, row, k, self.is_similarity)

    def _costs(self, rows: Array) -> tuple[Array, Array]:
        """
        Distances but for what is the same for all vectors of a row, smaller is nearer; and their largest errors.

        |v - row|² is |v - centre|² - 2 v·(row - centre), and something that depends on the row alone.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            moved = rows - self._centre
            products = moved @ self.vectors.T
            costs = -products if self.is_similarity else self._squares - 2 * products
        lengths = np.linalg.norm(moved.astype(np.float64), axis=1)
        size = 2 * self._farthest * lengths + self._radius**2
        return costs, 2 * (self.features + 4) * float(np.finfo(np.float32).eps) * size


@dataclass
class Ivf:
    """Vectors in lists, each of those that are nearest to one centroid; a search looks into the nearest `probes`."""

    quantizer: Flat
    probes: int
    lists: Sequence[tuple[Array, Array]]  # of each centroid the ids, and the codes as bytes
    is_similarity: bool
    # None where the codes are the vectors themselves.
    product: ProductQuantizer | None = None
    by_residual: bool = False

    def __post_init__(self) -> None:
        self.features = self.quantizer.features
        self.count = sum(len(ids) for ids, _ in self.lists)
        for ids, codes in self.lists:
            _check_ids(ids, self.count)
            if self.product is None:
                _check_vectors(codes.view("<f4"))

    def search(self, rows: Array, k: int) -> list[tuple[Array, Array]]:
        rows = rows.astype(np.float32)
        nearest = self.quantizer.search(rows, self.probes)
        return [self._search(row, centroids, k) for row, (centroids, _) in zip(rows, nearest, strict=True)]

    def _search(self, row: Array, centroids: Array, k: int) -> tuple[Array, Array]:
        ids = np.concatenate([self.lists[number][0] for number in centroids])
        vectors = np.concatenate([self._vectors(number) for number in centroids])
        return _nearest(vectors, ids, row, k, self.is_similarity)

    def _vectors(self, number: int) -> Array:
        codes = self.lists[number][1]
        if self.product is None:
            return codes.view("<f4")
        vectors = self.product.decode(codes)
        return vectors + self.quantizer.vectors[number] if self.by_residual else vectors


@dataclass(frozen=True)
class ProductQuantizer:
    """A byte for each part of a vector, the number of one of 256 centroids."""

    centroids: Array  # (parts, 256, features of a part)

    def decode(self, codes: Array) -> Array:
        parts = self.centroids.shape[0]
        return self.centroids[np.arange(parts), codes].reshape(len(codes), -1)


@dataclass
class IdMap:
    """Another index, whose ids are places in a list of ids."""

    index: Flat | Ivf
    ids: Array

    def __post_init__(self) -> None:
        self.features, self.count = self.index.features, self.index.count
        self.is_similarity = self.index.is_similarity
        _check_ids(self.ids, self.count)

    def search(self, rows: Array, k: int) -> list[tuple[Array, Array]]:
        return [(self.ids[ids], distances) for ids, distances in self.index.search(rows, k)]


def _check_ids(ids: Array, count: int) -> None:
    """Labels are found by ids, so these must be places in a list of so many."""
    if len(ids) and not 0 <= ids.min() <= ids.max() < count:
        raise BrokenIndex(f"it has ids from {ids.min()} to {ids.max()} for {count} vectors")


def _nearest(vectors: Array, ids: Array, row: Array, k: int, is_similarity: bool) -> tuple[Array, Array]:
    """The k nearest vectors, the nearest first. Among equal ones the smallest ids win, as with faiss."""
    wide = vectors.astype(np.float64)
    if is_similarity:
        distances = wide @ row.astype(np.float64)
    else:
        wide -= row
        distances = np.einsum("ij,ij->i", wide, wide)
    order = np.lexsort((ids, -distances if is_similarity else distances))[:k]
    return ids[order], distances[order]


# Reading


def _read_index(reader: _Reader, is_inside: bool = False) -> Flat | Ivf | IdMap:
    kind = reader.take_bytes(4)
    if kind in _FLAT:
        return _read_flat(reader)
    if is_inside or kind not in (*_ID_MAPS, _IVF_FLAT, _IVF_PQ):
        shown = kind.decode("latin-1") if kind.isalnum() else kind.hex()
        raise BrokenIndex(f"it is of faiss's kind {shown}; Flat, IVFFlat and IVFPQ are read")
    header = reader.take_header()
    if kind in _ID_MAPS:
        index = _read_index(reader)
        if isinstance(index, IdMap):
            raise BrokenIndex("it is a map of ids of a map of ids")
        ids = reader.take_vector("<i8")
        if len(ids) != index.count:
            raise BrokenIndex(f"it has {len(ids)} ids for {index.count} vectors")
        return IdMap(index, ids)
    return _read_ivf(reader, kind, header)


def _read_flat(reader: _Reader) -> Flat:
    header = reader.take_header()
    numbers = reader.take_vector("<f4")
    if len(numbers) != header.count * header.features:
        raise BrokenIndex(f"it has {len(numbers)} numbers for {header.count} vectors of {header.features}")
    if not header.count:
        raise BrokenIndex("it holds no vector")
    return Flat(numbers.reshape(header.count, header.features), header.is_similarity)


def _read_ivf(reader: _Reader, kind: bytes, header: _Header) -> Ivf:
    lists, probes = reader.take("<Q"), reader.take("<Q")
    quantizer = _read_index(reader, is_inside=True)
    if not isinstance(quantizer, Flat) or quantizer.count != lists or quantizer.features != header.features:
        raise BrokenIndex("its lists do not fit its centroids")
    is_hashed = reader.take("<B") == _HASHTABLE
    reader.take_vector("<i8")  # from an id to its place, which a search does not need
    if is_hashed:
        reader.take_vector("<i8", pairs=True)
    product, by_residual, code_bytes = None, False, 4 * header.features
    if kind == _IVF_PQ:
        by_residual = bool(reader.take("<B"))
        code_bytes = reader.take("<Q")
        product = _read_product_quantizer(reader, header.features)
        if code_bytes != product.centroids.shape[0]:
            raise BrokenIndex("its codes do not fit its product quantizer")
    found = _read_lists(reader, lists, code_bytes)
    if sum(len(ids) for ids, _ in found) != header.count:
        raise BrokenIndex(f"its lists do not hold the {header.count} vectors that it promises")
    if not header.count or not probes:
        raise BrokenIndex("it holds no vector, or looks into no list")
    return Ivf(quantizer, min(probes, lists), found, header.is_similarity, product, by_residual)


def _read_product_quantizer(reader: _Reader, features: int) -> ProductQuantizer:
    width, parts, bits = reader.take("<Q"), reader.take("<Q"), reader.take("<Q")
    centroids = reader.take_vector("<f4")
    if bits != 8:
        raise BrokenIndex(f"its product quantizer has {bits} bits, 8 are read")
    if width != features or not parts or width % parts or len(centroids) != 256 * width:
        raise BrokenIndex("its product quantizer does not fit its vectors")
    _check_vectors(centroids)
    return ProductQuantizer(centroids.reshape(parts, 256, width // parts))


def _check_vectors(vectors: Array) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        _check_squares(np.square(vectors))


def _check_squares(squares: Array) -> None:
    if not np.isfinite(squares).all():
        raise BrokenIndex("its vectors are not numbers, or so large that their distances are not")


def _read_lists(reader: _Reader, count: int, code_bytes: int) -> list[tuple[Array, Array]]:
    if reader.take_bytes(4) != b"ilar" or reader.take("<Q") != count or reader.take("<Q") != code_bytes:
        raise BrokenIndex("its lists are not in the file")
    form, sizes = reader.take_bytes(4), reader.take_vector("<u8").astype(object)
    if form == b"sprs" and len(sizes) % 2 == 0:
        size_of = dict(zip(sizes[::2], sizes[1::2], strict=True))
    elif form == b"full" and len(sizes) == count:
        size_of = dict(enumerate(sizes))
    else:
        raise BrokenIndex("the sizes of its lists are broken")
    if any(number >= count for number in size_of):
        raise BrokenIndex("the sizes of its lists are broken")
    lists = []
    for number in range(count):
        size = int(size_of.get(number, 0))
        codes = np.frombuffer(reader.take_bytes(size * code_bytes), np.uint8).reshape(size, code_bytes)
        lists.append((np.frombuffer(reader.take_bytes(size * 8), "<i8"), codes))
    return lists


@dataclass(frozen=True)
class _Header:
    features: int
    count: int
    is_similarity: bool


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._offset = 0

    def take(self, form: str) -> int:
        return int(struct.unpack(form, self.take_bytes(struct.calcsize(form)))[0])

    def take_bytes(self, count: int) -> bytes:
        return bytes(self._take(count))

    def take_vector(self, dtype: str, pairs: bool = False) -> Array:
        """A count and so many numbers, or pairs of numbers; they stay where they are."""
        count = self.take("<Q") * (2 if pairs else 1)
        return np.frombuffer(self._take(count * np.dtype(dtype).itemsize), dtype)

    def take_header(self) -> _Header:
        features, count, _, _, is_trained, metric = (self.take(form) for form in ("<i", "<q", "<q", "<q", "<B", "<i"))
        if metric not in (_INNER_PRODUCT, _L2):
            raise BrokenIndex(f"it has the metric {metric}; L2 (1) and the inner product (0) are read")
        if features < 1 or count < 0 or not is_trained:
            raise BrokenIndex(f"it has {count} vectors of {features} numbers, or is not trained")
        return _Header(features, count, metric == _INNER_PRODUCT)

    def _take(self, count: int) -> memoryview:
        end = self._offset + count
        if end > len(self._data):
            raise BrokenIndex(f"it ends at byte {len(self._data)}, {count} more were due at {self._offset}")
        taken = self._data[self._offset : end]
        self._offset = end
        return taken
