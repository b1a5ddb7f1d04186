"""A server whose endpoint has a shadow variant, captures its data, and moves traffic by weights, all by boto3."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.endpoint import EndpointServer, fill, packed
from support.tree import wait_until

HOUSE = "1998,2150,3,2.5,0.4,2"
KEY = re.compile(r"kept/captured/houston/\d{4}/\d\d/\d\d/\d\d/\d\d-\d\d-\d{3}-[0-9a-f-]{36}\.jsonl")
ROLE = "arn:aws:iam::000000000000:role/any"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Path:
    """Models of two makes under one name."""
    folder = tmp_path_factory.mktemp("followed")
    for make in ("houston", "boston"):
        fill(folder / make, ["a.tar.gz"], samples_folder / f"{make}.tar.gz")
    return folder


@pytest.fixture(scope="module", params=["1", "2"], ids=["one front", "two fronts"])
def server(request: pytest.FixtureRequest, folder: Path, s3_url: str) -> Iterator[EndpointServer]:
    environ = {
        "AWS_ENDPOINT_URL_S3": s3_url, "AWS_ACCESS_KEY_ID": "AKIAOURS", "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_REGION": "us-east-1",
    }  # fmt: skip
    server = EndpointServer("native", folder, "--fronts", request.param, environ=environ)
    yield server
    assert server.stop() == 0, server.process.log


def endpoint(server: EndpointServer, name: str, *makes: str, shadow: str = "", **config: Any) -> Any:
    """Its client of the control plane. A variant for each of the makes, all of the same weight."""
    sagemaker = server.client("sagemaker")
    variants = []
    for make in (*makes, *((shadow,) if shadow else ())):
        container = {"Image": "any/image:1", "ModelDataUrl": f"file://{server.models}/{make}/", "Mode": "MultiModel"}
        sagemaker.create_model(ModelName=f"{name}-{make}", ExecutionRoleArn=ROLE, PrimaryContainer=container)
        variants.append({
            "VariantName": make, "ModelName": f"{name}-{make}", "InitialInstanceCount": 1,
            "InstanceType": "ml.m5.large", "InitialVariantWeight": 1,
        })  # fmt: skip
    if shadow:
        config["ShadowProductionVariants"] = [variants.pop()]
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants, **config)
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig={"Delay": 1})
    return sagemaker


def counted(server: EndpointServer, name: str, endpoint: str) -> dict[str, float]:
    """A counter by variant."""
    page = server.request("GET", "/metrics").text
    return {
        sample.labels["variant"]: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == f"polyhost_{name}_total" and sample.labels.get("endpoint") == endpoint
    }


def until(is_so: Callable[[], bool]) -> None:
    wait_until(is_so, 120, "it is counted")


def test_a_shadow_answers_nobody(server: EndpointServer) -> None:
    """All requests are copied to it, its answers are seen to differ, and clients get the production variant's alone."""
    with contextlib.closing(endpoint(server, "shadowed", "houston", shadow="boston")) as sagemaker:
        (shadow,) = sagemaker.describe_endpoint(EndpointName="shadowed")["ShadowProductionVariants"]
    assert (shadow["VariantName"], shadow["CurrentWeight"]) == ("boston", 1)
    expected = server.predict("a.tar.gz", HOUSE, EndpointName="shadowed")

    answers = {server.predict("a.tar.gz", HOUSE, EndpointName="shadowed") for _ in range(5)}
    assert answers == {expected}
    until(lambda: counted(server, "shadow_different_answers", "shadowed").get("boston") == 6)
    assert counted(server, "shadow_same_answers", "shadowed") == {"houston": 0, "boston": 0}
    assert counted(server, "invocations", "shadowed") == {"houston": 6, "boston": 6}
    assert counted(server, "invocation_4xx_errors", "shadowed") == {"houston": 0, "boston": 0}


def test_a_shadow_of_the_same_models_agrees(server: EndpointServer, folder: Path, samples_folder: Path) -> None:
    fill(folder / "twin", ["a.tar.gz"], samples_folder / "houston.tar.gz")
    endpoint(server, "agreed", "houston", shadow="twin").close()
    for _ in range(4):
        server.predict("a.tar.gz", HOUSE, EndpointName="agreed")
    until(lambda: counted(server, "shadow_same_answers", "agreed").get("twin") == 4)


SLOW = """
import os, time

def model_fn(model_dir):
    while os.path.exists({gate!r}):
        time.sleep(0.01)
    if os.path.exists({fault!r}):
        raise ValueError("no weights")

def transform_fn(model, body, content_type, accept):
    return "slow", accept
"""


