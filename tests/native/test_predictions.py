"""What the native engine does with a call until it is answered, with workers that only keep their orders."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from polyhost.engine.errors import EngineError, ModelNotFound, PredictionFailed, Unavailable
from polyhost.engine.native.batcher import Batcher
from polyhost.engine.native.dispatch import Dispatcher
from polyhost.engine.native.engine import NativeEngine
from polyhost.engine.native.messages import Answered, Failed, FromWorker
from polyhost.engine.native.messages import Done as LoadDone
from polyhost.engine.native.orders import Order, WorkerLost
from polyhost.engine.native.pool import End
from polyhost.engine.native.registry import Copy, Model
from polyhost.engine.protocol import Answer, Item, Registration

Outcome = Answer | Exception


class KeepingWorker:
    """A worker as the engine sees it, which answers when it is told to."""

    def __init__(self) -> None:
        self.is_alive = True
        self.end = End.BY_ITSELF
        self.orders: list[Order] = []

    def send(self, order: Order) -> None:
        self.orders.append(order)

    def bodies(self) -> list[list[bytes]]:
        return [[item.body for item in order.message.items] for order in self.orders]  # type: ignore[union-attr]

    def answer(self, *bodies: bytes) -> None:
        order = self.orders.pop(0)
        order.end(Answered(order.message.id, [Answer(200, {}, body) for body in bodies], ()))

    def reply(self, reply: Callable[[int], FromWorker]) -> None:
        order = self.orders.pop(0)
        order.end(reply(order.message.id))


class Engine(NativeEngine):
    """With one model, `a`, of one copy. A copy without a worker gets the next of `workers` when `loading` is set."""

    def __init__(self, *, batch_size: int = 1, job_queue_size: int = 100) -> None:
        self._job_queue_size = job_queue_size
        self.tasks: list[asyncio.Task[Any]] = []
        workforce: Any = SimpleNamespace(keep=self.tasks.append)
        loader: Any = SimpleNamespace(load=self._load_copy)
        metrics: Any = SimpleNamespace()
        self._dispatcher = Dispatcher(workforce, loader, metrics, numbers=itertools.count(1))
        self.worker = KeepingWorker()
        self.copy = Copy(9000, worker=self.worker)  # type: ignore[arg-type]
        self.workers: list[KeepingWorker] = []
        self.loading = asyncio.Event()
        self.loading.set()
        registration = Registration(url="/a", name="a", batch_size=batch_size)
        source: Any = SimpleNamespace()
        self.model = Model(1, "a", source, registration, 5.0, 5.0, is_dedicated=True, copies=[self.copy])
        if batch_size > 1:
            self.model.batcher = Batcher(batch_size, 60.0, functools.partial(self._dispatcher.send_batch, self.model))
        self._registry: Any = SimpleNamespace(find={"a": self.model}.get)

    async def _load_copy(self, _: Model, copy: Copy) -> None:
        await self.loading.wait()
        if copy.worker is None:
            if not self.workers:
                raise EngineError("there is no worker")
            copy.worker = self.workers.pop(0)  # type: ignore[assignment]

    def call(self, body: bytes = b"x", name: str = "a") -> list[Outcome]:
        """Where its outcome appears."""
        outcomes: list[Outcome] = []
        self.invoke(name, Item("request", {}, "", body), outcomes.append)
        return outcomes

    def lose(self, worker: KeepingWorker, running: int | None) -> None:
        """The worker ends: what it was at is the order of that place."""
        worker.is_alive = False
        self.copy.worker = None
        orders, worker.orders = worker.orders, []
        for place, order in enumerate(orders):
            order.end(WorkerLost(place == running, "it ended by itself"))


def run(case: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(case(), 120))


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def statuses(*calls: list[Outcome]) -> list[int]:
    return [outcome.status for (outcome,) in calls]  # type: ignore[union-attr]


def test_a_call_goes_to_a_worker_that_is_there_without_a_task() -> None:
    async def case() -> None:
        engine = Engine()
        call = engine.call(b"1")
        assert engine.worker.bodies() == [[b"1"]]
        assert (engine.model.in_flight, engine.tasks) == (1, [])
        engine.worker.answer(b"one")
        assert call == [Answer(200, {}, b"one")]
        assert engine.model.in_flight == 0

    run(case)


def test_what_is_not_sent_is_refused_at_once() -> None:
    async def case() -> None:
        engine = Engine(job_queue_size=1)
        assert isinstance(engine.call(name="b")[0], ModelNotFound)
        engine.call()
        assert isinstance(engine.call()[0], Unavailable)
        engine.worker.answer(b"")
        assert engine.call() == []

    run(case)


@pytest.mark.parametrize(
    ("reply", "status", "words"),
    [
        (lambda number: Failed(number, 503, "Prediction failed"), 503, "Prediction failed"),
        (lambda number: Failed(number, 507, "Out of resources"), 507, "Out of resources"),
        (lambda number: Answered(number, [], ()), 500, "something else than an answer to each request"),
        (lambda number: LoadDone(number, 0), 500, "something else than an answer to each request"),
    ],
)
def test_a_call_that_fails(reply: Callable[[int], FromWorker], status: int, words: str) -> None:
    """The last two were sent by code that wrote to its worker's socket."""

    async def case() -> None:
        engine = Engine()
        call = engine.call()
        engine.worker.reply(reply)
        assert statuses(call) == [status]
        assert words in str(call[0])
        assert engine.model.in_flight == 0

    run(case)


