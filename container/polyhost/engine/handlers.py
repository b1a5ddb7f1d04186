"""How a handler is named to an engine."""

from __future__ import annotations

from polyhost_handlers.artifacts import kind_named


def handler_spec(handler: str) -> str:
    """What MMS is told: `auto` is `polyhost_handlers.auto:handle`, a module:function stays as it is."""
    if handler == "auto":
        return "polyhost_handlers.auto:handle"
    kind = kind_named(handler)
    return kind.handler_spec if kind else handler
