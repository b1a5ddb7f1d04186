"""Batch transform as boto3 meets it: jobs from bucket to bucket, in a server with moto's S3."""

from __future__ import annotations

import gzip
import itertools
import json
import os
from collections.abc import Callable, Iterator
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
    return os.environ.get("FACTOR", "1")

def input_fn(body, content_type):
    text = body if isinstance(body, str) else body.decode()
    return [json.loads(line) if "json" in content_type else line.split(",") for line in text.splitlines()]

def predict_fn(rows, factor):
    if rows == [["wait"]]:
        while os.path.exists(os.environ["GATE"]):
            time.sleep(0.01)
        return ["waited"]
    if any("bad" in row for row in rows):
        raise ValueError("a bad row")
    return [sum(float(value) for value in row) * float(factor) for row in rows]

def output_fn(predictions, accept):
    return "\\n".join(json.dumps(one) if "json" in accept else str(one) for one in predictions), accept
"""
_numbers = itertools.count(1)
# Frameworks are imported meanwhile, perhaps on a machine that is busy with other tests.
_SECS = 180


class Cloud:
    """A server, a bucket, and boto3's clients of both."""

    def __init__(self, server: EndpointServer, s3: Any, bucket: str, archive: Path) -> None:
        self.server = server
        self.s3 = s3
        self.bucket = bucket
        self.sagemaker = server.client("sagemaker")
        self.put("model.tar.gz", archive.read_bytes())
        self.create_model("sums")

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, body: bytes) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])
        return [entry["Key"].removeprefix(prefix) for entry in found]

    def create_model(self, name: str, **environment: str) -> None:
        self.sagemaker.create_model(
            ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=self.container(**environment)
        )

    def container(self, **environment: str) -> dict[str, Any]:
        return {"Image": "any/sklearn:1", "ModelDataUrl": self.url("model.tar.gz"), "Environment": environment}

    def begin(self, source: str, **more: Any) -> str:
        """The name of a new job over `source`, a key's beginning; its output is below the name."""
        name = f"job-{next(_numbers)}"
        data = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": self.url(source)}}
        taken = {"DataSource": data, "ContentType": "text/csv", "SplitType": "Line", **more.pop("TransformInput", {})}
        given = {"S3OutputPath": self.url(name), "Accept": "text/csv", "AssembleWith": "Line"}
        asked = {
            "TransformJobName": name,
            "ModelName": "sums",
            "TransformInput": taken,
            "TransformOutput": {**given, **more.pop("TransformOutput", {})},
            "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
            **more,
        }
        answer = self.sagemaker.create_transform_job(**asked)
        assert answer["TransformJobArn"].endswith(f":transform-job/{name}")
        return name

    def describe(self, name: str) -> dict[str, Any]:
        return dict(self.sagemaker.describe_transform_job(TransformJobName=name))

    def end(self, name: str) -> dict[str, Any]:
        wait_until(lambda: self.describe(name)["TransformJobStatus"] not in ("InProgress", "Stopping"), _SECS, name)
        return self.describe(name)

    def transformed(self, source: str, **more: Any) -> str:
        """The name of a job that has completed."""
        name = self.begin(source, **more)
        described = self.end(name)
        assert described["TransformJobStatus"] == "Completed", described
        return name


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "model" / "code").mkdir(parents=True)
    (folder / "model" / "code" / "inference.py").write_text(SCRIPT)
    return packed(folder / "model", folder / "model.tar.gz")


