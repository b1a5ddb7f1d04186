"""
What it takes to get from what is there to what is wanted: decisions alone, as lists of steps. Nothing is done here.

Models and endpoint configurations never change: another content is another one, with a name of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polyhost_aws import names
from polyhost_aws.wanted import Autoscale, Deployment, First, Variant

_SCALED = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
# Adding an instance takes minutes, and so does the next measure that shows it. Taking one away too soon costs models
# that were loaded.
_SCALE_OUT_SECS = 120
_SCALE_IN_SECS = 600


# What is there


@dataclass(frozen=True)
class FoundVariant:
    # "" where the configuration is gone.
    instance_type: str
    desired_count: int | None
    desired_weight: float | None


@dataclass(frozen=True)
class FoundEndpoint:
    status: str
    config: str
    variants: Mapping[str, FoundVariant] = field(default_factory=dict)


@dataclass(frozen=True)
class FoundScaling:
    """The scaling of one variant. `policy`: the configuration of our policy, or None."""

    least: int
    most: int
    policy: Mapping[str, Any] | None
    has_others: bool = False


@dataclass(frozen=True)
class Found:
    """What carries the deployment's name and tag."""

    endpoint: FoundEndpoint | None = None
    configs: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    scaling: Mapping[str, FoundScaling] = field(default_factory=dict)
    # Which of these configurations and models somebody else uses, and who does.
    users: Mapping[str, str] = field(default_factory=dict)


# What is to be done


@dataclass(frozen=True)
class Call:
    """One request. `service`: boto3's name of it."""

    service: str
    operation: str
    parameters: Mapping[str, Any]

    def shown(self) -> dict[str, Any]:
        return {"service": self.service, "operation": self.operation, "parameters": self.parameters}


@dataclass(frozen=True)
class Wait:
    """Until the endpoint is in service with that configuration; with "", until it is gone."""

    endpoint: str
    config: str

    def shown(self) -> dict[str, Any]:
        call = _sagemaker("DescribeEndpoint", EndpointName=self.endpoint)
        return {**call.shown(), "until": "InService" if self.config else "gone"}


Step = Call | Wait


def _sagemaker(operation: str, **parameters: Any) -> Call:
    return Call("sagemaker", operation, parameters)


def plan_deploy(wanted: Deployment, found: Found, *, waits: bool = True) -> list[Step]:
    """
    What changes what is there into what is wanted; nothing if it is so already.

    Without waiting only what can be done at once: no scaling, and what was before is left for the next time.
    """
    models = models_of(wanted)
    config_name, config = _config_of(wanted)
    steps: list[Step] = [
        _sagemaker("CreateModel", ModelName=name, **model, Tags=names.tags(wanted.name))
        for name, model in models.items()
        if name not in found.models
    ]
    if config_name not in found.configs:
        tags = names.tags(wanted.name)
        steps.append(_sagemaker("CreateEndpointConfig", EndpointConfigName=config_name, **config, Tags=tags))
    gone = _scaling_in_the_way(wanted, found)
    steps += _without_scaling(wanted.name, {variant: found.scaling[variant] for variant in gone})
    changes = _endpoint_changes(wanted, config_name, found, is_scaling_gone=bool(gone))
    steps += changes
    if not waits:
        return [step for step in steps if isinstance(step, Call)]
    if changes:
        steps.append(Wait(wanted.name, config_name))
    left = {variant: scaling for variant, scaling in found.scaling.items() if variant not in gone}
    steps += _scaling(wanted, left)
    return steps + _removals(found.configs - {config_name}, found.models - set(models), found.users)


def plan_destroy(name: str, found: Found) -> list[Step]:
    """All that the deployment has, and nothing else."""
    steps: list[Step] = [*_without_scaling(name, found.scaling)]
    if found.endpoint:
        steps += [_sagemaker("DeleteEndpoint", EndpointName=name), Wait(name, "")]
    return steps + _removals(found.configs, found.models, found.users)


def first_invocation(name: str, first: First) -> Call:
    return Call(
        "sagemaker-runtime",
        "InvokeEndpoint",
        {"EndpointName": name, "TargetModel": first.target, "ContentType": first.content_type, "Body": first.body},
    )


def leftovers(wanted: Deployment, found: Found) -> bool:
    """Whether there is anything of before, so that it matters who else uses it."""
    config_name, _ = _config_of(wanted)
    return bool(found.configs - {config_name} or found.models - set(models_of(wanted)))


# Models, configuration, endpoint


def models_of(wanted: Deployment) -> dict[str, dict[str, Any]]:
    """CreateModel's parameters by name; variants with the same content share one."""
    return dict(_model_of(wanted, variant) for variant in wanted.variants)


def _model_of(wanted: Deployment, variant: Variant) -> tuple[str, dict[str, Any]]:
    container: dict[str, Any] = {"Image": variant.image, "Mode": "MultiModel", "ModelDataUrl": variant.models}
    if wanted.environ:
        container["Environment"] = dict(wanted.environ)
    if not wanted.is_cached:
        container["MultiModelConfig"] = {"ModelCacheSetting": "Disabled"}
    model = {"PrimaryContainer": container, "ExecutionRoleArn": wanted.role}
    return names.content_name(wanted.name, model), model


def _config_of(wanted: Deployment) -> tuple[str, dict[str, Any]]:
    """Without DataCaptureConfig: nothing of the requests is kept."""
    variants = [
        {
            "VariantName": variant.name,
            "ModelName": _model_of(wanted, variant)[0],
            "InstanceType": variant.instance_type,
            "InitialInstanceCount": variant.instance_count,
            "InitialVariantWeight": variant.weight,
        }
        for variant in wanted.variants
    ]
    config = {"ProductionVariants": variants}
    return names.content_name(wanted.name, config), config


