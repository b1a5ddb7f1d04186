"""What comes of an operation of the control plane: an answer, or an error with AWS's code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from polyhost.endpoint.definitions import Endpoint
from polyhost.endpoint.transform.definitions import TransformJob


class HostingError(Exception):
    """An operation that was not done. `code` is AWS's."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


def invalid(message: str) -> HostingError:
    return HostingError("ValidationException", message)


def unknown_operation(operation: str, operations: Sequence[str]) -> HostingError:
    return HostingError(
        "UnknownOperationException",
        f"{operation[:100]} is not an operation of Polyhost, which serves models: it does not train. "
        f"Operations: {', '.join(operations)}.",
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """
    What is answered, and the endpoints that are otherwise now: None is gone.

    `job` is to be begun, the one named `stopped` is to be stopped.
    """

    answer: dict[str, Any]
    changed: Mapping[str, Endpoint | None] = dataclasses.field(default_factory=dict)
    job: TransformJob | None = None
    stopped: str = ""


def require_weight(weights: Mapping[str, float]) -> None:
    """One variant takes all, whatever its weight. Raises HostingError."""
    if len(weights) > 1 and not sum(weights.values()):
        raise invalid(f"The weights of all variants are 0: give one of {', '.join(weights)} a weight above 0.")
