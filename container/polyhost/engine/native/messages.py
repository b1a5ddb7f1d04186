"""
All that the front and a worker ever say to each other, in msgpack.

Every request carries an id that its answer repeats. A worker answers in the order in which it was asked. Across
the socket go codes and text, never an exception and never a pickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import msgspec
from polyhost_handlers.compiled.rows import PlainRows, Way
from polyhost_handlers.signature import Signature

from polyhost.engine.protocol import Answer, HandlerMetric, Item
from polyhost.framing import frame

# What a compiled model may have, to be kept by the front: whatever a worker sends, it must not fill its memory.
MOST_COMPILED_BYTES = 8 * 1024**2

# From here on, to write a body by itself, and to read it where it will lie, costs less than to copy it.
_LARGE_BODY_BYTES = 64 * 1024

# Front to worker


class Confine(msgspec.Struct, frozen=True, tag="confine"):
    """Give up all rights but these, for good: the first order that a worker of the hardened mode gets."""

    id: int
    # Files and folders that it may read, besides the frameworks, and the one folder that it may write to.
    readable: list[str]
    temp: str
    # Names of hardening.RESTRICTIONS that hold, and the version of this kernel's Landlock.
    restrictions: list[str]
    landlock_version: int
    # Where Landlock does not keep signals in: who is to be guarded from them.
    guarded_pids: list[int]
    # The container definition's variables, which the template did not get.
    environ: list[tuple[str, str]]


class Borrowed(msgspec.Struct, frozen=True, array_like=True):
    """Where a compiled model lies in a segment that was passed to the worker: its trees, and the names behind them."""

    segment: int
    offset: int
    count_bytes: int


class Load(msgspec.Struct, frozen=True, tag="load"):
    """
    Make `model` (a number of the front's) from the folder `path`, or of what is compiled of it already.

    `hands_over`: where it can be compiled, the front is sent that, and nothing is kept.
    """

    id: int
    model: int
    name: str
    path: str
    handler: str
    batch_size: int
    # Whether it brings Python code; and whether the worker is its alone, so that the code may change what is shared.
    has_code: bool
    is_alone: bool
    max_response_bytes: int
    hands_over: bool = False
    compiled: Borrowed | None = None


class Unload(msgspec.Struct, frozen=True, tag="unload"):
    id: int
    model: int


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """Drop all models but this one: from now on the worker is its alone."""

    id: int
    model: int


class TryScript(msgspec.Struct, frozen=True, tag="try script"):
    """Import the container's script as for a model in the folder `path`, and load none."""

    id: int
    path: str


class Trim(msgspec.Struct, frozen=True, tag="trim"):
    """Give freed memory back to the system."""

    id: int


class Describe(msgspec.Struct, frozen=True, tag="describe"):
    """Say what the model takes and answers."""

    id: int
    model: int


class Predict(msgspec.Struct, frozen=True, tag="predict", omit_defaults=True):
    """
    A batch; one item unless the model asked for more.

    `body_bytes`: where the body of its one item follows the message, instead of being in it, how many bytes these are.
    """

    id: int
    model: int
    items: list[Item]
    body_bytes: int = 0


# Worker to front


class Done(msgspec.Struct, frozen=True, tag="done"):
    """
    A load, an unload or a Confine succeeded. `grown_bytes`: what the process's private memory grew by.

    `rows`: of a load, the compiled model that was handed over, and is not kept; `way`: what answers the model.
    """

    id: int
    grown_bytes: int
    rows: PlainRows | None = None
    way: Way | None = None


class Tried(msgspec.Struct, frozen=True, tag="tried"):
    """`fault`: why the script cannot be imported, "" where it can; `blame`: a script_trial.Blame."""

    id: int
    fault: str = ""
    blame: str = ""


class Trimmed(msgspec.Struct, frozen=True, tag="trimmed"):
    """A trim, or a Keep, is done. `resident_bytes`: the process's private memory since then."""

    id: int
    resident_bytes: int


class Described(msgspec.Struct, frozen=True, tag="described"):
    id: int
    signature: Signature


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """An answer for each item of the batch, and the metrics that the handler added."""

    id: int
    answers: list[Answer]
    metrics: Sequence[HandlerMetric]


class Part(msgspec.Struct, frozen=True, tag="part"):
    """Of the answer to a batch of one item that is streamed. `Answered`, without a body, follows the last."""

    id: int
    content_type: str
    body: bytes


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A load, or a whole batch, failed with this HTTP status; 507 is out of memory."""

    id: int
    status: int
    message: str


ToWorker: TypeAlias = Confine | Load | Unload | Keep | Describe | Predict | TryScript | Trim
FromWorker: TypeAlias = Done | Tried | Trimmed | Described | Answered | Part | Failed


def parts_of(message: ToWorker) -> Sequence[bytes | bytearray]:
    """What is written of a message, one after the other: its frame, and a large body behind it."""
    if not isinstance(message, Predict) or len(message.items) != 1:
        return (frame(message),)
    item = message.items[0]
    if len(item.body) < _LARGE_BODY_BYTES:
        return (frame(message),)
    without = Item(item.request_id, item.headers, item.query, b"", item.timeout_secs, item.is_streamed)
    return frame(Predict(message.id, message.model, [without], len(item.body))), item.body


def with_body(message: Predict, body: bytearray) -> Predict:
    """As it was before its parts were written, except that its bytes are an array: models get what they take."""
    (item,) = message.items
    values = cast("bytes", body)
    whole = Item(item.request_id, item.headers, item.query, values, item.timeout_secs, item.is_streamed)
    return Predict(message.id, message.model, [whole])


def too_long_an_answer(answer_bytes: int, limit_bytes: int) -> str:
    """In the words of both ends: the worker looks first, the front where customers' code writes to its socket."""
    return (
        f"The model's answer has {answer_bytes} bytes, {limit_bytes} are allowed: answer less, or set "
        "MMS_MAX_RESPONSE_SIZE to more bytes."
    )
