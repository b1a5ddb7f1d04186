"""Asynchronous calls without a server: models, stores and a disk that answer as told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from polyhost.api.asynchronous import AsynchronousApi
from polyhost.api.http import Reply, Request
from polyhost.artifacts import ArtifactForbidden, Payload
from polyhost.endpoint.arns import Arns
from polyhost.endpoint.asynchronous import AsyncCall, AsyncCalls, calls
from polyhost.endpoint.asynchronous.definitions import Next, after_attempt, after_write, pause_secs
from polyhost.endpoint.asynchronous.ledger import FILE, Ledger
from polyhost.endpoint.asynchronous.work import Work
from polyhost.endpoint.definitions import Asynchronous, Endpoint, Variant
from polyhost.endpoint.events import CallAnswered, Publisher
from polyhost.endpoint.hosting.sqlite_state import SqliteState
from polyhost.endpoint.hosting.state import Resource, StateFailed
from polyhost.engine.protocol import Answer, Item, WhenDone
from polyhost.errors import StartFailed
from polyhost.service_errors import (
    AccessDenied,
    ArtifactMissing,
    EndpointError,
    EndpointMissing,
    ModelError,
    ModelNotReady,
    ServiceUnavailable,
    StoreFailed,
    ValidationError,
)

BROKEN = ModelError('Received server error (500) from model with message "broken".', 500, "broken")
NOT_READY = ModelNotReady("It is loading.")
DOWN = StoreFailed("The bucket does not answer.")
GONE = ArtifactMissing("There is no such bucket.")
FORBIDDEN = ArtifactForbidden("It may not be written.")
ACCEPTED = 1000.0
CALL = AsyncCall(
    id="id", inference_id="mine", endpoint="e", variant="", target="", headers={"accept": "text/csv"},
    source="s3://in/a/b.csv", output="s3://out/x/id.out", failure="s3://failed/id-error.out", kms_key="",
    accepted=ACCEPTED, ttl_secs=60, timeout_secs=900,
)  # fmt: skip
ENDPOINT = Endpoint(
    name="e", arn="arn", variants=(Variant(name="v", weight=1, containers=()),),
    asynchronous=Asynchronous(output="s3://out/x/", failure="s3://failed/", most_at_once=2),
)  # fmt: skip


class Lane:
    followers = ()
    variant = ENDPOINT.variants[0]


class Route:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint


class Models:
    """A `Traffic`. Each call's outcome in turn; others wait until `answer_all`, or are answered at once."""

    def __init__(self, *outcomes: Answer | Exception, waits: bool = False) -> None:
        self.outcomes = list(outcomes)
        self.waits = waits
        self.items: list[Item] = []
        self.waiting: list[WhenDone] = []
        self.endpoint = ENDPOINT

    def route(self, name: str) -> Any:
        if name != self.endpoint.name:
            raise EndpointMissing(f"Endpoint {name} not found.")
        return Route(self.endpoint)

    def lane(self, name: str, _: str, __: str) -> Any:
        self.route(name)
        return Lane()

    def invoke(self, _: Any, __: str, item: Item, ___: Any, done: WhenDone) -> None:
        self.items.append(item)
        if self.waits:
            self.waiting.append(done)
        else:
            done(self.outcomes.pop(0) if self.outcomes else Answer(200, {"Content-Type": "text/csv"}, b"answer"))

    def answer_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done(Answer(200, {}, b"answer"))


class Payloads:
    """A `PayloadStore` in memory: what its writes fail with, by bucket, in turn."""

    def __init__(self, **failures: list[EndpointError]) -> None:
        self.failures = failures
        self.content: dict[str, Payload | EndpointError] = {"s3://in/a/b.csv": Payload(0, b"1,2", "text/csv")}
        self.written: dict[str, tuple[bytes, str]] = {}

    async def read_payload(self, source: str, key: str, most_bytes: int) -> Payload:
        assert most_bytes == 100 * 1024**2
        found = self.content.get(source + key, GONE)
        if isinstance(found, EndpointError):
            raise found
        return found

    async def write_payload(self, source: str, key: str, body: bytes, content_type: str, kms_key: str) -> None:
        assert kms_key == ""
        failures = self.failures.get(source.removeprefix("s3://").rstrip("/"), [])
        if failures:
            raise failures.pop(0)
        self.written[source + key] = (body, content_type)


