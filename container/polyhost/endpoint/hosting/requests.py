"""What the control plane's operations take, as AWS has written it down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyhost.endpoint.service_model import Service

OPERATIONS = (
    "CreateModel",
    "DescribeModel",
    "ListModels",
    "DeleteModel",
    "CreateEndpointConfig",
    "DescribeEndpointConfig",
    "ListEndpointConfigs",
    "DeleteEndpointConfig",
    "CreateEndpoint",
    "DescribeEndpoint",
    "ListEndpoints",
    "UpdateEndpoint",
    "UpdateEndpointWeightsAndCapacities",
    "DeleteEndpoint",
    "CreateTransformJob",
    "DescribeTransformJob",
    "ListTransformJobs",
    "StopTransformJob",
    "AddTags",
    "ListTags",
    "DeleteTags",
)

SCALING_OPERATIONS = (
    "RegisterScalableTarget",
    "DeregisterScalableTarget",
    "DescribeScalableTargets",
    "PutScalingPolicy",
    "DeleteScalingPolicy",
    "DescribeScalingPolicies",
    "DescribeScalingActivities",
)

_SAGEMAKER = Service("sagemaker", OPERATIONS)
_SCALING = Service("application-autoscaling", SCALING_OPERATIONS)


def faults(operation: str, parameters: Mapping[str, Any]) -> str:
    """
    What is wrong with a request for one of these operations, in AWS's words; "" if nothing is.

    Takes 0.2 s the first time.
    """
    service = _SCALING if operation in SCALING_OPERATIONS else _SAGEMAKER
    return service.faults(operation, parameters)