def test_a_call_that_waits_for_a_load_goes_the_same_way_then() -> None:
    async def case() -> None:
        engine = Engine()
        engine.copy.worker = None
        engine.loading.clear()
        engine.workers = [engine.worker]
        calls = [engine.call(b"1"), engine.call(b"2")]
        await settled()
        assert engine.worker.bodies() == []
        engine.loading.set()
        await settled()
        assert engine.worker.bodies() == [[b"1"], [b"2"]]
        engine.worker.answer(b"")
        engine.worker.answer(b"")
        assert statuses(*calls) == [200, 200]
        assert engine.model.in_flight == 0

    run(case)


@pytest.mark.parametrize("is_seen", [True, False])
def test_a_worker_that_is_lost_costs_one_more_try(is_seen: bool) -> None:
    """What it had not begun, too; whether or not the loop has heard of its end when the call comes."""

    async def case() -> None:
        engine = Engine()
        engine.workers = [KeepingWorker()]
        running, behind = engine.call(b"running"), engine.call(b"behind")
        if is_seen:
            engine.lose(engine.worker, running=0)
        else:
            engine.worker.is_alive = False
            late = engine.call(b"late")
            engine.lose(engine.worker, running=0)
        await settled()
        second = engine.copy.worker
        assert isinstance(second, KeepingWorker)
        assert sorted(second.bodies()) == [[b"behind"], *([] if is_seen else [[b"late"]]), [b"running"]]
        assert (running, behind, len(engine.model.deaths)) == ([], [], 1)
        while second.orders:
            second.answer(b"")
        assert statuses(running, behind, *([] if is_seen else [late])) == [200] * (2 if is_seen else 3)
        assert engine.model.in_flight == 0

    run(case)


def test_a_call_that_ends_two_workers_is_answered_for_the_last_time() -> None:
    """After the third death the model is refused."""

    async def case() -> None:
        engine = Engine()
        engine.workers = [KeepingWorker(), KeepingWorker()]
        call, behind = engine.call(b"bad"), engine.call(b"behind")
        engine.lose(engine.worker, running=0)
        await settled()
        second: Any = engine.copy.worker
        engine.lose(second, running=second.bodies().index([b"bad"]))
        assert statuses(call) == [500]
        assert "ended while it answered this request" in str(call[0])
        await settled()
        third: Any = engine.copy.worker
        assert third.bodies() == [[b"behind"]]
        engine.lose(third, running=0)
        await settled()
        assert "has ended its worker 3 times and is refused" in str(behind[0])
        assert "is refused" in str(engine.call()[0])
        assert engine.model.in_flight == 0

    run(case)


