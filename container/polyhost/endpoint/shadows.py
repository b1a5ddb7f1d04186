"""
A shadow variant: it is sent copies of requests after their clients have their answers, and its own are only compared.

It takes processor and memory as any variant does, so few copies are at work at a time, and the rest are dropped.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Collection

from polyhost.endpoint.calls import CallContext
from polyhost.endpoint.events import CallAnswered, Event, ShadowAnswered, ShadowDropped
from polyhost.endpoint.followers import Followed
from polyhost.endpoint.traffic import Lane, Traffic
from polyhost.engine.protocol import Answer, Item
from polyhost.service_errors import EndpointError, ModelError

# Copies that a shadow may be at work on, and their bytes in all.
MOST_AT_WORK = 8
MOST_BYTES = 64 * 1024**2
_OF_THE_VARIANT = "x-amzn-sagemaker-target-variant"


class Shadow:
    """A `Follower`."""

    def __init__(self, traffic: Traffic, publish: Callable[[Event], None], lane: Lane, share: float) -> None:
        """`share`: of the requests, those that are copied."""
        self._traffic = traffic
        self._publish = publish
        self._lane = lane
        self._share = share
        self._at_work = 0
        self._bytes = 0

    def __call__(self, call: Followed) -> None:
        if random.random() >= self._share:  # noqa: S311 - no secret
            return
        size = len(call.item.body)
        if self._at_work >= MOST_AT_WORK or self._bytes + size > MOST_BYTES:
            self._publish(ShadowDropped(call.endpoint, self._lane.variant.name))
            return
        self._at_work += 1
        self._bytes += size
        context = CallContext()
        answered = functools.partial(self._answered, call, context, time.perf_counter())
        try:
            self._traffic.invoke(self._lane, call.target, _copied(call.item), context, answered)
        except Exception as error:  # noqa: BLE001 - it is the shadow's answer
            answered(error)

    def _answered(self, call: Followed, context: CallContext, began: float, outcome: Answer | Exception) -> None:
        self._at_work -= 1
        self._bytes -= len(call.item.body)
        status = status_of(outcome)
        body = outcome.body if isinstance(outcome, Answer) else b""
        counted = CallAnswered(
            call.item.request_id,
            call.endpoint,
            self._lane.variant.name,
            call.target,
            status,
            len(call.item.body),
            len(body),
            time.perf_counter() - began,
            context.model_secs,
            context.was_hit,
            context.wait_secs,
            outcome.original_status if isinstance(outcome, ModelError) else 0,
        )
        self._publish(ShadowAnswered(counted, is_same=is_same(call.outcome, outcome)))


def share_of(weight: float, production: Collection[float]) -> float:
    """SageMaker's rule: a shadow's weight beside those that all production variants have together."""
    total = sum(production)
    return min(1.0, weight / total) if total else float(weight > 0)


def is_same(one: Answer | ModelError, other: Answer | Exception) -> bool:
    """The same bytes, or the same status of the model's."""
    if isinstance(one, Answer):
        return isinstance(other, Answer) and other.body == one.body
    return isinstance(other, ModelError) and other.original_status == one.original_status


def status_of(outcome: Answer | Exception) -> int:
    if isinstance(outcome, Answer):
        return 200
    return outcome.status if isinstance(outcome, EndpointError) else EndpointError.status


def _copied(item: Item) -> Item:
    """The variant that a client named is another one."""
    if _OF_THE_VARIANT not in item.headers:
        return item
    headers = {name: value for name, value in item.headers.items() if name != _OF_THE_VARIANT}
    return Item(item.request_id, headers, item.query, item.body)
