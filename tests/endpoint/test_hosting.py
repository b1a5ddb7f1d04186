"""The control plane as boto3 meets it: models, endpoint configurations, endpoints, their tags and lists."""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from conftest import ROOT
from polyhost.endpoint.hosting.containers import _REFUSED
from polyhost.endpoint.hosting.operations import _REFUSED_IN_CONFIG, _REFUSED_IN_VARIANT
from polyhost.endpoint.hosting.requests import OPERATIONS
from support.control_plane import ACCOUNT, OWN_NAME, REGION, ControlPlane, client_of, control_plane_in

ROLE = f"arn:aws:iam::{ACCOUNT}:role/service-role/Models"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/polyhost:latest"
FOLDERS = "s3://bucket/models/"
PRIVATE_IMAGE = {"RepositoryAccessMode": "Vpc"}
DATA = {"S3Uri": "s3://b/k", "S3DataType": "S3Object", "CompressionType": "None"}
SERVERLESS = {"MemorySizeInMB": 2048, "MaxConcurrency": 5}
EXPLAINER = {"ClarifyExplainerConfig": {"ShapConfig": {"ShapBaselineConfig": {}}}}
# Beginnings of bodies that boto3 would not send.
MODEL_ARNS = b"arn:aws:sagemaker:us-east-1:123456789012:model/"
BEGUN = b'"ModelName": "a", "PrimaryContainer": {"Image": "i", "ModelDataUrl": '
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a server under test may serve models from."""
    return tmp_path_factory.mktemp("allowed")


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[str]:
    """The url of a server that has one endpoint of its own."""
    with control_plane_in(tmp_path_factory.mktemp("state"), model_folder, "own") as plane:
        yield plane.url


@pytest.fixture(scope="module")
def client(control_plane: str) -> Any:
    return client_of(control_plane)


def new_name(what: str = "x") -> str:
    return f"{what}-{next(_numbers)}"


def arn(kind: str, name: str) -> str:
    return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{kind}/{name}"


def container(**fields: Any) -> dict[str, Any]:
    return {"Image": IMAGE, "ModelDataUrl": FOLDERS, "Mode": "MultiModel", **fields}


def single(url: str) -> dict[str, Any]:
    return {"Image": IMAGE, "ModelDataUrl": url, "Mode": "SingleModel"}


def variant(model: str, name: str = "AllTraffic", **fields: Any) -> dict[str, Any]:
    return {
        "ModelName": model,
        "VariantName": name,
        "InitialInstanceCount": 1,
        "InstanceType": "ml.m5.large",
        "InitialVariantWeight": 1,
        **fields,
    }


def create_model(client: Any, name: str = "", **fields: Any) -> str:
    name = name or new_name("model")
    fields = fields or {"PrimaryContainer": container()}
    client.create_model(ModelName=name, ExecutionRoleArn=ROLE, **fields)
    return name


def create_config(client: Any, *variants: dict[str, Any], **fields: Any) -> str:
    name = new_name("config")
    variants = variants or (variant(create_model(client)),)
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=list(variants), **fields)
    return name


def create_endpoint(client: Any, config: str = "", **fields: Any) -> str:
    name = new_name("endpoint")
    client.create_endpoint(EndpointName=name, EndpointConfigName=config or create_config(client), **fields)
    return name


def refusal(call: Callable[..., Any], code: str = "ValidationException", **parameters: Any) -> str:
    """The sentence with which a call is refused."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    error = caught.value.response
    assert (error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]) == (code, 400)
    return str(error["Error"]["Message"])


