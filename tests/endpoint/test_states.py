"""Where the control plane keeps its resources: what all places do alike, and what comes of faults of each."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from polyhost.artifacts import ArtifactForbidden
from polyhost.artifacts.transfers import ArtifactChanged, Content
from polyhost.endpoint.arns import Arns
from polyhost.endpoint.definitions import Endpoint
from polyhost.endpoint.hosting import Hosting, HostingError
from polyhost.endpoint.hosting.bucket_state import BucketState
from polyhost.endpoint.hosting.file_state import FileState
from polyhost.endpoint.hosting.hosting import Plane, on_state
from polyhost.endpoint.hosting.sqlite_state import SqliteState
from polyhost.endpoint.hosting.state import InMemory, Resource, State, StateFailed
from polyhost.errors import StartFailed
from polyhost.service_errors import ArtifactMissing, StoreFailed

PLANE = Plane(arns=Arns("123456789012", "eu-west-1"), own=None)
ONE, TWO = Resource("model", "One", 1, 1, {"ü": [1]}), Resource("model", "two", 2, 2, {})


class Bucket:
    """An object of a store. `before_write` is called once, before the next write is looked at."""

    url = "s3://bucket/prefix/endpoints.json"

    def __init__(self, *, knows: tuple[str, ...] = ("If-Match", "If-None-Match")) -> None:
        self.body, self.version = b"", ""
        self.reads = self.writes = 0
        self.failure: Exception | None = None
        self.before_write: Callable[[], None] = lambda: None
        # Whether the next write's answer is lost, and the write sent again.
        self.loses = False
        self._knows = knows
        self._versions = itertools.count(1)

    def read(self, known: str) -> Content | None:
        self.reads += 1
        if self.failure:
            raise self.failure
        if not self.version:
            raise ArtifactMissing(f"{self.url} is not there.")
        return None if known == self.version else Content(1, self.version, self.body)

    def write(self, body: bytes, expected: str) -> str:
        before, self.before_write = self.before_write, lambda: None
        before()
        if self.failure:
            raise self.failure
        self.writes += 1
        if ("If-Match" if expected else "If-None-Match") in self._knows and expected != self.version:
            raise ArtifactChanged("changed")
        self.body, self.version = body, f"v{next(self._versions)}"
        if self.loses:
            self.loses = False
            return self.write(body, expected)
        return self.version


def state_in(bucket: Bucket) -> BucketState:
    return BucketState(bucket, Bucket())


@pytest.fixture(params=["sqlite", "memory", "bucket"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    states: dict[str, Callable[[], State]] = {
        "sqlite": lambda: SqliteState(tmp_path), "memory": InMemory, "bucket": lambda: state_in(Bucket()),
    }  # fmt: skip
    state = states[request.param]()
    yield state
    state.close()


def test_what_was_put_is_there_by_its_name(state: State) -> None:
    def put() -> None:
        for resource in (TWO, ONE, Resource("endpoint", "one", 1, 1, {})):
            state.put(resource)
        state.set_tags("arn", {"b": "2", "a": "1"})

    state.transact(put)
    assert state.get("model", "oNE") == ONE
    assert state.get("model", "three") is None
    assert state.all("model") == [ONE, TWO]
    assert list(state.tags("arn").items()) == [("a", "1"), ("b", "2")]

    def remove() -> None:
        state.delete("model", "TWO")
        state.delete("model", "three")
        state.set_tags("arn", {})

    state.transact(remove)
    assert (state.all("model"), state.tags("arn")) == ([ONE], {})


def test_work_that_fails_leaves_nothing(state: State) -> None:
    def fail() -> None:
        state.put(TWO)
        raise KeyError

    state.transact(lambda: state.put(ONE))
    with pytest.raises(KeyError):
        state.transact(fail)
    assert state.transact(lambda: state.all("model")) == [ONE]


# An object of a bucket


def test_what_one_writes_others_have_with_their_next_transaction() -> None:
    bucket = Bucket()
    one, other = state_in(bucket), state_in(bucket)
    one.transact(lambda: one.put(ONE))
    one.transact(lambda: one.set_tags("arn", {"a": "1"}))

    assert other.all("model") == []
    assert other.transact(lambda: (other.all("model"), other.tags("arn"))) == ([ONE], {"a": "1"})
    writes = bucket.writes
    other.transact(lambda: other.put(ONE))
    assert bucket.writes == writes, "what changes nothing is not written"


def test_who_was_overtaken_decides_again() -> None:
    """On what the other one has written: nothing is lost, and what may no more be done is not done."""
    bucket = Bucket()
    one, other = state_in(bucket), state_in(bucket)
    bucket.before_write = lambda: other.transact(lambda: other.put(ONE))
    one.transact(lambda: one.put(TWO))
    assert state_in(bucket).all("model") == [ONE, TWO]

    def create() -> None:
        if one.get("model", "three"):
            raise HostingError("ValidationException", "it exists")
        one.put(Resource("model", "three", 3, 3, {}))

    bucket.before_write = lambda: other.transact(lambda: other.put(Resource("model", "Three", 4, 4, {})))
    with pytest.raises(HostingError, match="it exists"):
        one.transact(create)
    assert [resource.name for resource in state_in(bucket).all("model")] == ["One", "Three", "two"]


def test_a_write_whose_answer_was_lost_is_done_once() -> None:
    bucket = Bucket()
    one = state_in(bucket)
    bucket.loses = True
    calls: list[int] = []
    one.transact(lambda: calls.append(len(calls)) or one.put(ONE))  # type: ignore[func-returns-value]

    assert calls == [0]
    assert state_in(bucket).all("model") == [ONE]


@pytest.mark.parametrize("failure", [StoreFailed("No answer."), ArtifactMissing("Gone."), ArtifactForbidden("No.")])
def test_a_store_that_fails_changes_nothing_and_what_was_read_stays(failure: Exception) -> None:
    """Where the object is gone, too: that is a fault, and no empty state."""
    bucket = Bucket()
    one = state_in(bucket)
    one.transact(lambda: one.put(ONE))
    bucket.failure = failure
    with pytest.raises(StateFailed, match=str(failure)):
        one.transact(lambda: one.put(TWO))
    assert one.all("model") == [ONE]
    bucket.failure = None

    def fail() -> None:
        bucket.failure = failure

    bucket.before_write = fail
    with pytest.raises(StateFailed, match=str(failure)):
        one.transact(lambda: one.put(TWO))
    assert one.all("model") == [ONE]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "is not readable as Polyhost's state"),
        (b"[]", "is not readable as Polyhost's state"),
        (b'{"Format": 1, "Write": "", "Resources": [{"a": 1}], "Tags": {}}', "is not readable as Polyhost's state"),
        (b'{"Format": 1, "Write": "", "Resources": 7, "Tags": {}}', "is not readable as Polyhost's state"),
        (b'{"Format": 2}', "was written by a newer Polyhost"),
    ],
)
def test_an_object_that_is_no_state_is_refused_and_left_alone(body: bytes, words: str) -> None:
    """At the start; of a server that runs, what was read before stays in force."""
    bucket = Bucket()
    one = state_in(bucket)
    one.transact(lambda: one.put(ONE))
    bucket.body, bucket.version = body, "other"
    with pytest.raises(StartFailed, match=words):
        state_in(bucket)
    with pytest.raises(StateFailed, match=words):
        one.transact(lambda: one.put(TWO))
    assert (bucket.body, one.all("model")) == (body, [ONE])


@pytest.mark.parametrize(("knows", "missing"), [(("If-Match",), "If-None-Match"), (("If-None-Match",), "If-Match")])
def test_a_store_without_conditional_writes_is_found_out(knows: tuple[str, ...], missing: str) -> None:
    """At the first start and at later ones, and nothing is written where others' state is."""
    probe, bucket = Bucket(knows=knows), Bucket()
    for _ in range(2):
        with pytest.raises(StartFailed, match=f"does not know {missing}: servers would overwrite what others"):
            BucketState(bucket, probe)
    assert bucket.writes == 0


