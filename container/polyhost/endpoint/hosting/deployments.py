"""
What is kept of a deployed endpoint, and what it says when it is described.

A document has all that its endpoint needs, so that models and configurations may go while it serves. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from polyhost.endpoint.definitions import Container, Endpoint, Variant


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
    variants = (
        Variant(
            name=variant["VariantName"],
            weight=variant["Weight"],
            containers=tuple(_container_of(stored) for stored in variant["Containers"]),
            since=variant.get("Since", 0.0),
        )
        for variant in document["Variants"]
    )
    return Endpoint(name=name, arn=arn, variants=tuple(variants))


def _container_of(stored: Mapping[str, Any]) -> Container:
    """JSON has no tuples."""
    return Container(**{**stored, "environ": tuple((name, value) for name, value in stored["environ"])})


def retain(old: Mapping[str, Any], new: dict[str, Any], excluded: set[str]) -> None:
    """RetainAllVariantProperties: what was set since, of variants that stay."""
    were = {variant["VariantName"]: variant for variant in old["Variants"]}
    for variant in new["Variants"]:
        before = were.get(variant["VariantName"], {})
        for property_type, field in (("DesiredWeight", "Weight"), ("DesiredInstanceCount", "InstanceCount")):
            if property_type not in excluded and field in before:
                variant[field] = before[field]
    if "DataCaptureConfig" not in excluded and "DataCaptureConfig" in old:
        new["DataCaptureConfig"] = old["DataCaptureConfig"]


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


def capture_summary(capture: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is captured here, and that is said."""
    return {
        "EnableCapture": capture.get("EnableCapture", False),
        "CaptureStatus": "Stopped",
        "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
        "DestinationS3Uri": capture["DestinationS3Uri"],
        "KmsKeyId": capture.get("KmsKeyId", ""),
    }
