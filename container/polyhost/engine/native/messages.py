"""
All that the front and a worker ever say to each other, in msgpack.

Every request carries an id that its answer repeats. A worker answers in the order in which it was asked. Across
the socket go codes and text, never an exception and never a pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import msgspec

from polyhost.engine.protocol import Answer, HandlerMetric, Item

# Front to worker


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Make `model` (a number of the front's) from the folder `path`."""

    id: int
    model: int
    name: str
    path: str
    handler: str
    batch_size: int
    # Whether it brings Python code; and whether the worker is its alone, so that the code may change what is shared.
    has_code: bool
    is_alone: bool


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    id: int
    model: int


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """Drop all models but this one: from now on the worker is its alone."""

    id: int
    model: int


class Trim(msgspec.Struct, frozen=True, tag="trim"):
    """Give freed memory back to the system."""

    id: int


class Predict(msgspec.Struct, frozen=True, tag="predict"):
    """A batch; one item unless the model asked for more."""

    id: int
    model: int
    items: list[Item]


# Worker to front


class Done(msgspec.Struct, frozen=True, tag="done"):
    """A load or an unload succeeded. `grown_bytes`: what the process's private memory grew by."""

    id: int
    grown_bytes: int


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """An answer for each item of the batch, and the metrics that the handler added."""

    id: int
    answers: list[Answer]
    metrics: Sequence[HandlerMetric]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A load, or a whole batch, failed with this HTTP status; 507 is out of memory."""

    id: int
    status: int
    message: str


ToWorker = Union[Load, Unload, Keep, Predict, Trim]  # noqa: UP007 - msgspec reads it at run time, also under Python 3.9
FromWorker = Union[Done, Answered, Failed]  # noqa: UP007
