"""
What each operation of the control plane does: models, endpoint configurations, endpoints and their tags.

Synchronous; all of it runs in the one thread that owns the state. An endpoint keeps what it was made from: models
and configurations may go while it serves.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyhost.endpoint.definitions import Container, Endpoint
from polyhost.endpoint.hosting import requests
from polyhost.endpoint.hosting.arns import CONFIG, ENDPOINT, MODEL, NAME_FIELDS, Arns
from polyhost.endpoint.hosting.containers import Unusable, containers_of, folders_of, is_allowed
from polyhost.endpoint.hosting.deployments import (
    capture_summary,
    endpoint_of,
    retain,
    variant_document,
    variant_summary,
    weight_of,
)
from polyhost.endpoint.hosting.pages import BadToken, Row, page_of
from polyhost.endpoint.hosting.state import Resource, State

logger = logging.getLogger("polyhost.endpoint")

Check = Callable[[Sequence[Container]], "str | None"]
Parameters = Mapping[str, Any]

_IN_WORDS = {MODEL: "model", CONFIG: "endpoint configuration", ENDPOINT: "endpoint"}
_MOST_TAGS = 50
# What an endpoint's document says of its deployment; nothing once it is in service.
_CREATING, _UPDATING, _FAILED = "Creating", "Updating", "Failed"
# Reports on hostile requests can be as long as these.
_MOST_MESSAGE_CHARS = 4000

_REFUSED_IN_CONFIG = {
    "AsyncInferenceConfig": "there is no asynchronous inference here",
    "ShadowProductionVariants": "there are no shadow variants here",
    "ExplainerConfig": "there is no explainer here",
}
_REFUSED_IN_VARIANT = {
    "ServerlessConfig": "there is no serverless inference here: give InstanceType and InitialInstanceCount",
}


class HostingError(Exception):
    """An operation that was not done. `code` is AWS's."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