def test_a_store_that_does_not_answer_at_the_start() -> None:
    bucket = Bucket()
    bucket.failure = StoreFailed("No answer.")
    with pytest.raises(StartFailed, match=r"--state: the shared state cannot be used: No answer\."):
        state_in(bucket)


# Servers on one object


@pytest.fixture(autouse=True)
def no_looks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: a test says who looks, and when."""
    monkeypatch.setattr(BucketState, "poll_secs", 3600.0)


def hosting_on(bucket: Bucket, outcome: str | None = None) -> Hosting:
    """`outcome`: why it cannot serve what it is to serve."""

    async def deploy(_: Endpoint) -> str | None:
        return outcome

    return Hosting(lambda: state_in(bucket), PLANE, deploy=deploy)


async def status_at(hosting: Hosting) -> str:
    return str((await hosting.call("DescribeEndpoint", {"EndpointName": "Mine"}))["EndpointStatus"])


async def create_at(hosting: Hosting) -> None:
    await hosting.call("CreateModel", MODEL)
    await hosting.call("CreateEndpointConfig", CONFIG)
    await hosting.call("CreateEndpoint", ENDPOINT)


@pytest.mark.parametrize(("here", "there", "status"), [(None, "no", "InService"), ("no", None, "Failed")])
def test_the_server_that_was_asked_says_whether_an_endpoint_can_be_served(
    here: str | None, there: str | None, status: str
) -> None:
    """One that cannot serve what others can fails it for nobody else."""

    async def case() -> None:
        bucket = Bucket()
        one, other = hosting_on(bucket, here), hosting_on(bucket, there)
        await one.start()
        await other.start()
        await create_at(one)
        await other.look()
        await other.deployed()
        assert (await status_at(one), await status_at(other)) == (status, status)
        assert [hosting.endpoint("Mine") is not None for hosting in (one, other)] == [status == "InService"] * 2
        await other.call("DeleteEndpoint", {"EndpointName": "Mine"})
        await one.look()
        assert one.endpoints() == []
        await one.stop()
        await other.stop()

    asyncio.run(asyncio.wait_for(case(), 120))


def test_all_who_look_at_once_wait_for_one_look_that_began_after_they_asked() -> None:
    async def case() -> None:
        bucket = Bucket()
        one, other = hosting_on(bucket), hosting_on(bucket)
        await one.start()
        await other.start()
        early = asyncio.create_task(one.look())
        await asyncio.sleep(0)
        await create_at(other)
        reads = bucket.reads
        await asyncio.gather(early, *(one.look() for _ in range(100)))
        assert bucket.reads - reads <= 3, "two looks, and the end of the deployment that they have begun"
        assert one.endpoint("Mine") is not None
        await one.stop()
        await other.stop()

    asyncio.run(asyncio.wait_for(case(), 120))


def test_a_server_goes_on_with_what_it_has_read(caplog: pytest.LogCaptureFixture) -> None:
    """The log says once that it cannot read more; calls that change something are refused."""

    async def case() -> None:
        bucket = Bucket()
        hosting = hosting_on(bucket)
        await hosting.start()
        await create_at(hosting)
        bucket.failure = StoreFailed("No answer.")
        await hosting.look()
        await hosting.look()
        assert hosting.endpoint("Mine") is not None
        with pytest.raises(HostingError, match=r"cannot write its state \(No answer\.\): nothing was changed"):
            await hosting.call("DeleteEndpoint", {"EndpointName": "Mine"})
        bucket.failure = None
        await hosting.call("DeleteEndpoint", {"EndpointName": "Mine"})
        await hosting.stop()

    asyncio.run(asyncio.wait_for(case(), 120))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["No answer.: what was read before stays in force"]


# An operator's file

MODEL = {"ModelName": "houses", "PrimaryContainer": {"Image": "i", "ModelDataUrl": "s3://b/k/", "Mode": "MultiModel"}}
CONFIG = {"EndpointConfigName": "c", "ProductionVariants": [{"ModelName": "houses", "VariantName": "v"}]}
ENDPOINT = {"EndpointName": "Mine", "EndpointConfigName": "c", "Tags": [{"Key": "team", "Value": "one"}]}
YAML = """
Models:
  - ModelName: houses
    PrimaryContainer: {Image: i, ModelDataUrl: "s3://b/k/", Mode: MultiModel}
