"""What is there of a deployment: what carries its name and its tag. Only reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from polyhost.errors import DeployFailed

from polyhost_aws import names
from polyhost_aws.deploy import Found, FoundEndpoint, FoundScaling, FoundVariant
from polyhost_aws.session import Aws, CallFailed

BUSY = ("Creating", "Updating", "SystemUpdating", "RollingBack")
_PAGES = {"PageSize": 100}


def find(aws: Aws, deployment: str) -> Found:
    """Raises CallFailed, and DeployFailed if the endpoint is somebody else's."""
    described = describe_endpoint(aws, deployment)
    if described and not _has_tag(aws, described["EndpointArn"], deployment):
        raise DeployFailed(
            f"There is an endpoint {deployment} that `polyhost deploy` has not made (it lacks the tag {names.TAG}): "
            "it stays as it is. Choose another name."
        )
    return Found(
        endpoint=_endpoint(aws, described) if described else None,
        configs=_made(aws, deployment, "ListEndpointConfigs", "EndpointConfigs", "EndpointConfig"),
        models=_made(aws, deployment, "ListModels", "Models", "Model"),
        scaling={} if aws.is_own else _scaling(aws, deployment),
    )


def describe_endpoint(aws: Aws, name: str) -> dict[str, Any] | None:
    try:
        return aws.call("sagemaker", "DescribeEndpoint", {"EndpointName": name})
    except CallFailed as error:
        if "Could not find" in str(error):
            return None
        raise


def _has_tag(aws: Aws, arn: str, deployment: str) -> bool:
    tags = aws.pages("sagemaker", "ListTags", "Tags", ResourceArn=arn)
    return any(tag == {"Key": names.TAG, "Value": deployment} for tag in tags)


def _endpoint(aws: Aws, described: Mapping[str, Any]) -> FoundEndpoint:
    types = {
        variant["VariantName"]: variant.get("InstanceType", "")
        for variant in _config(aws, described["EndpointConfigName"]).get("ProductionVariants", ())
    }
    variants = {
        variant["VariantName"]: FoundVariant(
            instance_type=types.get(variant["VariantName"], ""),
            desired_count=variant.get("DesiredInstanceCount"),
            desired_weight=variant.get("DesiredWeight"),
        )
        for variant in described.get("ProductionVariants", ())
    }
    return FoundEndpoint(described["EndpointStatus"], described["EndpointConfigName"], variants)


def _config(aws: Aws, name: str) -> dict[str, Any]:
    try:
        return aws.call("sagemaker", "DescribeEndpointConfig", {"EndpointConfigName": name})
    except CallFailed as error:
        if "Could not find" in str(error):
            return {}
        raise


def _made(aws: Aws, deployment: str, operation: str, field: str, kind: str) -> frozenset[str]:
    listed = aws.pages("sagemaker", operation, field, NameContains=f"{deployment}-", PaginationConfig=_PAGES)
    return frozenset(
        item[f"{kind}Name"]
        for item in listed
        if names.is_content_name(deployment, item[f"{kind}Name"]) and _has_tag(aws, item[f"{kind}Arn"], deployment)
    )


def _scaling(aws: Aws, deployment: str) -> dict[str, FoundScaling]:
    prefix = names.scaled_prefix(deployment)
    targets = aws.pages(
        "application-autoscaling", "DescribeScalableTargets", "ScalableTargets", ServiceNamespace="sagemaker"
    )
    return {
        target["ResourceId"].removeprefix(prefix): _scaling_of(aws, deployment, target)
        for target in targets
        if target["ResourceId"].startswith(prefix)
    }


def _scaling_of(aws: Aws, deployment: str, target: Mapping[str, Any]) -> FoundScaling:
    policies = {
        policy["PolicyName"]: policy.get("TargetTrackingScalingPolicyConfiguration", {})
        for policy in aws.pages(
            "application-autoscaling",
            "DescribeScalingPolicies",
            "ScalingPolicies",
            ServiceNamespace="sagemaker",
            ResourceId=target["ResourceId"],
        )
    }
    variant = target["ResourceId"].removeprefix(names.scaled_prefix(deployment))
    ours = policies.pop(names.policy_name(deployment, variant), None)
    return FoundScaling(target["MinCapacity"], target["MaxCapacity"], ours, has_others=bool(policies))


def find_users(aws: Aws, deployment: str, found: Found) -> dict[str, str]:
    """
    Which of the deployment's configurations and models others use, and who does.

    Looks at all endpoints and configurations there are, so it is asked only before something is removed.
    """
    users: dict[str, str] = {}
    for endpoint in aws.pages("sagemaker", "ListEndpoints", "Endpoints", PaginationConfig=_PAGES):
        described = endpoint["EndpointName"] != deployment and describe_endpoint(aws, endpoint["EndpointName"])
        if described and described["EndpointConfigName"] in found.configs:
            users[described["EndpointConfigName"]] = f"endpoint {endpoint['EndpointName']}"
    for config in aws.pages("sagemaker", "ListEndpointConfigs", "EndpointConfigs", PaginationConfig=_PAGES):
        name = config["EndpointConfigName"]
        if name not in found.configs or name in users:
            used = _models_in(_config(aws, name).get("ProductionVariants", ()))
            users.update(dict.fromkeys(used & found.models, f"endpoint configuration {name}"))
    return users


def _models_in(variants: Iterable[Mapping[str, Any]]) -> set[str]:
    return {variant["ModelName"] for variant in variants if "ModelName" in variant}
