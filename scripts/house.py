"""
The house: which rooms the code has, on which floor each is, and what it imports: `python scripts/house.py`.

Prints the page's part as Markdown; `--write` puts it into ARCHITECTURE.md and draws docs/pictures/house.svg. A room
imports from rooms of its own floor and of floors below. An arrow that climbs is an error.
"""

from __future__ import annotations

import argparse
import ast
import functools
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
PICTURE = ROOT / "docs" / "pictures" / "house.svg"
BEGIN, END = "<!-- the house: scripts/house.py --write -->", "<!-- end of the house -->"
SOURCES = {
    "polyhost": ROOT / "container" / "polyhost",
    "polyhost_aws": ROOT / "aws" / "polyhost_aws",
    "polyhost_handlers": ROOT / "handlers" / "polyhost_handlers",
}

# From the street to the cellar: what each floor is for, and its rooms. A module at the top of the package is a room.
FLOORS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "commands": (
        "what a user starts; here the parts of a server are put together",
        (
            "__main__", "cli", "help_groups", "greeting", "demo", "server", "endpoint_server", "key_command", "mms_command", "fronts",
            "environments", "fleet", "sizing", "notebook", "testing", "polyhost_aws",
        ),
    ),
    "api": ("HTTP: the protocol, the routes, what each of them answers", ("api",)),
    "endpoint": ("endpoints as SageMaker has them: definitions, access, the model cache, metrics", ("endpoint",)),
    "engine": ("models in processes: the native engine, and Multi Model Server", ("engine", "metrics", "plan")),
    "artifacts": (
        "archives: fetched, unpacked, kept on disk",
        ("artifacts", "unpacking", "submit_directory"),
    ),
    "ground": (
        "what every floor stands on",
        (
            "archives", "certificate", "config", "environment", "errors", "framing", "http_limits", "interpreters", "limits",
            "line_writer", "log", "memory", "mms_properties", "processes", "readiness", "service_errors", "settings_changes", "settings_file",
            "system", "tasks", "temporary", "trees",
        ),
    ),
    "handlers": ("one module for each framework; it knows neither HTTP nor the server", ("polyhost_handlers",)),
}  # fmt: skip
# Imports that climb, and why each may.
EXCEPTIONS = {
    ("polyhost_handlers", "memory"): "inside a function: a handler asks the guard only where our server runs it",
}
# The picture, in pixels and characters.
_MARGIN, _WIDTH, _CHARS = 16, 640, 92
_SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif">
<title>The floors of the code, and which floors each imports from</title>
<style>
.floor {{ fill: #eef3f8; stroke: #35607f }} .name {{ font-size: 15px; font-weight: bold; fill: #1d3a4f }}
.rooms {{ font-size: 12px; fill: #333 }} .line {{ fill: none; stroke: #35607f }} .dot {{ fill: #35607f }}
</style>
<rect width="100%" height="100%" fill="#fff"/>"""
_HEIGHT = {room: height for height, (_, rooms) in enumerate(FLOORS.values()) for room in rooms}


def room_of(module: str) -> str:
    """`polyhost.endpoint.cache` is of `endpoint`, `polyhost.memory` of `memory`. Another package is a room."""
    package, _, rest = module.partition(".")
    return package if package != "polyhost" else rest.partition(".")[0] or "__init__"


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in SOURCES.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [part for part in file.relative_to(folder).with_suffix("").parts if part != "__init__"]
            yield ".".join((package, *parts)), file


@functools.cache
def imported_by(file: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return tuple(names)


def arrows() -> dict[tuple[str, str], set[str]]:
    """From room to room, with the modules that draw each arrow."""
    found = defaultdict(set)
    for module, file in modules():
        for name in imported_by(file):
            if name.partition(".")[0] in SOURCES and room_of(name) not in (room_of(module), "__init__"):
                found[room_of(module), room_of(name)].add(module)
    return found


def unknown_rooms() -> set[str]:
    return {room_of(module) for module, _ in modules()} - _HEIGHT.keys() - {"__init__"}


def climbing() -> list[str]:
    """A sentence for each arrow that leads up."""
    return [
        f"{', '.join(sorted(by))}: {start} imports {end}, which is on a floor above"
        for (start, end), by in sorted(arrows().items())
        if _HEIGHT[end] < _HEIGHT[start] and (start, end) not in EXCEPTIONS
    ]


def below() -> dict[str, list[str]]:
    """Which floors each floor imports from, from the top."""
    floor_of = {room: floor for floor, (_, rooms) in FLOORS.items() for room in rooms}
    found = {(floor_of[start], floor_of[end]) for start, end in arrows()}
    return {floor: [one for one in FLOORS if one != floor and (floor, one) in found] for floor in FLOORS}


def page() -> str:
    """The floors as a table: their rooms, and which floors below each imports from."""
    rows = ["| floor | what it is for | rooms | imports from |", "| --- | --- | --- | --- |"]
    imports = below()
    for floor, (purpose, rooms) in FLOORS.items():
        named = ", ".join(f"`{room}`" for room in rooms)
        rows.append(f"| **{floor}** | {purpose} | {named} | {', '.join(imports[floor]) or 'nothing of ours'} |")
    return "\n".join(rows)


def picture() -> str:
    """
    The floors as bands, the street above. To the right each floor has a line down to the floors that it imports from,
    which have a dot on it.
    """
    imports, names = below(), list(FLOORS)
    tops, height = {}, _MARGIN
    shapes: list[str] = []
    for floor, (_, rooms) in FLOORS.items():
        lines = textwrap.wrap(" · ".join(rooms), _CHARS)
        tops[floor] = height
        deep = 34 + 17 * len(lines)
        shapes.append(f'<rect x="{_MARGIN}" y="{height}" width="{_WIDTH}" height="{deep}" rx="6" class="floor"/>')
        shapes.append(f'<text x="{_MARGIN + 12}" y="{height + 20}" class="name">{floor}</text>')
        for number, line in enumerate(lines):
            shapes.append(f'<text x="{_MARGIN + 12}" y="{height + 40 + 17 * number}" class="rooms">{line}</text>')
        height += deep + 10
    for number, floor in enumerate(names):
        across, ends = _MARGIN + _WIDTH + 24 + 20 * number, [tops[one] + 16 for one in imports[floor]]
        if ends:
            shapes.append(f'<path d="M{_MARGIN + _WIDTH} {tops[floor] + 16} H{across} V{max(ends)}" class="line"/>')
        shapes += [f'<path d="M{across} {end} H{_MARGIN + _WIDTH}" class="line"/>' for end in ends]
        shapes += [f'<circle cx="{_MARGIN + _WIDTH}" cy="{end}" r="4" class="dot"/>' for end in ends]
    width = _MARGIN * 2 + _WIDTH + 24 + 20 * len(names)
    return "\n".join([_SVG.format(width=width, height=height), *shapes, "</svg>", ""])


def written() -> str:
    """ARCHITECTURE.md with the part as it should be."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{page()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into ARCHITECTURE.md, and draw it")
    if parser.parse_args().write:
        PAGE.write_text(written())
        PICTURE.write_text(picture())
    else:
        print(page())
    if problems := [*climbing(), *(f"no floor has the room {room}" for room in sorted(unknown_rooms()))]:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
