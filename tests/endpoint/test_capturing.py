"""Data capture: what a line says, what becomes of it, and what of it is lost."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from polyhost.endpoint import capturing as module
from polyhost.endpoint.capturing import Capturing, Record, line_of
from polyhost.endpoint.definitions import Capture
from polyhost.endpoint.events import CallsCaptured
from polyhost.endpoint.followers import Followed
from polyhost.engine.protocol import Answer, Item
from polyhost.service_errors import ModelError, StoreFailed

MOMENT = 1_700_000_000.125
CAPTURE = Capture(
    destination="s3://bucket/captured/", percentage=100, has_input=True, has_output=True, csv_types=("text/csv",),
    json_types=("application/json",),
)  # fmt: skip


def call(body: bytes = b"1,2", answer: bytes = b"[3]", target: str = "", **headers: str) -> Followed:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    item = Item("id-1", {"content-type": "text/csv; header=absent", **headers}, "", body)
    return Followed("house", "AllTraffic", target, item, Answer(200, {"Content-Type": "application/json"}, answer))


def test_a_line_is_sagemakers() -> None:
    """As the developer guide prints one, in its section on data capture."""
    assert json.loads(line_of(Record(MOMENT, CAPTURE, call()))) == {
        "captureData": {
            "endpointInput": {
                "observedContentType": "text/csv; header=absent", "mode": "INPUT", "data": "1,2", "encoding": "CSV",
            },
            "endpointOutput": {
                "observedContentType": "application/json", "mode": "OUTPUT", "data": "[3]", "encoding": "JSON",
            },
        },
        "eventMetadata": {"eventId": "id-1", "inferenceTime": "2023-11-14T22:13:20Z"},
        "eventVersion": "0",
    }  # fmt: skip


def test_what_a_client_says_is_in_the_line() -> None:
    attributes = {"x_amzn_sagemaker_custom_attributes": "a=b", "x_amzn_sagemaker_inference_id": "7"}
    metadata = json.loads(line_of(Record(MOMENT, CAPTURE, call(target="a.tar.gz", **attributes))))["eventMetadata"]
    assert metadata["customAttributes"] == ["a=b"]
    assert (metadata["inferenceId"], metadata["targetModel"]) == ("7", "a.tar.gz")


@pytest.mark.parametrize(
    ("changed", "body", "encoding"),
    [
        ({}, b"1,2\n", "CSV"),
        ({"csv_types": ("Text/CSV",)}, b"1,2", "CSV"),
        ({"csv_types": (), "json_types": ("text/csv",)}, b"{}", "JSON"),
        ({"csv_types": ()}, b"1,2", "BASE64"),
        ({}, b"\xff", "BASE64"),
        ({}, b"", "CSV"),
    ],
)
def test_only_named_types_are_text(changed: dict[str, Any], body: bytes, encoding: str) -> None:
    capture = Capture(**{**CAPTURE.__dict__, **changed})
    told = json.loads(line_of(Record(MOMENT, capture, call(body))))["captureData"]["endpointInput"]
    assert told["encoding"] == encoding
    assert (base64.b64decode(told["data"]) if encoding == "BASE64" else told["data"].encode()) == body


@pytest.mark.parametrize("modes", [("endpointInput",), ("endpointOutput",)])
def test_only_the_side_that_is_wanted(modes: tuple[str, ...]) -> None:
    capture = Capture(
        destination="/f/", percentage=1, has_input="endpointInput" in modes, has_output="endpointOutput" in modes
    )
    assert tuple(json.loads(line_of(Record(MOMENT, capture, call())))["captureData"]) == modes


def lines_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


class Store:
    """An ObjectStore that keeps the lines of objects by their addresses."""

    def __init__(self) -> None:
        self.objects: dict[str, list[dict[str, Any]]] = {}
        self.keys: list[str] = []
        self.fails = False
        self.can_go_on = asyncio.Event()
        self.can_go_on.set()

    async def put_object(self, file: str, source: str, key: str, kms_key: str) -> None:
        await self.can_go_on.wait()
        if self.fails:
            raise StoreFailed("the bucket does not answer.")
        self.keys.append(kms_key)
        self.objects[source + key] = lines_of(file)


def captured(folder: Path, use: Callable[[Capturing, Store], Any]) -> tuple[Store, list[CallsCaptured]]:
    """What the store got, and what was published, of a use that ends as a server does."""
    events: list[Any] = []

    async def run() -> Store:
        store: Any = Store()
        capturing = Capturing(store, events.append, folder)
        capturing.start()
        result = use(capturing, store)
        if result is not None:
            await result
        await capturing.stop()
        return store

    store = asyncio.run(run())
    assert not [*folder.glob("*")]
    return store, events


def test_records_of_an_hour_and_a_variant_are_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = MOMENT
    monkeypatch.setattr(module.time, "time", lambda: now)

    def use(capturing: Capturing, _: Store) -> None:
        nonlocal now
        follow = capturing.follower(CAPTURE)
        follow(call())
        follow(call())
        follow(call()._replace(variant="blue"))
        now += 3600
        follow(call())

    store, events = captured(tmp_path / "c", use)
    assert {
        re.sub("-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "", key): len(lines)
        for key, lines in store.objects.items()
    } == {
        "s3://bucket/captured/house/AllTraffic/2023/11/14/22/13-20-125.jsonl": 2,
        "s3://bucket/captured/house/blue/2023/11/14/22/13-20-125.jsonl": 1,
        "s3://bucket/captured/house/AllTraffic/2023/11/14/23/13-20-125.jsonl": 1,
    }
    assert sum(event.written for event in events) == 4
    assert sum(event.dropped for event in events) == 0


def test_the_sample_is_of_the_percentage(tmp_path: Path) -> None:
    """And of answers alone: what a model refused is not in it."""
    some = Capture(**{**CAPTURE.__dict__, "percentage": 25})
    refused = call()._replace(outcome=ModelError("no", 400, "no"))

    def use(capturing: Capturing, _: Store) -> None:
        for _ in range(4000):
            capturing.offer(some, call())
        capturing.offer(CAPTURE, refused)

    store, _ = captured(tmp_path / "c", use)
    (lines,) = store.objects.values()
    assert 800 < len(lines) < 1200


@pytest.mark.parametrize("large", ["body", "header"])
def test_a_store_that_does_not_answer_costs_only_so_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: str
) -> None:
    """What comes beyond is dropped and counted; once it answers there is room again."""
    monkeypatch.setattr(module, "MOST_BYTES", 50_000)
    monkeypatch.setattr(module, "_BATCH_BYTES", 20_000)
    follower_calls = 30
    one = call(b"x" * 3900, b"") if large == "body" else call(b"", b"", x_large="x" * 3900)

    async def use(capturing: Capturing, store: Store) -> None:
        store.can_go_on.clear()
        for _ in range(follower_calls):
            capturing.offer(CAPTURE, one)
            await asyncio.sleep(0)
        assert capturing._bytes <= 50_000
        store.can_go_on.set()
        while capturing._bytes:
            await capturing.write()
        capturing.offer(CAPTURE, one)

    store, events = captured(tmp_path / "c", use)
    written = sum(len(lines) for lines in store.objects.values())
    assert written == sum(event.written for event in events) == 11
    assert sum(event.dropped for event in events) == follower_calls - 10


def test_what_cannot_be_written_is_counted_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def use(capturing: Capturing, store: Store) -> None:
        for is_failing in (True, True, False):
            store.fails = is_failing
            capturing.offer(CAPTURE, call())
            await capturing.write()

    store, events = captured(tmp_path / "c", use)
    assert [(event.written, event.dropped) for event in events] == [(0, 1), (0, 1), (1, 0)]
    assert len(store.objects) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "what is captured of endpoint house is lost: the bucket does not answer" in caplog.text


def test_a_server_does_not_wait_long_for_the_last_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST_SECS", 0.01)

    def use(capturing: Capturing, store: Store) -> None:
        store.can_go_on.clear()
        capturing.offer(CAPTURE, call())

    store, _ = captured(tmp_path / "c", use)
    assert store.objects == {}


def test_what_is_being_written_when_the_server_stops_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread writes it, which goes on after the stop has cancelled who waits for it."""
    monkeypatch.setattr(module, "_LAST_SECS", 0.01)
    write, may_go_on = module._write_lines, threading.Event()

    def write_late(file: Path, records: Sequence[Record]) -> None:
        may_go_on.wait(60)
        write(file, records)

    monkeypatch.setattr(module, "_write_lines", write_late)

    def use(capturing: Capturing, _: Store) -> None:
        capturing.offer(CAPTURE, call())
        asyncio.get_running_loop().call_later(0.1, may_go_on.set)

    store, _ = captured(tmp_path / "c", use)
    assert store.objects == {}
