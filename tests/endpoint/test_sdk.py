"""
The SageMaker Python SDK v2 against Polyhost: what notebooks do, unchanged but for the session's urls.

The SDK has an environment of its own (scripts/install-sagemaker): some of what it needs is older than what we test
with. The buckets are moto's, over real HTTP.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from conftest import ENVIRONMENTS
from moto.server import ThreadedMotoServer
from support.control_plane import ACCOUNT, REGION, control_plane_in
from support.server import Process, free_port

SDK_PYTHON = ENVIRONMENTS / "sagemaker" / "bin" / "python"
BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}
needs_sdk = pytest.mark.skipif(
    not SDK_PYTHON.exists() and not os.environ.get("CI"),
    reason="the SageMaker SDK's environment is not installed (scripts/install-sagemaker)",
)
pytestmark = needs_sdk


@pytest.fixture(scope="module")
def buckets() -> Iterator[str]:
    """The url of an S3 with one bucket."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    boto3.client(
        "s3", endpoint_url=url, region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test"
    ).create_bucket(Bucket=BUCKET)
    yield url
    server.stop()


def seen_by_sdk(url: str, buckets: str, samples: Path, *cases: str) -> dict[str, Any]:
    """All cases in one process: importing the SDK is what takes the time."""
    done = subprocess.run(
        [SDK_PYTHON, Path(__file__).with_name("sdk_cases.py"), url, buckets, samples, *cases],
        env={
            "PATH": os.environ["PATH"], "HOME": str(samples), **CREDENTIALS, "SAGEMAKER_SUPPRESS_V2_WARNING": "1",
            "AWS_ENDPOINT_URL_S3": buckets, "AWS_ENDPOINT_URL_STS": buckets,
            "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": url,
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


# Without predictions


@pytest.fixture(scope="module")
def seen(buckets: str, samples_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the SDK saw of a control plane."""
    folder = tmp_path_factory.mktemp("sdk")
    with control_plane_in(folder / "state", folder) as plane:
        return seen_by_sdk(
            plane.url, buckets, samples_folder,
            "deploy_and_delete", "deploy_twice", "deploy_pipeline", "deploy_script", "deploy_and_update", "not_here",
        )  # fmt: skip


def test_a_multi_model_endpoints_life(seen: dict[str, Any]) -> None:
    """MultiDataModel: deploy, add_model, list_models, delete; nothing is left."""
    saw = seen["deploy_and_delete"]

    assert saw["models"] == ["boston.tar.gz", "texas/houston.tar.gz"]
    assert saw["endpoint"]["EndpointStatus"] == "InService"
    assert saw["endpoint"]["EndpointArn"] == f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/sdk-multi"
    container = saw["model"]["PrimaryContainer"]
    assert (container["Mode"], container["ModelDataUrl"]) == ("MultiModel", f"s3://{BUCKET}/sdk-multi/")
    assert saw["tags"] == [{"Key": "team", "Value": "houses"}]
    assert saw["left"] == [[], [], []]


def test_what_is_there_already(seen: dict[str, Any]) -> None:
    """The SDK takes the model that is there, as it does on AWS, and the configuration is an error, as on AWS."""
    assert 'Cannot create already existing endpoint configuration "arn:' in seen["deploy_twice"]["error"]


def test_an_inference_pipeline_is_deployed_and_updated(seen: dict[str, Any]) -> None:
    """PipelineModel, and a second one in its place, without a moment out of service."""
    saw = seen["deploy_pipeline"]

    assert ["scikit-learn" in saw["model"]["Containers"][0]["Image"], len(saw["model"]["Containers"])] == [True, 2]
    assert (saw["endpoint"]["EndpointStatus"], saw["endpoint"]["EndpointConfigName"]) == ("InService", "sdk-pipeline-2")
    assert saw["endpoint"]["ProductionVariants"][0]["CurrentInstanceCount"] == 2


def test_a_users_script_is_named_in_the_environment(seen: dict[str, Any]) -> None:
    """SKLearnModel(entry_point=…): the SDK uploads it and says where."""
    environ = seen["deploy_script"]["model"]["PrimaryContainer"]["Environment"]

    assert environ["SAGEMAKER_PROGRAM"] == "serve.py"
    assert environ["SAGEMAKER_SUBMIT_DIRECTORY"].startswith(f"s3://{BUCKET}/code/sdk-script")


def test_a_predictor_updates_its_endpoint(seen: dict[str, Any]) -> None:
    """Predictor.update_endpoint, from one model to another, then all is deleted."""
    saw = seen["deploy_and_update"]

    assert saw["endpoint"]["EndpointConfigName"] == saw["config"]["EndpointConfigName"]
    (variant,) = saw["config"]["ProductionVariants"]
    assert (variant["ModelName"], variant["InitialInstanceCount"]) == ("sdk-boston", 2)


def test_the_sdk_asks_for_a_capture(seen: dict[str, Any]) -> None:
    """By its own DataCaptureConfig. An update by the predictor keeps what the configuration said."""
    saw = seen["deploy_and_update"]

    assert (saw["captured"]["CaptureStatus"], saw["captured"]["CurrentSamplingPercentage"]) == ("Started", 50)
    asked = saw["config"]["DataCaptureConfig"]
    assert asked["DestinationS3Uri"] == f"s3://{BUCKET}/captured"
    assert [option["CaptureMode"] for option in asked["CaptureOptions"]] == ["Input", "Output"]
    assert asked["CaptureContentTypeHeader"]["JsonContentTypes"] == ["application/json"]


def test_what_is_not_here_is_said(seen: dict[str, Any]) -> None:
    """Serverless, training: an error at once."""
    assert "ServerlessConfig is not supported" in seen["not_here"]["serverless"]
    assert "does not train" in seen["not_here"]["training"]


# With predictions


@dataclass(frozen=True)
class EndpointServer:
    url: str


@pytest.fixture(scope="module")
def endpoint_server(
    buckets: str, samples_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EndpointServer]:
    """`polyhost serve` with both halves; its own endpoint serves the sample models from a bucket."""
    client = boto3.client(
        "s3", endpoint_url=buckets, region_name=REGION, aws_access_key_id="test", aws_secret_access_key="test"
    )
    for name in ("denver.tar.gz", "houston.tar.gz"):
        client.upload_file(str(samples_folder / name), BUCKET, f"own/{name}")
    port = free_port()
    folder = tmp_path_factory.mktemp("endpoint")
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POLYHOST_", "SAGEMAKER_"))
    }
    process = Process(
        [
            sys.executable, "-m", "polyhost", "serve", "--port", str(port), "--state-dir", str(folder / "state"),
            "--models", f"s3://{BUCKET}/own/", "--import-frameworks", "late",
        ],
        {**clean, **CREDENTIALS, "AWS_ENDPOINT_URL_S3": buckets, "TMPDIR": str(folder)},
    )  # fmt: skip
    try:
        process.wait_for_line(r"ready on")
        yield EndpointServer(f"http://127.0.0.1:{port}")
        process.send(signal.SIGTERM)
        assert process.wait() == 0, process.log
    finally:
        process.kill_tree()


@pytest.fixture(scope="module")
def predicted(endpoint_server: EndpointServer, buckets: str, samples_folder: Path) -> dict[str, Any]:
    cases = ("predict", "predict_with_own", "transform", "asynchronous")
    return seen_by_sdk(endpoint_server.url, buckets, samples_folder, *cases)


def test_predictions_of_a_multi_model_endpoint(predicted: dict[str, Any]) -> None:
    """Each TargetModel its own answer, one that came later too; what is missing is an error of the request."""
    saw = predicted["predict"]

    (houston,), (boston,) = saw["houston"], saw["boston"]
    assert 100_000 < houston < boston
    assert saw["nowhere"] == "ValidationError"
    assert "sdk-predict" in saw["deleted"]


def test_predictions_of_a_pipeline(predicted: dict[str, Any]) -> None:
    """A house with its deck goes through the preprocessor into the linear learner."""
    (prediction,) = predicted["predict"]["pipeline"]["predictions"]

    assert 50_000 < prediction["score"] < 2_000_000


def test_predictions_of_a_users_script(predicted: dict[str, Any]) -> None:
    """The script that belongs to the container serves the models of the endpoint."""
    assert predicted["predict"]["script"] == {"files": ["xgboost-model"], "sum": 6}


def test_predictions_of_the_servers_own_endpoint(predicted: dict[str, Any]) -> None:
    """That of --models, with nothing created at all."""
    (denver,) = predicted["predict_with_own"]["denver"]

    assert 100_000 < denver < 2_000_000


def test_asynchronous_predictions(predicted: dict[str, Any]) -> None:
    """AsyncPredictor.predict_async: the result and the model's error, from the session's own bucket."""
    (prediction,) = predicted["asynchronous"]["price"]["predictions"]

    assert prediction["score"] == predicted["predict"]["houston"][0]
    assert "Received client error (4" in predicted["asynchronous"]["failure"]


def test_a_transformers_job(predicted: dict[str, Any]) -> None:
    """Transformer.transform: each row with its prediction behind it."""
    rows = [[float(field) for field in row.split(",")] for row in predicted["transform"]["rows"]]

    assert [row[:-1] for row in rows] == [[1998.0, 2150.0, 3.0, 2.5, 0.4, 2.0]] * 2
    assert 100_000 < rows[0][-1] == rows[1][-1]
