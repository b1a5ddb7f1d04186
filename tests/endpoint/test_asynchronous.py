"""Asynchronous calls as boto3 meets them, in a server with moto's S3."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.endpoint import EndpointServer, packed
from support.tree import wait_until

from endpoint.conftest import environ_for

ROLE = "arn:aws:iam::000000000000:role/any"
SCRIPT = """
import json, os, time

def model_fn(model_dir):
    return None

def input_fn(body, content_type):
    text = body if isinstance(body, str) else body.decode()
    return content_type, text.strip()

def predict_fn(asked, model):
    content_type, text = asked
    while text.startswith("wait") and os.path.exists(os.environ["GATE"]):
        time.sleep(0.01)
    if text == "bad":
        raise ValueError("a bad input")
    if text == "large":
        text = "x" * 6_400_000
    return [content_type, text]

def output_fn(prediction, accept):
    return json.dumps(prediction), "application/json"
"""
# A script's process starts meanwhile, perhaps on a machine that is busy with other tests.
_SECS = 180
_numbers = itertools.count(1)


class Cloud:
    """A server with an asynchronous endpoint, a bucket, and boto3's clients of both."""

    def __init__(self, server: EndpointServer, s3: Any, bucket: str, root: Path) -> None:
        self.server = server
        self.s3 = s3
        self.bucket = bucket
        self.root = root
        self.gate = root / "gate"
        self.sagemaker = server.client("sagemaker")
        self.runtime = server.client("sagemaker-runtime")

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def put(self, body: bytes, **more: str) -> str:
        """The url of a new object."""
        key = f"in/{next(_numbers)}"
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **more)
        return self.url(key)

    def get(self, url: str) -> Any:
        """None while there is no such object."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        try:
            return self.s3.get_object(Bucket=bucket, Key=key)
        except self.s3.exceptions.NoSuchKey:
            return None

    def written(self, url: str) -> Any:
        """What comes to be there."""
        wait_until(lambda: self.get(url), _SECS, url)
        found = self.get(url)
        assert found["ContentType"] == "application/json"
        return json.loads(found["Body"].read())

    def deploy(self, name: str, mode: str = "SingleModel", **config: Any) -> None:
        data = self.url("models/" if mode == "MultiModel" else "models/model.tar.gz")
        container = {
            "Image": "any/sklearn:1", "ModelDataUrl": data, "Mode": mode, "Environment": {"GATE": str(self.gate)},
        }  # fmt: skip
        self.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
        output = {"S3OutputPath": self.url(f"{name}/out"), "S3FailurePath": self.url(f"{name}/failed")}
        variant = {
            "VariantName": "AllTraffic", "ModelName": name, "InitialInstanceCount": 1, "InstanceType": "ml.m5.large",
        }  # fmt: skip
        asynchronous = {"OutputConfig": output, "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 1}, **config}
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name, ProductionVariants=[variant], AsyncInferenceConfig=asynchronous
        )
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        self.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig={"Delay": 1})

    def call(self, body: bytes, **more: Any) -> Any:
        return self.runtime.invoke_endpoint_async(**{"EndpointName": "later", "InputLocation": self.put(body), **more})


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "model" / "code").mkdir(parents=True)
    (folder / "model" / "code" / "inference.py").write_text(SCRIPT)
    return packed(folder / "model", folder / "model.tar.gz")


def start(s3: Any, s3_url: str, bucket: str, root: Path) -> Cloud:
    environ = {**environ_for(s3_url), "MMS_MAX_RESPONSE_SIZE": "8000000"}
    server = EndpointServer("native", None, environ=environ, state=root / "state", model_root=str(root / "models"))
    return Cloud(server, s3, bucket, root)


@pytest.fixture(scope="module")
def cloud(archive: Path, s3: Any, s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    s3.create_bucket(Bucket="later")
    s3.put_object(Bucket="later", Key="models/model.tar.gz", Body=archive.read_bytes())
    root = tmp_path_factory.mktemp("later")
    (root / "models").mkdir()
    cloud = start(s3, s3_url, "later", root)
    try:
        cloud.deploy("later")
        yield cloud
        assert cloud.server.stop() == 0, cloud.server.process.log
    finally:
        cloud.server.kill()


def test_a_call_is_accepted_and_then_answered_in_the_bucket(cloud: Cloud) -> None:
    answer = cloud.call(b"1,2", ContentType="text/csv", InferenceId="mine")

    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert answer["InferenceId"] == "mine"
    assert answer["OutputLocation"].startswith(cloud.url("later/out/"))
    assert cloud.written(answer["OutputLocation"]) == ["text/csv", "1,2"]
    assert cloud.get(answer["FailureLocation"]) is None


def test_the_inputs_own_type_counts_where_the_call_names_none(cloud: Cloud) -> None:
    """So the SDK sends it."""
    answer = cloud.call(b"", InputLocation=cloud.put(b"{}", ContentType="application/json"))

    assert cloud.written(answer["OutputLocation"]) == ["application/json", "{}"]


def test_an_input_that_comes_with_the_call(cloud: Cloud) -> None:
    answer = cloud.runtime.invoke_endpoint_async(
        EndpointName="later",
        Body=b"inline",
        ContentType="text/plain",
        Filename="mine.json",
        S3OutputPathExtension="a/b",
    )

    assert answer["OutputLocation"] == cloud.url("later/out/a/b/mine.json")
    assert cloud.written(answer["OutputLocation"]) == ["text/plain", "inline"]


def test_an_answer_that_is_larger_than_invoke_endpoint_may_give(cloud: Cloud) -> None:
    answer = cloud.call(b"large")

    assert len(cloud.written(answer["OutputLocation"])[1]) == 6_400_000


def test_what_the_model_refuses_is_written_as_a_failure(cloud: Cloud) -> None:
    answer = cloud.call(b"bad")

    failure = cloud.written(answer["FailureLocation"])
    assert failure["InferenceId"] == answer["InferenceId"]
    assert (failure["ErrorCode"], failure["OriginalStatusCode"]) == ("ModelError", 500)
    assert "a bad input" in failure["Message"]
    assert cloud.get(answer["OutputLocation"]) is None


def test_an_input_that_is_not_there_is_a_failure(cloud: Cloud) -> None:
    answer = cloud.call(b"", InputLocation=cloud.url("nowhere"))

    assert f"{cloud.url('nowhere')} cannot be read" in cloud.written(answer["FailureLocation"])["Message"]


def test_a_model_that_takes_too_long_is_ended(cloud: Cloud) -> None:
    cloud.gate.touch()

    answer = cloud.call(b"wait", InvocationTimeoutSeconds=1)

    assert "did not answer within 1 s" in cloud.written(answer["FailureLocation"])["Message"]
    cloud.gate.unlink()


def test_from_a_folder_to_a_folder(cloud: Cloud) -> None:
    models = cloud.root / "models"
    (models / "input").write_bytes(b"of a folder")
    cloud.deploy("folders", OutputConfig={"S3OutputPath": f"file://{models}/answers"})

    answer = cloud.call(b"", EndpointName="folders", InputLocation=f"file://{models}/input", ContentType="text/plain")

    output = Path(answer["OutputLocation"])
    assert (output.parent, Path(answer["FailureLocation"]).parent) == (models / "answers", models / "answers")
    wait_until(output.exists, _SECS, str(output))
    assert json.loads(output.read_text()) == ["text/plain", "of a folder"]

    # A link in the endpoint's folder, and a caller that names it.
    (models / "elsewhere").mkdir()
    (models / "answers" / "link").symlink_to(models / "elsewhere")
    answer = cloud.call(b"1", EndpointName="folders", S3OutputPathExtension="link", Filename="a.json")
    failure = Path(answer["FailureLocation"])
    wait_until(failure.exists, _SECS, str(failure))
    assert "a link leads out of the folder" in json.loads(failure.read_text())["Message"]
    assert list((models / "elsewhere").iterdir()) == []
    cloud.sagemaker.delete_endpoint(EndpointName="folders")


def test_one_of_many_models(cloud: Cloud) -> None:
    """SageMaker has no such endpoint, and boto3 no parameter for the target; the header is InvokeEndpoint's."""
    cloud.deploy("many", "MultiModel")
    runtime = cloud.server.client("sagemaker-runtime")
    runtime.meta.events.register(
        "before-call.sagemaker-runtime.InvokeEndpointAsync",
        lambda params, **_: params["headers"].update({"X-Amzn-SageMaker-Target-Model": "model.tar.gz"}),
    )

    answer = runtime.invoke_endpoint_async(EndpointName="many", InputLocation=cloud.put(b"x"), ContentType="text/plain")

    assert cloud.written(answer["OutputLocation"]) == ["text/plain", "x"]
    with pytest.raises(ClientError, match="is a multi-model endpoint: name the archive"):
        cloud.call(b"x", EndpointName="many")
    cloud.sagemaker.delete_endpoint(EndpointName="many")


