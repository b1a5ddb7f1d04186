"""Expressions of PromQL, as far as a test needs to know them: which series they read, by which labels."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import ROOT
from prometheus_client.parser import text_string_to_metric_families

# Labels that Prometheus itself gives to what it scrapes.
OF_PROMETHEUS = frozenset({"job", "instance"})
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r"(?<![\w:])(?:\w+:)?(?:polyhost_\w+(?::\w+)?|up)(?![\w:(])")
_MATCHERS = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def series_of(expression: str) -> set[str]:
    return set(_NAME.findall(_STRING.sub('""', expression)))


def labels_of(expression: str) -> set[str]:
    """All that it selects or groups by."""
    bare = _STRING.sub('""', expression)
    matched = {re.split(r"[=!]", part)[0].strip() for text in _MATCHERS.findall(bare) for part in text.split(",")}
    grouped = {part.strip() for text in _GROUPING.findall(bare) for part in text.split(",")}
    return (matched | grouped) - {""}


def exposed(page: str) -> dict[str, set[str]]:
    """Each series of a page of /metrics with its labels."""
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def assert_known(expressions: Iterable[str], series: dict[str, set[str]]) -> None:
    for expression in expressions:
        names = series_of(expression)
        assert names, expression
        assert names <= set(series), f"{names - set(series)} in {expression}"
        known = OF_PROMETHEUS.union(*(series[name] for name in names))
        assert labels_of(expression) <= known, f"{labels_of(expression) - known} in {expression}"


def tool(name: str) -> str:
    """prometheus or promtool; where there is none the test is skipped, but not in CI."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:{Path(ROOT, '.venv', 'prometheus')}")
    if path is None and not os.environ.get("CI"):
        pytest.skip(f"there is no {name} (scripts/install-prometheus)")
    assert path is not None, f"there is no {name}: scripts/install-prometheus"
    return path
