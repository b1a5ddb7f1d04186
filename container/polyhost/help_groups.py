"""Help whose options, or commands, stand below headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

_REST = "More"


class GroupedCommand(click.Command):
    """`groups`: the names of the parameters below each heading."""

    def __init__(self, *names: Any, groups: Mapping[str, Sequence[str]], **how: Any) -> None:
        super().__init__(*names, **how)
        self._groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        records = {str(one.name): record for one in shown if (record := one.get_help_record(ctx))}
        _write(formatter, self._groups, records)


class GroupedCommands(click.Group):
    """`groups`: the names of the commands below each heading."""

    def __init__(self, *names: Any, groups: Mapping[str, Sequence[str]], **how: Any) -> None:
        super().__init__(*names, **how)
        self._groups = groups

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        width = formatter.width - 6 - max(map(len, self.commands))
        _write(formatter, self._groups, {
            name: (name, one.get_short_help_str(width)) for name, one in self.commands.items()
        })  # fmt: skip


def _write(
    formatter: click.HelpFormatter, groups: Mapping[str, Sequence[str]], records: Mapping[str, tuple[str, str]]
) -> None:
    grouped = {name for names in groups.values() for name in names}
    rest = [name for name in records if name not in grouped]
    for heading, names in {**groups, _REST: rest}.items():
        if rows := [records[name] for name in names if name in records]:
            with formatter.section(heading):
                formatter.write_dl(rows)
