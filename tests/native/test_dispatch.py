"""A call on its way to a worker and back, with a worker that is none."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from polyhost.engine.native.dispatch import Dispatcher, Prediction
from polyhost.engine.native.messages import Answered, Failed, FromWorker
from polyhost.engine.native.orders import Order, WorkerLost
from polyhost.engine.native.pool import End
from polyhost.engine.protocol import Answer, Item, Stream

ANSWERED = Answered(1, [Answer(200, {}, b"1")], [])


class Worker:
    is_alive = True
    load = 0
    end = End.OUTGROWN

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def send(self, order: Order) -> None:
        self.orders.append(order)

    def abandon(self, order: Order) -> None:
        order.is_abandoned = True


class Client:
    """Who waits for the answer."""

    def __init__(self) -> None:
        self.answers: list[Answer | Exception] = []

    def __call__(self, answer: Answer | Exception) -> None:
        self.answers.append(answer)


@pytest.fixture
def _without_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_without_collections")
@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize(
    "reply", [ANSWERED, Failed(1, 503, "Prediction failed"), WorkerLost(was_running=True, reason="it ended")]
)
def test_nothing_keeps_a_call_that_is_over(reply: FromWorker | WorkerLost, is_streamed: bool) -> None:
    """Its body may have megabytes, and would be there until a garbage collection."""
    worker = Worker()
    model: Any = SimpleNamespace(
        name="m", title="m", key=1, deaths=[], copies=[SimpleNamespace(worker=worker)], timeout_secs=1.0, in_flight=1,
        is_dedicated=True,
    )  # fmt: skip
    dispatcher = Dispatcher(None, None, None, numbers=itertools.count(1))  # type: ignore[arg-type]
    client = Client()
    stream = Stream(lambda *_: None) if is_streamed else None
    dispatcher.send(Prediction(model, [Item("id", {}, "", b"row")], (client,), stream=stream))
    worker.orders.pop().end(reply)

    assert len(client.answers) == 1
    waiting = weakref.ref(client)
    del client
    assert waiting() is None
    assert stream is None or not stream.is_abandoned


def test_a_client_that_leaves_ends_what_makes_its_answer() -> None:
    """Until the answer has come, and not after it: the worker is at another call by then."""
    worker = Worker()
    model: Any = SimpleNamespace(
        name="m", title="m", key=1, deaths=[], copies=[SimpleNamespace(worker=worker)], timeout_secs=1.0, in_flight=2
    )
    dispatcher = Dispatcher(None, None, None, numbers=itertools.count(1))  # type: ignore[arg-type]
    streams = [Stream(lambda *_: None) for _ in range(2)]
    for stream in streams:
        dispatcher.send(Prediction(model, [Item("id", {}, "", b"row")], (Client(),), stream=stream))
    first, second = worker.orders
    streams[0].leave()
    second.end(ANSWERED)
    streams[1].leave()

    assert (first.is_abandoned, second.is_abandoned) == (True, False)