class Clock:
    """Sleeps at once."""

    def __init__(self, now: float = ACCEPTED) -> None:
        self.now = now
        self.pauses: list[float] = []

    async def sleep(self, secs: float) -> None:
        self.pauses.append(secs)
        self.now += secs


def run(models: Models, payloads: Payloads, call: AsyncCall = CALL, clock: Clock | None = None) -> list[CallAnswered]:
    """What was published of it."""
    clock = clock or Clock()
    published: list[CallAnswered] = []
    events = Publisher()
    events.subscribe((CallAnswered,), published.append)

    async def body_of(_: AsyncCall) -> bytes:
        return b"own input"

    work: Any = Work
    asyncio.run(work(models, payloads, events, body_of, sleep=clock.sleep, now=lambda: clock.now).run(call))
    return published


def failure(payloads: Payloads) -> dict[str, Any]:
    (url,) = payloads.written
    assert url == CALL.failure
    body, content_type = payloads.written[url]
    assert content_type == "application/json"
    return dict(json.loads(body))


def test_an_answer_is_written_with_its_type() -> None:
    models, payloads = Models(), Payloads()

    (published,) = run(models, payloads)

    assert payloads.written == {"s3://out/x/id.out": (b"answer", "text/csv")}
    (item,) = models.items
    assert (item.body, item.headers, item.timeout_secs) == (
        b"1,2",
        {"accept": "text/csv", "content-type": "text/csv"},
        900,
    )
    assert published[:9] == ("id", "e", "v", "", 200, 3, 6, published.total_secs, 0.0)


def test_the_type_that_the_client_names_goes_over_that_of_its_input() -> None:
    models = Models()

    run(models, Payloads(), msgspec.structs.replace(CALL, headers={"content-type": "application/json"}))

    assert models.items[0].headers == {"content-type": "application/json"}


def test_a_type_that_no_header_can_hold_is_left_out() -> None:
    payloads = Payloads()

    run(Models(Answer(200, {"content-type": "text/csv\r\nx: y"}, b"answer")), payloads)

    assert payloads.written == {CALL.output: (b"answer", "")}


def test_an_input_that_came_with_its_call() -> None:
    models = Models()

    run(models, Payloads(), msgspec.structs.replace(CALL, source=""))

    assert models.items[0].body == b"own input"


def test_what_a_model_refuses_goes_to_the_place_of_failures() -> None:
    models, payloads = Models(BROKEN), Payloads()

    (published,) = run(models, payloads)

    assert failure(payloads) == {
        "InferenceId": "mine", "ErrorCode": "ModelError", "Message": BROKEN.message, "OriginalStatusCode": 500,
        "OriginalMessage": "broken",
    }  # fmt: skip
    assert (published.status, published.model_status) == (424, 500)


def test_a_fault_of_ours_is_no_secret_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    payloads = Payloads()

    run(Models(RuntimeError("inner")), payloads)

    assert failure(payloads)["Message"] == "Internal error: the server's log says why."
    assert "inner" in caplog.text


def test_an_input_that_is_not_there() -> None:
    models, payloads = Models(), Payloads()

    run(models, payloads, msgspec.structs.replace(CALL, source="s3://in/other"))

    assert failure(payloads)["Message"] == GONE.message
    assert models.items == []


def test_an_endpoint_that_has_gone() -> None:
    payloads = Payloads()

    run(Models(), payloads, msgspec.structs.replace(CALL, endpoint="gone"))

    assert failure(payloads)["Message"] == "Endpoint gone not found."


def test_what_may_pass_is_tried_again() -> None:
    clock, payloads = Clock(), Payloads()

    run(Models(NOT_READY, NOT_READY), payloads, clock=clock)

    assert payloads.written.keys() == {CALL.output}
    assert clock.pauses == [0.5, 1.0]


def test_what_may_pass_is_tried_until_the_calls_time_is_over() -> None:
    clock, payloads = Clock(), Payloads()

    run(Models(*[NOT_READY] * 100), payloads, clock=clock)

    assert failure(payloads)["ErrorCode"] == "RequestExpired"
    assert clock.now >= CALL.deadline


