"""The parts of a front and of its keeper, without their processes: who answers, what is counted, what is given back."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import types
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
from polyhost.api.http import Reply, Request
from polyhost.api.listener import Listener
from polyhost.api.origins import Origins
from polyhost.config import Config
from polyhost.endpoint.measures.histogram import BOUNDS_SECS
from polyhost.engine.native.rows import Rows
from polyhost.engine.native.segments import Channel, Readable, new_channel
from polyhost.errors import InvalidSetting
from polyhost.fronts import keeper, own_answers
from polyhost.fronts.board import Board
from polyhost.fronts.counts import Counted, Counter
from polyhost.fronts.keeper import Seat
from polyhost.fronts.landlord import Landlord
from polyhost.fronts.lessor import Lessor
from polyhost.fronts.link import Link
from polyhost.fronts.messages import Grant, Leave, Ready, Replied, Revoked, Setup, Stop
from polyhost.fronts.own_answers import OwnAnswers
from polyhost.fronts.relay import Relay
from polyhost.http_limits import HttpLimits
from polyhost.limits import front_count
from support.wire import App

CSV = {"content-type": "text/csv"}
HEADERS = {"text/csv": ((b"content-type", b"text/csv"),)}


# How many


@pytest.mark.parametrize(
    ("settings", "cpus", "count"),
    [
        ({}, 1, 1), ({}, 2, 1), ({}, 3, 2), ({}, 4, 2), ({}, 8, 4), ({}, 32, 16), ({}, 192, 16),
        ({"engine": ["mms"]}, 8, 1), ({"hardened": ["on"]}, 8, 1),
        ({"fronts": ["3"]}, 1, 3), ({"fronts": ["1"]}, 64, 1), ({"fronts": ["3"], "engine": ["mms"]}, 8, 3),
    ],
)  # fmt: skip
def test_how_many_fronts_there_are(settings: dict[str, list[str]], cpus: int, count: int) -> None:
    assert front_count(Config.build(settings, {}), cpus) == count


@pytest.mark.parametrize("text", ["0", "65", "-1", "many", ""])
def test_a_number_of_fronts_that_cannot_be(text: str) -> None:
    if text:
        with pytest.raises(InvalidSetting, match=f"--fronts: '{text}' is not a number from 1 to 64"):
            Config.build({"fronts": [text]}, {})
    assert Config.build({"fronts": []}, {"POLYHOST_FRONTS": ""}).fronts is None


def test_each_front_sees_the_connections_of_all_others() -> None:
    descriptor = Board.new()
    keeper, front = Board(descriptor, 0), Board(descriptor, 5)
    os.close(descriptor)
    keeper.tell(3)
    front.tell(4)

    assert (keeper.others(), front.others()) == (4, 3)
    keeper.forget(5)
    assert (keeper.others(), front.others()) == (0, 3)


# What is counted


@pytest.fixture
def counted() -> Iterator[Counted]:
    counted = Counted()
    yield counted
    counted.close()


def test_what_a_front_adds_is_taken_once(counted: Counted) -> None:
    counter = Counter(counted.descriptor)
    counter.add(7, 2, total_secs=0.25, model_secs=0.125)
    counter.add(7, 2, total_secs=0.25, model_secs=0.125)
    counter.add(9, 2, total_secs=4.0, model_secs=3.0)

    assert [(used.slot, used.calls, used.secs) for used in counted.take_used()] == [(7, 2, 0.25), (9, 1, 3.0)]
    ((lane, calls),) = counted.take_calls(3)
    assert lane == 2
    assert [(each.count, each.total_secs) for each in calls] == [(3, 4.5), (3, 3.25), (3, 1.25)]
    assert calls.total.count_to(BOUNDS_SECS[-1]) == 3
    assert [*counted.take_used()] == []
    assert [*counted.take_calls(3)] == []

    counter.add(7, 0, total_secs=1.0, model_secs=1.0)
    assert [(used.slot, used.calls, used.secs) for used in counted.take_used()] == [(7, 1, 1.0)]
    assert [(lane, calls.total.count) for lane, calls in counted.take_calls(3)] == [(0, 1)]


def test_a_slot_that_was_forgotten_begins_anew(counted: Counted) -> None:
    counter = Counter(counted.descriptor)
    counter.add(7, 0, 1.0, 1.0)
    assert len([*counted.take_used()]) == 1
    counted.forget(7)
    counter.add(7, 0, 2.0, 2.0)

    assert [(used.calls, used.secs) for used in counted.take_used()] == [(1, 2.0)]


def test_models_are_found_however_often_they_were_looked_for(counted: Counted) -> None:
    """The keeper's rounds are counted in eight bytes, and noted in four."""
    counter = Counter(counted.descriptor)
    counted._memory.head[0] = 2**32 - 3
    for _ in range(5):
        counter.add(1, 0, 1.0, 1.0)
        assert [(used.slot, used.calls) for used in counted.take_used()] == [(1, 1)]


