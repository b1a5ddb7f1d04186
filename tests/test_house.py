"""The house: no arrow climbs, every room has its floor, ARCHITECTURE.md shows it as it is, and its parts are small."""

from __future__ import annotations

import ast
import importlib.util
import re
import statistics
from collections.abc import Iterator
from types import ModuleType

import pytest
from conftest import ROOT

PYPROJECT = ROOT / "pyproject.toml"
PACKAGES = (("container", "polyhost"), ("aws", "polyhost_aws"), ("handlers", "polyhost_handlers"))
_MOST_LINES_OF_A_CLASS = 250


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "scripts" / "house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_arrow_climbs(house: ModuleType) -> None:
    assert house.climbing() == []


def test_an_arrow_that_climbs_is_found(house: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "arrows", lambda: {("engine", "api"): {"polyhost.engine.protocol"}})

    assert house.climbing() == ["polyhost.engine.protocol: engine imports api, which is on a floor above"]


def test_exceptions_are_needed(house: ModuleType) -> None:
    assert house.EXCEPTIONS.keys() <= house.arrows().keys()


def test_no_part_of_a_server_imports_the_commands_for_aws(house: ModuleType) -> None:
    """The fleet's commands sign their requests as those do."""
    assert {room for room, other in house.arrows() if other == "polyhost_aws"} == {"cli", "fleet"}
    assert {room for room, other in house.arrows() if other == "fleet"} == {"cli"}


def test_every_room_has_a_floor_and_every_floor_its_rooms(house: ModuleType) -> None:
    rooms = {house.room_of(module) for module, _ in house.modules()} - {"__init__"}

    assert {room for _, rooms in house.FLOORS.values() for room in rooms} == rooms


def test_the_page_shows_the_house(house: ModuleType) -> None:
    """Otherwise: `python scripts/house.py --write`."""
    assert house.PAGE.read_text() == house.written()
    assert house.PICTURE.read_text() == house.picture()


def test_the_files_that_the_page_names_are_there(house: ModuleType) -> None:
    """By the end of their paths: relative to the package, or to the folder of the file named before."""
    page = house.PAGE.read_text()
    named = set(re.findall(r"`([\w/]+\.py)`", page))
    files = [str(file.relative_to(folder.parent)) for folder in house.SOURCES.values() for file in folder.rglob("*.py")]

    assert len(named) > 25
    assert {name for name in named if not any(file.endswith(name) for file in files)} == set()


def test_functions_are_short(house: ModuleType) -> None:
    """Half of them have 8 lines at most, nine of ten have 25."""
    lines = [_lines_of(node) for node in _definitions(house, ast.FunctionDef, ast.AsyncFunctionDef)]

    assert statistics.median(lines) <= 8
    assert statistics.quantiles(lines, n=10)[-1] <= 25


def test_classes_are_short(house: ModuleType) -> None:
    """A class that is longer has more than one piece of state to own."""
    long = {
        node.name: _lines_of(node)
        for node in _definitions(house, ast.ClassDef)
        if _lines_of(node) > _MOST_LINES_OF_A_CLASS
    }

    assert not long


def _definitions(house: ModuleType, *kinds: type[ast.stmt]) -> Iterator[ast.stmt]:
    for _, file in house.modules():
        yield from (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds))


def _lines_of(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_every_room_is_in_the_wheel() -> None:
    """A checkout finds a room that the wheel lacks, so that nobody notices before it is installed."""
    listed = set(
        re.findall(r'"(polyhost[\w.]*)"', PYPROJECT.read_text().partition("packages = [")[2].partition("]")[0])
    )
    sources = [(ROOT / folder, package) for folder, package in PACKAGES]
    rooms = {
        str(file.parent.relative_to(source)).replace("/", ".")
        for source, package in sources
        for file in (source / package).rglob("__init__.py")
    }

    assert listed == rooms
