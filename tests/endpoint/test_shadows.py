"""A shadow variant gets copies of requests, and its answers are compared and sent to nobody."""

from __future__ import annotations

import random
from typing import Any

import pytest
from polyhost.endpoint.definitions import Container, Variant
from polyhost.endpoint.events import ShadowAnswered, ShadowDropped
from polyhost.endpoint.followers import Followed, follow
from polyhost.endpoint.shadows import MOST_AT_WORK, Shadow, is_same, share_of
from polyhost.endpoint.traffic import Lane
from polyhost.engine.protocol import Answer, Item, WhenDone
from polyhost.service_errors import ModelError, StoreFailed

SAME, OTHER = Answer(200, {}, b"1"), Answer(200, {}, b"2")
REFUSED, BROKEN = ModelError("", 400, ""), ModelError("", 500, "")
LANE = Lane(Variant(name="green", weight=1, containers=(Container(source="s3://b/m/"),)), (), ("",))


class Traffic:
    """Copies wait until they are answered."""

    def __init__(self) -> None:
        self.copies: list[tuple[Item, WhenDone]] = []
        self.error: Exception | None = None

    def invoke(self, lane: Lane, target: str, item: Item, context: Any, done: WhenDone) -> None:
        assert (lane, target) == (LANE, "a.tar.gz")
        if self.error is not None:
            raise self.error
        self.copies.append((item, done))


def call(outcome: Answer | ModelError = SAME, **headers: str) -> Followed:
    return Followed("house", "blue", "a.tar.gz", Item("id-1", headers, "", b"1,2"), outcome)


def shadow(share: float = 1.0) -> tuple[Shadow, Any, list[Any]]:
    traffic: Any = Traffic()
    events: list[Any] = []
    return Shadow(traffic, events.append, LANE, share), traffic, events


@pytest.mark.parametrize(
    ("weight", "production", "share"),
    [(1, [1], 1.0), (0.5, [1], 0.5), (2, [1], 1.0), (1, [1, 3], 0.25), (0, [1], 0.0), (1, [0], 1.0), (0, [0], 0.0)],
)
def test_how_many_are_copied(weight: float, production: list[float], share: float) -> None:
    assert share_of(weight, production) == share


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (SAME, SAME, True),
        (SAME, OTHER, False),
        (SAME, REFUSED, False),
        (REFUSED, SAME, False),
        (REFUSED, ModelError("other words", 400, "other words"), True),
        (REFUSED, BROKEN, False),
        (REFUSED, StoreFailed("x"), False),
        (SAME, KeyError("x"), False),
    ],
)
def test_what_is_the_same(one: Answer | ModelError, other: Answer | Exception, expected: bool) -> None:
    assert is_same(one, other) is expected


def test_a_copy_is_answered_and_counted_as_the_shadows() -> None:
    """Its model does not see which variant the client has named."""
    follower, traffic, events = shadow()
    follower(call(accept="text/csv", **{"x-amzn-sagemaker-target-variant": "blue"}))
    ((item, done),) = traffic.copies
    assert (item.body, item.headers) == (b"1,2", {"accept": "text/csv"})
    assert events == []
    done(OTHER)
    (event,) = events
    assert isinstance(event, ShadowAnswered)
    assert not event.is_same
    assert (event.call.endpoint, event.call.variant, event.call.target) == ("house", "green", "a.tar.gz")
    assert (event.call.status, event.call.bytes_in, event.call.bytes_out) == (200, 3, 1)


def test_its_errors_are_its_own() -> None:
    follower, traffic, events = shadow()
    follower(call())
    traffic.copies.pop()[1](BROKEN)
    traffic.error = StoreFailed("away")
    follower(call())
    traffic.error = KeyError("a fault")
    follower(call())
    assert [(event.call.status, event.is_same) for event in events] == [(424, False), (503, False), (500, False)]
    assert events[0].call.model_status == 500


def test_few_are_at_work_at_a_time() -> None:
    """The rest are dropped; when one is answered another may come."""
    follower, traffic, events = shadow()
    for _ in range(MOST_AT_WORK + 2):
        follower(call())
    assert len(traffic.copies) == MOST_AT_WORK
    assert events == [ShadowDropped("house", "green")] * 2
    traffic.copies.pop()[1](SAME)
    follower(call())
    assert len(traffic.copies) == MOST_AT_WORK


def test_large_bodies_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few are at work, their bytes are bounded."""
    monkeypatch.setattr("polyhost.endpoint.shadows.MOST_BYTES", 7)
    follower, traffic, events = shadow()
    for _ in range(3):
        follower(call())
    assert (len(traffic.copies), len(events)) == (2, 1)
    for _, done in traffic.copies:
        done(SAME)
    follower(call())
    assert len(traffic.copies) == 3


def test_a_share_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhost.endpoint.shadows.random", random.Random(5))
    follower, traffic, events = shadow(0.25)
    for _ in range(2000):
        follower(call())
        for _, done in traffic.copies:
            done(SAME)
        traffic.copies.clear()
    assert 400 < len(events) < 600


def test_one_follower_does_not_keep_another_from_following(caplog: pytest.LogCaptureFixture) -> None:
    followed = []

    def fail(_: Followed) -> None:
        raise KeyError("a fault")

    follow((fail, followed.append), call())
    assert followed == [call()]
    assert "a fault" in caplog.text
