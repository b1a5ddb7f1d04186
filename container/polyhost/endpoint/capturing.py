"""
Data capture: requests and answers as JSON lines in a bucket or a folder, in the form that SageMaker's tools read.

A record waits in memory, for at most some seconds, until its batch is written as an object of its own. What does not
fit is dropped and counted: neither a full disk nor a store that does not answer is a reason to keep a client waiting.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import logging
import random
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from polyhost.artifacts.artifacts import ObjectStore
from polyhost.endpoint.definitions import Capture
from polyhost.endpoint.events import CallsCaptured, Event
from polyhost.endpoint.followers import Followed
from polyhost.engine.protocol import Answer
from polyhost.service_errors import EndpointError
from polyhost.tasks import Tasks

logger = logging.getLogger("polyhost.capture")

# Of bodies that wait to be written, or are being written.
MOST_BYTES = 64 * 1024**2
# A batch is written when it has this, or when it is so old.
_BATCH_BYTES = 4 * 1024**2
_EVERY_SECS = 5.0
# What is left when the server stops.
_LAST_SECS = 5.0
_CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_INFERENCE_ID = "x-amzn-sagemaker-inference-id"


class Place(NamedTuple):
    """Where records lie that may be in one object. `hour`: `yyyy/mm/dd/hh`."""

    destination: str
    kms_key: str
    endpoint: str
    variant: str
    hour: str


class Record(NamedTuple):
    """`moment_secs` since 1970."""

    moment_secs: float
    capture: Capture
    call: Followed


@dataclass
class Batch:
    records: list[Record] = field(default_factory=list)
    bytes_waiting: int = 0


class Capturing:
    def __init__(self, objects: ObjectStore, publish: Callable[[Event], None], folder: Path) -> None:
        """`folder`: for batches that are on their way to their store."""
        self._objects = objects
        self._publish = publish
        self._folder = folder
        self._batches: dict[Place, Batch] = {}
        self._bytes = 0
        self._is_due = asyncio.Event()
        self._tasks = Tasks()
        self._writing = asyncio.Lock()
        # Of each destination that cannot be written, once.
        self._failing: set[str] = set()

    def follower(self, capture: Capture) -> Callable[[Followed], None]:
        return functools.partial(self.offer, capture)

    def offer(self, capture: Capture, call: Followed) -> None:
        """Keep what was answered, if it is one of those that are to be kept and there is room."""
        if not isinstance(call.outcome, Answer) or random.random() * 100 >= capture.percentage:  # noqa: S311
            return
        size = _size(call)
        if self._bytes + size > MOST_BYTES:
            self._publish(CallsCaptured(call.endpoint, call.variant, 0, 1))
            return
        self._bytes += size
        now = time.time()
        hour = f"{datetime.fromtimestamp(now, timezone.utc):%Y/%m/%d/%H}"
        place = Place(capture.destination, capture.kms_key, call.endpoint, call.variant, hour)
        batch = self._batches.setdefault(place, Batch())
        batch.records.append(Record(now, capture, call))
        batch.bytes_waiting += size
        if batch.bytes_waiting >= _BATCH_BYTES:
            self._is_due.set()

    def start(self) -> None:
        """What a server has left that was killed goes first."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._tasks.start(self._write_again_and_again())

    async def stop(self) -> None:
        """What is left is written, if that is quick."""
        await asyncio.wait({self._tasks.start(self.write())}, timeout=_LAST_SECS)
        await self._tasks.stop()

    async def _write_again_and_again(self) -> None:
        while True:
            await _set_within(self._is_due, _EVERY_SECS)
            self._is_due.clear()
            await self.write()

    async def write(self) -> None:
        """All that waits now."""
        async with self._writing:
            batches, self._batches = self._batches, {}
            for place, batch in batches.items():
                try:
                    await self._write(place, batch.records)
                finally:
                    self._bytes -= batch.bytes_waiting

    async def _write(self, place: Place, records: Sequence[Record]) -> None:
        file = self._folder / f"{uuid.uuid4()}.jsonl"
        count = len(records)
        writing = asyncio.get_running_loop().run_in_executor(None, _write_lines, file, records)
        try:
            await asyncio.shield(writing)
            await self._objects.put_object(
                str(file), place.destination, key_of(place, records, file.name), place.kms_key
            )
        except (EndpointError, OSError) as error:
            self._publish(CallsCaptured(place.endpoint, place.variant, 0, count))
            if place.destination not in self._failing:
                self._failing.add(place.destination)
                logger.warning("what is captured of endpoint %s is lost: %s", place.endpoint, error)
        else:
            self._failing.discard(place.destination)
            self._publish(CallsCaptured(place.endpoint, place.variant, count, 0))
        finally:
            await asyncio.wait({writing})  # the thread goes on where a stop has cancelled this
            file.unlink(missing_ok=True)


