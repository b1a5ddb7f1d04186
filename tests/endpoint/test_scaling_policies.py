"""Application Auto Scaling's targets and policies, as scripts set them with boto3."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError
from click.testing import CliRunner
from polyhost.cli import cli
from support.control_plane import ACCOUNT, OWN_NAME, REGION, client_of, control_plane_in

VARIANT = f"endpoint/{OWN_NAME}/variant/AllTraffic"
TARGET = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": VARIANT,
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
TRACKING = {
    "TargetValue": 70.0,
    "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
    "ScaleInCooldown": 600,
    "ScaleOutCooldown": 300,
}
POLICY = {
    **TARGET, "PolicyName": "by-invocations", "PolicyType": "TargetTrackingScaling",
    "TargetTrackingScalingPolicyConfiguration": TRACKING,
}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with control_plane_in(tmp_path_factory.mktemp("state"), tmp_path_factory.mktemp("allowed"), "own") as plane:
        yield plane.url


@pytest.fixture
def scaling(url: str) -> Iterator[Any]:
    """With no target left by others."""
    client = scaling_client(url)
    with contextlib.closing(client):
        for target in client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]:
            client.deregister_scalable_target(**{name: target[name] for name in TARGET})
        yield client


def scaling_client(url: str) -> Any:
    return boto3.client(
        "application-autoscaling", endpoint_url=url, region_name=REGION, aws_access_key_id="any",
        aws_secret_access_key="any", config=Config(retries={"max_attempts": 0}),
    )  # fmt: skip


def refusal(call: Any, code: str = "ValidationException", **asked: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**asked)
    assert caught.value.response["Error"]["Code"] == code
    return str(caught.value.response["Error"]["Message"])


def test_a_target_and_its_policy_are_kept(scaling: Any) -> None:
    """As SageMaker's guides set them; what is changed later leaves the rest as it was."""
    arn = scaling.register_scalable_target(**TARGET, MinCapacity=1, MaxCapacity=4)["ScalableTargetARN"]
    assert arn.startswith(f"arn:aws:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/")
    assert scaling.register_scalable_target(**TARGET, MaxCapacity=8)["ScalableTargetARN"] == arn
    (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"], target["ScalableTargetARN"]) == (1, 8, arn)
    assert "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint" in target["RoleARN"]

    policy = scaling.put_scaling_policy(**POLICY)
    assert policy["Alarms"] == []
    (kept,) = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert kept["PolicyARN"] == policy["PolicyARN"]
    assert kept["TargetTrackingScalingPolicyConfiguration"] == TRACKING
    assert scaling.put_scaling_policy(**POLICY)["PolicyARN"] == policy["PolicyARN"]


def test_what_cannot_be_done_is_said(scaling: Any) -> None:
    """Where scripts look for what came of a policy."""
    scaling.register_scalable_target(**TARGET, MinCapacity=1, MaxCapacity=4)
    assert scaling.describe_scaling_activities(ServiceNamespace="sagemaker")["ScalingActivities"] == []
    scaling.put_scaling_policy(**POLICY)
    (activity,) = scaling.describe_scaling_activities(ServiceNamespace="sagemaker")["ScalingActivities"]
    assert activity["StatusCode"] == "Unfulfilled"
    assert "starts no hosts" in activity["StatusMessage"]
    assert activity["ResourceId"] == VARIANT


def test_policies_go_one_by_one_and_with_their_target(scaling: Any) -> None:
    scaling.register_scalable_target(**TARGET, MinCapacity=1, MaxCapacity=4)
    for number in range(3):
        scaling.put_scaling_policy(**{**POLICY, "PolicyName": f"policy-{number}"})
    scaling.delete_scaling_policy(PolicyName="policy-1", **TARGET)
    assert "No scaling policy found" in refusal(
        scaling.delete_scaling_policy, "ObjectNotFoundException", PolicyName="policy-1", **TARGET
    )

    def names(**asked: Any) -> list[str]:
        pages = scaling.get_paginator("describe_scaling_policies").paginate(
            ServiceNamespace="sagemaker", PaginationConfig={"PageSize": 1}, **asked
        )
        return sorted(policy["PolicyName"] for page in pages for policy in page["ScalingPolicies"])

    assert names() == ["policy-0", "policy-2"]
    assert names(PolicyNames=["policy-2", "policy-7"]) == ["policy-2"]
    assert names(ResourceId="endpoint/other/variant/AllTraffic") == []
    scaling.deregister_scalable_target(**TARGET)
    assert names() == []
    assert (
        scaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[VARIANT])["ScalableTargets"] == []
    )