# Both ends


class FakeLessor:
    """Leases what it is asked for, as slot 3, and notes what comes back."""

    def __init__(self) -> None:
        self.returned: list[tuple[int, int]] = []
        self.leases = types.SimpleNamespace(returned=lambda slot, serial, _: self.returned.append((slot, serial)))
        self.serial = 0

    def grant(self, request: Request, _: Link) -> Grant | None:
        if not request.path.startswith("/row"):
            return None
        self.serial += 1
        return Grant(3, self.serial, 1, 0, "text/csv", HEADERS, b"x-id", b"x-more: 1\r\n")


class Ends:
    """A keeper's end, whose application is `app`, and a front's."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.lessor = FakeLessor()
        self.flags = bytearray(8)
        self.is_ready = self.is_lost = self.has_ended = self.is_leaving = self.is_stopped = False

    async def open(self, *, origins: Origins | None = None) -> None:
        keepers, fronts = socket.socketpair()
        passing, self.getting = new_channel()
        for each in (keepers, fronts):
            each.setblocking(False)
        self.link = Link(
            self.app, cast("Lessor", self.lessor), Channel(passing),
            on_ready=lambda: setattr(self, "is_ready", True), on_lost=lambda: setattr(self, "is_lost", True),
            abort=lambda: None,
        )  # fmt: skip
        self.relay = Relay(on_lost=lambda: setattr(self, "has_ended", True))
        self.relay.on_leave = lambda: setattr(self, "is_leaving", True)
        self.relay.on_stop = lambda: setattr(self, "is_stopped", True)
        self.front = OwnAnswers(
            self.relay, Readable(self.getting), memoryview(self.flags), lambda *_: None,
            max_request_bytes=100, origins=origins, deciding=["x-decides"],
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self.link, sock=keepers)
        await loop.create_unix_connection(lambda: self.relay, sock=fronts)

    async def close(self) -> None:
        self.link.close()
        self.relay._transport.abort()
        self.getting.close()
        await until(lambda: self.is_lost and self.has_ended)

    def ask(self, path: str, body: bytes = b"1", method: str = "POST", **headers: str) -> asyncio.Future[Reply]:
        reply, _ = self.begin(path, body, method, **headers)
        return reply

    def begin(
        self, path: str, body: bytes = b"1", method: str = "POST", **headers: str
    ) -> tuple[asyncio.Future[Reply], Callable[[], object] | None]:
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return reply, self.front.answer(Request(method, path, "", {**CSV, **named}, body), reply.set_result)


class OwnRows:
    """In place of a compiled model's."""

    def answer(self, item: Any) -> Any:
        if item.body == b"odd":
            return None
        return types.SimpleNamespace(body=b"own", headers={"content-type": "text/csv"})


@pytest.fixture(autouse=True)
def rows_without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OwnAnswers, "_rows", lambda *_: cast("Rows", OwnRows()))


def run(
    case: Callable[[Ends], Awaitable[None]], *, answers_later: bool = False, origins: Origins | None = None
) -> None:
    async def whole() -> None:
        ends = Ends(App(answers_later=answers_later))
        await ends.open(origins=origins)
        try:
            await case(ends)
        finally:
            await ends.close()

    asyncio.run(asyncio.wait_for(whole(), 120))


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - it comes over a socket
        await asyncio.sleep(0.001)


