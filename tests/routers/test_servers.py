"""Three Polyhosts on one bucket behind the real engines: what happens to servers, and what clients see of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from conftest import SAMPLES
from support.endpoint import client
from support.moto import moto_server

from benchmarks import routers
from benchmarks.fleet import SERVERS, Faults, Host, Traffic, hosts, through_faults
from routers.engines import Router, certify, require

pytestmark = pytest.mark.routers
MODELS = [f"m{number}.tar.gz" for number in range(60)]
RATE = 100.0
HOUSE = "1998,2150,3,2.5,0.4,2"
SHORT = Faults(kill=2, restart=4, first_end=7, second_end=14, until=21)


@pytest.fixture(scope="module")
def bucket(samples_folder: Path) -> Iterator[dict[str, str]]:
    """Where a server finds moto's S3, which has the models."""
    with moto_server() as url:
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        s3 = boto3.client("s3", endpoint_url=url, **keys)
        s3.create_bucket(Bucket="fleet")
        for model in MODELS:
            s3.upload_file(str(SAMPLES / "houston.tar.gz"), "fleet", f"models/{model}")
        yield {
            "AWS_ENDPOINT_URL_S3": url, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
        }  # fmt: skip


@pytest.fixture(scope="module")
def servers(bucket: dict[str, str]) -> Iterator[list[Host]]:
    with hosts(SERVERS, "s3://fleet/models/", environ=bucket) as started:
        yield started


def start(engine: str, folder: Path, servers: list[Host], *options: str) -> Router:
    require(engine)
    return Router(engine, folder, [server.port for server in servers], *options)


@pytest.mark.parametrize("engine", ["haproxy", "envoy"])
def test_no_request_fails_while_servers_die_and_end_and_come_back(
    engine: str, servers: list[Host], tmp_path: Path
) -> None:
    """kill -9, restart, SIGTERM of the two others, by clients that ask once."""
    with start(engine, tmp_path, servers) as router:
        seen = through_faults(router.port, servers, MODELS, RATE, SHORT)

    assert len(seen.calls) > RATE * (SHORT.until - 2)
    assert seen.failed == []
    assert set(seen.shares()) == {"0", "1", "2"}


def test_no_request_fails_while_all_servers_are_restarted(servers: list[Host], tmp_path: Path) -> None:
    """One after the other, as a StatefulSet does it."""
    with (
        start("haproxy", tmp_path, servers, "--slow-start=2") as router,
        Traffic(router.port, MODELS, RATE) as traffic,
    ):
        for server in servers:
            assert server.terminate() == 0, server.log
            server.start()
            router.wait_for(SERVERS)

    assert traffic.seen.failed == []


def test_a_model_is_loaded_at_its_home_alone(bucket: dict[str, str], tmp_path: Path) -> None:
    """`fleet warm` loads each once, though models refuse its request; after it no request misses."""
    with hosts(SERVERS, "s3://fleet/models/", environ=bucket) as fresh, start("haproxy", tmp_path, fresh) as router:
        said = warm(router, "--models=s3://fleet/models/", **bucket)
        loaded = [server.hits_and_lookups()[1] for server in fresh]
        misses = Counter(router.invoke(model, body=HOUSE.encode()).fields["x-polyhost-loaded"] for model in MODELS)

    assert said.endswith("60 models are loaded.\n")
    assert sum(loaded) == len(MODELS)
    assert all(loaded)
    assert misses == {"hit": len(MODELS)}


def test_a_hot_model_is_answered_by_all(servers: list[Host], tmp_path: Path) -> None:
    """Each of three servers answers a fifth of it at least, once its rate was seen."""
    with start("haproxy", tmp_path, servers, "--copy-at=20") as router:
        with Traffic(router.port, MODELS[:1], RATE) as traffic:
            traffic.wait_for(int(6 * RATE))
        hot = Counter(call.server for call in traffic.seen.calls[int(3 * RATE) :])

    assert min(hot[str(server.number)] for server in servers) >= 0.2 * sum(hot.values()), hot


