"""
One row of CSV to a compiled model, which is what is asked most: how it is read, predicted with and answered.

The handler and the server's front both answer by these functions, so that whoever answers, the bytes are the same.
Without numpy, because the front has none.
"""

from __future__ import annotations

import ctypes
import functools
import math
import struct
from typing import NamedTuple

from polyhost_handlers.compiled.library import Library
from polyhost_handlers.errors import UnsupportedMediaType
from polyhost_handlers.media_types import (
    CSV,
    JSON,
    JSONLINES,
    LIBSVM,
    NPY,
    NPZ,
    RECORDIO,
    choose_accept,
    decoder_for,
    header_of,
)

# What the XGBoost handler takes and answers.
INPUTS = (CSV, LIBSVM, RECORDIO, JSON, JSONLINES, NPY, NPZ)
OUTPUTS = (JSON, CSV, JSONLINES, RECORDIO)
# The variables that decide how it answers a row.
VARIABLES = (
    "SAGEMAKER_BATCH",
    "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
    "SAGEMAKER_INFERENCE_ENSEMBLE",
    "SAGEMAKER_INFERENCE_OUTPUT",
    "SAGEMAKER_MULTI_MODEL",
)
# The header's numbers but for magic and checksum; trees.c and trees.py have the same.
_HEADER = struct.Struct("<8xQ8x7I")
_LARGEST = 4
# An estimate of what a row takes, µs: each tree's way to a leaf, each field of CSV, and the call itself. Measured on a
# core of an AMD EPYC of 2025, over models of 1 to 5,000 trees, it is about a quarter as much where the model is in the
# processor's cache, and some five times as much where other models have displaced it.
_TREE_MICROSECS, _FIELD_MICROSECS, _CALL_MICROSECS = 0.06, 0.03, 1.0
# Of a linear model, for each feature and output.
_WEIGHT_MICROSECS = 0.002


class Way(NamedTuple):
    """
    What answers a model: what was compiled of it, or its framework, and then why: a clause, without a full stop.

    `has_differed`: it was compiled, and did not answer a sample of rows as its framework does.
    """

    is_compiled: bool
    why_not: str = ""
    has_differed: bool = False


class PlainRows(NamedTuple):
    """
    A compiled model: what answers a row without its handler, and what the handler can be made of anew.

    `trees`: a sealed blob. `names`: of the features, as JSON; empty for none. `default_accept`: what is answered to who
    accepts anything.
    """

    trees: bytes
    names: bytes
    default_accept: str


@functools.lru_cache(maxsize=1024)
def row_accept(content_type: str, accept: str, default_accept: str) -> str | None:
    """In which format a row's number is answered, JSON or CSV; None where the handler itself must look at it."""
    try:
        is_csv = decoder_for(content_type, INPUTS) == CSV
        chosen = choose_accept(accept, OUTPUTS, default_accept)
    except UnsupportedMediaType:
        return None
    # A line that its sender calls a header is no row.
    return chosen if is_csv and not header_of(content_type) and chosen in (CSV, JSON) else None


def number_body(value: float, accept: str) -> bytes:
    """A row's answer, as `row_accept` chose."""
    return b"[%b]" % repr(value).encode() if accept == JSON else repr(value).encode()


class Shape(NamedTuple):
    """The shape of a blob that was checked."""

    count_bytes: int
    features: int
    groups: int
    trees: int
    nodes: int
    transform: int

    @classmethod
    def at(cls, address: int) -> Shape:
        return cls.of(ctypes.string_at(address, _HEADER.size))

    @classmethod
    def of(cls, blob: bytes) -> Shape:
        count_bytes, features, groups, trees, nodes, _, transform, _ = _HEADER.unpack_from(blob)
        return cls(count_bytes, features, groups, trees, nodes, transform)

    @property
    def answers_with_one_number(self) -> bool:
        return self.groups == 1 or self.transform == _LARGEST

    @property
    def cost_microsecs(self) -> float:
        """About how long one row takes."""
        weights = 0 if self.trees else self.features * self.groups
        sums = self.trees * _TREE_MICROSECS + weights * _WEIGHT_MICROSECS
        return _CALL_MICROSECS + sums + self.features * _FIELD_MICROSECS


class RowPredictor:
    """A checked blob somewhere in memory, asked for a row at a time by one thread."""

    __slots__ = ("_address", "_answer", "_answer_address", "_predict_csv")

    def __init__(self, address: int, groups: int, functions: Library) -> None:
        self._address = address
        self._answer, self._answer_address = _room_for(groups)
        self._predict_csv = functions.predict_csv

    def predict_csv_row(self, body: bytes) -> float | None:
        """The first number that answers a row of plain numbers, if it is finite; None where it is not that simple."""
        if not self._predict_csv(self._address, body, len(body), self._answer_address):
            return None
        value = self._answer[0]
        return value if math.isfinite(value) else None


@functools.lru_cache
def _room_for(groups: int) -> tuple[ctypes.Array[ctypes.c_float], int]:
    """Shared by all models of as many groups: an answer is read before the next one is written."""
    room = (ctypes.c_float * groups)()
    return room, ctypes.addressof(room)
