"""The file of the control plane's state: who may read it, and what happens when it cannot be used."""

from __future__ import annotations

import asyncio
import dataclasses
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from polyhost.endpoint.arns import Arns
from polyhost.endpoint.definitions import Container, Endpoint
from polyhost.endpoint.hosting import Hosting, HostingError
from polyhost.endpoint.hosting.hosting import Plane
from polyhost.endpoint.hosting.served import Check
from polyhost.endpoint.hosting.sqlite_state import FILE, SqliteState
from polyhost.endpoint.hosting.state import Resource
from polyhost.endpoint_server import EndpointHalf
from polyhost.errors import StartFailed

MODEL = {"ModelName": "m", "PrimaryContainer": {"Image": "i", "ModelDataUrl": "s3://b/k/", "Mode": "MultiModel"}}
CONFIG = {"EndpointConfigName": "c", "ProductionVariants": [{"ModelName": "m", "VariantName": "v"}]}
ENDPOINT = {"EndpointName": "Mine", "EndpointConfigName": "c"}


@pytest.fixture
def state(tmp_path: Path) -> Iterator[SqliteState]:
    state = SqliteState(tmp_path)
    yield state
    state.close()


def hosting_in(folder: Path, check: Check = lambda _: None, **fields: Any) -> Hosting:
    plane = Plane(arns=Arns("123456789012", "eu-west-1"), own=None, check=check)
    return Hosting(lambda: SqliteState(folder), plane, **fields)


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """Variables of models may be secrets: neither the folder, if it is ours, nor any file."""
    folder = tmp_path / "new" / "state"
    state = SqliteState(folder)
    state.transact(lambda: state.put(Resource("model", "m", 1, 1, {})))

    assert (folder.stat().st_mode & 0o777) == 0o700
    assert {path.name: path.stat().st_mode & 0o077 for path in folder.iterdir()} == {FILE: 0, f"{FILE}-wal": 0}
    state.close()


def test_a_transaction_is_whole_or_not_at_all(state: SqliteState) -> None:
    """What fails in the middle leaves nothing, and the next one works."""

    def fail() -> None:
        state.put(Resource("model", "m", 1, 1, {}))
        state.set_tags("arn", {"a": "b"})
        raise KeyError

    with pytest.raises(KeyError):
        state.transact(fail)
    assert (state.all("model"), state.tags("arn")) == ([], {})
    state.transact(lambda: state.put(Resource("model", "M", 1, 2, {"ü": [1]})))
    assert state.get("model", "m") == Resource("model", "M", 1, 2, {"ü": [1]})
    assert state.get("endpoint", "m") is None