EndpointConfigs:
  - EndpointConfigName: c
    ProductionVariants: [{ModelName: houses, VariantName: v}]
Endpoints:
  - EndpointName: Mine
    EndpointConfigName: c
    Tags: [{Key: team, Value: one}]
"""


class File:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._writes = 0

    def write(self, text: str) -> None:
        self._writes += 1
        self.path.write_text(text)
        os.utime(self.path, (self._writes, self._writes))

    def write_json(self, **sections: Any) -> None:
        given = {"Models": [MODEL], "EndpointConfigs": [CONFIG], "Endpoints": [ENDPOINT], **sections}
        self.write(json.dumps(given))

    def opened(self) -> FileState:
        return FileState(self.path, lambda state: on_state(state, PLANE)[1])


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "endpoints.json")


def newest(state: FileState) -> Resource:
    resource = state.transact(lambda: state.get("endpoint", "mine"))
    assert resource is not None
    return resource


def test_yaml_and_json_say_the_same(tmp_path: Path, file: File) -> None:
    file.write_json()
    yaml = File(tmp_path / "endpoints.yaml")
    yaml.write(YAML)
    states = [one.opened() for one in (file, yaml)]

    assert [[resource.document for resource in state.all("model")] for state in states] == [
        [{"PrimaryContainer": MODEL["PrimaryContainer"]}]
    ] * 2
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/mine"
    assert [state.tags(arn) for state in states] == [{"team": "one"}] * 2
    assert [newest(state).name for state in states] == ["Mine"] * 2


def test_a_file_is_read_again_when_it_changes(file: File) -> None:
    """What is as it was stays in service; a changed endpoint serves as before until the new one is prepared."""
    file.write_json()
    state = file.opened()
    created = newest(state)
    in_service = {name: value for name, value in created.document.items() if name != "Status"}
    served = Resource("endpoint", "Mine", created.created, created.modified, in_service)
    state.transact(lambda: state.put(served))

    file.write_json(Models=[MODEL, {**MODEL, "ModelName": "more"}])
    assert newest(state) == served
    assert len(state.all("model")) == 2
    file.write_json(EndpointConfigs=[{**CONFIG, "ProductionVariants": [{"ModelName": "houses", "VariantName": "w"}]}])
    updated = newest(state)
    assert updated.created == created.created
    assert (updated.document["Status"], updated.document["Before"]) == ("Updating", in_service)
    assert updated.document["Variants"][0]["VariantName"] == "w"
    file.write_json(Endpoints=[])
    assert state.transact(lambda: state.all("endpoint")) == []


def test_an_endpoint_that_has_failed_is_tried_again_with_the_next_change(file: File) -> None:
    file.write_json()
    state = file.opened()
    created = newest(state)
    failed = Resource("endpoint", "Mine", 1, 1, {**created.document, "Status": "Failed", "FailureReason": "no"})
    state.transact(lambda: state.put(failed))
    assert newest(state) == failed
    file.write_json(Models=[MODEL, {**MODEL, "ModelName": "more"}])
    assert newest(state).document["Status"] == "Creating"


BROKEN = [
    ("{", "it is neither YAML nor JSON: "),
    ('{"Models": 7}', "Models must be a list of what CreateModel takes"),
    ('{"Models": ["houses"]}', "Models must be a list of what CreateModel takes"),
    ('{"Model": []}', "it must have Models, EndpointConfigs, Endpoints, each a list, and nothing else"),
    ("[]", "it must have Models, EndpointConfigs, Endpoints, each a list, and nothing else"),
    ('{"Models": [{"ModelName": "a"}]}', r"Models\[0\]: give either PrimaryContainer or Containers, and not both"),
    ('{"Endpoints": [{"EndpointName": "e", "EndpointConfigName": "c"}]}', r"Endpoints\[0\]: Could not find endpoint c"),
    (json.dumps({"Models": [MODEL, MODEL]}), r"Models\[1\]: Cannot create already existing model"),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_a_broken_file_keeps_the_last_good_state_and_says_so_once(
    file: File, caplog: pytest.LogCaptureFixture, text: str, words: str
) -> None:
    caplog.set_level("INFO")
    file.write(text)
    with pytest.raises(StartFailed, match=f"--endpoints {file.path}: {words}"):
        file.opened()
    file.write_json()
    state = file.opened()
    created = newest(state)
    file.write(text)
    assert newest(state) == newest(state) == created
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.message.endswith(". What was read before stays in force.")
    file.write_json()
    assert newest(state) == created
    assert caplog.records[-1].message == f"--endpoints {file.path} was read again"


def test_a_file_that_goes_away_deletes_nothing(file: File, caplog: pytest.LogCaptureFixture) -> None:
    """An editor may replace it in two steps."""
    file.write_json()
    state = file.opened()
    created = newest(state)
    file.path.unlink()
    assert newest(state) == newest(state) == created
    assert [record.message for record in caplog.records] == [
        f"--endpoints {file.path}: it cannot be read (No such file or directory). What was read before stays in force."
    ]
    file.write_json()
    assert newest(state) == created


def test_calls_change_nothing_of_a_file(file: File) -> None:
    file.write_json()
    state = file.opened()
    _, operations = on_state(state, PLANE)

    for operation, parameters in (
        ("CreateModel", {**MODEL, "ModelName": "other"}),
        ("DeleteEndpoint", {"EndpointName": "Mine"}),
        ("AddTags", {"ResourceArn": "arn", "Tags": []}),
    ):
        with pytest.raises(HostingError, match=r"are those of the file .*--endpoints.*, and are not changed by calls"):
            operations.perform(operation, parameters)
    assert operations.perform("DescribeEndpoint", {"EndpointName": "mine"}).answer["EndpointStatus"] == "Creating"
