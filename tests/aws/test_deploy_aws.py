"""`polyhost deploy` and `destroy` at moto's AWS; what moto lacks (UpdateEndpoint) is in test_deploy_home.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from support.server import free_port

from aws.conftest import ACCOUNT, KEYS, REGION, REGISTRY, Cloud, Done, Shell, docker_manifest

DEPLOY = ("deploy", "houses", "--models", "s3://our-models/houses/")
SCALING = {"ServiceNamespace": "sagemaker"}
ROLE = f"arn:aws:iam::{ACCOUNT}:role/polyhost-execution"
CHANGES = ("Create", "Update", "Delete", "Register", "Deregister", "Put", "Add")


def made(cloud: Cloud) -> dict[str, list[str]]:
    """All that there is."""
    sagemaker, scaling = cloud.client("sagemaker"), cloud.client("application-autoscaling")
    policies = scaling.describe_scaling_policies(**SCALING)["ScalingPolicies"]
    targets = scaling.describe_scalable_targets(**SCALING)["ScalableTargets"]
    return {
        "models": [model["ModelName"] for model in sagemaker.list_models()["Models"]],
        "configs": [config["EndpointConfigName"] for config in sagemaker.list_endpoint_configs()["EndpointConfigs"]],
        "endpoints": [endpoint["EndpointName"] for endpoint in sagemaker.list_endpoints()["Endpoints"]],
        "targets": [target["ResourceId"] for target in targets],
        "policies": [policy["PolicyName"] for policy in policies],
    }


def test_a_deployment_has_what_sagemaker_needs(cloud: Cloud) -> None:
    """The role by its name, the image by its digest, many models at one prefix, two instances; the tag is on all."""
    done = cloud.shell.run(*DEPLOY, "--env", "OMP_NUM_THREADS=1", "--handler", "xgboost", "--no-cache")
    assert "endpoint houses in us-east-1 is in service" in done.said

    sagemaker = cloud.client("sagemaker")
    (model_name,), (config_name,) = made(cloud)["models"], made(cloud)["configs"]
    model = sagemaker.describe_model(ModelName=model_name)
    assert model["ExecutionRoleArn"] == ROLE
    digest = cloud.client("ecr").describe_images(repositoryName="polyhost")["imageDetails"][0]["imageDigest"]
    assert model["PrimaryContainer"] == {
        "Image": f"{REGISTRY}/polyhost@{digest}",
        "Mode": "MultiModel",
        "ModelDataUrl": "s3://our-models/houses/",
        "Environment": {"OMP_NUM_THREADS": "1", "POLYHOST_HANDLER": "xgboost"},
        "MultiModelConfig": {"ModelCacheSetting": "Disabled"},
    }
    config = sagemaker.describe_endpoint_config(EndpointConfigName=config_name)
    assert config["ProductionVariants"] == [
        {
            "VariantName": "AllTraffic",
            "ModelName": model_name,
            "InstanceType": "ml.m5.xlarge",
            "InitialInstanceCount": 2,
            "InitialVariantWeight": 1,
        }
    ]
    assert not config.get("DataCaptureConfig")
    endpoint = sagemaker.describe_endpoint(EndpointName="houses")
    for arn in (model["ModelArn"], config["EndpointConfigArn"], endpoint["EndpointArn"]):
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "polyhost:deployment", "Value": "houses"}]


def test_the_same_command_again_changes_nothing(cloud: Cloud) -> None:
    """It only looks; a tag of the image that was pushed anew is a change."""
    command = (*DEPLOY, "--autoscale", "1:4:100")
    assert "CreateEndpoint" in cloud.asked(lambda: cloud.shell.run(*command))

    asked = cloud.asked(lambda: cloud.shell.run(*command))
    assert asked
    assert not [name for name in asked if name.startswith(CHANGES)]
    assert cloud.shell.run(*command, "--dry-run").json() == []

    cloud.put_image("polyhost", "mms", docker_manifest("second"))
    changes = [step["operation"] for step in cloud.shell.run(*command, "--dry-run").json()]
    assert changes[:3] == ["CreateModel", "CreateEndpointConfig", "UpdateEndpoint"]


def test_destroy_removes_all_that_was_made_and_only_that(cloud: Cloud) -> None:
    """Another deployment whose name begins alike stays, and so does what others have made by hand."""
    cloud.shell.run("deploy", "houses-2", "--models", "s3://our-models/", "--autoscale", "1:2:3")
    sagemaker = cloud.client("sagemaker")
    sagemaker.create_model(ModelName="houses-0123456789", PrimaryContainer={"Image": "i"}, ExecutionRoleArn=ROLE)
    before = made(cloud)

    cloud.shell.run(*DEPLOY, "--autoscale", "2:4:100")
    during = made(cloud)
    assert {kind: len(during[kind]) - len(before[kind]) for kind in before} == dict.fromkeys(before, 1)
    done = cloud.shell.run("destroy", "houses")

    assert made(cloud) == before
    assert all(name in done.said for kind in during for name in set(during[kind]) - set(before[kind]))
    assert "there is nothing to remove" in cloud.shell.run("destroy", "houses").said


def test_what_others_use_is_kept_and_said(cloud: Cloud) -> None:
    """A second endpoint on a deployment's configuration keeps it and its model."""
    cloud.shell.run(*DEPLOY)
    (model,), (config,) = made(cloud)["models"], made(cloud)["configs"]
    cloud.client("sagemaker").create_endpoint(EndpointName="theirs", EndpointConfigName=config)

    done = cloud.shell.run("destroy", "houses")

    assert f"{config} stays: endpoint theirs uses it" in done.said
    assert made(cloud)["configs"] == [config]
    assert made(cloud)["models"] == [model]