def key_of(place: Place, records: Sequence[Record], name: str) -> str:
    """SageMaker's: the minute and second of the first record, and what makes it the only one."""
    moment = datetime.fromtimestamp(records[0].moment_secs, timezone.utc)
    milliseconds = moment.microsecond // 1000
    return f"{place.endpoint}/{place.variant}/{place.hour}/{moment:%M-%S}-{milliseconds:03}-{name}"


def line_of(record: Record) -> str:
    """Without its end."""
    moment, capture, call = record
    assert isinstance(call.outcome, Answer)
    item, headers = call.item, {name.lower(): value for name, value in call.outcome.headers.items()}
    data = {}
    if capture.has_input:
        data["endpointInput"] = _body(capture, "INPUT", item.headers.get("content-type", ""), item.body)
    if capture.has_output:
        data["endpointOutput"] = _body(capture, "OUTPUT", headers.get("content-type", ""), call.outcome.body)
    document = {"captureData": data, "eventMetadata": _metadata(moment, call), "eventVersion": "0"}
    return json.dumps(document, separators=(",", ":"))


def _metadata(moment_secs: float, call: Followed) -> Mapping[str, Any]:
    headers = call.item.headers
    told: dict[str, Any] = {"eventId": call.item.request_id}
    if _CUSTOM_ATTRIBUTES in headers:
        told["customAttributes"] = [headers[_CUSTOM_ATTRIBUTES]]
    if _INFERENCE_ID in headers:
        told["inferenceId"] = headers[_INFERENCE_ID]
    if call.target:
        told["targetModel"] = call.target
    told["inferenceTime"] = f"{datetime.fromtimestamp(moment_secs, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
    return told


def _body(capture: Capture, mode: str, content_type: str, body: bytes) -> dict[str, str]:
    encoding, data = encoded(capture, content_type, body)
    return {"observedContentType": content_type, "mode": mode, "data": data, "encoding": encoding}


def encoded(capture: Capture, content_type: str, body: bytes) -> tuple[str, str]:
    """
    The encoding's name, and the data. Three cases:

    1. The type is one of those that are CSV: as it is.
    2. It is one of those that are JSON: as it is.
    3. Any other, or what is no text: base64.
    """
    kind = content_type.partition(";")[0].strip().lower()
    for encoding, kinds in (("CSV", capture.csv_types), ("JSON", capture.json_types)):
        if kind in (one.lower() for one in kinds):
            try:
                return encoding, body.decode()
            except UnicodeDecodeError:
                break
    return "BASE64", base64.b64encode(body).decode()


def _size(call: Followed) -> int:
    assert isinstance(call.outcome, Answer)
    # With what a record holds besides, so that empty ones, and those of large headers, are bounded too.
    headers = (*call.item.headers.items(), *call.outcome.headers.items())
    fields = sum(len(name) + len(value) for name, value in headers) + len(call.item.query)
    return len(call.item.body) + len(call.outcome.body) + fields + 1000


def _write_lines(file: Path, records: Sequence[Record]) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # what clients sent is nobody else's business
    with file.open("x", encoding="utf-8") as stream:
        stream.writelines(f"{line_of(record)}\n" for record in records)


async def _set_within(event: asyncio.Event, secs: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), secs)
    except asyncio.TimeoutError:
        return