def test_a_request_comes_as_it_is_and_so_does_its_reply() -> None:
    async def case(ends: Ends) -> None:
        reply = await ends.ask("/a%20b", b"body", "PUT", x_field="é")
        assert ends.app.asked == [Request("PUT", "/a%20b", "", {**CSV, "x-field": "é"}, b"body")]
        assert reply == Reply(b"PUT /a%20b body", 200, ())

    run(case)


def test_replies_come_in_any_order() -> None:
    async def case(ends: Ends) -> None:
        first, second = ends.ask("/1"), ends.ask("/2")
        await until(lambda: len(ends.app.waiting) == 2)
        ends.app.waiting[1](Reply(b"two", 200, ()))
        assert (await second).body == b"two"
        assert not first.done()
        ends.app.waiting[0](Reply(b"one", 200, (), closes=True))
        assert await first == Reply(b"one", 200, (), closes=True)

    run(case, answers_later=True)


def test_a_client_that_goes_is_told_of() -> None:
    async def case(ends: Ends) -> None:
        _, leave = ends.begin("/1")
        reply = ends.ask("/2")
        assert leave is not None
        leave()
        await until(lambda: bool(ends.app.left))
        assert [request.path for request in ends.app.left] == ["/1"]
        for done in ends.app.waiting:
            done(Reply(b"", 200, ()))
        await reply
        leave()  # it does no harm

    run(case, answers_later=True)


def test_the_clients_of_a_front_that_ends_have_gone() -> None:
    async def case(ends: Ends) -> None:
        ends.ask("/1")
        ends.ask("/2")
        await until(lambda: len(ends.app.waiting) == 2)
        ends.relay._transport.abort()
        await until(lambda: ends.is_lost)
        assert [request.path for request in ends.app.left] == ["/1", "/2"]
        ends.app.waiting[0](Reply(b"", 200, ()))  # nobody is there

    run(case, answers_later=True)


def test_a_body_that_is_too_large_is_the_keepers_to_refuse() -> None:
    async def case(ends: Ends) -> None:
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        ends.front.too_large(Request("POST", "/large", "", {}, b""), reply.set_result)
        assert await reply == Reply(b"too large for /large", 413, ())

    run(case)


# Who answers


async def leased(ends: Ends, path: str = "/row") -> None:
    ends.flags[3] = 1
    assert (await ends.ask(path)).body == b"POST " + path.encode() + b" 1"


def test_a_leased_row_is_answered_at_once() -> None:
    async def case(ends: Ends) -> None:
        await leased(ends)
        reply, leave = ends.begin("/row")
        assert leave is None
        assert reply.result()[:3] == (b"own", 200, HEADERS["text/csv"])
        assert re.fullmatch(rb"x-id: [0-9a-f-]{36}\r\nx-more: 1\r\n", reply.result().own_headers)
        assert len(ends.app.asked) == 1

    run(case)


@pytest.mark.parametrize(
    ("body", "method", "headers"),
    [
        (b"odd", "POST", {}),
        (b"1", "PUT", {}),
        (b"1", "POST", {"x_decides": ""}),
        (b"1", "POST", {"origin": "http://elsewhere"}),
        (b"1", "POST", {"host": "elsewhere"}),
        (b"1", "POST", {"x_amzn_sagemaker_target_model": "another"}),
    ],
)
def test_anything_else_is_asked(body: bytes, method: str, headers: dict[str, str]) -> None:
    async def case(ends: Ends) -> None:
        await leased(ends)
        assert (await ends.ask("/row", body, method, **headers)).body != b"own"
        assert (await ends.ask("/row")).body == b"own"

    run(case, origins=Origins(checks_host=True))


def test_nobody_answers_by_a_lease_whose_flag_is_down() -> None:
    """Also before the message that says so has come."""

    async def case(ends: Ends) -> None:
        await leased(ends)
        ends.flags[3] = 0
        assert (await ends.ask("/row")).body == b"POST /row 1"
        assert ends.lessor.serial == 1  # it has one already

    run(case)


def test_a_revoked_lease_is_given_back_and_another_one_taken() -> None:
    async def case(ends: Ends) -> None:
        await leased(ends)
        await leased(ends, "/row/2")  # the same model by another name
        ends.flags[3] = 0
        ends.link.revoked(3)
        await until(lambda: ends.lessor.returned == [(3, 2)])
        ends.link.revoked(3)  # it was given back before this came
        await leased(ends)
        assert (await ends.ask("/row")).body == b"own"
        assert ends.lessor.returned == [(3, 2)]

    run(case)


