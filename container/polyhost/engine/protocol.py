"""
What every engine offers, and what passes between it and those who call it.

Errors are those of `polyhost.engine.errors`; OutOfMemory is the one after which the caller unloads something and
asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec
from polyhost_handlers.script_trial import Fault
from polyhost_handlers.signature import Signature

T = TypeVar("T")

# What MMS says of workers that it will start, and does not wait for.
PROCESSING = "Processing worker updates..."


class CompiledPlace(Protocol):
    """Where an engine may keep what it has compiled of an archive, for its next load. Nobody else writes there."""

    @property
    def is_there(self) -> bool:
        """Whether something was kept."""

    def take(self) -> bytes | None:
        """What was read already, once: b"" for nothing, or nothing that can be trusted; None where it is to be read."""

    def give_back(self, content: bytes) -> None:
        """What was taken is taken once more: the load is tried again when there is room."""

    def read(self) -> bytes | None:
        """Blocking. None for nothing, or nothing that can be trusted."""

    async def write(self, content: bytes) -> None:
        """Raises nothing: what could not be kept is compiled again."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What a client asks for when it loads a model."""

    url: str
    name: str = ""
    # What clients call it, where the name is not theirs: for logs and errors.
    title: str = ""
    handler: str = ""
    batch_size: int = 1
    max_batch_delay_ms: int = 100
    initial_workers: int | None = None
    response_timeout_secs: float | None = None
    # How long its load may take; None for as long as a call.
    load_timeout_secs: float | None = None
    is_synchronous: bool = True
    # MMS loads once and forks; each of our copies is loaded by itself. Passed on, and otherwise without effect.
    preload_model: bool = False
    # Loaded with the server, by no client's request.
    is_startup: bool = False
    # Variables that its workers see besides the server's own.
    environ: tuple[tuple[str, str], ...] = ()
    # Its container's image, `REPOSITORY:TAG`; "" where none is named.
    image: str = ""
    compiled: CompiledPlace | None = field(default=None, compare=False)


class Item(msgspec.Struct, frozen=True, array_like=True):
    """
    One client's request as it came; header names in lower case, `query` without its question mark.

    `timeout_secs`: how long the model may take to answer it; None for what holds for all requests of the model.
    `is_streamed`: whether an answer may come in parts.
    """

    request_id: str
    headers: dict[str, str]
    query: str
    body: bytes
    timeout_secs: float | None = None
    is_streamed: bool = False


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What one client gets."""

    status: int
    headers: dict[str, str]
    body: bytes


# Who is told how a call ended: once, now or later. An exception that is no EngineError is a fault of the server's.
WhenDone = Callable[[Answer | Exception], None]


# What a part takes besides its bytes, in all forms that it goes through.
PART_BYTES = 128


class Stream:
    """
    An answer that may come in parts, of whom asked for it. Where parts have come, the answer that follows has no body.

    `take` is called with the content type and each part. The engine is told by `leave` that nobody waits any more.
    """

    __slots__ = ("_abandon", "_take", "held_bytes", "is_abandoned", "taken_bytes")

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self._take = take
        self._abandon: Callable[[], object] = lambda: None
        self.is_abandoned = False
        self.taken_bytes = 0
        # What a client that takes nothing leaves here at most.
        self.held_bytes = 0

    def take(self, content_type: str, part: bytes) -> None:
        self.taken_bytes += len(part)
        self.held_bytes += len(part) + PART_BYTES
        if not self.is_abandoned:
            self._take(content_type, part)

    @property
    def has_begun(self) -> bool:
        return self.taken_bytes > 0

    def comes_from(self, abandon: Callable[[], object]) -> None:
        """`abandon` ends what makes it."""
        self._abandon = abandon
        if self.is_abandoned:
            abandon()

    def ends(self) -> None:
        """Nothing more comes. What made it is let go of, and the request with it, whose body may be large."""
        self._abandon = lambda: None

    def leave(self) -> None:
        self.is_abandoned = True
        self._abandon()


async def answer_of(
    begin: Callable[[Callable[[T | Exception], None]], object], leave: Callable[[], object] | None = None
) -> T:
    """
    Await what `begin` begins and reports by a callback. Raises the exception that it reports.

    `leave` is called where nobody waits any more.
    """
    ended: asyncio.Future[T | Exception] = asyncio.get_running_loop().create_future()
    begin(lambda outcome: None if ended.done() else ended.set_result(outcome))
    try:
        outcome = await ended
    except asyncio.CancelledError:
        if leave is not None:
            leave()
        raise
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


async def report(answering: Coroutine[Any, Any, T], done: Callable[[T | Exception], None]) -> None:
    """The way back from `answer_of`: tell `done` how a coroutine ended."""
    outcome: T | Exception
    try:
        outcome = await answering
    except Exception as error:  # noqa: BLE001 - whoever is told decides what it means
        outcome = error
    done(outcome)


class HandlerMetric(msgspec.Struct, frozen=True, array_like=True):
    """What a handler counted or measured by MMS's `context.metrics`. `line` is how MMS logs it."""

    name: str
    unit: str
    value: float
    is_counter: bool
    line: str


class Engine(Protocol):
    """`has_ended`: by itself, after which nothing can be served; `on_end` is called when that happens."""

    has_ended: bool
    on_end: Callable[[], None]

    @property
    def budget_bytes(self) -> int:
        """What all models together may use."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def load(self, registration: Registration) -> str:
        """Load a model; the status text. Nothing is registered after an error."""

    async def unload(self, name: str) -> None:
        """Returns when the memory has been given back."""

    async def scale(self, name: str, minimum: int, maximum: int | None, is_synchronous: bool) -> str:
        """Have `minimum` copies of a model; the status text."""

    def invoke(self, name: str, item: Item, done: WhenDone, stream: Stream | None = None) -> None:
        """
        Have a model answer. It goes on whether or not anybody still waits for it. `stream`: of an item that has one.

        `done` is called once, now or later, with the answer or an EngineError: ModelNotFound if there is no such model.
        """

    def used_bytes(self) -> int:
        """What models use, measured now."""

    def names(self) -> list[str]:
        """The names of all registered models, sorted."""

    def url_of(self, name: str) -> str: ...

    async def prepare(self, environ: tuple[tuple[str, str], ...]) -> None:
        """Models with these variables will be loaded: what can be started before is."""

    async def try_script(self, registration: Registration) -> Fault | None:
        """
        Import the container's script, as for the model at `url`, in a process of its own.

        `url`: a folder, "" for an empty one. None is answered where the script can be imported, where the handler does
        not use it, and where it cannot be told. Raises EngineError.
        """

    async def forget(self, environ: tuple[tuple[str, str], ...]) -> None:
        """No more of them will be: nothing is kept running for them. All are unloaded."""

    async def signature(self, name: str) -> Signature:
        """What a model takes and answers, as far as that is known. Raises EngineError."""

    async def describe(self, name: str) -> dict[str, Any]:
        """As MMS describes a model: keys in its order, what is unknown left out."""
