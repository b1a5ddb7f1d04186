"""
Application Auto Scaling's targets and policies: kept as they were asked for, so that scripts that set them run.

Nobody here starts hosts: each target's one activity says so. Synchronous; it belongs to the thread that owns the state.
"""

from __future__ import annotations

import dataclasses
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polyhost.endpoint.arns import ENDPOINT
from polyhost.endpoint.hosting.outcomes import HostingError, Outcome, invalid
from polyhost.endpoint.hosting.pages import Row, page_outcome
from polyhost.endpoint.hosting.records import Records, now
from polyhost.endpoint.hosting.served import Served
from polyhost.endpoint.hosting.state import Resource, State

Parameters = Mapping[str, Any]

_TARGET, _POLICY = "scalable-target", "scaling-policy"
_SERVICE, _DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"
_RESOURCE = re.compile(r"endpoint/([a-zA-Z0-9-]{1,63})/variant/([a-zA-Z0-9-]{1,63})")
# AWS's own limit.
_MOST_ROWS = 50
_MOST_POLICIES = 50
_ROLE = (
    "role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
    "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
)
_WHY_NOT = (
    "This server keeps scaling policies and starts no hosts: it has the one that it runs on. To scale by load, run it "
    "on Kubernetes: polyhost fleet kubernetes --scaling-of makes KEDA's rules of the policies."
)


class ScalingOperations:
    """As Operations."""

    def __init__(self, state: State, records: Records, served: Served) -> None:
        self._state = state
        self._records = records
        self._served = served
        self._arns = records.arns
        self.methods: Mapping[str, Callable[[Parameters], Outcome]] = {
            "RegisterScalableTarget": self._register,
            "DeregisterScalableTarget": self._deregister,
            "DescribeScalableTargets": self._describe_targets,
            "PutScalingPolicy": self._put_policy,
            "DeleteScalingPolicy": self._delete_policy,
            "DescribeScalingPolicies": self._describe_policies,
            "DescribeScalingActivities": self._describe_activities,
        }

    def forget(self, endpoint: str) -> None:
        """Forget the targets and policies of an endpoint that was deleted."""
        for kind in (_TARGET, _POLICY):
            for resource in self._state.all(kind):
                if resource.document["ResourceId"].split("/")[1].lower() == endpoint.lower():
                    self._state.delete(kind, resource.name)

    # Targets

    def _register(self, asked: Parameters) -> Outcome:
        resource_id = self._variant(asked)
        old = self._state.get(_TARGET, resource_id)
        document = {**(old.document if old else {}), **{name: value for name, value in asked.items() if name != "Tags"}}
        for name in ("MinCapacity", "MaxCapacity"):
            if document.get(name, -1) < 0:
                raise invalid(f"{name} is needed to register a scalable target, and is not below 0.")
        if document["MinCapacity"] > document["MaxCapacity"]:
            raise invalid("MinCapacity must not be above MaxCapacity.")
        document.setdefault("RoleARN", f"arn:aws:iam::{self._arns.account_id}:{_ROLE}")
        arn = document.setdefault(
            "ScalableTargetARN", self._arns.arn("application-autoscaling", f"scalable-target/{uuid.uuid4().hex[:26]}")
        )
        created = old.created if old else now()
        self._state.put(Resource(_TARGET, resource_id, created, now(), document))
        return Outcome({"ScalableTargetARN": arn})

    def _deregister(self, asked: Parameters) -> Outcome:
        target = self._target(asked)
        self._state.delete(_TARGET, target.name)
        for policy in self._policies(target.name):
            self._state.delete(_POLICY, policy.name)
        return Outcome({})

    def _describe_targets(self, asked: Parameters) -> Outcome:
        wanted = [one for one in self._state.all(_TARGET) if one.name in asked.get("ResourceIds", (one.name,))]
        return _page("ScalableTargets", [_row(one) for one in wanted if _is_wanted(one, asked)], asked)

    # Policies

    def _put_policy(self, asked: Parameters) -> Outcome:
        target = self._target(asked)
        name = f"{target.name}/{asked['PolicyName']}"
        old = self._state.get(_POLICY, name)
        document = {**(old.document if old else {"PolicyType": "StepScaling"}), **asked}
        if document["PolicyType"] == "PredictiveScaling":
            raise invalid("PredictiveScaling is not supported for SageMaker's variants: use TargetTrackingScaling.")
        if f"{document['PolicyType']}PolicyConfiguration" not in document:
            raise invalid(f"A policy of the type {document['PolicyType']} needs its configuration.")
        if old is None and len(self._policies(target.name)) >= _MOST_POLICIES:
            raise HostingError("LimitExceededException", f"A scalable target has {_MOST_POLICIES} policies at most.")
        arn = document.setdefault("PolicyARN", self._policy_arn(target.name, asked["PolicyName"]))
        self._state.put(Resource(_POLICY, name, old.created if old else now(), now(), document))
        return Outcome({"PolicyARN": arn, "Alarms": []})

    def _policy_arn(self, resource_id: str, name: str) -> str:
        of = f"scalingPolicy:{uuid.uuid4()}:resource/{_SERVICE}/{resource_id}:policyName/{name}"
        return self._arns.arn("autoscaling", of)

    def _delete_policy(self, asked: Parameters) -> Outcome:
        policy = self._state.get(_POLICY, f"{self._resource_id(asked)}/{asked['PolicyName']}")
        if policy is None:
            raise _missing(f"No scaling policy found for service namespace: {_SERVICE}", asked)
        self._state.delete(_POLICY, policy.name)
        return Outcome({})

    def _describe_policies(self, asked: Parameters) -> Outcome:
        names = asked.get("PolicyNames")
        wanted = [
            {"Alarms": [], **_row(one).shown}
            for one in self._state.all(_POLICY)
            if _is_wanted(one, asked) and (not names or one.document["PolicyName"] in names)
        ]
        rows = [Row(one["PolicyARN"], one["CreationTime"], one["CreationTime"], "", one) for one in wanted]
        return _page("ScalingPolicies", rows, asked)

    def _describe_activities(self, asked: Parameters) -> Outcome:
        """One for each target that has a policy: why nothing comes of it."""
        targets = [one for one in self._state.all(_TARGET) if _is_wanted(one, asked) and self._policies(one.name)]
        return _page("ScalingActivities", [_activity(one) for one in targets], asked)

    # Parts

    def _policies(self, resource_id: str) -> list[Resource]:
        return [one for one in self._state.all(_POLICY) if one.document["ResourceId"] == resource_id]

    def _resource_id(self, asked: Parameters) -> str:
        """Raises HostingError."""
        if asked["ServiceNamespace"] != _SERVICE or asked["ScalableDimension"] != _DIMENSION:
            raise invalid(f"Only ServiceNamespace {_SERVICE} with ScalableDimension {_DIMENSION} is supported here.")
        if not _RESOURCE.fullmatch(asked["ResourceId"]):
            raise invalid("ResourceId is not of the form endpoint/ENDPOINT/variant/VARIANT.")
        return str(asked["ResourceId"])

    def _variant(self, asked: Parameters) -> str:
        """The resource's id, of a variant that there is. Raises HostingError."""
        resource_id = self._resource_id(asked)
        _, endpoint, _, variant = resource_id.split("/")
        own = self._served.describe_own() if self._records.is_own(endpoint) else None
        variants = own["ProductionVariants"] if own else self._records.require(ENDPOINT, endpoint).document["Variants"]
        if variant not in [one["VariantName"] for one in variants]:
            raise invalid(f"The endpoint {endpoint} has no variant {variant}.")
        return resource_id

    def _target(self, asked: Parameters) -> Resource:
        """Raises HostingError."""
        target = self._state.get(_TARGET, self._resource_id(asked))
        if target is None:
            raise _missing(f"No scalable target registered for service namespace: {_SERVICE}", asked)
        return target