@pytest.fixture(scope="module")
def cloud(archive: Path, s3: Any, s3_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    s3.create_bucket(Bucket="transform")
    root = tmp_path_factory.mktemp("root")
    server = EndpointServer("native", None, environ=environ_for(s3_url), model_root=str(root))
    try:
        cloud = Cloud(server, s3, "transform", archive)
        # With the variables of most jobs: their process is started once.
        environment = {"SAGEMAKER_BATCH": "true"}
        server.deploy("beside", "", ModelDataUrl=cloud.url("model.tar.gz"), Environment=environment)
        yield cloud
        assert server.stop() == 0, server.process.log
    finally:
        server.kill()


def test_objects_are_transformed_in_their_order(cloud: Cloud) -> None:
    cloud.put("in/a.csv", b"1,2\n3,4\n")
    cloud.put("in/below/b.csv", b"".join(b"%d,1\n" % number for number in range(500)))

    name = cloud.transformed("in/", BatchStrategy="SingleRecord", MaxConcurrentTransforms=4)

    assert cloud.keys(f"{name}/") == ["a.csv.out", "below/b.csv.out"]
    assert cloud.get(f"{name}/a.csv.out") == b"3.0\n7.0\n"
    assert cloud.get(f"{name}/below/b.csv.out").split() == [b"%.1f" % (number + 1) for number in range(500)]


def test_boto3s_waiter_sees_the_end(cloud: Cloud) -> None:
    cloud.put("waiter/a.csv", b"1,2\n")
    name = cloud.begin("waiter/")

    waiter = cloud.sagemaker.get_waiter("transform_job_completed_or_stopped")
    waiter.wait(TransformJobName=name, WaiterConfig={"Delay": 1})

    assert cloud.describe(name)["TransformJobStatus"] == "Completed"


def test_a_description_says_what_was_asked_and_when(cloud: Cloud) -> None:
    cloud.put("described/a.csv", b"1,2\n")
    name = cloud.transformed(
        "described/", MaxPayloadInMB=1, Environment={"FACTOR": "10"}, Tags=[{"Key": "team", "Value": "houses"}]
    )

    described = cloud.describe(name)

    assert described["CreationTime"] <= described["TransformStartTime"] <= described["TransformEndTime"]
    assert described["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"] == cloud.url("described/")
    assert described["TransformOutput"]["S3OutputPath"] == cloud.url(name)
    assert (described["MaxPayloadInMB"], described["ModelName"]) == (1, "sums")
    tags = cloud.sagemaker.list_tags(ResourceArn=described["TransformJobArn"])["Tags"]
    assert tags == [{"Key": "team", "Value": "houses"}]
    assert cloud.get(f"{name}/a.csv.out") == b"30.0\n", "the job's variables go over the model's"


def test_compressed_input(cloud: Cloud) -> None:
    cloud.put("gzip/a.csv.gz", gzip.compress(b"1,2\n3,4\n"))

    name = cloud.transformed("gzip/", TransformInput={"CompressionType": "Gzip"})

    assert cloud.get(f"{name}/a.csv.gz.out") == b"3.0\n7.0\n"


def test_a_manifest_names_the_objects(cloud: Cloud) -> None:
    cloud.put("named/a.csv", b"1,2\n")
    cloud.put("named/b.csv", b"3,4\n")
    cloud.put("manifest", json.dumps([{"prefix": cloud.url("named/")}, "b.csv"]).encode())
    data = {"S3DataSource": {"S3DataType": "ManifestFile", "S3Uri": cloud.url("manifest")}}

    name = cloud.transformed("", TransformInput={"DataSource": data})

    assert cloud.keys(f"{name}/") == ["b.csv.out"]


def test_rows_are_filtered_and_joined(cloud: Cloud) -> None:
    cloud.put("rows/a.csv", b'"Rome, old",1,2\nOslo,3,4\n')
    processing = {"InputFilter": "$[1:]", "JoinSource": "Input", "OutputFilter": "$[0,-1]"}

    name = cloud.transformed("rows/", DataProcessing=processing)

    assert cloud.get(f"{name}/a.csv.out") == b'"Rome, old",3.0\nOslo,7.0\n'


def test_documents_are_filtered_and_joined(cloud: Cloud) -> None:
    cloud.put("documents/a.jsonl", b'{"id": "x", "features": [1, 2]}\n{"id": "y", "features": [3, 4]}\n')
    lines = "application/jsonlines"

    name = cloud.transformed(
        "documents/",
        TransformInput={"ContentType": lines},
        TransformOutput={"Accept": lines},
        DataProcessing={
            "InputFilter": "$.features", "JoinSource": "Input", "OutputFilter": "$['id','SageMakerOutput']",
        },
    )  # fmt: skip

    written = [json.loads(line) for line in cloud.get(f"{name}/a.jsonl.out").splitlines()]
    assert written == [{"id": "x", "SageMakerOutput": 3.0}, {"id": "y", "SageMakerOutput": 7.0}]


def test_a_bad_object_fails_the_job_and_spoils_no_other(cloud: Cloud) -> None:
    cloud.put("spoilt/a.csv", b"1,2\nbad\n")
    cloud.put("spoilt/b.csv", b"1,2\n")

    name = cloud.begin("spoilt/", ModelClientConfig={"InvocationsMaxRetries": 0})

    described = cloud.end(name)
    assert described["TransformJobStatus"] == "Failed"
    assert "spoilt/a.csv" in described["FailureReason"]
    assert "1 of 2 objects have failed" in described["FailureReason"]
    assert cloud.keys(f"{name}/") == ["b.csv.out"]


def test_a_prefix_without_objects_fails(cloud: Cloud) -> None:
    described = cloud.end(cloud.begin("nothing-here/"))

    assert described["TransformJobStatus"] == "Failed"
    assert described["FailureReason"].startswith('No objects found under S3 URL "s3://transform/nothing-here/"')


def test_a_bucket_that_is_not_there_fails(cloud: Cloud) -> None:
    cloud.put("lost/a.csv", b"1,2\n")

    described = cloud.end(cloud.begin("lost/", TransformOutput={"S3OutputPath": "s3://no-such-bucket/out"}))

    assert described["TransformJobStatus"] == "Failed"
    assert "s3://no-such-bucket/out/a.csv.out cannot be read or written" in described["FailureReason"]


def test_a_model_that_cannot_be_loaded_fails_the_job(cloud: Cloud) -> None:
    cloud.put("unloaded/a.csv", b"1,2\n")
    gone = {"Image": "any/sklearn:1", "ModelDataUrl": cloud.url("gone.tar.gz")}
    cloud.sagemaker.create_model(ModelName="gone", ExecutionRoleArn=ROLE, PrimaryContainer=gone)

    described = cloud.end(cloud.begin("unloaded/", ModelName="gone"))

    assert described["TransformJobStatus"] == "Failed"
    assert "gone.tar.gz" in described["FailureReason"]


def test_a_pipeline_transforms(cloud: Cloud) -> None:
    """The second container is sent what the first has answered."""
    containers = [cloud.container(SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT="text/csv"), cloud.container(FACTOR="100")]
    cloud.sagemaker.create_model(ModelName="twice", ExecutionRoleArn=ROLE, Containers=containers)
    cloud.put("piped/a.csv", b"1,2\n3,4\n")

    name = cloud.transformed("piped/", ModelName="twice")

    assert cloud.get(f"{name}/a.csv.out") == b"300.0\n700.0\n"


def test_from_a_folder_to_a_folder(cloud: Cloud) -> None:
    root = Path(cloud.server.model_root)
    (root / "data").mkdir()
    (root / "data" / "a.csv").write_bytes(b"1,2\n")
    data = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"file://{root}/data"}}

    cloud.transformed(
        "", TransformInput={"DataSource": data}, TransformOutput={"S3OutputPath": f"file://{root}/results"}
    )

    assert [path.name for path in (root / "results").iterdir()] == ["a.csv.out"]
    assert (root / "results" / "a.csv.out").read_bytes() == b"3.0\n"


