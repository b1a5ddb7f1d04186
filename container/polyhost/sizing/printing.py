"""Tables on a terminal: by rich, where it is installed, else in plain text."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence

from polyhost.sizing.report import Table

_GAP = "  "
# Wide enough for every table; a cell is never cut.
_WIDTH = 200


def printed(tables: Sequence[Table]) -> str:
    draw = _rich if importlib.util.find_spec("rich") else plain
    return "\n\n".join(draw(table) for table in tables)


def plain(table: Table) -> str:
    widths = [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]
    lines = [table.title, _line(table.head, widths), _GAP.join("-" * width for width in widths)]
    return "\n".join([*lines, *(_line(row, widths) for row in table.rows)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return _GAP.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def _rich(table: Table) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title, title_justify="left", box=box.SIMPLE)
    for number, name in enumerate(table.head):
        drawn.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=_WIDTH, markup=False).print(drawn)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()
