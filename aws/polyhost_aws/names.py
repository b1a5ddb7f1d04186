"""What the things of a deployment are called, and by what they are found again. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from polyhost.errors import InvalidSetting

# On the endpoint, its configurations and its models: the deployment's name.
TAG = "polyhost:deployment"

_HASH_CHARS = 10
# AWS takes 63 characters; models and configurations have the deployment's name, a hyphen and a hash.
_MOST_NAME_CHARS = 63 - 1 - _HASH_CHARS
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")


def check_name(name: str) -> None:
    """Raises InvalidSetting."""
    if not _NAME.fullmatch(name) or len(name) > _MOST_NAME_CHARS:
        raise InvalidSetting(
            f"'{name}' cannot be the name of a deployment: use letters, digits and hyphens between them, "
            f"{_MOST_NAME_CHARS} characters at most."
        )


def content_name(deployment: str, content: Mapping[str, Any]) -> str:
    """The same content has the same name: what has been made already is not made again."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"{deployment}-{hashlib.sha256(canonical.encode()).hexdigest()[:_HASH_CHARS]}"


def is_content_name(deployment: str, name: str) -> bool:
    return re.fullmatch(rf"{re.escape(deployment)}-[0-9a-f]{{{_HASH_CHARS}}}", name) is not None


def tags(deployment: str) -> list[dict[str, str]]:
    return [{"Key": TAG, "Value": deployment}]


def policy_name(deployment: str, variant: str) -> str:
    return f"polyhost-{deployment}-{variant}"


def scaled_prefix(deployment: str) -> str:
    return f"endpoint/{deployment}/variant/"