def test_the_configuration_is_described(cloud: Cloud) -> None:
    asked = cloud.sagemaker.describe_endpoint_config(EndpointConfigName="later")["AsyncInferenceConfig"]

    assert asked["OutputConfig"]["S3OutputPath"] == cloud.url("later/out")
    assert cloud.sagemaker.describe_endpoint(EndpointName="later")["AsyncInferenceConfig"] == asked


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"OutputConfig": {}}, "S3OutputPath is missing"),
        ({"OutputConfig": {"S3OutputPath": "file:///etc/"}}, "does not lie under a folder"),
        ({"OutputConfig": {"S3OutputPath": "s3://b/\u00e9"}}, "must be of plain ASCII"),
        (
            {
                "OutputConfig": {
                    "S3OutputPath": "s3://b/c",
                    "NotificationConfig": {"SuccessTopic": "arn:aws:sns:us-east-1:000000000000:done"},
                }
            },
            "NotificationConfig is not supported, because there is no SNS here",
        ),
    ],
)
def test_configurations_that_are_refused(cloud: Cloud, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ClientError, match="ValidationException") as refused:
        cloud.deploy(f"refused-{next(_numbers)}", **config)

    assert sentence in str(refused.value)


def test_an_endpoint_that_is_not_there(cloud: Cloud) -> None:
    with pytest.raises(ClientError, match="Endpoint nowhere of account 000000000000 not found") as refused:
        cloud.call(b"1", EndpointName="nowhere")

    assert refused.value.response["Error"]["Code"] == "ValidationError"