def test_an_endpoint_that_was_made_at_one_server_is_all_servers(bucket: dict[str, str], tmp_path: Path) -> None:
    """CreateEndpoint through the router, then 300 of 300 calls through it."""
    with (
        hosts(SERVERS, "s3://fleet/models/", "--state=s3://fleet/state/", environ=bucket) as sharing,
        start("haproxy", tmp_path, sharing) as router,
    ):
        url = f"http://127.0.0.1:{router.port}"
        sagemaker = client("sagemaker", url)
        container = {"Image": "any/image:1", "ModelDataUrl": "s3://fleet/models/", "Mode": "MultiModel"}
        sagemaker.create_model(
            ModelName="new", ExecutionRoleArn="arn:aws:iam::000000000000:role/any", PrimaryContainer=container
        )
        variant = {"VariantName": "AllTraffic", "ModelName": "new", "InitialInstanceCount": 1}
        variant["InstanceType"] = "ml.m5.large"
        sagemaker.create_endpoint_config(EndpointConfigName="new", ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName="new", EndpointConfigName="new")
        sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="new", WaiterConfig={"Delay": 1})
        answers = [router.invoke(model, "new", HOUSE.encode()) for model in MODELS * 5]

    assert Counter(answer.status for answer in answers) == {200: 300}
    assert len({answer.fields["x-polyhost-server"] for answer in answers}) == SERVERS


def warm(router: Router, *arguments: str, **environ: str) -> str:
    command = [sys.executable, "-m", "polyhost", "fleet", "warm", f"http://127.0.0.1:{router.port}", *arguments]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", **environ})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_warming_says_what_could_not_be_loaded(servers: list[Host], tmp_path: Path) -> None:
    (tmp_path / "targets").write_text("m0.tar.gz\nnone.tar.gz\n")
    with start("haproxy", tmp_path, servers) as router:
        command = [sys.executable, "-m", "polyhost", "fleet", "warm", f"http://127.0.0.1:{router.port}"]
        ran = subprocess.run([*command, "--targets", tmp_path / "targets"], check=False, capture_output=True, text=True)

    assert ran.returncode == 6
    assert "1 of 2 models were not loaded: none.tar.gz (" in ran.stderr


def test_a_refresh_reaches_all_servers(servers: list[Host], bucket: dict[str, str]) -> None:
    """An archive is overwritten: each server that has it in memory answers by the new one."""
    s3 = boto3.client(
        "s3", endpoint_url=bucket["AWS_ENDPOINT_URL_S3"], region_name="us-east-1", aws_access_key_id="any",
        aws_secret_access_key="any",
    )  # fmt: skip
    s3.upload_file(str(SAMPLES / "houston.tar.gz"), "fleet", "models/changes.tar.gz")
    before = {direct(server, "changes.tar.gz") for server in servers}
    s3.upload_file(str(SAMPLES / "new_york.tar.gz"), "fleet", "models/changes.tar.gz")
    said = refresh(servers)
    deadline = time.monotonic() + 30
    while (after := {direct(server, "changes.tar.gz") for server in servers}) & before:
        assert time.monotonic() < deadline

    assert said.stdout == "3 of 3 servers have looked at their archives.\n", said.stderr
    assert len(before) == len(after) == 1


def test_a_refresh_says_whom_it_did_not_reach(servers: list[Host]) -> None:
    servers[1].kill()
    try:
        said = refresh(servers)
    finally:
        servers[1].start()

    assert said.returncode == 6
    assert f"127.0.0.1:{servers[1].port}: it was not reached" in said.stderr
    assert "1 of 3 servers have not looked at their archives" in said.stderr


def refresh(servers: list[Host]) -> subprocess.CompletedProcess[str]:
    addresses = [f"--server=127.0.0.1:{server.port}" for server in servers]
    command = [sys.executable, "-m", "polyhost", "fleet", "refresh", f"--replicas={len(servers)}", *addresses]
    return subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})


