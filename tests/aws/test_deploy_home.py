"""The very same commands with --endpoint-url: a Polyhost at home, models in a folder and in moto's S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.endpoint import EndpointServer

from aws.conftest import HOUSE, KEYS, Cloud, Shell


def made(server: EndpointServer) -> dict[str, Any]:
    """All that there is, with its times."""
    sagemaker = server.client("sagemaker")
    return {
        kind: list(sagemaker.get_paginator(f"list_{kind}").paginate().build_full_result()[field])
        for kind, field in (("models", "Models"), ("endpoint_configs", "EndpointConfigs"), ("endpoints", "Endpoints"))
    }


def names(server: EndpointServer) -> list[str]:
    return [next(iter(item.values())) for items in made(server).values() for item in items]


@pytest.fixture
def shell(home: EndpointServer) -> Shell:
    """Of somebody who has no AWS at all."""
    return Shell({"AWS_ENDPOINT_URL_SAGEMAKER": home.url})


def test_a_folder_is_deployed_updated_and_destroyed(
    home: EndpointServer, shell: Shell, folder: Path, name: str
) -> None:
    """The first call is answered; again changes nothing; another variable is an update without traces of before."""
    shell.run("deploy", "other", "--models", str(folder))
    before = made(home)
    command = ("deploy", name, "--models", str(folder), "--first", "houston.tar.gz", "--body", HOUSE)

    assert float(shell.run(*command).out.strip("[]\n")) > 0
    houston = home.predict("houston.tar.gz", HOUSE, EndpointName=name)
    assert houston != home.predict("boston.tar.gz", HOUSE, EndpointName=name)
    first = made(home)
    assert shell.run(*command).said.startswith(f"{name}: nothing to change")
    assert made(home) == first

    done = shell.run(*command, "--env", "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT=text/csv")
    assert done.out == houston.strip("[]") + "\n"
    second = made(home)
    assert {kind: len(items) for kind, items in second.items()} == {kind: len(items) for kind, items in first.items()}
    old = {item["ModelName"] for item in first["models"]} - {item["ModelName"] for item in second["models"]}
    assert f"model {old.pop()} removed" in done.said

    shell.run("destroy", name)
    assert made(home) == before
    shell.run("destroy", "other")
    assert not any(made(home).values())


def test_variants_and_their_weights(home: EndpointServer, shell: Shell, folder: Path, name: str) -> None:
    """A canary with models of its own; what was shifted by hand is set right by the same command."""
    (folder / "canary").mkdir()
    (folder / "canary" / "houston.tar.gz").write_bytes((folder / "boston.tar.gz").read_bytes())
    variants = ("--variant", "main=0.9", "--variant", f"canary=0.1,models={folder}/canary,instance-count=1")
    command = ("deploy", name, "--models", str(folder), *variants)
    shell.run(*command)
    sagemaker = home.client("sagemaker")

    def weights() -> dict[str, float]:
        described = sagemaker.describe_endpoint(EndpointName=name)["ProductionVariants"]
        return {variant["VariantName"]: variant["DesiredWeight"] for variant in described}

    assert weights() == {"main": 0.9, "canary": 0.1}
    canary = home.predict("houston.tar.gz", HOUSE, EndpointName=name, TargetVariant="canary")
    assert canary == home.predict("boston.tar.gz", HOUSE, EndpointName=name, TargetVariant="main")

    sagemaker.update_endpoint_weights_and_capacities(
        EndpointName=name, DesiredWeightsAndCapacities=[{"VariantName": "canary", "DesiredWeight": 5}]
    )
    shell.run(*command)
    assert weights() == {"main": 0.9, "canary": 0.1}
    shell.run("destroy", name)


def test_scaling_and_roles_are_for_aws(shell: Shell, folder: Path, name: str) -> None:
    """The command that is meant for AWS deploys here too, and says what it passes over."""
    command = ("deploy", name, "--models", str(folder), "--role", "my-role", "--autoscale", "1:4:100")

    assert "--autoscale is passed over" in shell.run(*command).said
    assert shell.run(*command, "--dry-run").json() == []
    shell.run("destroy", name)


def test_what_the_server_refuses_is_told(home: EndpointServer, shell: Shell, tmp_path: Path, name: str) -> None:
    """A model that is not there, and an endpoint that is the server's own."""
    done = shell.try_("deploy", name, "--models", str(tmp_path), "--first", "none.tar.gz", "--body", "1")
    assert done.code == 6
    assert "is in service, but the first invocation failed" in done.said
    assert "Failed to download model data" in done.said
    shell.run("destroy", name)
    assert not [found for found in names(home) if found.startswith(name)]

    elsewhere = Shell({"AWS_ENDPOINT_URL_SAGEMAKER": "nonsense"}).try_("destroy", name)
    assert (elsewhere.code, "The AWS settings cannot be used" in elsewhere.said) == (2, True)


@pytest.fixture
def reading_s3(moto_url: str) -> Iterator[EndpointServer]:
    environ = {"AWS_ENDPOINT_URL_S3": moto_url, "AWS_REGION": "us-east-1", **KEYS}
    server = EndpointServer("native", None, environ=environ)
    yield server
    assert server.stop() == 0, server.process.log


def test_a_bucket_is_served_at_home(cloud: Cloud, reading_s3: EndpointServer, samples_folder: Path, name: str) -> None:
    """Added, deployed, invoked, removed: from the data scientist's folder to an answer."""
    shell = Shell({"AWS_ENDPOINT_URL_S3": cloud.url, "AWS_ENDPOINT_URL_SAGEMAKER": reading_s3.url, **KEYS})
    prefix = ("--models", "s3://our-models/houses/")
    deploy = ("deploy", name, *prefix)
    assert "is empty yet: polyhost models add" in shell.run(*deploy).said

    shell.run("models", "add", *prefix, str(samples_folder / "houston"))
    assert float(shell.run(*deploy, "--first", "houston.tar.gz", "--body", HOUSE).out.strip("[]\n")) > 0

    shell.run("destroy", name)
    assert not any(made(reading_s3).values())
    assert shell.run("models", "list", *prefix).out.split()[-1] == "houston.tar.gz"

    # Another client's AWS settings are no reason to refuse what the server can read.
    blind = Shell({"AWS_ENDPOINT_URL_SAGEMAKER": reading_s3.url, "AWS_ENDPOINT_URL_S3": reading_s3.url})
    assert "could not be looked at from here" in blind.run(*deploy).said
    shell.run("destroy", name)
