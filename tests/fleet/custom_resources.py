"""What the schemas of custom resources say of a document: Kubernetes itself has none of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

_FILE = Path(__file__).parent / "custom_resources.json"


def kind_of(document: dict[str, Any]) -> str:
    return f"{document['apiVersion']}/{document['kind']}"


def is_custom(document: dict[str, Any]) -> bool:
    return kind_of(document) in _schemas()


def problems_of(kind: str, document: dict[str, Any]) -> list[str]:
    """Each with the path of what is wrong. Fields that the schema does not have are wrong."""
    return [f"{error.json_path}: {error.message}" for error in _validator(kind).iter_errors(document)]


@cache
def _schemas() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(_FILE.read_text())
    return read


@cache
def _validator(kind: str) -> jsonschema.protocols.Validator:
    return jsonschema.Draft7Validator(_schemas()[kind])