def test_calls_are_counted_when_they_are_made(cloud: Cloud) -> None:
    cloud.written(cloud.call(b"1")["OutputLocation"])

    def told(beginning: str) -> list[str]:
        lines = cloud.server.request("GET", "/metrics").body.decode().splitlines()
        return [line.rpartition(" ")[2] for line in lines if line.startswith(beginning)]

    counted = 'polyhost_invocations_total{endpoint="later",variant="All'
    wait_until(lambda: sum(map(float, told(counted))) >= 1, _SECS, "it is counted, which follows the answer")
    assert told('polyhost_approximate_backlog_size{endpoint="later"}')


def test_nothing_accepted_is_lost_where_the_server_is_killed(
    archive: Path, s3: Any, s3_url: str, bucket: str, tmp_path: Path
) -> None:
    """One call is under way, two wait; what is accepted while nothing can be written is there after the restart."""
    s3.put_object(Bucket=bucket, Key="models/model.tar.gz", Body=archive.read_bytes())
    (tmp_path / "models").mkdir()
    (tmp_path / "gate").touch()
    first = start(s3, s3_url, bucket, tmp_path)
    try:
        first.deploy("later")
        answers = [first.call(b"wait 0"), first.call(b"wait 1")]
        answers.append(first.runtime.invoke_endpoint_async(EndpointName="later", Body=b"wait 2"))
    finally:
        first.server.kill()
    assert [first.get(answer["OutputLocation"]) for answer in answers] == [None, None, None]

    second = start(s3, s3_url, bucket, tmp_path)
    try:
        second.gate.unlink()
        written = [second.written(answer["OutputLocation"])[1] for answer in answers]
        assert second.server.stop() == 0, second.server.process.log
    finally:
        second.server.kill()

    assert written == ["wait 0", "wait 1", "wait 2"]