def direct(server: Host, target: str) -> str:
    """What one server answers, past the router."""
    answer = requests.post(
        f"http://127.0.0.1:{server.port}/endpoints/polyhost/invocations", data=HOUSE, timeout=60,
        headers={"content-type": "text/csv", "x-amzn-sagemaker-target-model": target},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return answer.text


# Signatures and HTTPS


@pytest.fixture(scope="module")
def signed(bucket: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Host], Any]]:
    """Servers that ask for signatures; and the folder of a certificate for their router."""
    folder = tmp_path_factory.mktemp("signed")
    allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sagemaker:*", "Resource": "*"}]}
    user = {"name": "a", "access_key_id": "AKIAFLEET00000000000", "secret_access_key": "s" * 40, "policies": [allow]}
    principals = folder / "principals.json"
    role = {"name": "caller", "may_be_assumed_by": ["a"], "policies": [allow]}
    principals.write_text(json.dumps({"account_id": "123456789012", "users": [user], "roles": [role]}))
    principals.chmod(0o600)
    certify(folder)
    (folder / "token.key").write_text("0f" * 32)
    (folder / "token.key").chmod(0o600)
    options = ["--auth=sigv4", f"--auth-file={principals}", f"--token-key-file={folder / 'token.key'}"]
    with hosts(SERVERS, "s3://fleet/models/", *options, environ=bucket) as started:
        yield started, folder


@pytest.mark.parametrize("engine", ["haproxy", "envoy"])
def test_signatures_and_https_pass(engine: str, signed: tuple[list[Host], Path], tmp_path: Path) -> None:
    """150 of 150 by boto3, which signs host and path; and what is not signed is refused by a server."""
    servers, folder = signed
    tls = [f"--tls-cert={folder / 'tls.crt'}"]
    tls += [f"--tls-key={folder / 'tls.key'}"] if engine == "envoy" else []
    require(engine)
    keys = {"aws_access_key_id": "AKIAFLEET00000000000", "aws_secret_access_key": "s" * 40}
    with routers.Router(engine, tmp_path, [server.port for server in servers], *tls) as router:
        url = f"https://localhost:{router.port}"
        caller = client("sagemaker-runtime", url, verify=str(folder / "tls.crt"), **keys)
        answers = [
            caller.invoke_endpoint(EndpointName="polyhost", TargetModel=model, Body=HOUSE, ContentType="text/csv")
            for model in MODELS[:50] * 3
        ]
        unsigned = requests.post(f"{url}/endpoints/polyhost/invocations", data=HOUSE, verify=folder / "tls.crt")

    assert {answer["ResponseMetadata"]["HTTPStatusCode"] for answer in answers} == {200}
    # A router may leave a server out for a moment, where its health was asked beside busy neighbours.
    assert len({answer["ResponseMetadata"]["HTTPHeaders"]["x-polyhost-server"] for answer in answers}) > 1
    assert unsigned.status_code == 403


def test_a_session_that_began_at_one_server_counts_at_all(signed: tuple[list[Host], Path], tmp_path: Path) -> None:
    """AssumeRole through the router, then 150 of 150 calls with its keys."""
    servers, _ = signed
    keys = {"aws_access_key_id": "AKIAFLEET00000000000", "aws_secret_access_key": "s" * 40}
    with start("haproxy", tmp_path, servers) as router:
        url = f"http://127.0.0.1:{router.port}"
        role = {"RoleArn": "arn:aws:iam::123456789012:role/caller", "RoleSessionName": "tuesday"}
        began = client("sts", url, **keys).assume_role(**role)["Credentials"]
        session = {
            "aws_access_key_id": began["AccessKeyId"],
            "aws_secret_access_key": began["SecretAccessKey"],
            "aws_session_token": began["SessionToken"],
        }
        caller = client("sagemaker-runtime", url, **session)
        answers = [
            caller.invoke_endpoint(EndpointName="polyhost", TargetModel=model, Body=HOUSE, ContentType="text/csv")
            for model in MODELS[:50] * 3
        ]

    assert [answer["ResponseMetadata"]["HTTPStatusCode"] for answer in answers] == [200] * 150
    assert len({answer["ResponseMetadata"]["HTTPHeaders"]["x-polyhost-server"] for answer in answers}) > 1