def post(url: str, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
    """Without boto3, which would refuse some of it before it is sent."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("POST", "/", body, {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"})
    response = connection.getresponse()
    try:
        return response.status, json.loads(response.read())
    finally:
        connection.close()


# The way of every notebook


def test_an_endpoint_is_in_service_at_the_first_look(client: Any) -> None:
    """
    Create all three, wait as users do, describe; clients poll every 30 s, so the first answer must be the last.
    """
    model = create_model(client)
    config = create_config(client, variant(model, InitialInstanceCount=3))
    name = create_endpoint(client, config)
    polls: list[str] = []
    client.meta.events.register("before-call.sagemaker.DescribeEndpoint", lambda **_: polls.append("poll"), "polls")
    try:
        client.get_waiter("endpoint_in_service").wait(EndpointName=name)
    finally:
        client.meta.events.unregister("before-call.sagemaker.DescribeEndpoint", unique_id="polls")
    endpoint = client.describe_endpoint(EndpointName=name)

    assert polls == ["poll"]
    assert endpoint["EndpointArn"] == arn("endpoint", name)
    assert endpoint["EndpointConfigName"] == config
    assert endpoint["CreationTime"] == endpoint["LastModifiedTime"]
    assert abs(endpoint["CreationTime"].timestamp() - time.time()) < 3600
    (summary,) = endpoint["ProductionVariants"]
    assert summary["DeployedImages"][0]["SpecifiedImage"] == IMAGE
    assert (summary["VariantName"], summary["CurrentWeight"], summary["CurrentInstanceCount"]) == ("AllTraffic", 1, 3)


def test_a_model_is_described_as_it_came(client: Any) -> None:
    """
    What Polyhost does not act on is kept all the same.
    """
    name = new_name("Model")
    given = {
        "Containers": [
            container(ContainerHostname="first", MultiModelConfig={"ModelCacheSetting": "Disabled"}),
            {**single("s3://bucket/m.tar.gz"), "Environment": {"A": "1"}, "ImageConfig": PRIVATE_IMAGE},
        ],
        "ExecutionRoleArn": ROLE,
        "InferenceExecutionConfig": {"Mode": "Serial"},
        "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
        "EnableNetworkIsolation": True,
    }

    created = client.create_model(ModelName=name, **given)
    described = client.describe_model(ModelName=name)

    assert created["ModelArn"] == described["ModelArn"] == arn("model", name.lower())
    assert {key: described[key] for key in given} == given
    assert described["ModelName"] == name


def test_a_configuration_is_described_as_it_came(client: Any) -> None:
    """
    Capture of data, keys, several variants, managed scaling.
    """
    model = create_model(client)
    given = {
        "ProductionVariants": [
            variant(model, "a", InitialVariantWeight=0.25, InitialInstanceCount=4),
            variant(model, "b", ManagedInstanceScaling={"Status": "ENABLED", "MaxInstanceCount": 4}),
        ],
        "DataCaptureConfig": {
            "EnableCapture": True, "InitialSamplingPercentage": 20, "DestinationS3Uri": "s3://bucket/captured",
            "CaptureOptions": [{"CaptureMode": "Input"}],
        },
        "KmsKeyId": "key",
    }  # fmt: skip
    name = new_name("config")

    created = client.create_endpoint_config(EndpointConfigName=name, **given)
    described = client.describe_endpoint_config(EndpointConfigName=name)
    endpoint = client.describe_endpoint(EndpointName=create_endpoint(client, name))

    assert created["EndpointConfigArn"] == described["EndpointConfigArn"] == arn("endpoint-config", name)
    assert {key: described[key] for key in given} == given
    assert (endpoint["DataCaptureConfig"]["EnableCapture"], endpoint["DataCaptureConfig"]["CaptureStatus"]) == (
        True,
        "Started",
    )


def test_what_is_deleted_is_gone(client: Any) -> None:
    """
    Each of the three, with AWS's words for what cannot be found, which the SageMaker SDK looks for.
    """
    model = create_model(client)
    config = create_config(client, variant(model))
    name = create_endpoint(client, config)

    client.delete_endpoint(EndpointName=name)
    client.delete_endpoint_config(EndpointConfigName=config)
    client.delete_model(ModelName=model)

    for call, parameters, kind, words in (
        (client.describe_endpoint, {"EndpointName": name}, "endpoint", "endpoint"),
        (client.delete_endpoint, {"EndpointName": name}, "endpoint", "endpoint"),
        (client.describe_endpoint_config, {"EndpointConfigName": config}, "endpoint-config", "endpoint configuration"),
        (client.delete_endpoint_config, {"EndpointConfigName": config}, "endpoint-config", "endpoint configuration"),
        (client.describe_model, {"ModelName": model}, "model", "model"),
        (client.delete_model, {"ModelName": model}, "model", "model"),
    ):
        text = f'Could not find {words} "{arn(kind, next(iter(parameters.values())))}".'
        assert refusal(call, **parameters) == text


def test_nothing_is_created_twice(client: Any) -> None:
    """
    AWS's words again; names that differ in case alone are one.
    """
    model = create_model(client, new_name("Model"))
    config = create_config(client, variant(model))
    name = create_endpoint(client, config)

    assert refusal(client.create_model, ModelName=model.upper(), PrimaryContainer=container()) == (
        f'Cannot create already existing model "{arn("model", model.lower())}".'
    )
    assert refusal(client.create_endpoint_config, EndpointConfigName=config, ProductionVariants=[variant(model)]) == (
        f'Cannot create already existing endpoint configuration "{arn("endpoint-config", config)}".'
    )
    assert refusal(client.create_endpoint, EndpointName=name.title(), EndpointConfigName=config) == (
        f'Cannot create already existing endpoint "{arn("endpoint", name)}".'
    )


def test_what_an_endpoint_needs_must_be_there(client: Any) -> None:
    """
    A configuration names models that exist, an endpoint a configuration whose models still do.
    """
    text = f'Could not find model "{arn("model", "nowhere")}".'
    assert (
        refusal(client.create_endpoint_config, EndpointConfigName="c", ProductionVariants=[variant("nowhere")]) == text
    )
    text = f'Could not find endpoint configuration "{arn("endpoint-config", "nowhere")}".'
    assert refusal(client.create_endpoint, EndpointName="e", EndpointConfigName="nowhere") == text
    model = create_model(client)
    config = create_config(client, variant(model))
    client.delete_model(ModelName=model)
    assert refusal(client.create_endpoint, EndpointName="e", EndpointConfigName=config) == (
        f'Could not find model "{arn("model", model)}".'
    )


# Changing an endpoint


def test_an_update_swaps_at_once(client: Any) -> None:
    """
    The new configuration's variants, in service; weights and counts that were set since are kept where asked.
    """
    model = create_model(client)
    old = create_config(client, variant(model, "a"), variant(model, "b"))
    new = create_config(client, variant(model, "b", InitialVariantWeight=5), variant(model, "c"))
    name = create_endpoint(client, old)
    client.update_endpoint_weights_and_capacities(
        EndpointName=name,
        DesiredWeightsAndCapacities=[
            {"VariantName": "b", "DesiredWeight": 0, "DesiredInstanceCount": 7},
        ],
    )

    def shown() -> dict[str, tuple[float, int]]:
        endpoint = client.describe_endpoint(EndpointName=name)
        assert endpoint["EndpointStatus"] == "InService"
        return {
            variant["VariantName"]: (variant["CurrentWeight"], variant["DesiredInstanceCount"])
            for variant in endpoint["ProductionVariants"]
        }

    assert shown() == {"a": (1, 1), "b": (0, 7)}
    client.update_endpoint(EndpointName=name, EndpointConfigName=new, RetainAllVariantProperties=True)
    assert shown() == {"b": (0, 7), "c": (1, 1)}
    client.update_endpoint(
        EndpointName=name,
        EndpointConfigName=new,
        RetainAllVariantProperties=True,
        ExcludeRetainedVariantProperties=[{"VariantPropertyType": "DesiredWeight"}],
    )
    assert shown() == {"b": (5, 7), "c": (1, 1)}
    answer = client.update_endpoint(EndpointName=name, EndpointConfigName=new)
    assert shown() == {"b": (5, 1), "c": (1, 1)}
    assert answer["EndpointArn"] == arn("endpoint", name)
    endpoint = client.describe_endpoint(EndpointName=name)
    assert endpoint["EndpointConfigName"] == new
    assert endpoint["LastModifiedTime"] > endpoint["CreationTime"]


def test_weights_must_leave_a_variant_for_the_requests(client: Any) -> None:
    """
    One may be 0, not all, unless there is one only; a refused change changes nothing.
    """
    model = create_model(client)
    name = create_endpoint(client, create_config(client, variant(model, "a"), variant(model, "b")))
    alone = create_endpoint(client, create_config(client, variant(model, "a", InitialVariantWeight=0)))

    def set_weights(**weights: float) -> Any:
        desired = [{"VariantName": name, "DesiredWeight": weight} for name, weight in weights.items()]
        return client.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=desired)

    assert "The weights of all variants are 0: give one of a, b" in refusal(set_weights, a=0, b=0)
    assert f'The variant "c" is not part of the endpoint "{arn("endpoint", name)}".' == refusal(set_weights, a=3, c=1)
    summaries = client.describe_endpoint(EndpointName=name)["ProductionVariants"]
    assert [summary["CurrentWeight"] for summary in summaries] == [1, 1]
    assert client.describe_endpoint(EndpointName=alone)["EndpointStatus"] == "InService"


def test_an_endpoint_keeps_what_it_was_made_from(client: Any) -> None:
    """
    Its model and its configuration may go; an update then needs them.
    """
    model = create_model(client)
    config = create_config(client, variant(model))
    name = create_endpoint(client, config)

    client.delete_model(ModelName=model)
    assert "Could not find model" in refusal(client.update_endpoint, EndpointName=name, EndpointConfigName=config)
    client.delete_endpoint_config(EndpointConfigName=config)

    endpoint = client.describe_endpoint(EndpointName=name)
    assert (endpoint["EndpointStatus"], endpoint["EndpointConfigName"]) == ("InService", config)


def test_the_servers_own_endpoint_stays_as_it_is(client: Any) -> None:
    """
    It is shown like the others, and neither made again, nor updated, nor deleted.
    """
    endpoint = client.describe_endpoint(EndpointName=OWN_NAME)
    config = create_config(client)

    assert (endpoint["EndpointStatus"], endpoint["EndpointArn"]) == ("InService", arn("endpoint", OWN_NAME))
    assert endpoint["ProductionVariants"][0]["VariantName"] == "AllTraffic"
    listed = client.list_endpoints(NameContains=OWN_NAME)["Endpoints"]
    assert [row["EndpointName"] for row in listed] == [OWN_NAME]
    assert "is the server's own" in refusal(client.delete_endpoint, EndpointName=OWN_NAME)
    assert "is the server's own" in refusal(
        client.update_endpoint, EndpointName=OWN_NAME.upper(), EndpointConfigName=config
    )
    assert "already existing endpoint" in refusal(
        client.create_endpoint, EndpointName=OWN_NAME, EndpointConfigName=config
    )


# What is refused


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"ModelName": "under_score"},
            "Value 'under_score' at 'modelName' failed to satisfy constraint: Member must satisfy regular",
        ),
        (
            {"ModelName": "x" * 64},
            "'modelName' failed to satisfy constraint: Member must have length less than or equal to 63",
        ),
        ({"PrimaryContainer": {"ModelDataUrl": FOLDERS}}, "PrimaryContainer.Image is missing"),
        (
            {"PrimaryContainer": container(Image="811284229777.dkr.ecr.us-east-1.amazonaws.com/blazingtext:1")},
            "PrimaryContainer.Image is SageMaker's blazingtext, which Polyhost does not serve",
        ),
        (
            {"Containers": [container(), {**single("s3://b/k"), "Image": "huggingface-tensorflow-inference:2"}]},
            "Containers[1].Image is SageMaker's huggingface-tensorflow-inference, which Polyhost does not",
        ),
        ({"PrimaryContainer": {"Image": IMAGE}}, "PrimaryContainer.ModelDataUrl must say where the models are"),
        (
            {"PrimaryContainer": container(Mode="Several")},
            "primaryContainer.mode' failed to satisfy constraint: Member must satisfy enum value set: [SingleModel, ",
        ),
        ({"PrimaryContainer": container(ModelDataUrl="http://host/models/")}, "at 'primaryContainer.modelDataUrl'"),
        (
            {"PrimaryContainer": container(ModelDataUrl="https://example.com/models/")},
            "PrimaryContainer.ModelDataUrl is no plain url of S3",
        ),
        (
            {"PrimaryContainer": container(ModelDataUrl="file:///etc/")},
            "'/etc/' does not lie under a folder that this server may serve models from",
        ),
        (
            {"PrimaryContainer": container(Environment={"A": "x" * 1025})},
            "Value at 'primaryContainer.environment.A.value' failed",
        ),
        (
            {"PrimaryContainer": container(Environment={"A-B": "x"})},
            "Value 'A-B' at 'primaryContainer.environment.key'",
        ),
        (
            {"PrimaryContainer": container(Environment={f"A{n}": "x" for n in range(101)})},
            "Value at 'primaryContainer.environment' failed",
        ),
        (
            {"PrimaryContainer": container(ModelPackageName="package")},
            "PrimaryContainer.ModelPackageName is not supported",
        ),
        (
            {"PrimaryContainer": container(AdditionalModelDataSources=[{"ChannelName": "a", "S3DataSource": DATA}])},
            "AdditionalModelDataSources is not supported",
        ),
        ({"PrimaryContainer": container(), "Containers": [container()]}, "either PrimaryContainer or Containers"),
        ({}, "either PrimaryContainer or Containers"),
        ({"Containers": [single("s3://b/k")] * 16}, "Value at 'containers' failed"),
        ({"Containers": [container(), container()]}, "Mode MultiModel is for one container"),
        (
            {"PrimaryContainer": container(), "InferenceExecutionConfig": {"Mode": "Direct"}},
            "Mode Direct is not supported",
        ),
        ({"PrimaryContainer": container(), "ExecutionRoleArn": "somebody-somewhere-there"}, "at 'executionRoleArn'"),
    ],
)
def test_models_that_are_refused(fields: dict[str, Any], sentence: str, client: Any) -> None:
    """
    AWS's own rules, and by its name whatever would change the answers and is not there.
    """
    name = new_name("refused")

    assert sentence in refusal(client.create_model, **{"ModelName": name, **fields})
    assert "Could not find model" in refusal(client.describe_model, ModelName=name)


@pytest.mark.parametrize(
    ("fields", "variant_fields", "sentence"),
    [
        ({}, {"ServerlessConfig": SERVERLESS}, "ProductionVariants[0].ServerlessConfig is not supported"),
        ({}, {"ModelName": None}, "ProductionVariants[0].ModelName is missing: there are no inference components here"),
        ({}, {"InstanceType": "large"}, "Value 'large' at 'productionVariants.1.member.instanceType'"),
        ({}, {"InitialInstanceCount": 2**40}, "at 'productionVariants.1.member.initialInstanceCount'"),
        ({"AsyncInferenceConfig": {"OutputConfig": {}}}, {}, "S3OutputPath is missing"),
        ({"ExplainerConfig": EXPLAINER}, {}, "ExplainerConfig is not supported"),
        ({"ProductionVariants": []}, {}, "valid min length: 1"),
        ({"EndpointConfigName": "-"}, {}, "at 'endpointConfigName'"),
    ],
)
def test_configurations_that_are_refused(
    fields: dict[str, Any], variant_fields: dict[str, Any], sentence: str, client: Any, control_plane: str
) -> None:
    """
    Serverless, asynchronous, explained, without models: by name.
    """
    whole = {**variant(create_model(client)), **variant_fields}
    given = {key: value for key, value in whole.items() if value is not None}
    body = {"EndpointConfigName": new_name("refused"), "ProductionVariants": [given], **fields}

    status, document = post(control_plane, "SageMaker.CreateEndpointConfig", json.dumps(body).encode())

    assert (status, document["__type"]) == (400, "ValidationException")
    assert sentence in document["message"]


def test_shadows_and_twins_that_cannot_be(client: Any) -> None:
    """
    Two of one name, two shadows, and a shadow that the requests are not for.
    """
    model = create_model(client)
    other = create_model(client, PrimaryContainer=single("s3://bucket/model.tar.gz"))

    def said(*variants: Any, shadows: Any = ()) -> str:
        asked = {"ShadowProductionVariants": shadows} if shadows else {}
        given = {"EndpointConfigName": new_name(), "ProductionVariants": [*variants], **asked}
        return refusal(client.create_endpoint_config, **given)

    assert "VariantName is not unique" in said(variant(model), variant(model))
    assert "VariantName is not unique" in said(variant(model), shadows=[variant(model)])
    assert "one shadow variant at most" in said(variant(model), shadows=[variant(model, "b"), variant(model, "c")])
    assert "ShadowProductionVariants[0].ModelName is missing" in said(
        variant(model), shadows=[{key: value for key, value in variant(model, "b").items() if key != "ModelName"}]
    )
    config = create_config(client, variant(model), ShadowProductionVariants=[variant(other, "b")])
    assert "must be alike" in refusal(client.create_endpoint, EndpointName=new_name(), EndpointConfigName=config)


def test_a_shadow_is_described_and_weighed(client: Any) -> None:
    """
    Beside the production variants, whose names stay theirs.
    """
    model = create_model(client)
    name = create_endpoint(
        client, create_config(client, variant(model), ShadowProductionVariants=[variant(model, "b")])
    )
    weights = [{"VariantName": "b", "DesiredWeight": 0.25}]
    client.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=weights)
    described = client.describe_endpoint(EndpointName=name)

    assert [one["VariantName"] for one in described["ProductionVariants"]] == ["AllTraffic"]
    (shadow,) = described["ShadowProductionVariants"]
    assert (shadow["VariantName"], shadow["CurrentWeight"]) == ("b", 0.25)
    client.update_endpoint(EndpointName=name, EndpointConfigName=create_config(client, variant(model)))
    assert "ShadowProductionVariants" not in client.describe_endpoint(EndpointName=name)


def test_data_is_captured_where_the_server_may_write(client: Any, model_folder: Path) -> None:
    """
    And an update keeps where, if it is asked to keep all.
    """
    model = create_model(client)

    def capture(to: str) -> dict[str, Any]:
        return {
            "InitialSamplingPercentage": 20, "DestinationS3Uri": to, "CaptureOptions": [{"CaptureMode": "Input"}],
        }  # fmt: skip

    text = refusal(
        client.create_endpoint_config, EndpointConfigName=new_name(), ProductionVariants=[variant(model)],
        DataCaptureConfig=capture("file:///etc/captured"),
    )  # fmt: skip
    assert "does not lie under a folder that this server may serve models from" in text
    config = create_config(client, variant(model), DataCaptureConfig=capture(f"file://{model_folder}/captured"))
    name = create_endpoint(client, config)
    plain = create_config(client, variant(model))
    client.update_endpoint(EndpointName=name, EndpointConfigName=plain, RetainAllVariantProperties=True)
    assert client.describe_endpoint(EndpointName=name)["DataCaptureConfig"]["CaptureStatus"] == "Started"
    client.update_endpoint(EndpointName=name, EndpointConfigName=plain)
    assert "DataCaptureConfig" not in client.describe_endpoint(EndpointName=name)


def test_instance_types_that_botocore_does_not_know_yet(client: Any) -> None:
    """
    They are words here: AWS rents out new ones every month.
    """
    config = create_config(client, variant(create_model(client), InstanceType="ml.z99-next.1024xlarge"))

    described = client.describe_endpoint_config(EndpointConfigName=config)
    assert described["ProductionVariants"][0]["InstanceType"] == "ml.z99-next.1024xlarge"


def test_folders_of_this_machine(client: Any, model_folder: Path) -> None:
    """
    A url of a file or a plain path, where the server may; links do not lead out.
    """
    (model_folder / "out").symlink_to("/etc")
    for url in (f"file://{model_folder}/models/", f"{model_folder}/models"):
        name = create_model(client, PrimaryContainer=container(ModelDataUrl=url))
        assert client.describe_model(ModelName=name)["PrimaryContainer"]["ModelDataUrl"] == url
    for url in (f"{model_folder}/out/", f"{model_folder}/../", "/"):
        answer = refusal(client.create_model, ModelName="m", PrimaryContainer=container(ModelDataUrl=url))
        assert "does not lie under a folder" in answer


@pytest.mark.parametrize(
    ("target", "body", "status", "code", "sentence"),
    [
        ("SageMaker.CreateTrainingJob", b"{}", 400, "UnknownOperationException", "does not train"),
        ("SageMaker._create_model", b"{}", 400, "UnknownOperationException", "Operations: CreateModel, "),
        ("Other.CreateModel", b"{}", 400, "UnknownOperationException", "SageMaker.OPERATION"),
        ("SageMaker.CreateModel", b"{", 400, "SerializationException", "not JSON"),
        ("SageMaker.CreateModel", b"\xff\xfe", 400, "SerializationException", "not JSON"),
        ("SageMaker.CreateModel", b"[" * 100_000, 400, "SerializationException", "not JSON"),
        ("SageMaker.CreateModel", b"[]", 400, "SerializationException", "not a JSON object"),
        (
            "SageMaker.CreateModel",
            b"{}",
            400,
            "ValidationException",
            'Missing required parameter in input: "ModelName"',
        ),
        (
            "SageMaker.CreateModel",
            b'{"ModelName": 5}',
            400,
            "ValidationException",
            "Invalid type for parameter ModelName",
        ),
        (
            "SageMaker.CreateModel",
            b'{"ModelName": "a", "Colour": "red"}',
            400,
            "ValidationException",
            'Unknown parameter in input: "Colour"',
        ),
        (
            "SageMaker.CreateModel",
            b'{"ModelName": "' + b"x" * 2_200_000 + b'"}',
            413,
            "RequestEntityTooLargeException",
            "bytes at most",
        ),
        ("SageMaker.ListModels", b'{"MaxResults": true}', 400, "ValidationException", "must be a number"),
        (
            "SageMaker.ListModels",
            b'{"CreationTimeAfter": "2020-01-01"}',
            400,
            "ValidationException",
            "must be a number",
        ),
        ("SageMaker.ListModels", b'{"CreationTimeAfter": 1e999}', 400, "ValidationException", "have value less than"),
        ("SageMaker.ListModels", b'{"CreationTimeAfter": NaN}', 400, "SerializationException", "NaN is not JSON"),
        ("SageMaker.ListModels", b'{"NextToken": "e30="}', 400, "ValidationException", "NextToken is not one"),
        (
            "SageMaker.ListTags",
            rb'{"ResourceArn": "%b\ud800"}' % MODEL_ARNS,
            400,
            "ValidationException",
            "Could not find resource",
        ),
        (
            "SageMaker.CreateModel",
            rb'{%b"s3://b/k", "Environment": {"A": "\ud800"}}}' % BEGUN,
            400,
            "ValidationException",
            "Environment.A has a character",
        ),
        ("SageMaker.CreateModel", rb'{%b"/a\u0000b"}}' % BEGUN, 400, "ValidationException", "ModelDataUrl"),
    ],
)
def test_hostile_requests(target: str, body: bytes, status: int, code: str, sentence: str, control_plane: str) -> None:
    """
    Whatever is sent, the answer is AWS's form of an error, with a sentence.
    """
    answer_status, document = post(control_plane, target, body)

    assert (answer_status, document["__type"]) == (status, code)
    assert sentence in document["message"]
    assert len(document["message"]) < 5000


def test_sagemakers_other_operations_are_refused_by_name(client: Any, control_plane: str) -> None:
    """
    All 400 that botocore knows, before anybody is asked for a permission that means nothing.
    """
    others = set(client.meta.service_model.operation_names) - set(OPERATIONS)
    assert {"CreateTrainingJob", "CreateProcessingJob", "Search"} <= others
    for operation in others:
        status, document = post(control_plane, f"SageMaker.{operation}", b"{}")
        assert (status, document["__type"]) == (400, "UnknownOperationException")
        assert document["message"].startswith(f"{operation} is not an operation of Polyhost")


def test_a_caller_who_may_not_is_refused_before_anything_is_done(client: Any) -> None:
    """
    The policy names the endpoint's ARN; in which case the caller writes the name makes no difference.
    """
    client.create_endpoint(EndpointName="kept", EndpointConfigName=create_config(client))

    for name in ("kept", "KEPT"):
        sentence = refusal(client.delete_endpoint, "AccessDeniedException", EndpointName=name)
        assert sentence.endswith(f"sagemaker:DeleteEndpoint on resource: {arn('endpoint', 'kept')}")
    assert client.describe_endpoint(EndpointName="kept")["EndpointStatus"] == "InService"


# Lists and tags


def test_lists_are_paged_filtered_and_sorted(client: Any) -> None:
    """
    As boto3's paginators ask; each model once, while others come.
    """
    names = [create_model(client, f"paged-{letter}-{number}") for number in range(4) for letter in "ba"]
    pages = client.get_paginator("list_models").paginate(
        NameContains="paged-", SortBy="Name", SortOrder="Ascending", PaginationConfig={"PageSize": 3}
    )
    seen = []
    for number, page in enumerate(pages):
        create_model(client, f"paged-a-0-{number}")  # sorted before the page that follows
        seen.append([model["ModelName"] for model in page["Models"]])

    assert seen[0] == sorted(names)[:3]
    flat = [name for page in seen for name in page]
    assert sorted(set(flat)) == flat
    assert set(names) <= set(flat)
    newest = client.list_models(NameContains="paged-", MaxResults=1)["Models"]
    assert newest[0]["ModelName"] == f"paged-a-0-{len(seen) - 1}"
    assert newest[0]["ModelArn"] == arn("model", newest[0]["ModelName"])


def test_lists_by_time_and_status(client: Any) -> None:
    """
    After a time and before it, in service and not.
    """
    name = create_endpoint(client)
    created = client.describe_endpoint(EndpointName=name)["CreationTime"]
    config = create_config(client)

    def listed(**filters: Any) -> list[str]:
        return [row["EndpointName"] for row in client.list_endpoints(NameContains=name, **filters)["Endpoints"]]

    # boto3 sends whole seconds.
    assert listed(CreationTimeAfter=int(created.timestamp())) == [name]
    assert listed(CreationTimeBefore=int(created.timestamp())) == []
    assert listed(LastModifiedTimeBefore=int(created.timestamp()) + 1) == [name]
    assert listed(LastModifiedTimeAfter=int(created.timestamp()) + 1) == []
    assert listed(StatusEquals="InService") == [name]
    assert listed(StatusEquals="Failed") == []
    configs = client.list_endpoint_configs(NameContains=config, SortBy="Name")["EndpointConfigs"]
    assert [row["EndpointConfigArn"] for row in configs] == [arn("endpoint-config", config)]


def test_tags_belong_to_a_resource(client: Any) -> None:
    """
    Given when it is made or later, listed, taken away; gone with it.
    """
    name = new_name("tagged")
    resource = arn("model", name)
    client.create_model(ModelName=name, PrimaryContainer=container(), Tags=[{"Key": "team", "Value": "a"}])

    added = client.add_tags(ResourceArn=resource, Tags=[{"Key": "team", "Value": "b"}, {"Key": "Größe", "Value": ""}])
    listed = client.list_tags(ResourceArn=resource)["Tags"]
    client.delete_tags(ResourceArn=resource, TagKeys=["team", "unknown"])

    assert added["Tags"] == listed == [{"Key": "Größe", "Value": ""}, {"Key": "team", "Value": "b"}]
    assert client.list_tags(ResourceArn=resource)["Tags"] == [{"Key": "Größe", "Value": ""}]
    client.delete_model(ModelName=name)
    assert "Could not find model" in refusal(client.list_tags, ResourceArn=resource)
    create_model(client, name)
    assert client.list_tags(ResourceArn=resource)["Tags"] == []
    fifty = [{"Key": f"k{number}", "Value": ""} for number in range(50)]
    client.add_tags(ResourceArn=resource, Tags=fifty)
    assert "50 tags at most" in refusal(client.add_tags, ResourceArn=resource, Tags=[{"Key": "one", "Value": "more"}])
    assert "Could not find resource" in refusal(
        client.list_tags, ResourceArn=f"arn:aws:sagemaker:{REGION}:1{ACCOUNT[1:]}:app/x"
    )


# The state's life


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    """
    Everything, killed right after the last answer.
    """
    plane = ControlPlane(tmp_path / "state", tmp_path).wait()
    try:
        client = client_of(plane.url)
        model = create_model(client)
        config = create_config(client, variant(model, "a"), variant(model, "b"))
        kept, gone = create_endpoint(client, config), create_endpoint(client, config)
        client.add_tags(ResourceArn=arn("endpoint", kept), Tags=[{"Key": "k", "Value": "v"}])
        client.delete_endpoint(EndpointName=gone)
        client.update_endpoint_weights_and_capacities(
            EndpointName=kept, DesiredWeightsAndCapacities=[{"VariantName": "a", "DesiredWeight": 8}]
        )
        last = create_model(client)
    finally:
        plane.kill()

    with control_plane_in(tmp_path / "state", tmp_path) as again:
        client = client_of(again.url)
        weights = [
            summary["CurrentWeight"] for summary in client.describe_endpoint(EndpointName=kept)["ProductionVariants"]
        ]
        assert weights == [8, 1]
        assert client.list_tags(ResourceArn=arn("endpoint", kept))["Tags"] == [{"Key": "k", "Value": "v"}]
        assert client.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"][0]["ModelName"] == model
        assert client.describe_model(ModelName=last)["PrimaryContainer"] == container()
        assert "Could not find endpoint" in refusal(client.describe_endpoint, EndpointName=gone)
        assert f"serving ['{kept}']" in again.process.log


def test_one_server_has_the_state(tmp_path: Path) -> None:
    """
    A second one on the same folder does not start.
    """
    with control_plane_in(tmp_path / "state", tmp_path):
        second = ControlPlane(tmp_path / "state", tmp_path)
        line = second.process.wait_for_line("^error")
        assert second.process.wait() == 1
        second.kill()

    assert "is in use by another server: give each its own --state-dir" in line


def test_one_container_definition_where_the_engine_runs_one(tmp_path: Path) -> None:
    """
    Said when a second is asked for; the same one again is fine, and so is another in its place.
    """
    with control_plane_in(tmp_path / "state", tmp_path, "check") as plane:
        client = client_of(plane.url)
        first = create_config(client)
        other = create_config(
            client, variant(create_model(client, PrimaryContainer=container(ModelDataUrl="s3://b/x/")))
        )
        name, twin = create_endpoint(client, first), create_endpoint(client, first)
        sentence = "The engine mms runs one container definition: use --engine native for several."

        assert refusal(client.create_endpoint, EndpointName="e", EndpointConfigName=other) == sentence
        assert refusal(client.update_endpoint, EndpointName=name, EndpointConfigName=other) == sentence
        client.delete_endpoint(EndpointName=twin)
        client.update_endpoint(EndpointName=name, EndpointConfigName=other)


def test_an_endpoint_that_may_no_longer_be_served_says_why(tmp_path: Path) -> None:
    """
    Started anew with other folders: it is there, Failed, and in service again once it may.
    """
    folder = tmp_path / "models"
    with control_plane_in(tmp_path / "state", folder) as plane:
        client = client_of(plane.url)
        model = create_model(client, PrimaryContainer=container(ModelDataUrl=f"{folder}/a/"))
        name = create_endpoint(client, create_config(client, variant(model)))
        new = create_config(client, variant(create_model(client)))

    with control_plane_in(tmp_path / "state", tmp_path / "elsewhere") as plane:
        client = client_of(plane.url)
        endpoint = client.describe_endpoint(EndpointName=name)
        assert (endpoint["EndpointStatus"], client.list_endpoints()["Endpoints"][0]["EndpointStatus"]) == (
            "Failed",
        ) * 2
        assert "does not lie under a folder" in endpoint["FailureReason"]
        assert "serving []" in plane.process.log
        client.update_endpoint(EndpointName=name, EndpointConfigName=new)
        endpoint = client.describe_endpoint(EndpointName=name)
        assert (endpoint["EndpointStatus"], "FailureReason" in endpoint) == ("InService", False)


def test_the_docs_name_every_operation() -> None:
    """
    And what is refused.
    """
    page = (ROOT / "docs" / "control-plane.md").read_text()

    for word in (*OPERATIONS, *_REFUSED_IN_CONFIG, *_REFUSED_IN_VARIANT, *_REFUSED):
        assert f"`{word}`" in page, word