def test_an_endpoint_takes_its_targets_with_it(scaling: Any, url: str) -> None:
    """Those of others stay."""
    sagemaker = client_of(url)
    container = {"Image": "any/image:1", "ModelDataUrl": "s3://bucket/models/", "Mode": "MultiModel"}
    sagemaker.create_model(
        ModelName="m", ExecutionRoleArn=f"arn:aws:iam::{ACCOUNT}:role/any", PrimaryContainer=container
    )
    variant = {"VariantName": "blue", "ModelName": "m", "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
    sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="short-lived", EndpointConfigName="c")
    sagemaker.close()
    of = {**TARGET, "ResourceId": "endpoint/short-lived/variant/blue"}
    for target in (TARGET, of):
        scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=4)
        scaling.put_scaling_policy(**{**POLICY, **target})
    with contextlib.closing(client_of(url)) as sagemaker:
        sagemaker.delete_endpoint(EndpointName="short-lived")
    (left,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert left["ResourceId"] == VARIANT
    (policy,) = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["ResourceId"] == VARIANT


def test_they_outlive_the_server(tmp_path: Path) -> None:
    for is_first in (True, False):
        with (
            control_plane_in(tmp_path / "state", tmp_path, "own") as plane,
            contextlib.closing(scaling_client(plane.url)) as scaling,
        ):
            if is_first:
                scaling.register_scalable_target(**TARGET, MinCapacity=2, MaxCapacity=4)
                scaling.put_scaling_policy(**POLICY)
            (target,) = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
            (policy,) = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert (target["MinCapacity"], policy["PolicyName"]) == (2, "by-invocations")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ServiceNamespace": "ecs"}, "Only ServiceNamespace sagemaker with"),
        ({"ScalableDimension": "sagemaker:variant:DesiredProvisionedConcurrency"}, "Only ServiceNamespace sagemaker"),
        ({"ResourceId": "endpoint/polyhost"}, "of the form endpoint/ENDPOINT/variant/VARIANT"),
        ({"ResourceId": "endpoint/nothing/variant/AllTraffic"}, "Could not find endpoint"),
        ({"ResourceId": f"endpoint/{OWN_NAME}/variant/green"}, "has no variant green"),
        ({"MinCapacity": 5}, "MinCapacity must not be above MaxCapacity"),
        ({"MinCapacity": -1}, "MinCapacity is needed to register a scalable target"),
        ({"MaxCapacity": None}, "MaxCapacity is needed to register a scalable target"),
    ],
)
def test_targets_that_cannot_be(scaling: Any, changed: dict[str, Any], words: str) -> None:
    asked = {**TARGET, "MinCapacity": 1, "MaxCapacity": 4, **changed}
    given = {name: value for name, value in asked.items() if value is not None}
    assert words in refusal(scaling.register_scalable_target, **given)


@pytest.mark.parametrize("size", [-1, 0, 51])
def test_pages_that_cannot_be(scaling: Any, size: int) -> None:
    for lists in ("describe_scalable_targets", "describe_scaling_policies", "describe_scaling_activities"):
        told = refusal(getattr(scaling, lists), ServiceNamespace="sagemaker", MaxResults=size)
        assert told == f"MaxResults is {size}, it must be from 1 to 50."


def test_policies_that_cannot_be(scaling: Any) -> None:
    assert "No scalable target registered" in refusal(scaling.put_scaling_policy, "ObjectNotFoundException", **POLICY)
    scaling.register_scalable_target(**TARGET, MinCapacity=1, MaxCapacity=4)
    assert "use TargetTrackingScaling" in refusal(
        scaling.put_scaling_policy, **{**POLICY, "PolicyType": "PredictiveScaling"}
    )
    assert "of the type StepScaling needs its" in refusal(
        scaling.put_scaling_policy, **{**POLICY, "PolicyType": "StepScaling"}
    )
    assert "is not an operation of Polyhost" in refusal(
        scaling.describe_scheduled_actions, "UnknownOperationException", ServiceNamespace="sagemaker"
    )
    for number in range(50):
        scaling.put_scaling_policy(**{**POLICY, "PolicyName": f"policy-{number}"})
    assert "50 policies at most" in refusal(scaling.put_scaling_policy, "LimitExceededException", **POLICY)


def test_the_policies_become_values_of_the_chart(scaling: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as boto3 reads them, without keys of AWS's."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    arguments = ["fleet", "kubernetes", "--replicas=3", "--models=s3://b/m/", f"--scaling-of={url}"]
    refused = CliRunner().invoke(cli, arguments)
    assert "has no scalable target there. Register one, or leave it out." in str(refused.exception)

    scaling.register_scalable_target(**TARGET, MinCapacity=2, MaxCapacity=9)
    scaling.put_scaling_policy(**POLICY)
    printed = yaml.safe_load(CliRunner().invoke(cli, arguments).output)["autoscaling"]
    assert printed == {"enabled": True, "minReplicas": 2, "maxReplicas": 9, "invocationsPerMinute": 70}
    scaling.delete_scaling_policy(PolicyName=POLICY["PolicyName"], **TARGET)
    assert yaml.safe_load(CliRunner().invoke(cli, arguments).output)["autoscaling"]["invocationsPerMinute"] == 0
