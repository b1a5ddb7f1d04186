"""What is decided: from what is there to what is wanted."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polyhost.errors import InvalidSetting
from polyhost_aws import names
from polyhost_aws.deploy import (
    Call,
    Found,
    FoundEndpoint,
    FoundScaling,
    FoundVariant,
    Step,
    Wait,
    plan_deploy,
    plan_destroy,
)
from polyhost_aws.wanted import (
    Autoscale,
    Deployment,
    Variant,
    parse_autoscale,
    parse_environ,
    parse_variant,
)
from support.forms import examples

ALL = Variant(name="AllTraffic", weight=1, models="s3://b/p/", image="i", instance_type="ml.m5.large", instance_count=2)
WANTED = Deployment(name="houses", role="arn:aws:iam::123456789012:role/any", variants=(ALL,))
SCALED = dataclasses.replace(WANTED, autoscale=Autoscale(1, 4, 100))


def changed(wanted: Deployment, **changes: Any) -> Deployment:
    """Another first variant."""
    first, *others = wanted.variants
    return dataclasses.replace(wanted, variants=(dataclasses.replace(first, **changes), *others))


class Account:
    """As much of AWS as a plan speaks of: what is refused there fails here."""

    def __init__(self) -> None:
        self.found = Found()
        self.configs: dict[str, list[dict[str, Any]]] = {}

    def perform(self, steps: list[Step]) -> Account:
        for step in steps:
            if isinstance(step, Call):
                self.found = dataclasses.replace(self.found, **getattr(self, step.operation)(**step.parameters))
            else:
                assert (self.found.endpoint.config if self.found.endpoint else "") == step.config
        return self

    def CreateModel(self, ModelName: str, **_: Any) -> dict[str, Any]:
        assert ModelName not in self.found.models
        return {"models": self.found.models | {ModelName}}

    def CreateEndpointConfig(self, EndpointConfigName: str, ProductionVariants: Any, **_: Any) -> dict[str, Any]:
        assert EndpointConfigName not in self.found.configs
        assert {variant["ModelName"] for variant in ProductionVariants} <= self.found.models
        self.configs[EndpointConfigName] = ProductionVariants
        return {"configs": self.found.configs | {EndpointConfigName}}

    def CreateEndpoint(self, EndpointConfigName: str, **_: Any) -> dict[str, Any]:
        assert self.found.endpoint is None
        return self._serving(EndpointConfigName, {})

    def UpdateEndpoint(self, EndpointConfigName: str, **more: Any) -> dict[str, Any]:
        """Refused where it would take away, or give other machines to, what scales."""
        assert self.found.endpoint
        before = self.found.endpoint.variants
        after = self._serving(EndpointConfigName, before if more.get("RetainAllVariantProperties") else {})
        for name in self.found.scaling:
            assert after["endpoint"].variants[name].instance_type == before[name].instance_type
        return after

    def _serving(self, config: str, retained: Any) -> dict[str, Any]:
        variants = {}
        for variant in self.configs[config]:
            before = retained.get(variant["VariantName"])
            count = before.desired_count if before else variant["InitialInstanceCount"]
            variants[variant["VariantName"]] = FoundVariant(
                variant["InstanceType"], count, variant["InitialVariantWeight"]
            )
        return {"endpoint": FoundEndpoint("InService", config, variants)}

    def UpdateEndpointWeightsAndCapacities(self, DesiredWeightsAndCapacities: Any, **_: Any) -> dict[str, Any]:
        assert self.found.endpoint
        variants = dict(self.found.endpoint.variants)
        for desired in DesiredWeightsAndCapacities:
            old = variants[desired["VariantName"]]
            count, weight = desired.get("DesiredInstanceCount"), desired.get("DesiredWeight")
            variants[desired["VariantName"]] = FoundVariant(
                old.instance_type,
                old.desired_count if count is None else count,
                old.desired_weight if weight is None else weight,
            )
        return {"endpoint": dataclasses.replace(self.found.endpoint, variants=variants)}

    def DeleteEndpoint(self, **_: Any) -> dict[str, Any]:
        assert self.found.endpoint
        return {"endpoint": None, "scaling": {}}

    def DeleteEndpointConfig(self, EndpointConfigName: str) -> dict[str, Any]:
        assert not self.found.endpoint or self.found.endpoint.config != EndpointConfigName
        return {"configs": self.found.configs - {EndpointConfigName}}

    def DeleteModel(self, ModelName: str) -> dict[str, Any]:
        used = {variant["ModelName"] for name in self.found.configs for variant in self.configs[name]}
        assert ModelName not in used
        return {"models": self.found.models - {ModelName}}

    def RegisterScalableTarget(self, ResourceId: str, MinCapacity: int, MaxCapacity: int, **_: Any) -> dict[str, Any]:
        variant = ResourceId.rpartition("/")[2]
        assert self.found.endpoint
        assert variant in self.found.endpoint.variants
        old = self.found.scaling.get(variant)
        new = FoundScaling(MinCapacity, MaxCapacity, old.policy if old else None, old.has_others if old else False)
        return {"scaling": {**self.found.scaling, variant: new}}

    def DeregisterScalableTarget(self, ResourceId: str, **_: Any) -> dict[str, Any]:
        gone = ResourceId.rpartition("/")[2]
        return {"scaling": {name: there for name, there in self.found.scaling.items() if name != gone}}

    def PutScalingPolicy(
        self, ResourceId: str, TargetTrackingScalingPolicyConfiguration: Any, **_: Any
    ) -> dict[str, Any]:
        # AWS adds what was not said.
        return self._policy(ResourceId, {**TargetTrackingScalingPolicyConfiguration, "DisableScaleIn": False})

    def DeleteScalingPolicy(self, ResourceId: str, **_: Any) -> dict[str, Any]:
        return self._policy(ResourceId, None)

    def _policy(self, resource: str, policy: Any) -> dict[str, Any]:
        variant = resource.rpartition("/")[2]
        return {
            "scaling": {
                **self.found.scaling,
                variant: dataclasses.replace(self.found.scaling[variant], policy=policy),
            }
        }


variants = st.builds(
    dataclasses.replace,
    st.just(ALL),
    name=st.sampled_from(["a", "b", "c"]),
    weight=st.sampled_from([0.5, 1]),
    models=st.sampled_from(["s3://b/p/", "s3://b/q/"]),
    instance_type=st.sampled_from(["ml.m5.large", "ml.c5.large"]),
    instance_count=st.integers(1, 3),
)
deployments = st.builds(
    dataclasses.replace,
    st.just(WANTED),
    variants=st.lists(variants, min_size=1, max_size=3, unique_by=lambda variant: variant.name).map(tuple),
    autoscale=st.sampled_from([None, Autoscale(1, 4, 100), Autoscale(1, 8, 50)]),
    is_cached=st.booleans(),
)


@settings(max_examples=examples(100))
@given(st.lists(deployments, min_size=1, max_size=4))
def test_whatever_was_there_one_plan_is_enough(history: list[Deployment]) -> None:
    """
    After any deployments the next plan leads to what is wanted: asked again there is nothing to do, nothing of before
    is left, and a last plan removes all.
    """
    account = Account()
    for wanted in history:
        account.perform(plan_deploy(wanted, account.found))
        assert plan_deploy(wanted, account.found) == []
    assert len(account.found.configs) == 1
    assert set(account.found.scaling) == ({v.name for v in wanted.variants} if wanted.autoscale else set())

    assert account.perform(plan_destroy("houses", account.found)).found == Found()


def operations(steps: list[Step]) -> list[str]:
    return [step.operation if isinstance(step, Call) else "wait" for step in steps]


def test_a_first_deployment_needs_three_requests() -> None:
    """
    Model, configuration, endpoint, and to wait; scaling comes once the endpoint is in service.
    """
    created = ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"]

    assert operations(plan_deploy(WANTED, Found())) == [*created, "wait"]
    scaling = ["RegisterScalableTarget", "PutScalingPolicy"]
    assert operations(plan_deploy(SCALED, Found())) == [*created, "wait", *scaling]
    assert operations(plan_deploy(WANTED, Found(), waits=False)) == created


def test_the_same_content_is_one_model() -> None:
    """
    Variants that differ in machines and weights alone share a model; another image is another model.
    """
    twice = dataclasses.replace(WANTED, variants=(ALL, dataclasses.replace(ALL, name="b", instance_type="ml.c5.large")))
    other = dataclasses.replace(WANTED, variants=(ALL, dataclasses.replace(ALL, name="b", image="j")))

    assert operations(plan_deploy(twice, Found())).count("CreateModel") == 1
    assert operations(plan_deploy(other, Found())).count("CreateModel") == 2


def test_an_update_keeps_the_instances_that_the_traffic_needs() -> None:
    """
    With automatic scaling an update retains the count; where the type changes, scaling goes first and comes back.
    """
    found = Account().perform(plan_deploy(SCALED, Found())).found

    another_model = plan_deploy(changed(SCALED, image="j"), found)
    update = next(step for step in another_model if isinstance(step, Call) and step.operation == "UpdateEndpoint")
    assert update.parameters["RetainAllVariantProperties"]
    assert "RegisterScalableTarget" not in operations(another_model)

    another_type = operations(plan_deploy(changed(SCALED, instance_type="ml.c5.large"), found))
    order = ["DeleteScalingPolicy", "DeregisterScalableTarget", "UpdateEndpoint", "wait", "RegisterScalableTarget"]
    assert [name for name in another_type if name in order] == order


def test_scaling_that_others_have_set_stays() -> None:
    """
    Only our policy goes, and the target stays for theirs.
    """
    found = Account().perform(plan_deploy(SCALED, Found())).found
    theirs = {"AllTraffic": dataclasses.replace(found.scaling["AllTraffic"], has_others=True)}

    steps = plan_deploy(WANTED, dataclasses.replace(found, scaling=theirs))

    assert operations(steps) == ["DeleteScalingPolicy"]


def test_what_others_use_stays() -> None:
    """
    A configuration that another endpoint has is not removed, nor is its model.
    """
    found = Account().perform(plan_deploy(WANTED, Found())).found
    (config,), (model,) = found.configs, found.models

    used = dataclasses.replace(found, users={config: "endpoint x", model: f"endpoint configuration {config}"})

    assert operations(plan_destroy("houses", used)) == ["DeleteEndpoint", "wait"]
    assert "DeleteModel" not in operations(plan_deploy(changed(WANTED, image="j"), used))


def test_a_failed_endpoint_is_made_anew() -> None:
    """
    AWS allows nothing with one but to delete it.
    """
    found = Account().perform(plan_deploy(WANTED, Found())).found
    assert found.endpoint
    failed = dataclasses.replace(found, endpoint=dataclasses.replace(found.endpoint, status="Failed"))

    assert operations(plan_deploy(WANTED, failed)) == ["DeleteEndpoint", "wait", "CreateEndpoint", "wait"]


def test_what_was_changed_by_hand_is_set_right() -> None:
    """
    Counts and weights; a weight that AWS has rounded to 32 bits is no change.
    """
    two = dataclasses.replace(
        WANTED, variants=(dataclasses.replace(ALL, weight=0.1), dataclasses.replace(ALL, name="b"))
    )
    found = Account().perform(plan_deploy(two, Found())).found
    assert found.endpoint

    def drifted(count: int, weight: float) -> Found:
        variants = {**found.endpoint.variants, "AllTraffic": FoundVariant("ml.m5.large", count, weight)}
        return dataclasses.replace(found, endpoint=dataclasses.replace(found.endpoint, variants=variants))

    assert plan_deploy(two, drifted(2, 0.10000000149011612)) == []
    (call, wait) = plan_deploy(two, drifted(5, 0.7))
    assert isinstance(wait, Wait)
    assert call.parameters["DesiredWeightsAndCapacities"] == [
        {"VariantName": "AllTraffic", "DesiredWeight": 0.1, "DesiredInstanceCount": 2}
    ]


def test_names_are_found_again() -> None:
    """
    Of two deployments one's name may begin the other's.
    """
    name = names.content_name("houses", {"b": 1, "a": 2})

    assert name == names.content_name("houses", {"a": 2, "b": 1}) != names.content_name("houses", {"a": 2})
    assert names.is_content_name("houses", name)
    assert not names.is_content_name("houses", names.content_name("houses-2", {}))
    assert not names.is_content_name("houses", "houses-of-mine")
    names.check_name("x" * 52)
    for bad in ("", "-x", "x-", "x_y", "ü", "x" * 53, "x\n"):
        with pytest.raises(InvalidSetting, match="cannot be the name of a deployment"):
            names.check_name(bad)


def test_what_users_write() -> None:
    """
    Variants, scaling and variables, and a sentence for what is none.
    """
    canary = parse_variant("canary=0.1,instance-type=ml.c5.large,instance-count=1", ALL)
    assert canary == dataclasses.replace(ALL, name="canary", weight=0.1, instance_type="ml.c5.large", instance_count=1)
    assert parse_autoscale("2:8:600") == Autoscale(2, 8, 600)
    assert parse_environ(["B=1=2", "A=", "B=3"]) == (("A", ""), ("B", "3"))
    for parse, bad in [
        *((parse_autoscale, bad) for bad in ("", "1:2", "0:2:3", "3:2:1", "1:2:0", "1:2:nan", "a:b:c", "1:2:inf")),
        *((lambda text: parse_variant(text, ALL), bad) for bad in ("a", "a=-1", "a=x", "a=1,b=2", "a=1,models=")),
        (lambda text: parse_variant(text, ALL), "a=1,instance-count=0"),
        *((lambda text: parse_environ([text]), bad) for bad in ("A", "=1")),
    ]:
        with pytest.raises(InvalidSetting):
            parse(bad)