# Stopping, and what survives


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """While this file is there, the record `wait` is not answered."""
    path = tmp_path / "gate"
    path.touch()
    return path


def waiting_job(cloud: Cloud, gate: Path) -> str:
    """A job whose first object is written and whose second one waits."""
    cloud.put("gated/a.csv", b"1,2\n")
    cloud.put("gated/b.csv", b"wait\n")
    name = cloud.begin("gated/", Environment={"GATE": str(gate)}, BatchStrategy="SingleRecord")
    wait_until(lambda: cloud.keys(f"{name}/") == ["a.csv.out"], _SECS, name)
    return name


def test_a_job_is_stopped(cloud: Cloud, gate: Path) -> None:
    name = waiting_job(cloud, gate)

    cloud.sagemaker.stop_transform_job(TransformJobName=name)

    described = cloud.end(name)
    gate.unlink()
    assert described["TransformJobStatus"] == "Stopped"
    assert "FailureReason" not in described
    assert cloud.keys(f"{name}/") == ["a.csv.out"]
    with pytest.raises(ClientError, match="is Stopped: only a job that is InProgress can be stopped"):
        cloud.sagemaker.stop_transform_job(TransformJobName=name)


def test_requests_are_answered_beside_a_job(cloud: Cloud, gate: Path) -> None:
    name = waiting_job(cloud, gate)

    assert cloud.server.predict(None, b"1,2", EndpointName="beside", Accept="text/csv") == "3.0"
    assert cloud.describe(name)["TransformJobStatus"] == "InProgress"
    gate.unlink()
    assert cloud.end(name)["TransformJobStatus"] == "Completed"


def test_nobody_else_reaches_what_a_job_has_loaded(cloud: Cloud, gate: Path) -> None:
    name = waiting_job(cloud, gate)

    with pytest.raises(ClientError, match="not found"):
        cloud.server.predict(None, b"1,2", EndpointName=f"transform-job/{name}")
    gate.unlink()
    cloud.end(name)