def test_a_call_without_an_answer_in_time_is_not_tried_again() -> None:
    async def case() -> None:
        engine = Engine()
        call = engine.call()
        engine.worker.end = End.NO_ANSWER
        engine.lose(engine.worker, running=0)
        assert "did not answer within 5 s" in str(call[0])
        assert (engine.model.in_flight, engine.model.deaths) == (0, [])

    run(case)


def test_a_model_that_is_unloaded_while_its_worker_is_lost() -> None:
    async def case() -> None:
        engine = Engine()
        call = engine.call()
        engine.model.copies.clear()
        engine.lose(engine.worker, running=None)
        assert isinstance(call[0], ModelNotFound)

    run(case)


def test_a_load_in_vain_is_the_answer_of_all_that_wait_for_it() -> None:
    async def case() -> None:
        engine = Engine()
        engine.copy.worker = None
        calls = [engine.call(), engine.call()]
        await settled()
        assert [str(call[0]) for call in calls] == ["there is no worker"] * 2
        assert engine.model.in_flight == 0

    run(case)


# Batches


def test_a_batch_goes_when_it_is_full() -> None:
    async def case() -> None:
        engine = Engine(batch_size=2)
        calls = [engine.call(body) for body in (b"1", b"2", b"3")]
        assert engine.worker.bodies() == [[b"1", b"2"]]
        engine.worker.answer(b"one", b"two")
        assert [call[0].body for call in calls[:2]] == [b"one", b"two"]  # type: ignore[union-attr]
        assert (calls[2], engine.model.in_flight) == ([], 1)

    run(case)


def test_a_batch_goes_when_its_first_call_has_waited_long_enough() -> None:
    async def case() -> None:
        sent: asyncio.Queue[list[int]] = asyncio.Queue()
        batcher = Batcher[int](3, 0.01, sent.put_nowait)
        batcher.add(1)
        batcher.add(2)
        assert sent.empty()
        assert await sent.get() == [1, 2]
        for number in (3, 4, 5, 6):
            batcher.add(number)
        assert [await sent.get(), await sent.get()] == [[3, 4, 5], [6]]

    run(case)


def test_one_bad_call_does_not_spoil_its_batch() -> None:
    """Each of a batch that ended its worker is asked alone; only the one that ends another worker fails."""

    async def case() -> None:
        engine = Engine(batch_size=3)
        engine.workers = [KeepingWorker(), KeepingWorker()]
        good, bad, last = (engine.call(body) for body in (b"good", b"bad", b"last"))
        engine.lose(engine.worker, running=0)
        await settled()
        second: Any = engine.copy.worker
        assert second.bodies() == [[b"good"], [b"bad"], [b"last"]]
        second.answer(b"")
        engine.lose(second, running=0)
        await settled()
        third: Any = engine.copy.worker
        assert third.bodies() == [[b"last"]]
        third.answer(b"")
        assert statuses(good, bad, last) == [200, 500, 200]
        assert engine.model.in_flight == 0

    run(case)


def test_a_batch_that_fails_as_a_whole_fails_for_each() -> None:
    async def case() -> None:
        engine = Engine(batch_size=2)
        calls = [engine.call(), engine.call()]
        engine.worker.reply(lambda number: Failed(number, 503, "Prediction failed"))
        assert [type(call[0]) for call in calls] == [PredictionFailed] * 2
        assert engine.model.in_flight == 0

    run(case)


# Orders


def test_an_order_ends_once(caplog: pytest.LogCaptureFixture) -> None:
    """What it was given away for is answered all the same. A fault in taking an answer does not reach the worker."""
    ends: list[object] = []
    message: Any = SimpleNamespace(id=1)
    order = Order(message, ends.append, 1.0)
    order.end(LoadDone(1, 0))
    order.end(LoadDone(1, 1))
    assert ends == [LoadDone(1, 0)]

    def fail(_: object) -> None:
        raise RuntimeError("a fault")

    Order(message, fail, 1.0).end(LoadDone(1, 0))
    assert "an answer was not taken" in caplog.text