def test_a_lease_whose_client_has_gone_is_given_back() -> None:
    async def case(ends: Ends) -> None:
        _, leave = ends.begin("/row")
        await until(lambda: len(ends.app.waiting) == 1)
        ends.app.waiting[0](Reply(b"", 200, ()))  # it crosses the client's end
        assert leave is not None
        leave()
        await until(lambda: ends.lessor.returned == [(3, 1)])

    run(case, answers_later=True)


def test_a_front_that_has_ended_is_given_no_lease() -> None:
    """Its answer comes between the end of its process and that of its socket: an unload waited for ever."""

    async def case(ends: Ends) -> None:
        ends.begin("/row")
        await until(lambda: len(ends.app.waiting) == 1)
        ends.link.close()
        ends.app.waiting[0](Reply(b"", 200, ()))
        assert ends.lessor.serial == 0

    run(case, answers_later=True)


def test_a_lease_for_what_is_held_already_makes_it_newer() -> None:
    """Else the keeper would take an older one's return for the last."""

    async def case(ends: Ends) -> None:
        await leased(ends)
        ends.relay._replied(
            Replied(99, b"", 200, (), b"", False, ends.lessor.grant(Request("", "/row", "", {}, b""), ends.link))
        )
        ends.link.send(Revoked(3))
        await until(lambda: ends.lessor.returned == [(3, 2)])

    run(case)


def test_only_so_many_requests_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are the clients' choice. A model of which none is known any more is given back."""
    monkeypatch.setattr(own_answers, "_MOST_KEYS", 2)

    async def case(ends: Ends) -> None:
        for number in range(4):
            await leased(ends, f"/row/{number}")
        assert len(ends.front._by_key) == 2
        assert ends.lessor.returned == []
        for key in [*ends.front._by_key]:
            ends.front._forget(key)
        await until(lambda: ends.lessor.returned == [(3, 4)])

    run(case)


def test_long_paths_are_not_remembered() -> None:
    async def case(ends: Ends) -> None:
        for _ in range(2):
            await leased(ends, "/row/" + "x" * 500)
        assert ends.lessor.serial == 0

    run(case)


def test_a_front_is_told_to_leave_and_to_stop_and_tells_that_it_is_ready() -> None:
    async def case(ends: Ends) -> None:
        ends.relay.send(Ready())
        await until(lambda: ends.is_ready)
        ends.link.send(Leave())
        await until(lambda: ends.is_leaving)
        assert not ends.is_stopped
        ends.link.send(Stop())
        await until(lambda: ends.is_stopped)

    run(case)


# Its process


class Process:
    """Runs until it is killed."""

    def __init__(self) -> None:
        self._ended = asyncio.Event()

    def kill(self) -> None:
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        return -signal.SIGKILL


class Starts:
    """Of a front's processes, the first of which cannot be started."""

    def __init__(self) -> None:
        self.tries = 0
        self.is_running = asyncio.Event()

    async def new_process(self, *_: Any) -> Process:
        self.tries += 1
        if self.tries == 1:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.is_running.set()
        return Process()


def test_a_front_that_cannot_be_started_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its seat stayed empty: the clients who were connected to it waited for ever."""
    monkeypatch.setattr(keeper, "_PAUSE_SECS", 0)

    async def whole() -> None:
        starts = Starts()
        monkeypatch.setattr(Seat, "_new_process", starts.new_process)
        setup = Setup(
            keeper_pid=os.getpid(), number=1, board=-1, leases=-1, listening=[], limits=HttpLimits(),
            max_request_bytes=100, drain_secs=1, tls_cert=None, tls_key=None, log_format="text",
            has_access_log=False, is_hidden=False, origins=None, deciding=[],
        )  # fmt: skip
        descriptor = Board.new()
        board = Board(descriptor, 0)
        os.close(descriptor)
        seat = Seat(setup, {}, [], Listener(App()), board, Landlord())
        seat.start()
        await asyncio.wait_for(starts.is_running.wait(), 60)
        await seat.end()
        assert starts.tries == 2

    asyncio.run(whole())