@pytest.mark.parametrize("end", [EndpointServer.kill, EndpointServer.stop], ids=["killed", "stopped"])
def test_a_job_is_begun_again_by_the_next_server(
    s3: Any,
    s3_url: str,
    bucket: str,
    archive: Path,
    gate: Path,
    tmp_path: Path,
    end: Callable[[EndpointServer], object],
) -> None:
    server = EndpointServer("native", None, environ=environ_for(s3_url), state=tmp_path / "state")
    try:
        name = waiting_job(Cloud(server, s3, bucket, archive), gate)
    finally:
        end(server)
    assert s3.list_objects_v2(Bucket=bucket, Prefix=f"{name}/")["KeyCount"] == 1, "nothing half is written"

    gate.unlink()
    again = EndpointServer("native", None, environ=environ_for(s3_url), state=tmp_path / "state")
    try:
        cloud = Cloud.__new__(Cloud)
        cloud.server, cloud.s3, cloud.bucket, cloud.sagemaker = again, s3, bucket, again.client("sagemaker")
        assert cloud.end(name)["TransformJobStatus"] == "Completed"
        assert cloud.get(f"{name}/b.csv.out") == b"waited\n"
        assert os.listdir(tmp_path / "state" / "cache" / "transform") == []
    finally:
        again.stop()


# Lists, and what is refused


def test_whoever_looks_for_a_log_is_told_that_there_is_none(cloud: Cloud) -> None:
    """The SDK, which waits for a job, goes on after this code."""
    logs = cloud.server.client("logs")

    with pytest.raises(logs.exceptions.ResourceNotFoundException, match="in the server's log"):
        logs.describe_log_streams(logGroupName="/aws/sagemaker/TransformJobs")


def test_jobs_are_listed(cloud: Cloud) -> None:
    cloud.put("listed/a.csv", b"1,2\n")
    name = cloud.transformed("listed/")

    listed = cloud.sagemaker.list_transform_jobs(NameContains=name, StatusEquals="Completed")
    (summary,) = [one for one in listed["TransformJobSummaries"] if one["TransformJobName"] == name]

    assert summary["TransformJobStatus"] == "Completed"
    assert summary["TransformEndTime"] == cloud.describe(name)["TransformEndTime"]
    assert not cloud.sagemaker.list_transform_jobs(NameContains=name, StatusEquals="Failed")["TransformJobSummaries"]


JSON = {"ContentType": "application/json"}


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"ModelName": "nowhere"}, "Could not find model"),
        ({"MaxConcurrentTransforms": 20, "MaxPayloadInMB": 6}, "is 120, 100 are allowed"),
        ({"DataProcessing": {"InputFilter": "$[?(@.a)]"}}, "is not understood"),
        ({"DataProcessing": {"JoinSource": "Input"}, "TransformInput": JSON}, "of the same form"),
        ({"DataProcessing": {"InputFilter": "$[1:]"}, "TransformOutput": {"Accept": "image/png"}}, "each one of"),
        ({"DataProcessing": {"InputFilter": "$.a"}, "TransformInput": {"SplitType": "RecordIO"}}, "records of text"),
        ({"TransformOutput": {"S3OutputPath": "file:///etc"}}, "does not lie under a folder"),
        ({"DataCaptureConfig": {"DestinationS3Uri": "s3://b/c"}}, "DataCaptureConfig is not supported"),
        ({"Environment": {"POLYHOST_HANDLER": "no-such"}}, "POLYHOST_HANDLER"),
    ],
)
def test_refused(cloud: Cloud, asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ClientError, match="ValidationException") as refused:
        cloud.begin("in/", **asked)

    assert sentence in str(refused.value)


def test_a_model_of_many_is_refused(cloud: Cloud) -> None:
    many = {"Image": "any/sklearn:1", "ModelDataUrl": cloud.url("in/"), "Mode": "MultiModel"}
    cloud.sagemaker.create_model(ModelName="many", ExecutionRoleArn=ROLE, PrimaryContainer=many)

    with pytest.raises(ClientError, match="names no TargetModel"):
        cloud.begin("in/", ModelName="many")


def test_a_name_is_used_once(cloud: Cloud) -> None:
    cloud.put("once/a.csv", b"1,2\n")
    name = cloud.transformed("once/")

    with pytest.raises(ClientError, match="ResourceInUse"):
        cloud.begin("once/", TransformJobName=name)


@pytest.mark.parametrize("operation", ["describe_transform_job", "stop_transform_job"])
def test_a_job_that_is_not_there(cloud: Cloud, operation: str) -> None:
    with pytest.raises(ClientError, match="Could not find requested job with name: nowhere"):
        getattr(cloud.sagemaker, operation)(TransformJobName="nowhere")