def test_an_endpoint_does_not_wait_for_its_shadow(server: EndpointServer, folder: Path, tmp_path: Path) -> None:
    """The shadow's state is its own: it is loaded, has failed, or is ready. The endpoint serves all the time."""
    gate, fault, name = tmp_path / "gate", tmp_path / "fault", "slow"
    (tmp_path / "model" / "code").mkdir(parents=True)
    script = SLOW.format(gate=str(gate), fault=str(fault))
    (tmp_path / "model" / "code" / "inference.py").write_text(script)
    packed(tmp_path / "model", folder / f"{name}.tar.gz")
    sagemaker = server.client("sagemaker")
    variants = []
    for variant, archive in (("live", "houston/a.tar.gz"), ("dark", f"{name}.tar.gz")):
        container = {"Image": "any/image:1", "ModelDataUrl": f"file://{folder}/{archive}"}
        sagemaker.create_model(ModelName=f"{name}-{variant}", ExecutionRoleArn=ROLE, PrimaryContainer=container)
        its = {"VariantName": variant, "ModelName": f"{name}-{variant}", "InitialInstanceCount": 1}
        variants.append({**its, "InstanceType": "ml.m5.large"})
    sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=variants[:1], ShadowProductionVariants=variants[1:]
    )

    def described() -> tuple[str, str | None]:
        """The endpoint's status, and what is said of its shadow."""
        endpoint = sagemaker.describe_endpoint(EndpointName=name)
        (status,) = endpoint["ShadowProductionVariants"][0].get("VariantStatus") or [{"StatusMessage": None}]
        return endpoint["EndpointStatus"], status["StatusMessage"]

    gate.touch()
    fault.touch()
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    assert described() == ("InService", "The model is being loaded.")
    assert server.predict(None, HOUSE, EndpointName=name)
    gate.unlink()
    until(lambda: described()[1] != "The model is being loaded.")
    status, reason = described()
    assert status == "InService"
    assert reason is not None
    assert reason.startswith("The primary container for shadow variant dark did not pass the ping health check: ")
    assert "no weights" in reason
    fault.unlink()

    def is_ready() -> bool:
        assert server.predict(None, HOUSE, EndpointName=name)
        return described() == ("InService", None)

    until(is_ready)
    sagemaker.delete_endpoint(EndpointName=name)
    sagemaker.close()


def test_weights_move_the_traffic_at_once(server: EndpointServer) -> None:
    """A canary: 0 is none, and the whole of it is one call away."""
    with contextlib.closing(endpoint(server, "canary", "houston", "boston")) as sagemaker:
        runtime = server.client("sagemaker-runtime")

        def invoked(times: int) -> set[str]:
            call = {"EndpointName": "canary", "TargetModel": "a.tar.gz", "ContentType": "text/csv", "Body": HOUSE}
            return {runtime.invoke_endpoint(**call)["InvokedProductionVariant"] for _ in range(times)}

        assert invoked(40) == {"houston", "boston"}
        for chosen, other in (("boston", "houston"), ("houston", "boston")):
            weights = [
                {"VariantName": chosen, "DesiredWeight": 1},
                {"VariantName": other, "DesiredWeight": 0},
            ]
            sagemaker.update_endpoint_weights_and_capacities(EndpointName="canary", DesiredWeightsAndCapacities=weights)
            assert invoked(20) == {chosen}
        runtime.close()


def capture(destination: str, **more: Any) -> dict[str, Any]:
    """What the SDK's DataCaptureConfig makes of its defaults."""
    return {
        "EnableCapture": True, "InitialSamplingPercentage": 100, "DestinationS3Uri": destination,
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"CsvContentTypes": ["text/csv"], "JsonContentTypes": ["application/json"]},
        **more,
    }  # fmt: skip


def test_calls_are_captured_in_a_bucket(server: EndpointServer, s3: Any, bucket: str) -> None:
    """Under SageMaker's keys, each line with what its client has sent and got."""
    name = "captured"
    with contextlib.closing(
        endpoint(server, name, "houston", DataCaptureConfig=capture(f"s3://{bucket}/kept"))
    ) as sagemaker:
        described = sagemaker.describe_endpoint(EndpointName=name)["DataCaptureConfig"]
    assert (described["CaptureStatus"], described["CurrentSamplingPercentage"]) == ("Started", 100)
    runtime = server.client("sagemaker-runtime")
    call = {"EndpointName": name, "TargetModel": "a.tar.gz", "ContentType": "text/csv", "Body": HOUSE}
    expected = {}
    for _ in range(3):
        answer = runtime.invoke_endpoint(**call, InferenceId="mine")
        expected[answer["ResponseMetadata"]["RequestId"]] = answer["Body"].read().decode()
    runtime.close()

    until(lambda: counted(server, "captured_requests", name).get("houston") == 3)
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert all(KEY.fullmatch(key) for key in keys)
    lines = [
        json.loads(line)
        for key in keys
        for line in s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode().splitlines()
    ]
    outputs = {line["eventMetadata"]["eventId"]: line["captureData"]["endpointOutput"]["data"] for line in lines}
    assert outputs == expected
    for line in lines:
        assert line["captureData"]["endpointInput"] == {
            "observedContentType": "text/csv", "mode": "INPUT", "data": HOUSE, "encoding": "CSV",
        }  # fmt: skip
        assert line["captureData"]["endpointOutput"]["encoding"] == "JSON"
        assert (line["eventMetadata"]["inferenceId"], line["eventVersion"]) == ("mine", "0")


def test_calls_are_captured_in_a_folder_when_the_server_stops(folder: Path) -> None:
    """What waits to be written is written; and an endpoint that captures nothing leaves nothing."""
    server = EndpointServer("native", folder)
    try:
        for name, more in (("kept", {}), ("off", {"EnableCapture": False})):
            config = capture(f"file://{folder}/{name}", **more)
            with contextlib.closing(endpoint(server, name, "houston", DataCaptureConfig=config)) as sagemaker:
                described = sagemaker.describe_endpoint(EndpointName=name)["DataCaptureConfig"]
            assert described["CaptureStatus"] == ("Started" if name == "kept" else "Stopped")
            server.predict("a.tar.gz", HOUSE, EndpointName=name)
    finally:
        assert server.stop() == 0, server.process.log
    (file,) = (folder / "kept").rglob("*.jsonl")
    assert json.loads(file.read_text())["eventMetadata"]["targetModel"] == "a.tar.gz"
    assert file.relative_to(folder).parts[:3] == ("kept", "kept", "houston")
    assert not (folder / "off").exists()
