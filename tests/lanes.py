"""
Which tests run side by side, which stay together, and which need no process at all.

`make test` runs on several workers of pytest-xdist. Tests of one group run in one worker, one after the other, so that
what they share is started once. What takes long begins first, so that no worker is left alone with it at the end.
"""

from __future__ import annotations

import functools
import re
import subprocess
from types import ModuleType

import pytest
from moto.server import ThreadedMotoServer
from support.control_plane import control_plane_in
from support.endpoint import EndpointServer
from support.forms import by_form, examples
from support.server import Process, Server
from xdist.scheduler import LoadScopeScheduling

from benchmarks.attacks import under

ENGINES = ("mms", "native")

# A test that uses one of these fixtures starts a process or a server, or shares one.
_STARTING_FIXTURES = {
    "bucket", "cloud", "fleet", "fonts", "home", "page", "s3", "s3_url", "samples", "server", "servers", "start",
    "start_fleet",
}  # fmt: skip
# A test file that can name one of these may start a process.
_STARTING_NAMES = (control_plane_in, EndpointServer, Process, Server, ThreadedMotoServer, subprocess, under)
# Each test of these files starts its own server: nothing is shared, so each is a group of its own.
_APART = {"server/test_serve.py", "server/test_memory.py", "notebooks/test_notebooks.py"}
# Folders and files by how long their longest group takes, longest first. The rest follows in pytest's order.
_LONGEST_FIRST = (
    "contract", "endpoint/test_dashboard.py", "native", "notebooks", "endpoint/test_pipelines.py", "server", "loadtest",
    "endpoint/test_artifacts.py", "sizing/test_size.py", "endpoint", "aws", "deploy",
)  # fmt: skip


def is_pure(item: pytest.Item) -> bool:
    """Whether a test needs no process but its own: `make test FAST=1` runs these."""
    if _STARTING_FIXTURES & set(getattr(item, "fixturenames", ())):
        return False
    return not _names(item, _STARTING_NAMES)


def has_long_form(item: pytest.Item) -> bool:
    """Whether the test has a long form, or no other: `make test LONG=1` runs these."""
    return item.get_closest_marker("second_stage") is not None or _names(item, (by_form, examples))


def _names(item: pytest.Item, things: tuple[object, ...]) -> bool:
    """Whether the test's file has imported one of these."""
    return _module_names(getattr(item, "module", None), things)


@functools.cache
def _module_names(module: ModuleType, things: tuple[object, ...]) -> bool:
    return any(value is thing for value in vars(module).values() for thing in things)


def group_of(nodeid: str) -> str:
    """
    The tests that stay together: those of a file, and of an engine where the file is asked of several.

    A test that shares nothing is a group of its own.
    """
    file = nodeid.partition("::")[0].removeprefix("tests/")
    if file in _APART:
        return nodeid
    engine = re.search(rf"\[({'|'.join(ENGINES)})[-\]]", nodeid)
    return f"{file}-{engine[1]}" if engine else file


def place_of(item: pytest.Item) -> int:
    """Its group's place in the order of starts."""
    file = item.nodeid.removeprefix("tests/")
    return next((n for n, start in enumerate(_LONGEST_FIRST) if file.startswith(start)), len(_LONGEST_FIRST))


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """
    Gives whole groups to xdist's workers.

    xdist's own `loadgroup` writes groups into the tests' ids, which pytest 9.2 no longer lets it do.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