def test_a_file_of_a_newer_polyhost_is_left_alone(tmp_path: Path) -> None:
    """With the sentence that says what to do."""
    SqliteState(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (tmp_path / FILE).read_bytes()

    with pytest.raises(StartFailed, match="its version is 99, this one reads up to 1"):
        SqliteState(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_files_that_are_no_state(tmp_path: Path) -> None:
    """Something else, a folder, a folder that cannot be made: no traceback."""
    (tmp_path / FILE).write_text("notes of mine\n" * 100)
    with pytest.raises(StartFailed, match="is not readable as Polyhost's state"):
        SqliteState(tmp_path)
    (tmp_path / "a" / FILE).mkdir(parents=True)
    with pytest.raises(StartFailed, match="the state cannot be kept in"):
        SqliteState(tmp_path / "a")
    with pytest.raises(StartFailed, match="the state cannot be kept in"):
        SqliteState(tmp_path / FILE / "below")


def test_an_endpoint_is_found_as_soon_as_it_is_answered(tmp_path: Path) -> None:
    """In memory, by its exact name, and the change is told; also when the caller does not wait for the answer."""
    changes: list[list[str]] = []
    has_begun, may_end = threading.Event(), threading.Event()

    def check(_: Sequence[Container]) -> None:
        has_begun.set()
        may_end.wait(60)

    def note() -> None:
        changes.append([endpoint.name for endpoint in hosting.endpoints()])

    hosting = hosting_in(tmp_path, check=check, on_change=note)

    async def use() -> None:
        await hosting.start()
        await hosting.call("CreateModel", MODEL)
        await hosting.call("CreateEndpointConfig", CONFIG)
        other = {"ModelName": "m", "VariantName": "w"}
        await hosting.call("CreateEndpointConfig", {"EndpointConfigName": "d", "ProductionVariants": [other]})
        may_end.set()
        answer = await hosting.call("CreateEndpoint", ENDPOINT)
        may_end.clear()
        endpoint = hosting.endpoint("Mine")
        assert isinstance(endpoint, Endpoint)
        assert endpoint.arn == answer["EndpointArn"] == "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/mine"
        assert [container.source for container in endpoint.variants[0].containers] == ["s3://b/k/"]
        assert hosting.endpoint("mine") is None

        has_begun.clear()
        leaving = asyncio.ensure_future(hosting.call("UpdateEndpoint", {**ENDPOINT, "EndpointConfigName": "d"}))
        await asyncio.to_thread(has_begun.wait)
        leaving.cancel()
        may_end.set()
        # One after the other: this is answered after the update.
        await hosting.call("ListModels", {})
        assert leaving.cancelled()
        endpoint = hosting.endpoint("Mine")
        assert endpoint
        assert endpoint.variants[0].name == "w"
        await hosting.call("DeleteEndpoint", {"EndpointName": "Mine"})
        assert (hosting.endpoint("Mine"), hosting.endpoints()) == (None, [])
        await hosting.stop()

    asyncio.run(use())
    assert changes == [["Mine"], ["Mine"], []]


# Deployments


class Deployer:
    """What is deployed waits here until the test says what comes of it."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.outcomes: asyncio.Queue[str | None] = asyncio.Queue()

    async def __call__(self, endpoint: Endpoint) -> str | None:
        self.begun.put_nowait(endpoint.variants[0].name)
        return await self.outcomes.get()


async def described(hosting: Hosting) -> tuple[str, str, str | None]:
    answer = await hosting.call("DescribeEndpoint", {"EndpointName": "Mine"})
    return answer["EndpointStatus"], answer["EndpointConfigName"], answer.get("FailureReason")


async def hosting_of(folder: Path, deploy: Deployer) -> Hosting:
    """With a model, and the configurations c and d of variants v and w."""
    hosting = hosting_in(folder, deploy=deploy)
    await hosting.start()
    if not (await hosting.call("ListModels", {}))["Models"]:
        await hosting.call("CreateModel", MODEL)
        await hosting.call("CreateEndpointConfig", CONFIG)
        other = {"EndpointConfigName": "d", "ProductionVariants": [{"ModelName": "m", "VariantName": "w"}]}
        await hosting.call("CreateEndpointConfig", other)
    return hosting


UPDATE = {"EndpointName": "Mine", "EndpointConfigName": "d"}
SERVED = ("InService", "d", None)


def test_an_endpoint_that_cannot_be_served_has_failed(tmp_path: Path) -> None:
    """With the reason, also after a restart; it can be deleted and made again, or given another configuration."""

    async def use() -> None:
        deploy = Deployer()
        hosting = await hosting_of(tmp_path, deploy)
        creating = asyncio.ensure_future(hosting.call("CreateEndpoint", ENDPOINT))
        assert await deploy.begun.get() == "v"
        assert await described(hosting) == ("Creating", "c", None)
        with pytest.raises(HostingError, match=r'Cannot update in-progress endpoint "arn:.*/mine"'):
            await hosting.call("UpdateEndpoint", UPDATE)
        deploy.outcomes.put_nowait("there is no archive")
        assert (await creating)["EndpointArn"].endswith("/mine")
        assert await described(hosting) == ("Failed", "c", "there is no archive")
        assert hosting.endpoint("Mine") is None
        listed = await hosting.call("ListEndpoints", {"StatusEquals": "Failed"})
        assert [row["EndpointName"] for row in listed["Endpoints"]] == ["Mine"]
        weights = {"DesiredWeightsAndCapacities": [{"VariantName": "v", "DesiredWeight": 2}]}
        with pytest.raises(HostingError, match="has failed: update it to a configuration that can be served"):
            await hosting.call("UpdateEndpointWeightsAndCapacities", {"EndpointName": "Mine", **weights})
        await hosting.stop()

        hosting = await hosting_of(tmp_path, deploy)
        assert await described(hosting) == ("Failed", "c", "there is no archive")
        assert (hosting.endpoints(), deploy.begun.empty()) == ([], True)
        for outcome, expected in (("nor is there here", ("Failed", "c", "nor is there here")), (None, SERVED)):
            deploy.outcomes.put_nowait(outcome)
            await hosting.call("UpdateEndpoint", UPDATE)
            assert await described(hosting) == expected
        assert hosting.endpoint("Mine") is not None
        await hosting.call("DeleteEndpoint", {"EndpointName": "Mine"})
        await hosting.stop()

    asyncio.run(use())


def test_an_update_that_cannot_be_served_changes_nothing(tmp_path: Path) -> None:
    """The endpoint is in service as before, and says why it was not updated."""

    async def use() -> None:
        deploy = Deployer()
        hosting = await hosting_of(tmp_path, deploy)
        deploy.outcomes.put_nowait(None)
        await hosting.call("CreateEndpoint", ENDPOINT)
        assert await described(hosting) == ("InService", "c", None)
        updating = asyncio.ensure_future(hosting.call("UpdateEndpoint", UPDATE))
        assert [await deploy.begun.get() for _ in range(2)] == ["v", "w"]
        assert await described(hosting) == ("Updating", "d", None)
        deploy.outcomes.put_nowait("its script is dead")
        await updating
        assert await described(hosting) == ("InService", "c", "its script is dead")
        assert await deploy.begun.get() == "v"
        deploy.outcomes.put_nowait(None)
        deploy.outcomes.put_nowait(None)
        await hosting.call("UpdateEndpoint", UPDATE)
        assert await described(hosting) == SERVED
        await hosting.stop()

    asyncio.run(use())


class EndingCache:
    """A cache that ends loads, and so a deployment; it has ended when all that follows was kept."""

    def __init__(self, deploy: Deployer, hosting: Hosting) -> None:
        self._deploy = deploy
        self._hosting = hosting

    async def stop(self) -> None:
        self._deploy.outcomes.put_nowait("The endpoint was deleted or updated meanwhile.")
        await self._hosting.deployed()


class Idle:
    async def stop(self) -> None: ...


def test_a_deployment_that_a_server_interrupts_by_its_end_has_not_failed(tmp_path: Path) -> None:
    async def use() -> None:
        deploy = Deployer()
        hosting = await hosting_of(tmp_path, deploy)
        creating = asyncio.ensure_future(hosting.call("CreateEndpoint", ENDPOINT))
        assert await deploy.begun.get() == "v"
        parts: dict[str, Any] = {field.name: Idle() for field in dataclasses.fields(EndpointHalf)}
        await EndpointHalf(**{**parts, "hosting": hosting, "cache": EndingCache(deploy, hosting)}).stop()
        await creating

        hosting = await hosting_of(tmp_path, Deployer())
        assert await described(hosting) == ("Creating", "c", None)
        await hosting.stop()

    asyncio.run(use())


def test_an_endpoint_that_is_made_during_a_stop_is_deployed_at_the_next_start(tmp_path: Path) -> None:
    """Its deployment was begun after the stop had ended all others, and met what was closed."""

    async def use() -> None:
        deploy = Deployer()
        hosting = await hosting_of(tmp_path, deploy)
        creating = asyncio.ensure_future(hosting.call("CreateEndpoint", ENDPOINT))
        await asyncio.sleep(0)
        await hosting.stop()
        assert (await creating)["EndpointArn"]
        assert deploy.begun.empty()

        hosting = await hosting_of(tmp_path, deploy)
        assert await deploy.begun.get() == "v"
        await hosting.stop()

    asyncio.run(use())


def test_a_deployment_that_a_stop_interrupts_goes_on_with_the_next_start(tmp_path: Path) -> None:
    """Its end is kept then; of what was in service, a failure is no end."""

    async def use() -> None:
        deploy = Deployer()
        hosting = await hosting_of(tmp_path, deploy)
        creating = asyncio.ensure_future(hosting.call("CreateEndpoint", ENDPOINT))
        assert await deploy.begun.get() == "v"
        await hosting.stop()
        await creating

        hosting = await hosting_of(tmp_path, deploy)
        assert await described(hosting) == ("Creating", "c", None)
        deploy.outcomes.put_nowait(None)
        while await described(hosting) != ("InService", "c", None):
            pass
        await hosting.stop()

        hosting = await hosting_of(tmp_path, deploy)
        deploy.outcomes.put_nowait("the bucket is away")
        assert [await deploy.begun.get() for _ in range(2)] == ["v", "v"]
        assert await described(hosting) == ("InService", "c", None)
        assert hosting.endpoint("Mine") is not None
        await hosting.stop()

    asyncio.run(use())


def test_an_endpoint_that_is_deleted_while_it_is_made(tmp_path: Path) -> None:
    """Is gone, and another one of its name is another."""

    async def use() -> None:
        deploy = Deployer()
        hosting = await hosting_of(tmp_path, deploy)
        creating = asyncio.ensure_future(hosting.call("CreateEndpoint", ENDPOINT))
        assert await deploy.begun.get() == "v"
        await hosting.call("DeleteEndpoint", {"EndpointName": "Mine"})
        await creating
        assert hosting.endpoints() == []
        deploy.outcomes.put_nowait(None)
        await hosting.call("CreateEndpoint", {**ENDPOINT, "EndpointConfigName": "d"})
        assert await described(hosting) == SERVED
        await hosting.stop()

    asyncio.run(use())


def test_what_a_policy_names(tmp_path: Path) -> None:
    """One form for each resource, whatever is sent."""
    hosting = hosting_in(tmp_path)
    arns = "arn:aws:sagemaker:eu-west-1:123456789012:"

    def named(operation: str, **parameters: Any) -> str:
        (resource, *_) = hosting.resources_of(operation, parameters)
        return resource

    assert named("CreateModel", ModelName="M") == f"{arns}model/m"
    assert named("DeleteEndpointConfig", EndpointConfigName="c") == f"{arns}endpoint-config/c"
    assert named("UpdateEndpointWeightsAndCapacities", EndpointName="e") == f"{arns}endpoint/e"
    assert named("ListEndpoints", NameContains="e") == "*"
    assert named("AddTags", ResourceArn=f"{arns}endpoint/E") == f"{arns}endpoint/e"
    assert named("ListTags", ResourceArn="else") == "else"
    assert named("CreateModel", ModelName=["M"]) == f"{arns}model/['m']"
    assert named("CreateModel") == f"{arns}model/"
    with pytest.raises(HostingError, match="CreateTrainingJob is not an operation of Polyhost"):
        named("CreateTrainingJob")


def test_a_disk_that_takes_nothing_more(tmp_path: Path) -> None:
    """The operation is refused with the reason, nothing of it is there, and what was there still is."""
    program = """
import asyncio, resource, signal, sys
from pathlib import Path
from test_hosting_state import CONFIG, ENDPOINT, MODEL, hosting_in
from polyhost.endpoint.hosting import HostingError

async def use():
    hosting = hosting_in(Path(sys.argv[1]))
    await hosting.start()
    await hosting.call("CreateModel", MODEL)
    # Files of this process may not grow.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        await hosting.call("CreateEndpointConfig", CONFIG)
    except HostingError as error:
        print(error.status, error.message)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print((await hosting.call("ListEndpointConfigs", {}))["EndpointConfigs"])
    print([model["ModelName"] for model in (await hosting.call("ListModels", {}))["Models"]])
    await hosting.call("CreateEndpointConfig", CONFIG)
    await hosting.call("CreateEndpoint", ENDPOINT)
    print([endpoint.name for endpoint in hosting.endpoints()])
    await hosting.stop()

asyncio.run(use())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent,
    )  # fmt: skip

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith("500 The server cannot write its state")
    assert lines[1:] == ["[]", "['m']", "['Mine']"]
