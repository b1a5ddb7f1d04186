"""How far a command is: bars and spinners in a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import click

# Between lines about what is under way, where the output is not a terminal.
_LINE_SECS = 30


class Progress(Protocol):
    def say(self, text: str) -> None:
        """Something is done."""

    def waiting(self, what: str) -> contextlib.AbstractContextManager[Callable[[str], None]]:
        """The function is told how things stand, as often as one likes."""

    def transfer(self, what: str) -> contextlib.AbstractContextManager[Callable[[int, int], None]]:
        """The function is told the bytes that are done, and all that there are."""


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def progress() -> Progress:
    if not _is_terminal():
        return Lines()
    try:
        return Terminal()
    except ImportError:
        lines = Lines()
        lines.say("(pip install 'polyhost[aws]' shows progress bars here)")
        return lines


class Lines:
    """A line when something changes, and now and then."""

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[str], None]]:
        begin = said_at = time.monotonic()
        before = ""

        def show(state: str) -> None:
            nonlocal said_at, before
            now = time.monotonic()
            if state != before or now - said_at >= _LINE_SECS:
                self.say(f"{what}: {state} ({now - begin:.0f} s)")
                before, said_at = state, now

        yield show

    @contextlib.contextmanager
    def transfer(self, what: str) -> Iterator[Callable[[int, int], None]]:
        said_at = time.monotonic()

        def show(done_bytes: int, all_bytes: int) -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= _LINE_SECS:
                self.say(f"{what}: {in_words(done_bytes)} of {in_words(all_bytes)}")
                said_at = time.monotonic()

        self.say(what)
        yield show


class Terminal:
    """Raises ImportError where rich is not installed."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[str], None]]:
        from rich.progress import Progress as Bars
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        with Bars(*columns, console=self._console) as bars:
            task = bars.add_task(what, total=None)
            yield lambda state: bars.update(task, description=f"{what}: {state}")

    @contextlib.contextmanager
    def transfer(self, what: str) -> Iterator[Callable[[int, int], None]]:
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self._console) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done_bytes, all_bytes: bars.update(task, completed=done_bytes, total=all_bytes)


def in_words(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
