"""What is known of one client's call while it goes through the endpoint."""

from __future__ import annotations

from typing import Protocol

import msgspec

from polyhost.engine.protocol import Stream

# SageMaker's limit of what InvokeEndpoint answers.
_MAX_ANSWER_BYTES = 6_291_456


class Cancellable(Protocol):
    """A task or a future."""

    def cancel(self) -> object: ...


class Trace(Protocol):
    """Who is told what a call does. Times are of time.perf_counter()."""

    def hop(self, name: str, begin: float, end: float, target: str) -> None: ...

    def answered(self, status: int, endpoint: str, variant: str, target: str, request_id: str) -> None: ...


class CallContext(msgspec.Struct, eq=False):
    """
    How long a call has waited for loads and for models' answers, seconds; and whether its client is still there.

    `was_hit`: whether the model that the client chose was resident when it was asked; None where there was no choice.
    `max_answer_bytes`: None for the engine's own limit. `stream`: of a call whose answer may come in parts.
    """

    wait_secs: float = 0.0
    model_secs: float = 0.0
    was_hit: bool | None = None
    has_left: bool = False
    # What is cancelled when the client leaves. A call that a model has begun is not cancelled.
    waits_for: Cancellable | None = None
    max_answer_bytes: int | None = _MAX_ANSWER_BYTES
    stream: Stream | None = None
    # None where nobody is told.
    trace: Trace | None = None

    def leave(self) -> None:
        """The client has gone: nothing more is begun for it."""
        self.has_left = True
        if self.waits_for is not None:
            self.waits_for.cancel()
        if self.stream is not None:
            self.stream.leave()