def invalid(message: str) -> HostingError:
    return HostingError("ValidationException", message)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What is answered, and the endpoints that are otherwise now: None is gone."""

    answer: dict[str, Any]
    changed: Mapping[str, Endpoint | None] = dataclasses.field(default_factory=dict)


class Operations:
    """`own` is the endpoint of the command line: it is shown, and stays as it is."""

    def __init__(
        self, state: State, arns: Arns, *, own: Endpoint | None, allowed_folders: Sequence[Path], check: Check
    ) -> None:
        self._state = state
        self._arns = arns
        self._own = own
        self._started = _now()
        self._allowed_folders = allowed_folders
        self._check = check
        # Endpoints that were made when the server served what it no longer does, and why it does not.
        self._failures: dict[str, str] = {}

    def restore(self) -> dict[str, Endpoint]:
        """The endpoints that are to be served."""
        endpoints: dict[str, Endpoint] = {}
        for resource in sorted(self._endpoints(), key=lambda resource: resource.created):
            if self._status(resource) == _FAILED:
                continue
            endpoint = self._definition(resource)
            others = [*self._own_containers(), *containers_in(endpoints.values())]
            reason = self._reason_against(others, _containers(endpoint))
            if reason:
                self._failures[resource.name] = reason
                logger.warning("endpoint %s is not served: %s", resource.name, reason)
            else:
                endpoints[resource.name] = endpoint
        return endpoints

    def perform(self, operation: str, parameters: Parameters) -> Outcome:
        """One of `requests.OPERATIONS`. Raises HostingError."""
        faults = requests.faults(operation, parameters)
        if faults:
            raise invalid(faults[:_MOST_MESSAGE_CHARS])
        try:
            with self._state.transaction():
                outcome = self._methods[operation](self, parameters)
        except (Unusable, BadToken) as error:
            raise invalid(f"{error}.") from error
        for name in outcome.changed:
            self._failures.pop(name, None)
        return outcome

    def settle(self, endpoint: Endpoint, failure: str | None) -> Mapping[str, Endpoint | None]:
        """
        Keep what came of a deployment; the endpoints that are otherwise now. Three cases.

        It serves. It is new and cannot: it has failed. It was updated and cannot: it is what it was before.
        """
        with self._state.transaction():
            resource = self._state.get(ENDPOINT, endpoint.name)
            if resource is None or self._definition(resource) != endpoint:
                return {}
            document = dict(resource.document)
            status, before = document.pop("Status", ""), document.pop("Before", None)
            if status not in (_CREATING, _UPDATING):
                return {}
            if failure is None:
                self._state.put(dataclasses.replace(resource, document=document))
                return {}
            logger.warning("endpoint %s: %s", resource.name, failure)
            has_served = before is not None and "Status" not in before
            end = {"FailureReason": failure} if has_served else {"Status": _FAILED, "FailureReason": failure}
            resource = dataclasses.replace(resource, document={**(before or document), **end})
            self._state.put(resource)
        endpoint = self._definition(resource)
        reason = None if before is None else self._reason_against(self._others(resource), _containers(endpoint))
        if reason:
            self._failures[resource.name] = reason
        return {resource.name: None if self._status(resource) == _FAILED else endpoint}

    # Models

    def _create_model(self, asked: Parameters) -> Outcome:
        name = asked["ModelName"]
        self._require_new(MODEL, name)
        containers_of(asked, self._allowed_folders)
        return Outcome({"ModelArn": self._create(MODEL, name, asked)})

    def _describe_model(self, asked: Parameters) -> Outcome:
        resource = self._require(MODEL, asked["ModelName"])
        return Outcome({**self._described(resource, "ModelArn"), **resource.document})

    # Endpoint configurations

    def _create_config(self, asked: Parameters) -> Outcome:
        name = asked["EndpointConfigName"]
        self._require_new(CONFIG, name)
        _refuse(asked, _REFUSED_IN_CONFIG, "")
        names = set()
        for number, variant in enumerate(asked["ProductionVariants"]):
            where = f"ProductionVariants[{number}]."
            _refuse(variant, _REFUSED_IN_VARIANT, where)
            if "ModelName" not in variant:
                raise invalid(f"{where}ModelName is missing: there are no inference components here.")
            self._require(MODEL, variant["ModelName"])
            names.add(variant["VariantName"])
        if len(names) < len(asked["ProductionVariants"]):
            raise invalid("VariantName is not unique: every variant of a configuration needs a name of its own.")
        _require_weight({variant["VariantName"]: weight_of(variant) for variant in asked["ProductionVariants"]})
        return Outcome({"EndpointConfigArn": self._create(CONFIG, name, asked)})

    def _describe_config(self, asked: Parameters) -> Outcome:
        resource = self._require(CONFIG, asked["EndpointConfigName"])
        return Outcome({**self._described(resource, "EndpointConfigArn"), **resource.document})

    # Endpoints

    def _create_endpoint(self, asked: Parameters) -> Outcome:
        name = asked["EndpointName"]
        self._require_new(ENDPOINT, name)
        document = {**self._deployed(asked["EndpointConfigName"]), "Status": _CREATING}
        if "DeploymentConfig" in asked:
            document["LastDeploymentConfig"] = asked["DeploymentConfig"]
        arn = self._arns.of(ENDPOINT, name)
        resource = Resource(ENDPOINT, name, _now(), _now(), document)
        self._set_tags(arn, {}, asked.get("Tags", ()))
        return self._put_endpoint(resource)

    def _update_endpoint(self, asked: Parameters) -> Outcome:
        old = self._require_changeable(asked["EndpointName"])
        self._require_settled(old)
        document = self._deployed(asked["EndpointConfigName"])
        if asked.get("RetainAllVariantProperties"):
            excluded = {item["VariantPropertyType"] for item in asked.get("ExcludeRetainedVariantProperties", ())}
            retain(old.document, document, excluded)
        if "DeploymentConfig" in asked:
            document["LastDeploymentConfig"] = asked["DeploymentConfig"]
        elif asked.get("RetainDeploymentConfig") and "LastDeploymentConfig" in old.document:
            document["LastDeploymentConfig"] = old.document["LastDeploymentConfig"]
        document |= {"Status": _UPDATING, "Before": old.document.get("Before", old.document)}
        return self._put_endpoint(dataclasses.replace(old, modified=_now(), document=document))

    def _update_weights(self, asked: Parameters) -> Outcome:
        old = self._require_changeable(asked["EndpointName"])
        self._require_settled(old)
        if old.document.get("Status") == _FAILED:
            raise invalid(
                f'The endpoint "{self._arns.of(ENDPOINT, old.name)}" has failed: update it to a configuration that can '
                "be served, or delete it."
            )
        variants = {variant["VariantName"]: dict(variant) for variant in old.document["Variants"]}
        for desired in asked["DesiredWeightsAndCapacities"]:
            name = desired["VariantName"]
            if name not in variants:
                raise invalid(
                    f'The variant "{name}" is not part of the endpoint "{self._arns.of(ENDPOINT, old.name)}".'
                )
            if "ServerlessUpdateConfig" in desired:
                raise invalid("ServerlessUpdateConfig is not supported: there is no serverless inference here.")
            variants[name]["Weight"] = desired.get("DesiredWeight", variants[name]["Weight"])
            variants[name]["InstanceCount"] = desired.get("DesiredInstanceCount", variants[name]["InstanceCount"])
        document = {**old.document, "Variants": list(variants.values())}
        return self._put_endpoint(dataclasses.replace(old, modified=_now(), document=document))

    def _describe_endpoint(self, asked: Parameters) -> Outcome:
        if self._is_own(asked["EndpointName"]):
            return Outcome(self._describe_own())
        resource = self._require(ENDPOINT, asked["EndpointName"])
        document = resource.document
        answer = {
            **self._described(resource, "EndpointArn"),
            "LastModifiedTime": resource.modified,
            "EndpointConfigName": document["EndpointConfigName"],
            "EndpointStatus": self._status(resource),
            "ProductionVariants": [variant_summary(variant) for variant in document["Variants"]],
        }
        for name in ("LastDeploymentConfig", "DataCaptureConfig"):
            if name in document:
                answer[name] = document[name]
        reason = self._failures.get(resource.name) or document.get("FailureReason")
        if reason:
            answer["FailureReason"] = reason
        return Outcome(answer)

    def _delete_endpoint(self, asked: Parameters) -> Outcome:
        resource = self._require_changeable(asked["EndpointName"])
        self._delete(asked, ENDPOINT)
        return Outcome({}, {resource.name: None})

    # Endpoints: parts

    def _deployed(self, config_name: str) -> dict[str, Any]:
        """The document of an endpoint that is made from that configuration: all that it needs from then on."""
        config = self._require(CONFIG, config_name)
        document: dict[str, Any] = {
            "EndpointConfigName": config.name,
            "Variants": [self._deployed_variant(variant) for variant in config.document["ProductionVariants"]],
        }
        if "DataCaptureConfig" in config.document:
            document["DataCaptureConfig"] = capture_summary(config.document["DataCaptureConfig"])
        return document

    def _deployed_variant(self, variant: Mapping[str, Any]) -> dict[str, Any]:
        model = self._require(MODEL, variant["ModelName"])
        definitions = model.document.get("Containers") or [model.document["PrimaryContainer"]]
        images = [definition["Image"] for definition in definitions]
        return variant_document(variant, images, containers_of(model.document, self._allowed_folders), _now())

    def _put_endpoint(self, resource: Resource) -> Outcome:
        _require_weight({variant["VariantName"]: variant["Weight"] for variant in resource.document["Variants"]})
        endpoint = self._definition(resource)
        reason = self._reason_against(self._others(resource), _containers(endpoint))
        if reason:
            raise invalid(reason)
        self._state.put(resource)
        return Outcome({"EndpointArn": endpoint.arn}, {resource.name: endpoint})

    def _others(self, resource: Resource) -> list[Container]:
        """The containers of all other endpoints that are served."""
        others = (
            self._definition(other)
            for other in self._endpoints()
            if other.name != resource.name and self._status(other) != _FAILED
        )
        return [*self._own_containers(), *containers_in(others)]

    def _reason_against(self, others: Sequence[Container], containers: Sequence[Container]) -> str | None:
        for folder in folders_of(containers):
            if not is_allowed(folder, self._allowed_folders):
                return f"{folder} does not lie under a folder that this server may serve models from."
        return self._check([*others, *containers])

    def _definition(self, resource: Resource) -> Endpoint:
        return endpoint_of(resource.name, self._arns.of(ENDPOINT, resource.name), resource.document)

    def _endpoints(self) -> list[Resource]:
        return [resource for resource in self._state.all(ENDPOINT) if not self._is_own(resource.name)]

    def _status(self, resource: Resource) -> str:
        if resource.name in self._failures:
            return _FAILED
        return str(resource.document.get("Status", "InService"))

    # The server's own endpoint

    def _is_own(self, name: str) -> bool:
        return self._own is not None and self._own.name.lower() == name.lower()

    def _own_containers(self) -> list[Container]:
        return _containers(self._own) if self._own else []

    def _describe_own(self) -> dict[str, Any]:
        assert self._own
        return {
            "EndpointName": self._own.name,
            "EndpointArn": self._own.arn,
            "EndpointConfigName": self._own.name,
            "CreationTime": self._started,
            "LastModifiedTime": self._started,
            "EndpointStatus": "InService",
            "ProductionVariants": [
                variant_summary({"VariantName": variant.name, "Weight": variant.weight})
                for variant in self._own.variants
            ],
        }

    def _require_changeable(self, name: str) -> Resource:
        if self._is_own(name):
            raise invalid(
                f'The endpoint "{self._arns.of(ENDPOINT, name)}" is the server\'s own: it is as the server was '
                "started, and can be neither updated nor deleted."
            )
        return self._require(ENDPOINT, name)

    def _require_settled(self, endpoint: Resource) -> None:
        if self._status(endpoint) in (_CREATING, _UPDATING):
            raise invalid(f'Cannot update in-progress endpoint "{self._arns.of(ENDPOINT, endpoint.name)}".')

    # Lists

    def _list_models(self, asked: Parameters) -> Outcome:
        return _page("Models", [self._row(resource, "ModelArn") for resource in self._state.all(MODEL)], asked)

    def _list_configs(self, asked: Parameters) -> Outcome:
        rows = [self._row(resource, "EndpointConfigArn") for resource in self._state.all(CONFIG)]
        return _page("EndpointConfigs", rows, asked)

    def _list_endpoints(self, asked: Parameters) -> Outcome:
        rows = [self._row(resource, "EndpointArn") for resource in self._endpoints()]
        if self._own:
            rows.append(_endpoint_row(self._describe_own()))
        return _page("Endpoints", rows, asked)

    def _row(self, resource: Resource, arn_field: str) -> Row:
        shown = self._described(resource, arn_field)
        if resource.kind == ENDPOINT:
            return _endpoint_row(
                {**shown, "LastModifiedTime": resource.modified, "EndpointStatus": self._status(resource)}
            )
        return Row(resource.name, resource.created, resource.modified, "", shown)

    # Tags

    def _add_tags(self, asked: Parameters) -> Outcome:
        arn = self._require_taggable(asked["ResourceArn"])
        self._set_tags(arn, self._state.tags(arn), asked["Tags"])
        return Outcome({"Tags": _tag_list(self._state.tags(arn))})

    def _list_tags(self, asked: Parameters) -> Outcome:
        # Never more than a page of them.
        return Outcome({"Tags": _tag_list(self._state.tags(self._require_taggable(asked["ResourceArn"])))})

    def _delete_tags(self, asked: Parameters) -> Outcome:
        arn = self._require_taggable(asked["ResourceArn"])
        keys = set(asked["TagKeys"])
        self._state.set_tags(arn, {key: value for key, value in self._state.tags(arn).items() if key not in keys})
        return Outcome({})

    def _require_taggable(self, arn: str) -> str:
        read = self._arns.read(arn)
        if read is None:
            raise invalid(f'Could not find resource "{arn[:256]}".')
        kind, name = read
        if not (kind == ENDPOINT and self._is_own(name)):
            self._require(kind, name)
        return self._arns.of(kind, name)

    def _set_tags(self, arn: str, old: Mapping[str, str], tags: Sequence[Mapping[str, str]]) -> None:
        all_tags = {**old, **{tag["Key"]: tag["Value"] for tag in tags}}
        if len(all_tags) > _MOST_TAGS:
            raise invalid(f"A resource has {_MOST_TAGS} tags at most: with these it would have {len(all_tags)}.")
        self._state.set_tags(arn, all_tags)

    # What all kinds share

    def _create(self, kind: str, name: str, asked: Parameters) -> str:
        arn = self._arns.of(kind, name)
        document = {key: value for key, value in asked.items() if key not in ("Tags", NAME_FIELDS[kind])}
        now = _now()
        self._state.put(Resource(kind, name, now, now, document))
        self._set_tags(arn, {}, asked.get("Tags", ()))
        return arn

    def _delete(self, asked: Parameters, kind: str) -> Outcome:
        name = asked[NAME_FIELDS[kind]]
        self._require(kind, name)
        self._state.delete(kind, name)
        self._state.set_tags(self._arns.of(kind, name), {})
        return Outcome({})

    def _described(self, resource: Resource, arn_field: str) -> dict[str, Any]:
        return {
            NAME_FIELDS[resource.kind]: resource.name,
            arn_field: self._arns.of(resource.kind, resource.name),
            "CreationTime": resource.created,
        }

    def _require(self, kind: str, name: str) -> Resource:
        resource = self._state.get(kind, name)
        if resource is None:
            raise invalid(f'Could not find {_IN_WORDS[kind]} "{self._arns.of(kind, name)}".')
        return resource

    def _require_new(self, kind: str, name: str) -> None:
        if self._state.get(kind, name) or (kind == ENDPOINT and self._is_own(name)):
            raise invalid(f'Cannot create already existing {_IN_WORDS[kind]} "{self._arns.of(kind, name)}".')

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


def containers_in(endpoints: Iterable[Endpoint]) -> list[Container]:
    return [container for endpoint in endpoints for container in _containers(endpoint)]


def _containers(endpoint: Endpoint) -> list[Container]:
    return [container for variant in endpoint.variants for container in variant.containers]


def _refuse(given: Parameters, refused: Mapping[str, str], where: str) -> None:
    for name, reason in refused.items():
        if given.get(name):
            raise invalid(f"{where}{name} is not supported: {reason}.")


def _require_weight(weights: Mapping[str, float]) -> None:
    """One variant takes all, whatever its weight."""
    if len(weights) > 1 and not sum(weights.values()):
        raise invalid(f"The weights of all variants are 0: give one of {', '.join(weights)} a weight above 0.")


def _endpoint_row(described: Mapping[str, Any]) -> Row:
    fields = ("EndpointName", "EndpointArn", "CreationTime", "LastModifiedTime", "EndpointStatus")
    return Row(
        name=described["EndpointName"],
        created=described["CreationTime"],
        modified=described["LastModifiedTime"],
        status=described["EndpointStatus"],
        shown={field: described[field] for field in fields},
    )


def _page(field: str, rows: Sequence[Row], asked: Parameters) -> Outcome:
    page, token = page_of(rows, asked)
    answer: dict[str, Any] = {field: page}
    if token:
        answer["NextToken"] = token
    return Outcome(answer)


def _tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _now() -> float:
    return round(time.time(), 3)