def test_automatic_scaling(cloud: Cloud) -> None:
    """A target for each variant, tracked by invocations of an instance; other bounds are set, none removes it."""
    scaling = cloud.client("application-autoscaling")
    variants = ("--variant", "a=9", "--variant", "b=1,instance-type=ml.c5.xlarge")
    cloud.shell.run(*DEPLOY, *variants, "--autoscale", "1:4:600")

    targets = scaling.describe_scalable_targets(**SCALING)["ScalableTargets"]
    assert [(target["ResourceId"], target["MinCapacity"], target["MaxCapacity"]) for target in targets] == [
        ("endpoint/houses/variant/a", 1, 4),
        ("endpoint/houses/variant/b", 1, 4),
    ]
    policy = scaling.describe_scaling_policies(**SCALING)["ScalingPolicies"][0]
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    assert (policy["PolicyName"], tracking["TargetValue"]) == ("polyhost-houses-a", 600)
    metric = tracking["PredefinedMetricSpecification"]["PredefinedMetricType"]
    assert metric == "SageMakerVariantInvocationsPerInstance"

    cloud.shell.run(*DEPLOY, *variants, "--autoscale", "2:6:600")
    targets = scaling.describe_scalable_targets(**SCALING)["ScalableTargets"]
    assert [(target["MinCapacity"], target["MaxCapacity"]) for target in targets] == [(2, 6), (2, 6)]

    cloud.shell.run(*DEPLOY, *variants)
    assert made(cloud)["targets"] == made(cloud)["policies"] == []


def test_a_dry_run_prints_every_request_and_sends_none(cloud: Cloud) -> None:
    """What it prints is what is sent then, in that order."""
    command = (*DEPLOY, "--autoscale", "1:4:100", "--first", "a.tar.gz", "--body", "1,2")
    empty = made(cloud)

    planned = cloud.shell.run(*command, "--dry-run").json()

    assert made(cloud) == empty
    asked = cloud.asked(lambda: cloud.shell.run(*command))
    assert [name for name in asked if name.startswith(CHANGES)] == [
        step["operation"] for step in planned if step["operation"].startswith(CHANGES)
    ]
    assert planned[-1] == {
        "service": "sagemaker-runtime",
        "operation": "InvokeEndpoint",
        "parameters": {
            "EndpointName": "houses",
            "TargetModel": "a.tar.gz",
            "ContentType": "text/csv",
            "Body": "1,2",
        },
    }
    removals = [step["operation"] for step in cloud.shell.run("destroy", "houses", "--dry-run").json()]
    assert removals == [
        "DeleteScalingPolicy", "DeregisterScalableTarget", "DeleteEndpoint", "DescribeEndpoint",
        "DeleteEndpointConfig", "DeleteModel",
    ]  # fmt: skip
    assert made(cloud)["endpoints"] == ["houses"]


def test_a_dry_run_needs_no_aws() -> None:
    """Without credentials it shows a first deployment, and says what it could not look up."""
    done = Shell({"AWS_REGION": REGION}).run(*DEPLOY, "--dry-run")

    assert [step["operation"] for step in done.json()] == [
        "CreateModel", "CreateEndpointConfig", "CreateEndpoint", "DescribeEndpoint",
    ]  # fmt: skip
    assert "There are no AWS credentials" in done.said
    assert Shell({"AWS_REGION": REGION}).try_(*DEPLOY).code == 6


