"""Which models were asked for, in order: from a server's access log, or a file with one target a line."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

# As polyhost.access writes them (docs/metrics.md); a quoted name is JSON's.
_TEXT_LINE = re.compile(r'^(?P<time>\S+ \S+) .* polyhost\.access - .* target=(?P<target>"(?:[^"\\]|\\.)*"|\S+) ')
_OTHER_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \[")


@dataclass(frozen=True)
class Trace:
    """`unknown`: requests for models that the source has not. `requests_per_sec`: None where there were no times."""

    targets: tuple[str, ...]
    unknown: int = 0
    requests_per_sec: float | None = None


def parse_trace(lines: Iterable[str], keys: Collection[str]) -> Trace:
    """The requests for `keys`. Raises ValueError if there are none."""
    known = frozenset(keys)
    asked = [found for line in lines if (found := _request(line)) is not None]
    targets = tuple(target for target, _ in asked if target in known)
    if not targets:
        raise ValueError(
            "it names no model of the source: it must be an access log of Polyhost's, or have one target a line",
        )
    moments = sorted(moment for target, moment in asked if moment is not None and target in known)
    secs = (moments[-1] - moments[0]).total_seconds() if moments else 0.0
    return Trace(targets, len(asked) - len(targets), (len(moments) - 1) / secs if secs > 0 else None)


def _request(line: str) -> tuple[str, dt.datetime | None] | None:
    """The target, and when; None for a line that is no request for a target."""
    line = line.strip()
    if not line:
        return None
    if line.startswith("{"):
        return _json_request(line)
    if match := _TEXT_LINE.match(line):
        target = match["target"]
        target = json.loads(target) if target.startswith('"') else target
        return None if target == "-" else (target, _moment(match["time"].replace(",", ".")))
    return None if _OTHER_LOG_LINE.match(line) else (line, None)


def _json_request(line: str) -> tuple[str, dt.datetime | None] | None:
    try:
        document = json.loads(line)
    except ValueError:
        return None
    if not isinstance(document, dict) or not isinstance(target := document.get("target"), str) or not target:
        return None
    return target, _moment(str(document.get("time", "")))


def _moment(text: str) -> dt.datetime | None:
    try:
        # All of one log are of one zone; only differences count.
        return dt.datetime.fromisoformat(text.replace("Z", "")).replace(tzinfo=None)
    except ValueError:
        return None
