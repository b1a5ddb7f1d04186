"""Orders to a worker: what becomes of each, and in which order those are sent that wait."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from polyhost.engine.native.messages import FromWorker, Load, Part, Predict, ToWorker
from polyhost.engine.protocol import Stream
from polyhost.framing import BrokenFrame

logger = logging.getLogger("polyhost.engine")

# How many calls go before a load that waits: then it is its turn, however many more come.
OVERTAKING = 32
# How many loads are sent ahead: the worker is to have the next one when it is done with one.
LOADS_AHEAD = 2


class WorkerLost(Exception):
    """
    The order was not answered. `was_running`: whether the worker had begun it when it ended.

    Otherwise it is simply to be sent again: the worker ended before its turn, or was given away to another model.
    """

    def __init__(self, was_running: bool, reason: str) -> None:
        super().__init__(reason)
        self.was_running = was_running


class Order(msgspec.Struct, eq=False):
    """
    A message on its way to a worker and back. `done` is called once: with the answer, or with why there is none.

    `stream`: takes the parts that come before, if any.
    """

    message: ToWorker
    done: Callable[[FromWorker | WorkerLost], None]
    timeout_secs: float
    stream: Stream | None = None
    is_over: bool = False
    is_abandoned: bool = False

    def end(self, outcome: FromWorker | WorkerLost) -> None:
        """Only the first end counts: an order that was given away is answered all the same."""
        if self.is_over:
            return
        self.is_over = True
        try:
            self.done(outcome)
        except Exception:  # a fault in what one call does with its answer must not cost the others their worker
            logger.exception("an answer was not taken")

    def take(self, part: Part) -> int:
        """How many bytes the answer takes by now. Raises BrokenFrame."""
        if self.stream is None:
            raise BrokenFrame("a part of an answer that is not streamed")
        if not self.is_over:
            self.stream.take(part.content_type, part.body)
        return self.stream.held_bytes

    @property
    def model(self) -> int | None:
        """The front's number of the model it is for."""
        return getattr(self.message, "model", None)


class Waiting:
    """
    What waits for its turn at one worker.

    Calls go before loads, and few loads are sent ahead: a call waits for no more than these. What else comes after a
    load is not sent before it.
    """

    def __init__(self) -> None:
        self._calls: deque[Order] = deque()
        self._loads: deque[Order] = deque()
        # How many calls were sent while a load waited.
        self._overtaking = 0

    def __len__(self) -> int:
        return len(self._calls) + len(self._loads)

    def __iter__(self) -> Iterator[Order]:
        yield from self._calls
        yield from self._loads

    def add(self, order: Order) -> None:
        message = order.message
        is_behind = bool(self._loads) and not isinstance(message, Predict)
        (self._loads if isinstance(message, Load) or is_behind else self._calls).append(order)

    def next(self, sent: Sequence[Order]) -> Order | None:
        """What is sent now, which waits no more; None for nothing. `sent`: what was sent and not answered."""
        if self._is_turn_of_loads(sent):
            self._overtaking = 0
            return self._loads.popleft()
        if not self._calls:
            return None
        self._overtaking += bool(self._loads)
        return self._calls.popleft()

    def _is_turn_of_loads(self, sent: Sequence[Order]) -> bool:
        if not self._loads or (self._calls and self._overtaking < OVERTAKING):
            return False
        return not _is_load(self._loads[0]) or sum(map(_is_load, sent)) < LOADS_AHEAD

    def keep(self, model: int) -> None:
        """Only what is for this model, or for none."""
        self._calls = deque(order for order in self._calls if order.model in (None, model))
        self._loads = deque(order for order in self._loads if order.model in (None, model))

    def taken_back(self) -> list[Order]:
        """All, of which nothing is sent any more."""
        orders = list(self)
        self._calls.clear()
        self._loads.clear()
        return orders


def _is_load(order: Order) -> bool:
    return isinstance(order.message, Load)