def test_the_first_invocation_is_answered(cloud: Cloud) -> None:
    """The answer is what the command prints; here moto's."""
    assert cloud.shell.run(*DEPLOY, "--first", "a.tar.gz", "--body", "1").out == "body\n"


OCI = "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--role", "nobody"), 6, "There is no role nobody"),
        (("--models", "s3://no-such-bucket/"), 6, "there is no bucket no-such-bucket: aws s3 mb"),
        (("--models", "/srv/models"), 2, "SageMaker reads models from S3"),
        (("--models", "s3:///x"), 2, "does not name a bucket"),
        (("--image", "polyhost:none"), 6, f"there is no {REGISTRY}/polyhost:none: make push"),
        (("--image", "nowhere:1"), 6, f"there is no {REGISTRY}/nowhere:1"),
        (("--image", "polyhost:oci"), 6, f"its manifest is {OCI}"),
        (("--image", "docker.io/library/polyhost:1"), 2, "SageMaker takes images from ECR"),
        (("--instance-type", "m5.xlarge"), 2, "'m5.xlarge' at 'productionVariants.1.member.instanceType'"),
        (("--env", "1A=b"), 2, "CreateModel would be refused"),
        (("--env", "A"), 2, "'A' is not NAME=VALUE"),
        (("--variant", "a_b=1"), 2, "'a_b' at 'productionVariants.1.member.variantName'"),
        (("--variant", "a=0"), 2, "one needs a weight above 0"),
        (("--variant", "a=1", "--variant", "a=2"), 2, "each needs a name of its own"),
        (("--autoscale", "4:8:1", "--instance-count", "2"), 2, "--autoscale allows 4 to 8"),
        (("--autoscale", "1:2:3", "--no-wait"), 2, "they need the endpoint in service"),
        (("--body", "1"), 2, "name the model with --first"),
        (("--first", "a.tar.gz", "--body", "@/none"), 2, "/none cannot be read"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
    cloud: Cloud, options: tuple[str, ...], code: int, words: str
) -> None:
    """A sentence that says what to change, and nothing is there afterwards."""
    cloud.put_image("polyhost", "oci", {**docker_manifest("oci"), "mediaType": OCI})

    done = cloud.shell.try_(*DEPLOY, *options)

    assert (done.code, words in done.said) == (code, True), done.said
    assert not any(made(cloud).values())


def test_an_endpoint_that_was_not_deployed_so_is_left_alone(cloud: Cloud) -> None:
    """Neither `deploy` nor `destroy` touches one of the same name without the tag."""
    sagemaker = cloud.client("sagemaker")
    sagemaker.create_model(ModelName="theirs", PrimaryContainer={"Image": "i"}, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "a", "ModelName": "theirs", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="houses", EndpointConfigName="theirs")
    before = made(cloud)

    for command in (DEPLOY, ("destroy", "houses")):
        done = cloud.shell.try_(*command)
        assert done.code == 6
        assert "`polyhost deploy` has not made" in done.said
    assert made(cloud) == before


@pytest.fixture
def refusing() -> Iterator[Any]:
    """A server that answers every operation with the error it is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"__type": server.code, "message": server.words}).encode()
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def refused(server: Any, code: str, words: str) -> Done:
    server.code, server.words = code, words
    url = f"http://127.0.0.1:{server.server_port}"
    return Shell({"AWS_ENDPOINT_URL": url, "AWS_REGION": REGION, **KEYS}).try_("destroy", "houses")


def test_refusals_say_what_to_do(refusing: Any) -> None:
    """Quotas, permissions and credentials each have their own advice; anything else is told as AWS says it."""
    for code, words, advice in [
        ("ResourceLimitExceeded", "The limit of ml.m5.xlarge is 0.", "Service Quotas"),
        ("AccessDeniedException", "User x may not", "docs/aws.md has the policies"),
        ("ExpiredTokenException", "The token is expired", "Log in again."),
        ("ValidationException", "Whatever it is", "sagemaker:DescribeEndpoint: Whatever it is."),
    ]:
        done = refused(refusing, code, words)
        assert done.code == 6
        assert words in done.said
        assert advice in done.said

    nobody = Shell({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_REGION": REGION, **KEYS})
    assert "was not answered" in nobody.try_("destroy", "houses").said
    assert "No region is set" in Shell(KEYS).try_("destroy", "houses").said
    assert "The AWS settings cannot be used" in Shell({"AWS_PROFILE": "none"}).try_("destroy", "houses").said