def _missing(what: str, asked: Parameters) -> HostingError:
    return HostingError(
        "ObjectNotFoundException",
        f"{what}, resource ID: {asked['ResourceId']}, scalable dimension: {asked['ScalableDimension']}",
    )


def _is_wanted(resource: Resource, asked: Parameters) -> bool:
    document = resource.document
    return all(
        asked.get(name, document[name]) == document[name]
        for name in ("ServiceNamespace", "ResourceId", "ScalableDimension")
    )


def _row(resource: Resource) -> Row:
    shown = {**resource.document, "CreationTime": resource.created}
    return Row(resource.name, resource.created, resource.created, "", shown)


def _activity(target: Resource) -> Row:
    shown = {
        "ActivityId": str(uuid.uuid5(uuid.NAMESPACE_URL, target.document["ScalableTargetARN"])),
        **{name: target.document[name] for name in ("ServiceNamespace", "ResourceId", "ScalableDimension")},
        "Description": "Keeping the number of hosts.",
        "Cause": "a scaling policy was put",
        "StartTime": target.created,
        "StatusCode": "Unfulfilled",
        "StatusMessage": _WHY_NOT,
    }
    return dataclasses.replace(_row(target), shown=shown)


def _page(field: str, rows: Sequence[Row], asked: Parameters) -> Outcome:
    """AWS says nothing of an order, and gives 50 at once. Raises HostingError."""
    size = asked.get("MaxResults", _MOST_ROWS)
    if not 1 <= size <= _MOST_ROWS:
        raise invalid(f"MaxResults is {size}, it must be from 1 to {_MOST_ROWS}.")
    paging = {name: asked[name] for name in ("NextToken",) if name in asked}
    return page_outcome(field, rows, {**paging, "MaxResults": size, "SortBy": "Name"})