def _endpoint_changes(wanted: Deployment, config: str, found: Found, *, is_scaling_gone: bool) -> list[Step]:
    create = _sagemaker(
        "CreateEndpoint", EndpointName=wanted.name, EndpointConfigName=config, Tags=names.tags(wanted.name)
    )
    if found.endpoint is None:
        return [create]
    if found.endpoint.status == "Failed":  # AWS allows nothing but to delete it
        return [_sagemaker("DeleteEndpoint", EndpointName=wanted.name), Wait(wanted.name, ""), create]
    if found.endpoint.config != config:
        is_scaled = wanted.autoscale is not None and bool(found.scaling) and not is_scaling_gone
        return [_update(wanted.name, config, keeps_count=is_scaled)]
    return _drift(wanted, found.endpoint)


def _update(name: str, config: str, *, keeps_count: bool) -> Call:
    """With automatic scaling there are as many instances as the traffic needs: an update does not take them away."""
    retained = {
        "RetainAllVariantProperties": True,
        "ExcludeRetainedVariantProperties": [
            {"VariantPropertyType": "DesiredWeight"},
            {"VariantPropertyType": "DataCaptureConfig"},
        ],
    }
    return _sagemaker(
        "UpdateEndpoint", EndpointName=name, EndpointConfigName=config, **(retained if keeps_count else {})
    )


def _drift(wanted: Deployment, endpoint: FoundEndpoint) -> list[Step]:
    """Weights and counts that have been changed since, by hand or by automatic scaling that is no longer wanted."""
    desired = []
    for variant in wanted.variants:
        found = endpoint.variants.get(variant.name)
        changes: dict[str, Any] = {}
        if found and found.desired_weight is not None and not _is_weight(found.desired_weight, variant.weight):
            changes["DesiredWeight"] = variant.weight
        if found and not wanted.autoscale and found.desired_count not in (None, variant.instance_count):
            changes["DesiredInstanceCount"] = variant.instance_count
        if changes:
            desired.append({"VariantName": variant.name, **changes})
    if not desired:
        return []
    return [
        _sagemaker("UpdateEndpointWeightsAndCapacities", EndpointName=wanted.name, DesiredWeightsAndCapacities=desired)
    ]


def _is_weight(there: float, wanted: float) -> bool:
    """AWS keeps it in 32 bits."""
    return math.isclose(there, wanted, rel_tol=1e-6)


# Automatic scaling


def _scaling_in_the_way(wanted: Deployment, found: Found) -> set[str]:
    """Variants that are to scale no more, or whose instance type an update could not change otherwise."""
    types = {variant.name: variant.instance_type for variant in wanted.variants}
    were = found.endpoint.variants if found.endpoint else {}
    return {
        name
        for name in found.scaling
        if wanted.autoscale is None or name not in were or types.get(name) != were[name].instance_type
    }


def _scaling(wanted: Deployment, found: Mapping[str, FoundScaling]) -> list[Call]:
    if wanted.autoscale is None:
        return []
    calls = []
    configuration = _policy_of(wanted.autoscale)
    for variant in wanted.variants:
        there = found.get(variant.name)
        place = {**_SCALED, "ResourceId": names.scaled_prefix(wanted.name) + variant.name}
        bounds = (wanted.autoscale.least, wanted.autoscale.most)
        if there is None or (there.least, there.most) != bounds:
            calls.append(_autoscaling("RegisterScalableTarget", **place, MinCapacity=bounds[0], MaxCapacity=bounds[1]))
        if there is None or not _says(there.policy, configuration):
            calls.append(
                _autoscaling(
                    "PutScalingPolicy",
                    PolicyName=names.policy_name(wanted.name, variant.name),
                    **place,
                    PolicyType="TargetTrackingScaling",
                    TargetTrackingScalingPolicyConfiguration=configuration,
                )
            )
    return calls


def _policy_of(autoscale: Autoscale) -> dict[str, Any]:
    return {
        "TargetValue": autoscale.target,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        "ScaleInCooldown": _SCALE_IN_SECS,
        "ScaleOutCooldown": _SCALE_OUT_SECS,
    }


def _says(there: Mapping[str, Any] | None, configuration: Mapping[str, Any]) -> bool:
    """Whether it has all of that; AWS may add defaults."""
    return there is not None and all(there.get(key) == value for key, value in configuration.items())


def _without_scaling(name: str, scaling: Mapping[str, FoundScaling]) -> list[Call]:
    calls = []
    for variant, there in scaling.items():
        place = {**_SCALED, "ResourceId": names.scaled_prefix(name) + variant}
        if there.policy is not None:
            calls.append(_autoscaling("DeleteScalingPolicy", PolicyName=names.policy_name(name, variant), **place))
        if not there.has_others:  # they would go with it
            calls.append(_autoscaling("DeregisterScalableTarget", **place))
    return calls


def _autoscaling(operation: str, **parameters: Any) -> Call:
    return Call("application-autoscaling", operation, parameters)


def _removals(configs: Iterable[str], models: Iterable[str], users: Mapping[str, str]) -> list[Step]:
    return [
        *(_sagemaker("DeleteEndpointConfig", EndpointConfigName=name) for name in sorted(configs) if name not in users),
        *(_sagemaker("DeleteModel", ModelName=name) for name in sorted(models) if name not in users),
    ]
