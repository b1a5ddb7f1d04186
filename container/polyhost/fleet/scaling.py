"""The scaling policies that an endpoint was given by boto3, asked of a server that keeps them, or of AWS."""

from __future__ import annotations

from typing import Any

from polyhost.errors import InvalidSetting
from polyhost.fleet.kubernetes import Scaling

_BY_INVOCATIONS = "SageMakerVariantInvocationsPerInstance"


def scaling_of(url: str, endpoint: str) -> Scaling:
    """Raises InvalidSetting."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = _client(url)
        targets = _all(client, "describe_scalable_targets", "ScalableTargets")
        policies = _all(client, "describe_scaling_policies", "ScalingPolicies")
        client.close()
    except (BotoCoreError, ClientError, ValueError) as error:
        raise InvalidSetting(f"--scaling-of {url}: its scaling policies cannot be read: {error}") from error
    own = [target for target in targets if _is_of(target, endpoint)]
    if not own:
        raise InvalidSetting(
            f"--scaling-of {url}: the endpoint {endpoint} has no scalable target there. Register one, or leave it out."
        )
    return Scaling(
        least=max(target["MinCapacity"] for target in own),
        most=max(target["MaxCapacity"] for target in own),
        invocations=min(
            (_invocations(policy) for policy in policies if _is_by_invocations(policy, endpoint)), default=0
        ),
    )


def _client(url: str) -> Any:
    """A server without access control looks at no keys, and boto3 needs some."""
    import boto3

    session = boto3.Session()
    keys = {} if session.get_credentials() else {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    region = session.region_name or "us-east-1"
    return session.client("application-autoscaling", endpoint_url=url, region_name=region, **keys)


def _all(client: Any, operation: str, field: str) -> list[dict[str, Any]]:
    pages = client.get_paginator(operation).paginate(ServiceNamespace="sagemaker")
    return [one for page in pages for one in page[field]]


def _is_of(resource: dict[str, Any], endpoint: str) -> bool:
    return str(resource["ResourceId"]).startswith(f"endpoint/{endpoint}/")


def _is_by_invocations(policy: dict[str, Any], endpoint: str) -> bool:
    tracking = policy.get("TargetTrackingScalingPolicyConfiguration", {})
    predefined = tracking.get("PredefinedMetricSpecification", {})
    return _is_of(policy, endpoint) and predefined.get("PredefinedMetricType") == _BY_INVOCATIONS


def _invocations(policy: dict[str, Any]) -> float:
    return float(policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"])
