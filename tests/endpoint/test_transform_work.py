"""A transform job at work, with models and stores that answer as told: which calls it makes, and what it writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest
from polyhost.artifacts import Listed
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.transform import work
from polyhost.endpoint.transform.definitions import job_of
from polyhost.endpoint.transform.work import JobFailed, Work
from polyhost.engine.protocol import Answer, Item, WhenDone
from polyhost.service_errors import ModelError, StoreFailed

BROKEN = ModelError('Received server error (500) from model with message "broken".', 500, "broken")
REFUSED = ModelError('Received client error (400) from model with message "no".', 400, "no")


class Models:
    """A `Traffic`: each body's outcomes, one after the other; others are answered by what they were sent."""

    def __init__(self, outcomes: Mapping[bytes, list[Answer | Exception]] | None = None) -> None:
        self.outcomes = outcomes or {}
        self.asked: list[bytes] = []
        self.waiting: list[tuple[bytes, WhenDone]] = []
        self.most_waiting = 0

    def lane(self, *_: str) -> Any:
        return None

    def invoke(self, _: Any, __: str, item: Item, ___: Any, done: WhenDone) -> None:
        self.asked.append(item.body)
        self.waiting.append((item.body, done))
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        asyncio.get_running_loop().call_soon(self._answer_last)

    def _answer_last(self) -> None:
        """The last that was asked is answered first."""
        body, done = self.waiting.pop()
        outcomes = self.outcomes.get(body)
        done(outcomes.pop(0) if outcomes else Answer(200, {}, b"<" + body + b">"))


class Objects:
    """An `ObjectStore` in memory."""

    def __init__(self, **content: bytes) -> None:
        self.content = dict(content)
        self.written: dict[str, bytes] = {}

    async def list_objects(self, source: str, prefix: str, most: int) -> dict[str, Listed]:
        assert (source, prefix, most) == ("s3://b/", "", 100_000)
        return {key: Listed("1", len(body)) for key, body in self.content.items()}

    async def copy_object(self, source: str, key: str, to: str) -> None:
        if self.content[key] == b"lost":
            raise StoreFailed(f"{source}{key} was not fetched.")
        await asyncio.to_thread(Path(to).write_bytes, self.content[key])

    async def put_object(self, file: str, source: str, key: str, kms_key: str) -> None:
        assert (source, kms_key) == ("s3://o/", "")
        self.written[key] = await asyncio.to_thread(Path(file).read_bytes)


def run(models: Models, objects: Objects, folder: Path, most_calls: int = 4, **asked: Any) -> None:
    """Raises JobFailed."""
    data = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/"}}
    request = {
        "TransformInput": {"DataSource": data, "SplitType": "Line"},
        "TransformOutput": {"S3OutputPath": "s3://o", "AssembleWith": "Line"},
        "BatchStrategy": "SingleRecord",
        **asked,
    }
    job = job_of("job", "arn", request, [Container(source="s3://b/m.tar.gz", is_multi_model=False)])

    async def in_thread(action: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(action)

    async def at_work() -> None:
        calls = asyncio.Semaphore(most_calls)
        traffic: Any = models
        await Work(job, traffic, objects, folder=folder, calls=calls, most_calls=most_calls, in_thread=in_thread).run()

    until_ended: Coroutine[Any, Any, None] = asyncio.wait_for(at_work(), 60)
    asyncio.run(until_ended)


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_FIRST_DELAY_SECS", 0.0)


def test_answers_are_written_in_the_order_of_the_records(tmp_path: Path) -> None:
    """Whichever comes first."""
    objects = Objects(a=b"".join(b"%d\n" % number for number in range(50)))

    run(Models(), objects, tmp_path, MaxConcurrentTransforms=4)

    assert objects.written["a.out"].split() == [b"<%d>" % number for number in range(50)]


@pytest.mark.parametrize(("asked", "most_calls", "at_once"), [(1, 4, 1), (3, 4, 3), (50, 2, 2)])
def test_no_more_calls_are_made_at_once_than_may(asked: int, most_calls: int, at_once: int, tmp_path: Path) -> None:
    models = Models()

    run(models, Objects(a=b"1\n" * 50), tmp_path, most_calls, MaxConcurrentTransforms=asked)

    assert models.most_waiting <= at_once
    assert len(models.asked) == 50


@pytest.mark.parametrize(
    ("retries", "outcomes", "calls", "is_written"),
    [
        (3, [BROKEN, BROKEN, BROKEN], 4, True),
        (1, [BROKEN, BROKEN, BROKEN], 2, False),
        (0, [BROKEN], 1, False),
        (3, [REFUSED], 1, False),
    ],
)
def test_calls_are_made_again(
    retries: int, outcomes: list[Answer | Exception], calls: int, is_written: bool, tmp_path: Path
) -> None:
    models, objects = Models({b"1": list(outcomes)}), Objects(a=b"1\n")
    asked = {"ModelClientConfig": {"InvocationsMaxRetries": retries}}

    if is_written:
        run(models, objects, tmp_path, **asked)
    else:
        with pytest.raises(JobFailed, match=r"^s3://b/a: Received .* error"):
            run(models, objects, tmp_path, **asked)

    assert len(models.asked) == calls
    assert bool(objects.written) is is_written


def test_what_fails_keeps_nothing_else_from_being_written(tmp_path: Path) -> None:
    objects = Objects(a=b"1\n2\n", b=b"lost", c=b"3\n", d=b"4\n5\n")
    models = Models({b"2": [REFUSED], b"4": [REFUSED]})

    with pytest.raises(JobFailed, match=r"^s3://b/a: .* 3 of 4 objects have failed\.$"):
        run(models, objects, tmp_path, MaxConcurrentTransforms=2)

    assert objects.written == {"c.out": b"<3>\n"}
    assert models.waiting == [], "nothing of it is under way any more"


def test_without_objects_a_job_fails(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="No objects found"):
        run(Models(), Objects(), tmp_path)