def test_a_call_that_has_waited_too_long_is_not_made() -> None:
    models, payloads = Models(), Payloads()

    run(models, payloads, clock=Clock(ACCEPTED + 60))

    assert "longer than its RequestTTLSeconds, 60" in failure(payloads)["Message"]
    assert models.items == []


def test_a_store_that_does_not_take_an_answer_is_asked_again_and_the_model_is_not() -> None:
    models, payloads = Models(), Payloads(out=[DOWN, FORBIDDEN])

    run(models, payloads)

    assert payloads.written == {CALL.output: (b"answer", "text/csv")}
    assert len(models.items) == 1


def test_an_answer_whose_bucket_is_gone_is_a_failure() -> None:
    payloads = Payloads(out=[GONE])

    run(Models(), payloads)

    assert failure(payloads)["Message"] == GONE.message


def test_what_can_be_written_nowhere_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    payloads = Payloads(out=[DOWN] * 100, failed=[GONE])

    with caplog.at_level(logging.ERROR):
        run(Models(), payloads)

    assert payloads.written == {}
    assert "asynchronous call id of e: what came of it is written nowhere: There is no such bucket." in caplog.text


@pytest.mark.parametrize(
    ("error", "attempt", "write"),
    [
        (NOT_READY, Next.AGAIN, Next.OVER),
        (ServiceUnavailable("busy"), Next.AGAIN, Next.AGAIN),
        (DOWN, Next.AGAIN, Next.AGAIN),
        (FORBIDDEN, Next.OVER, Next.AGAIN),
        (GONE, Next.OVER, Next.OVER),
        (BROKEN, Next.OVER, Next.OVER),
        (EndpointMissing("gone"), Next.OVER, Next.OVER),
        (EndpointError("internal"), Next.OVER, Next.OVER),
    ],
)
def test_what_follows_from_a_failure(error: EndpointError, attempt: Next, write: Next) -> None:
    now = ACCEPTED + 59

    assert (after_attempt(error, CALL, now), after_write(error, CALL, now)) == (attempt, write)
    assert {after_attempt(error, CALL, now + 1), after_write(error, CALL, now + 1)} == {Next.OVER}


def test_pauses_grow_to_half_a_minute() -> None:
    assert [pause_secs(attempt) for attempt in (0, 1, 5, 6, 10**6)] == [0.5, 1.0, 16.0, 30.0, 30.0]


# The queue


def queue(folder: Path, models: Models, payloads: Payloads) -> AsyncCalls:
    make: Any = AsyncCalls
    return make(models, payloads, Publisher(), folder=folder, find=lambda name: ENDPOINT if name == "e" else None)  # type: ignore[no-any-return]


def call_of(number: int) -> AsyncCall:
    return msgspec.structs.replace(
        CALL, id=f"{number}", accepted=float(2**33 + number), output=f"s3://out/{number}", source=""
    )


def asking(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 200))


async def until(condition: Callable[[], object]) -> None:
    """Lets the loop turn: what is awaited happens on it, and in the queue's thread."""
    while not condition():  # noqa: ASYNC110 - each turn may bring it about
        await asyncio.sleep(0)


def test_no_more_are_under_way_than_the_configuration_says(tmp_path: Path) -> None:
    models, payloads = Models(waits=True), Payloads()

    async def scenario() -> None:
        accepted = queue(tmp_path, models, payloads)
        await accepted.start()
        for number in range(5):
            await accepted.accept(call_of(number), b"input %d" % number)
        assert (accepted.backlog("e"), accepted.backlog("other")) == (5, 0)
        await until(lambda: len(models.waiting) == 2)
        while len(payloads.written) < 5:
            await until(lambda: models.waiting or len(payloads.written) == 5)
            assert len(models.waiting) <= 2
            models.answer_all()
        await accepted.stop()

    asking(scenario)

    assert [item.body for item in models.items] == [b"input %d" % number for number in range(5)]


