"""Calls on their way: to the copy with the least to do, to its worker, and back; again where the worker was lost."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Iterator, Sequence

import msgspec
from polyhost_handlers.signature import Signature

from polyhost.engine.errors import EngineError, ModelNotFound, OutOfMemory, PredictionFailed
from polyhost.engine.native.loading import Loader
from polyhost.engine.native.messages import Answered, Describe, Described, Failed, FromWorker, Predict
from polyhost.engine.native.orders import Order, WorkerLost
from polyhost.engine.native.placement import MAX_DEATHS, AfterLoss, after_loss, is_blamed, recent_deaths
from polyhost.engine.native.pool import Worker
from polyhost.engine.native.registry import Copy, Model
from polyhost.engine.native.workforce import Workforce
from polyhost.engine.protocol import Answer, Item, Stream, WhenDone
from polyhost.metrics import Metrics

# How often a model is asked what it takes: its first load may only compile it, and a worker may end before its turn.
_MOST_TRIES = 4
_ASKED_AGAIN = (AfterLoss.RETRY, AfterLoss.ISOLATE)


class Prediction(msgspec.Struct, eq=False):
    """A batch of calls of a model on its way to a worker and back. `is_retry`: a worker that had begun it was lost."""

    model: Model
    items: list[Item]
    dones: Sequence[WhenDone]
    is_retry: bool = False
    # Of a batch of one item that is streamed.
    stream: Stream | None = None

    @property
    def timeout_secs(self) -> float:
        """For all of the batch together."""
        return max(item.timeout_secs or self.model.timeout_secs for item in self.items)

    def each_alone(self) -> Iterator[Prediction]:
        """To be tried once more, so that one bad call does not spoil the answers of the others."""
        calls = zip(self.items, self.dones, strict=True)
        return (Prediction(self.model, [item], (done,), is_retry=True, stream=self.stream) for item, done in calls)

    def end(self, outcomes: Sequence[Answer | Exception]) -> None:
        """`outcomes`: one for each call."""
        self.model.in_flight -= len(self.dones)
        if self.stream is not None:
            self.stream.ends()
        for number, done in enumerate(self.dones):
            done(outcomes[number])

    def fail(self, error: Exception) -> None:
        self.end([error] * len(self.dones))


class Dispatcher:
    def __init__(self, workforce: Workforce, loader: Loader, metrics: Metrics, *, numbers: Iterator[int]) -> None:
        """`numbers`: of orders."""
        self._workforce = workforce
        self._loader = loader
        self._metrics = metrics
        self._numbers = numbers

    def send(self, prediction: Prediction) -> None:
        """
        To the copy with the least to do. One without a worker is loaded first, in a task that then goes on here: twice
        where the first load has compiled it.
        """
        model = prediction.model
        try:
            copy = self._copy_for(model)
        except EngineError as error:
            prediction.fail(error)
            return
        worker = copy.worker
        if worker is None or not worker.is_alive:
            self._workforce.keep(asyncio.get_running_loop().create_task(self._load_and_send(prediction, copy)))
            return
        predict = Predict(next(self._numbers), model.key, prediction.items)
        stream = prediction.stream
        answered = functools.partial(self._answered, prediction, worker)
        order = Order(predict, answered, prediction.timeout_secs, stream)
        worker.send(order)
        if stream is not None:
            stream.comes_from(functools.partial(worker.abandon, order))

    async def signature(self, model: Model) -> Signature:
        """What the model takes and answers. Raises EngineError."""
        for _ in range(_MOST_TRIES):
            copy = self._copy_for(model)
            await self._loader.load(model, copy)
            worker = copy.worker
            if worker is None or not worker.is_alive:  # it was compiled instead, or its worker died unseen
                await asyncio.sleep(0)
                continue
            try:
                reply = await worker.order(Describe(next(self._numbers), model.key), model.timeout_secs)
            except WorkerLost as lost:
                if lost.was_running:
                    _blame(model)
                continue
            if isinstance(reply, Described):
                return reply.signature
            raise _error_of(model, reply)
        raise EngineError(f"The worker of model {model.title} ended while it described the model: call again.")

    def send_batch(self, model: Model, calls: Sequence[tuple[Item, WhenDone]]) -> None:
        self.send(Prediction(model, [item for item, _ in calls], [done for _, done in calls]))

    def _copy_for(self, model: Model) -> Copy:
        """Raises EngineError where the model is refused, or is no more."""
        if model.deaths and (count := len(recent_deaths(model.deaths, time.monotonic()))) >= MAX_DEATHS:
            raise EngineError(
                f"Model {model.title} has ended its worker {count} times and is refused: "
                "unload it, mend it, load it again.",
            )
        if not model.copies:
            raise ModelNotFound(f"Model not found: {model.title}")
        return model.copies[0] if len(model.copies) == 1 else min(model.copies, key=_copy_load)

    async def _load_and_send(self, prediction: Prediction, copy: Copy) -> None:
        try:
            if copy.worker is None:
                await self._loader.load(prediction.model, copy)
            else:
                await asyncio.sleep(0)  # the loop hears only now of one that died unseen
        except Exception as error:  # noqa: BLE001 - whoever is told decides what it means
            prediction.fail(error)
        else:
            self.send(prediction)

    def _answered(self, prediction: Prediction, worker: Worker, reply: FromWorker | WorkerLost) -> None:
        if isinstance(reply, Answered) and len(reply.answers) == len(prediction.items):
            if reply.metrics:
                self._metrics.of_handler(prediction.model.name, reply.metrics)
            prediction.end(reply.answers)
        elif isinstance(reply, WorkerLost):
            self._lost(prediction, worker, reply)
        else:
            prediction.fail(_error_of(prediction.model, reply))

    def _lost(self, prediction: Prediction, worker: Worker, lost: WorkerLost) -> None:
        """What the worker had not begun is asked of another one. What it had begun too, once, each call alone."""
        model = prediction.model
        after = after_loss(
            worker.end, was_running=lost.was_running, is_retry=prediction.is_retry, is_alone=model.is_dedicated
        )
        if is_blamed(after):
            _blame(model)
        if prediction.stream is not None and prediction.stream.has_begun and after in _ASKED_AGAIN:
            prediction.fail(
                EngineError(f"The worker of model {model.title} ended in the middle of its answer: {lost}.")
            )
        elif after is AfterLoss.RETRY:
            self.send(prediction)
        elif after is AfterLoss.ISOLATE:
            for one in prediction.each_alone():
                self.send(one)
        elif after is AfterLoss.REFUSE_AS_TOO_SLOW:
            text = f"Model {model.title} did not answer within {prediction.timeout_secs:g} s: its worker was ended."
            prediction.fail(EngineError(text))
        elif after is AfterLoss.REFUSE_AS_OUTGROWN:
            text = f"Model {model.title} has outgrown the memory budget at this request: its worker was ended."
            prediction.fail(EngineError(text))
        else:
            text = f"The worker of model {model.title} ended while it answered this request: {lost}."
            prediction.fail(EngineError(text))


def _blame(model: Model) -> None:
    """It has ended its worker."""
    model.deaths = [*recent_deaths(model.deaths, time.monotonic()), time.monotonic()]
    model.is_dedicated = True


def _copy_load(copy: Copy) -> int:
    return copy.worker.load if copy.worker else 0


def _error_of(model: Model, reply: FromWorker) -> EngineError:
    """What a reply is that is no answer to each call."""
    if isinstance(reply, Failed):
        kind = OutOfMemory if reply.status == OutOfMemory.status else PredictionFailed
        return kind(reply.message, reply.status)
    return EngineError(
        f"The worker of model {model.title} sent something else than an answer to each request: the model's code must "
        "not write to its connection to the server."
    )
