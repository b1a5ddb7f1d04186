"""What is kept of an endpoint when its deployment has come to an end."""

from __future__ import annotations

from typing import Any

import pytest
from polyhost.endpoint.hosting.deployments import settled

NEW = {"Variants": ["new"]}
OLD = {"Variants": ["old"]}
NEVER_SERVED = {**OLD, "Status": "Creating"}
UPDATE = {**NEW, "Status": "Updating", "Before": OLD}
UPDATE_OF_NEVER_SERVED = {**NEW, "Status": "Updating", "Before": NEVER_SERVED}
WHY = {"FailureReason": "no room"}


@pytest.mark.parametrize(
    ("document", "failure", "expected"),
    [
        ({**NEW, "Status": "Creating"}, None, NEW),
        ({**NEW, "Status": "Creating"}, "no room", {**NEW, "Status": "Failed", **WHY}),
        (UPDATE, None, NEW),
        (UPDATE, "no room", {**OLD, **WHY}),
        (UPDATE_OF_NEVER_SERVED, None, NEW),
        (UPDATE_OF_NEVER_SERVED, "no room", {**OLD, "Status": "Failed", **WHY}),
        (NEW, None, None),
        (NEW, "no room", None),
        ({**NEW, "Status": "Failed", **WHY}, "no room", None),
    ],
)
def test_what_a_deployment_ends_in(
    document: dict[str, Any], failure: str | None, expected: dict[str, Any] | None
) -> None:
    given = dict(document)
    assert settled(document, failure) == expected
    assert document == given  # what was kept is not changed by looking at it
