"""
What follows an answer, once its client has it: a copy for a shadow variant, a record for data capture.

An endpoint that has neither has no followers, and its calls cost what they cost without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from polyhost.engine.protocol import Answer, Item
from polyhost.service_errors import ModelError

logger = logging.getLogger("polyhost.endpoint")


class Followed(NamedTuple):
    """A call that a model has answered. `item`: as its client sent it."""

    endpoint: str
    variant: str
    target: str
    item: Item
    outcome: Answer | ModelError


# Called on the event loop, and must not wait.
Follower = Callable[[Followed], None]


def follow(followers: tuple[Follower, ...], call: Followed) -> None:
    """Whatever comes of one of them, the call is over and the others follow."""
    for follower in followers:
        try:
            follower(call)
        except Exception:
            logger.exception("unexpected")
