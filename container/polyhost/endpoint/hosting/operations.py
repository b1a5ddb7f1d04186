"""
What each operation of the control plane does: models, endpoint configurations, endpoints and their tags.

Synchronous; all of it runs in the one thread that owns the state. An endpoint keeps what it was made from: models
and configurations may go while it serves.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyhost.endpoint.arns import CONFIG, ENDPOINT, MODEL, NAME_FIELDS
from polyhost.endpoint.hosting import requests
from polyhost.endpoint.hosting.asynchronous import asynchronous_documents, require_usable
from polyhost.endpoint.hosting.containers import Unusable, containers_of, located
from polyhost.endpoint.hosting.deployments import (
    CREATING,
    FAILED,
    SHADOWS,
    UPDATING,
    capture_document,
    capture_summary,
    retain,
    variant_document,
    variant_summary,
    weight_of,
)
from polyhost.endpoint.hosting.outcomes import Outcome, invalid, require_weight
from polyhost.endpoint.hosting.pages import BadToken, Row, page_outcome
from polyhost.endpoint.hosting.records import Records, now
from polyhost.endpoint.hosting.scaling import ScalingOperations
from polyhost.endpoint.hosting.served import Served
from polyhost.endpoint.hosting.state import Resource, State
from polyhost.endpoint.hosting.transforms import TransformOperations

Parameters = Mapping[str, Any]

# Reports on hostile requests can be as long as these.
_MOST_MESSAGE_CHARS = 4000
# Operations that change nothing.
_LOOKS = ("Describe", "List")

_REFUSED_IN_CONFIG = {
    "ExplainerConfig": "there is no explainer here",
}
_REFUSED_IN_VARIANT = {
    "ServerlessConfig": "there is no serverless inference here: give InstanceType and InitialInstanceCount",
}


class Operations:
    """`records` and `served` write to `state`, within the transaction of the operation."""

    def __init__(self, state: State, records: Records, served: Served, *, allowed_folders: Sequence[Path]) -> None:
        self.scaling = ScalingOperations(state, records, served)
        self.transforms = TransformOperations(state, records, served, allowed_folders=allowed_folders)
        self._state = state
        self._records = records
        self._served = served
        self._allowed_folders = allowed_folders

    def perform(self, operation: str, parameters: Parameters) -> Outcome:
        """One of `requests`. Raises HostingError, StateFailed."""
        if self._state.refusal and not operation.startswith(_LOOKS):
            raise invalid(self._state.refusal)
        faults = requests.faults(operation, parameters)
        if faults:
            raise invalid(faults[:_MOST_MESSAGE_CHARS])
        others = {**self.transforms.methods, **self.scaling.methods}
        method = others.get(operation) or functools.partial(self._methods[operation], self)
        try:
            outcome = self._state.transact(lambda: method(parameters))
        except (Unusable, BadToken) as error:
            raise invalid(f"{error}.") from error
        self._served.forget_failures(outcome.changed)
        return outcome

    # Models

    def _create_model(self, asked: Parameters) -> Outcome:
        name = asked["ModelName"]
        self._records.require_new(MODEL, name)
        containers_of(asked, self._allowed_folders)
        return Outcome({"ModelArn": self._records.create(MODEL, name, asked)})

    def _describe_model(self, asked: Parameters) -> Outcome:
        resource = self._records.require(MODEL, asked["ModelName"])
        return Outcome({**self._records.described(resource, "ModelArn"), **resource.document})

    # Endpoint configurations

    def _create_config(self, asked: Parameters) -> Outcome:
        name = asked["EndpointConfigName"]
        self._records.require_new(CONFIG, name)
        _refuse(asked, _REFUSED_IN_CONFIG, "")
        require_usable(asked, self._allowed_folders, is_shared=bool(self._state.poll_secs))
        shadows = asked.get("ShadowProductionVariants", ())
        for field, variants in (("ProductionVariants", asked["ProductionVariants"]), (SHADOWS, shadows)):
            for number, variant in enumerate(variants):
                self._check_variant(variant, f"{field}[{number}].")
        names = [variant["VariantName"] for variant in (*asked["ProductionVariants"], *shadows)]
        if len(set(names)) < len(names):
            raise invalid("VariantName is not unique: every variant of a configuration needs a name of its own.")
        if len(shadows) > 1:
            raise invalid("A configuration has one shadow variant at most.")
        if "DataCaptureConfig" in asked:
            self._captured_to(asked["DataCaptureConfig"])
        require_weight({variant["VariantName"]: weight_of(variant) for variant in asked["ProductionVariants"]})
        return Outcome({"EndpointConfigArn": self._records.create(CONFIG, name, asked)})

    def _check_variant(self, variant: Parameters, where: str) -> None:
        """Raises HostingError."""
        _refuse(variant, _REFUSED_IN_VARIANT, where)
        if "ModelName" not in variant:
            raise invalid(f"{where}ModelName is missing: there are no inference components here.")
        self._records.require(MODEL, variant["ModelName"])

    def _describe_config(self, asked: Parameters) -> Outcome:
        resource = self._records.require(CONFIG, asked["EndpointConfigName"])
        return Outcome({**self._records.described(resource, "EndpointConfigArn"), **resource.document})

    # Endpoints

    def _create_endpoint(self, asked: Parameters) -> Outcome:
        name = asked["EndpointName"]
        self._records.require_new(ENDPOINT, name)
        document = {**self._deployed(asked["EndpointConfigName"]), "Status": CREATING}
        if "DeploymentConfig" in asked:
            document["LastDeploymentConfig"] = asked["DeploymentConfig"]
        arn = self._records.arn_of(ENDPOINT, name)
        resource = Resource(ENDPOINT, name, now(), now(), document)
        self._records.add_tags(arn, {}, asked.get("Tags", ()))
        return self._served.put(resource)

    def _update_endpoint(self, asked: Parameters) -> Outcome:
        old = self._served.require_changeable(asked["EndpointName"])
        self._served.require_settled(old)
        document = self._deployed(asked["EndpointConfigName"])
        if asked.get("RetainAllVariantProperties"):
            excluded = {item["VariantPropertyType"] for item in asked.get("ExcludeRetainedVariantProperties", ())}
            retain(old.document, document, excluded)
        if "DeploymentConfig" in asked:
            document["LastDeploymentConfig"] = asked["DeploymentConfig"]
        elif asked.get("RetainDeploymentConfig") and "LastDeploymentConfig" in old.document:
            document["LastDeploymentConfig"] = old.document["LastDeploymentConfig"]
        document |= {"Status": UPDATING, "Before": old.document.get("Before", old.document)}
        return self._served.put(dataclasses.replace(old, modified=now(), document=document))

    def _update_weights(self, asked: Parameters) -> Outcome:
        old = self._served.require_changeable(asked["EndpointName"])
        self._served.require_settled(old)
        if old.document.get("Status") == FAILED:
            arn = self._records.arn_of(ENDPOINT, old.name)
            raise invalid(
                f'The endpoint "{arn}" has failed: update it to a configuration that can be served, or delete it.'
            )
        kinds = {kind: [dict(one) for one in old.document.get(kind, ())] for kind in ("Variants", "ShadowVariants")}
        variants = {variant["VariantName"]: variant for of_kind in kinds.values() for variant in of_kind}
        for desired in asked["DesiredWeightsAndCapacities"]:
            name = desired["VariantName"]
            if name not in variants:
                raise invalid(
                    f'The variant "{name}" is not part of the endpoint "{self._records.arn_of(ENDPOINT, old.name)}".'
                )
            if "ServerlessUpdateConfig" in desired:
                raise invalid("ServerlessUpdateConfig is not supported: there is no serverless inference here.")
            variants[name]["Weight"] = desired.get("DesiredWeight", variants[name]["Weight"])
            variants[name]["InstanceCount"] = desired.get("DesiredInstanceCount", variants[name]["InstanceCount"])
        document = {**old.document, **{kind: of_kind for kind, of_kind in kinds.items() if of_kind}}
        return self._served.put(dataclasses.replace(old, modified=now(), document=document))

    def _describe_endpoint(self, asked: Parameters) -> Outcome:
        own = self._served.describe_own()
        if own and self._records.is_own(asked["EndpointName"]):
            return Outcome(own)
        resource = self._records.require(ENDPOINT, asked["EndpointName"])
        document = resource.document
        answer = {
            **self._records.described(resource, "EndpointArn"),
            "LastModifiedTime": resource.modified,
            "EndpointConfigName": document["EndpointConfigName"],
            "EndpointStatus": self._served.status(resource),
            "ProductionVariants": [variant_summary(variant) for variant in document["Variants"]],
        }
        if document.get("ShadowVariants"):
            answer[SHADOWS] = [variant_summary(variant) for variant in document["ShadowVariants"]]
        for name in ("LastDeploymentConfig", "DataCaptureConfig", "AsyncInferenceConfig"):
            if name in document:
                answer[name] = document[name]
        reason = self._served.failure(resource)
        if reason:
            answer["FailureReason"] = reason
        return Outcome(answer)

    def _delete_endpoint(self, asked: Parameters) -> Outcome:
        resource = self._served.require_changeable(asked["EndpointName"])
        self._records.delete(ENDPOINT, asked["EndpointName"])
        self.scaling.forget(resource.name)
        return Outcome({}, {resource.name: None})

    # Endpoints: parts

    def _deployed(self, config_name: str) -> dict[str, Any]:
        """The document of an endpoint that is made from that configuration: all that it needs from then on."""
        config = self._records.require(CONFIG, config_name)
        document: dict[str, Any] = {
            "EndpointConfigName": config.name,
            "Variants": [self._deployed_variant(variant) for variant in config.document["ProductionVariants"]],
        }
        if config.document.get(SHADOWS):
            document["ShadowVariants"] = [self._deployed_variant(variant) for variant in config.document[SHADOWS]]
            _check_shadows(document)
        if "DataCaptureConfig" in config.document:
            asked = config.document["DataCaptureConfig"]
            document["DataCaptureConfig"] = capture_summary(asked)
            capture = capture_document(asked, self._captured_to(asked))
            if capture is not None:
                document["Capture"] = capture
        return {**document, **asynchronous_documents(config.document, self._allowed_folders)}

    def _captured_to(self, asked: Parameters) -> str:
        """Raises Unusable."""
        return located(
            asked["DestinationS3Uri"], "DataCaptureConfig.DestinationS3Uri", is_multi_model=True,
            allowed_folders=self._allowed_folders,
        )  # fmt: skip

    def _deployed_variant(self, variant: Mapping[str, Any]) -> dict[str, Any]:
        model = self._records.require(MODEL, variant["ModelName"])
        definitions = model.document.get("Containers") or [model.document["PrimaryContainer"]]
        images = [definition["Image"] for definition in definitions]
        return variant_document(variant, images, containers_of(model.document, self._allowed_folders), now())

    # Lists

    def _list_models(self, asked: Parameters) -> Outcome:
        return page_outcome("Models", [self._row(resource, "ModelArn") for resource in self._records.all(MODEL)], asked)

    def _list_configs(self, asked: Parameters) -> Outcome:
        rows = [self._row(resource, "EndpointConfigArn") for resource in self._records.all(CONFIG)]
        return page_outcome("EndpointConfigs", rows, asked)

    def _list_endpoints(self, asked: Parameters) -> Outcome:
        rows = [self._row(resource, "EndpointArn") for resource in self._served.resources()]
        own = self._served.describe_own()
        if own:
            rows.append(_endpoint_row(own))
        return page_outcome("Endpoints", rows, asked)

    def _row(self, resource: Resource, arn_field: str) -> Row:
        shown = self._records.described(resource, arn_field)
        if resource.kind == ENDPOINT:
            return _endpoint_row(
                {**shown, "LastModifiedTime": resource.modified, "EndpointStatus": self._served.status(resource)}
            )
        return Row(resource.name, resource.created, resource.modified, "", shown)

    # Tags

    def _add_tags(self, asked: Parameters) -> Outcome:
        arn = self._records.require_taggable(asked["ResourceArn"])
        self._records.add_tags(arn, self._records.tags(arn), asked["Tags"])
        return Outcome({"Tags": _tag_list(self._records.tags(arn))})

    def _list_tags(self, asked: Parameters) -> Outcome:
        # Never more than a page of them.
        return Outcome({"Tags": _tag_list(self._records.tags(self._records.require_taggable(asked["ResourceArn"])))})

    def _delete_tags(self, asked: Parameters) -> Outcome:
        self._records.remove_tags(self._records.require_taggable(asked["ResourceArn"]), asked["TagKeys"])
        return Outcome({})

    # What all kinds share

    def _delete(self, asked: Parameters, kind: str) -> Outcome:
        self._records.delete(kind, asked[NAME_FIELDS[kind]])
        return Outcome({})

    _methods: Mapping[str, Callable[[Operations, Parameters], Outcome]] = {
        "CreateModel": _create_model,
        "DescribeModel": _describe_model,
        "ListModels": _list_models,
        "DeleteModel": functools.partial(_delete, kind=MODEL),
        "CreateEndpointConfig": _create_config,
        "DescribeEndpointConfig": _describe_config,
        "ListEndpointConfigs": _list_configs,
        "DeleteEndpointConfig": functools.partial(_delete, kind=CONFIG),
        "CreateEndpoint": _create_endpoint,
        "DescribeEndpoint": _describe_endpoint,
        "ListEndpoints": _list_endpoints,
        "UpdateEndpoint": _update_endpoint,
        "UpdateEndpointWeightsAndCapacities": _update_weights,
        "DeleteEndpoint": _delete_endpoint,
        "AddTags": _add_tags,
        "ListTags": _list_tags,
        "DeleteTags": _delete_tags,
    }


def _check_shadows(document: Parameters) -> None:
    """Each request must be one that the shadow can be sent. Raises HostingError."""
    kinds = {
        any(container["is_multi_model"] for container in variant["Containers"])
        for variant in (*document["Variants"], *document["ShadowVariants"])
    }
    if len(kinds) > 1:
        raise invalid(
            "The shadow variant and the production variants must be alike: either all of them have a container of Mode "
            "MultiModel, or none has."
        )


def _refuse(given: Parameters, refused: Mapping[str, str], where: str) -> None:
    for name, reason in refused.items():
        if given.get(name):
            raise invalid(f"{where}{name} is not supported: {reason}.")


def _endpoint_row(described: Mapping[str, Any]) -> Row:
    fields = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
    return Row(
        name=described["EndpointName"],
        created=described["CreationTime"],
        modified=described["LastModifiedTime"],
        status=described["EndpointStatus"],
        shown={field: described[field] for field in fields},
    )


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
