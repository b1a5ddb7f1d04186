"""
What is kept of a deployed endpoint, and what it says when it is described.

A document has all that its endpoint needs, so that models and configurations may go while it serves. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polyhost.endpoint.definitions import Asynchronous, Capture, Container, Endpoint, Variant

# What an endpoint's document says of its deployment; nothing once it is in service.
CREATING, UPDATING, FAILED = "Creating", "Updating", "Failed"
# Of a configuration, and of an endpoint that is described.
SHADOWS = "ShadowProductionVariants"


def variant_document(
    asked: Mapping[str, Any], images: Sequence[str], containers: Sequence[Container], now: float
) -> dict[str, Any]:
    """A ProductionVariant of a configuration, with what its model was at that moment."""
    return {
        "VariantName": asked["VariantName"],
        "Weight": weight_of(asked),
        "InstanceCount": asked.get("InitialInstanceCount", 1),
        "Images": list(images),
        "Since": now,
        "Containers": [dataclasses.asdict(container) for container in containers],
    }


def weight_of(asked: Mapping[str, Any]) -> float:
    return float(asked.get("InitialVariantWeight", 1))


def endpoint_of(name: str, arn: str, document: Mapping[str, Any]) -> Endpoint:
    return Endpoint(
        name=name,
        arn=arn,
        variants=tuple(_variant_of(variant) for variant in document["Variants"]),
        shadows=tuple(_variant_of(variant) for variant in document.get("ShadowVariants", ())),
        capture=_capture_of(document.get("Capture")),
        asynchronous=Asynchronous(**document["Asynchronous"]) if "Asynchronous" in document else None,
    )


def _variant_of(variant: Mapping[str, Any]) -> Variant:
    return Variant(
        name=variant["VariantName"],
        weight=variant["Weight"],
        containers=tuple(container_of(stored) for stored in variant["Containers"]),
        since=variant.get("Since", 0.0),
    )


def _capture_of(stored: Mapping[str, Any] | None) -> Capture | None:
    """JSON has no tuples."""
    if stored is None:
        return None
    kinds = {name: tuple(stored[name]) for name in ("csv_types", "json_types")}
    return Capture(**{**stored, **kinds})


def capture_document(asked: Mapping[str, Any], destination: str) -> dict[str, Any] | None:
    """A DataCaptureConfig with its place as stores know it; None where nothing is captured."""
    modes = {option["CaptureMode"] for option in asked["CaptureOptions"]}
    if not is_capturing(asked) or not asked["InitialSamplingPercentage"]:
        return None
    kinds = asked.get("CaptureContentTypeHeader", {})
    capture = Capture(
        destination=destination,
        percentage=asked["InitialSamplingPercentage"],
        has_input=bool(modes & {"Input", "InputAndOutput"}),
        has_output=bool(modes & {"Output", "InputAndOutput"}),
        csv_types=tuple(kinds.get("CsvContentTypes", ())),
        json_types=tuple(kinds.get("JsonContentTypes", ())),
        kms_key=asked.get("KmsKeyId", ""),
    )
    return dataclasses.asdict(capture)


def is_capturing(asked: Mapping[str, Any]) -> bool:
    return bool(asked.get("EnableCapture", True))


def container_of(stored: Mapping[str, Any]) -> Container:
    """JSON has no tuples."""
    return Container(**{**stored, "environ": tuple((name, value) for name, value in stored["environ"])})


def settled(document: Mapping[str, Any], failure: str | None) -> dict[str, Any] | None:
    """
    The document of an endpoint when its deployment has come to an end; None where none was under way.

    1. It can be served: it is in service.
    2. It was updated and cannot be served: it is what it was before, and says why.
    3. It is new, or was updated before it was ever in service, and cannot be served: it has failed.
    """
    after = dict(document)
    status, before = after.pop("Status", ""), after.pop("Before", None)
    if status not in (CREATING, UPDATING):
        return None
    if failure is None:
        return after
    if before is not None and "Status" not in before:
        return {**before, "FailureReason": failure}
    return {**(before or after), "Status": FAILED, "FailureReason": failure}


def retain(old: Mapping[str, Any], new: dict[str, Any], excluded: set[str]) -> None:
    """RetainAllVariantProperties: what was set since, of variants that stay."""
    were = {variant["VariantName"]: variant for variant in old["Variants"]}
    for variant in new["Variants"]:
        before = were.get(variant["VariantName"], {})
        for property_type, field in (("DesiredWeight", "Weight"), ("DesiredInstanceCount", "InstanceCount")):
            if property_type not in excluded and field in before:
                variant[field] = before[field]
    for name in ("DataCaptureConfig", "Capture"):
        if "DataCaptureConfig" not in excluded and "DataCaptureConfig" in old:
            new.pop(name, None)
            if name in old:
                new[name] = old[name]


def variant_summary(variant: Mapping[str, Any]) -> dict[str, Any]:
    count = variant.get("InstanceCount", 1)
    summary = {
        "VariantName": variant["VariantName"],
        "CurrentWeight": variant["Weight"],
        "DesiredWeight": variant["Weight"],
        "CurrentInstanceCount": count,
        "DesiredInstanceCount": count,
    }
    if "Images" in variant:
        summary["DeployedImages"] = [
            {"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": variant["Since"]}
            for image in variant["Images"]
        ]
    return summary


def say_unready(summaries: Iterable[dict[str, Any]], unready: Mapping[str, str]) -> None:
    """
    Of shadow variants in an endpoint's description. `unready`: by name why one cannot be prepared, "" while it is.

    SageMaker has no word for a variant that has failed; this one is tried again by the next copy of a request.
    """
    for summary in summaries:
        reason = unready.get(summary["VariantName"])
        if reason is not None:
            summary["VariantStatus"] = [{"Status": CREATING, "StatusMessage": reason or "The model is being loaded."}]


def capture_summary(capture: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "EnableCapture": is_capturing(capture),
        "CaptureStatus": "Started" if is_capturing(capture) else "Stopped",
        "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
        "DestinationS3Uri": capture["DestinationS3Uri"],
        "KmsKeyId": capture.get("KmsKeyId", ""),
    }