def test_what_was_accepted_is_made_by_the_next_server_in_its_order(tmp_path: Path) -> None:
    models, payloads = Models(waits=True), Payloads()

    async def accept_and_stop() -> None:
        accepted = queue(tmp_path, models, payloads)
        await accepted.start()
        for number in (3, 1, 2):
            await accepted.accept(call_of(number), b"input %d" % number)
        await accepted.stop()

    async def go_on() -> None:
        accepted = queue(tmp_path, again, payloads)
        await accepted.start()
        await until(lambda: "[0 of" in repr(accepted))
        await accepted.stop()

    asking(accept_and_stop)
    assert payloads.written == {}
    again = Models()
    asking(go_on)
    ledger = Ledger(tmp_path)
    assert ledger.unfinished() == []
    ledger.close()

    assert [item.body for item in again.items] == [b"input 1", b"input 2", b"input 3"]


def test_a_full_queue_accepts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MOST_CALLS", 2)
    models, payloads = Models(waits=True), Payloads()

    async def scenario() -> None:
        accepted = queue(tmp_path, models, payloads)
        await accepted.start()
        await accepted.accept(call_of(0), b"0")
        await accepted.accept(call_of(1), b"1")
        with pytest.raises(ServiceUnavailable, match="2 asynchronous calls wait or are under way"):
            await accepted.accept(call_of(2), b"2")
        await until(lambda: len(models.waiting) == 2)
        models.answer_all()
        await until(lambda: "[0 of" in repr(accepted))
        await accepted.accept(call_of(3), b"3")
        await accepted.stop()

    asking(scenario)


def test_what_cannot_be_kept_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, payloads = Models(), Payloads()

    def full(*_: object) -> None:
        raise StateFailed("database or disk is full")

    async def scenario() -> None:
        accepted = queue(tmp_path, models, payloads)
        await accepted.start()
        with monkeypatch.context() as broken:
            broken.setattr(Ledger, "add", full)
            with pytest.raises(ServiceUnavailable, match=r"cannot be kept \(database or disk is full\)"):
                await accepted.accept(call_of(0), b"0")
        assert "[0 of" in repr(accepted)
        await accepted.stop()

    asking(scenario)

    assert models.items == []


def test_the_ledger_is_for_nobody_else_to_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add(CALL, b"\0\xff")

    assert ledger.unfinished() == [CALL]
    assert ledger.body(CALL) == b"\0\xff"
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    ledger.remove(CALL)
    assert (ledger.unfinished(), ledger.body(CALL)) == ([], b"")
    ledger.close()


def test_a_ledger_that_cannot_be_read_is_said_at_the_start(tmp_path: Path) -> None:
    state = SqliteState(tmp_path, FILE)
    state.transact(lambda: state.put(Resource("async-call", "id", 0.0, 0.0, {"id": 1})))
    state.close()
    ledger = Ledger(tmp_path)

    with pytest.raises(StartFailed, match=r"calls\.sqlite3 cannot be read .*Restore the file"):
        ledger.unfinished()

    ledger.close()


# Over HTTP


class Accepted:
    """An `AsyncCalls` that keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[AsyncCall, bytes]] = []

    async def accept(self, call: AsyncCall, body: bytes) -> None:
        self.calls.append((call, body))


class Caller:
    """One who may call what `may` says, and what it was asked."""

    def __init__(self, *, may: bool = True, is_shared: bool = False, endpoint: Endpoint = ENDPOINT) -> None:
        self.accepted = Accepted()
        self.asked: list[tuple[str, str, Mapping[str, str]]] = []
        self._may = may
        models = Models()
        models.endpoint = endpoint
        make: Any = AsynchronousApi
        self._api = make(
            models, self.accepted, self._authorize, arns=Arns("123456789012", "us-east-1"), allowed_folders=(),
            is_shared=lambda: is_shared,
        )  # fmt: skip

    def _authorize(self, _: Request, action: str, resource: str, context: Mapping[str, str]) -> None:
        self.asked.append((action, resource, context))
        if not self._may:
            raise AccessDenied("no")

    def call(self, name: str = "e", body: bytes = b"", **headers: str) -> Reply:
        fields = {f"x-amzn-sagemaker-{key.replace('_', '-')}": value for key, value in headers.items()}
        request = Request("POST", f"/endpoints/{name}/async-invocations", "", fields, body)
        answer = self._api.route().answer(request, name, "request")
        reply: Reply = asyncio.run(answer)
        return reply


def test_a_call_is_answered_with_where_its_answer_will_be() -> None:
    caller = Caller()

    reply = caller.call(
        inputlocation="https://s3.eu-west-1.amazonaws.com/in/a%20b.csv", inference_id="mine", filename="a.json",
        s3outputpathextension="of/may/", requestttlseconds="60", invocationtimeoutseconds="3600", accept="text/csv",
    )  # fmt: skip

    assert (reply.status, reply.body) == (202, b'{"InferenceId": "mine"}')
    assert b"outputlocation: s3://out/x/of/may/a.json\r\n" in reply.own_headers
    assert b"failurelocation: s3://failed/a.json-error.out\r\n" in reply.own_headers
    ((call, body),) = caller.accepted.calls
    assert (call.source, call.ttl_secs, call.timeout_secs, body) == ("s3://in/a b.csv", 60, 3600, b"")
    assert call.headers == {"accept": "text/csv", "x-amzn-sagemaker-inference-id": "mine"}


def test_a_call_has_names_of_its_own_where_it_gives_none() -> None:
    caller = Caller()

    caller.call(body=b"1")
    caller.call(body=b"1")

    (one, _), (other, _) = caller.accepted.calls
    assert one.output == f"s3://out/x/{one.inference_id}.out"
    assert one.failure == f"s3://failed/{one.inference_id}-error.out"
    assert one.id != other.id
    assert (one.ttl_secs, one.timeout_secs) == (21600, 900)


def test_a_policy_is_asked_with_the_input_and_the_model() -> None:
    caller = Caller(may=False)

    with pytest.raises(AccessDenied):
        caller.call(inputlocation="s3://in/a.csv", target_model="/a/b.tar.gz", target_variant="v")

    ((action, resource, context),) = caller.asked
    assert action == "sagemaker:InvokeEndpointAsync"
    assert resource == "arn:aws:sagemaker:us-east-1:123456789012:endpoint/e"
    assert context == {
        "polyhost:InputLocation": "s3://in/a.csv",
        "sagemaker:TargetModel": "a/b.tar.gz",
        "sagemaker:TargetVariant": "v",
    }
    assert caller.accepted.calls == []


SYNCHRONOUS = dataclasses.replace(ENDPOINT, asynchronous=None)


@pytest.mark.parametrize(
    ("caller", "name", "body", "headers", "sentence"),
    [
        ({}, "gone", b"1", {}, "Endpoint gone not found"),
        ({"endpoint": SYNCHRONOUS}, "e", b"1", {}, "takes no asynchronous calls"),
        ({"is_shared": True}, "e", b"1", {}, "Servers that share their endpoints"),
        ({}, "e", b"", {}, "Give either InputLocation"),
        ({}, "e", b"1", {"inputlocation": "s3://in/a"}, "Give either InputLocation"),
        ({}, "e", b"1" * 128_001, {}, "exceeded 128000 bytes"),
        ({}, "e", b"", {"inputlocation": "ftp://in/a"}, "InputLocation is none of s3://"),
        ({}, "e", b"", {"inputlocation": "file:///etc/passwd"}, "does not lie under a folder"),
        ({}, "e", b"", {"inputlocation": "s3://in"}, "InputLocation names no object"),
        ({}, "e", b"", {"inputlocation": "s3://in/folder/"}, "InputLocation names no object"),
        ({}, "e", b"1", {"requestttlseconds": "59"}, "RequestTTLSeconds is 59, it must be from 60 to 21600"),
        ({}, "e", b"1", {"invocationtimeoutseconds": "3601"}, "must be from 1 to 3600"),
        ({}, "e", b"1", {"invocationtimeoutseconds": "-1"}, "InvocationTimeoutSeconds '-1' is not of the form"),
        ({}, "e", b"1", {"filename": "../a"}, "Filename '../a' is not of the form"),
        ({}, "e", b"1", {"s3outputpathextension": "a/../b"}, "has .. between slashes"),
        ({}, "e", b"1", {"inference_id": "é"}, "InferenceId 'é' is not of the form"),
        ({}, "e", b"1", {"target_model": "../a"}, "cannot be the name of a model"),
    ],
)
def test_refused(caller: dict[str, Any], name: str, body: bytes, headers: dict[str, str], sentence: str) -> None:
    asker = Caller(**caller)

    with pytest.raises(ValidationError) as refused:
        asker.call(name, body, **headers)

    assert sentence in refused.value.message
    assert asker.accepted.calls == []
