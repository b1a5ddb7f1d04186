"""The table, fault by fault: Polyhost, and the real MMS under the same fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from chaos.run import Result

_HEAD = (
    "| fault | server | requests | wrong | failed | slowest | recovery | left behind | restart on the same state |",
    "| --- | --- | ---: | ---: | --- | ---: | ---: | --- | --- |",
)


def table(results: Sequence[Result]) -> str:
    """In Markdown, each fault's lines together."""
    order = {name: place for place, name in enumerate(dict.fromkeys(one.fault for one in results))}
    rows = sorted(results, key=lambda one: order[one.fault])
    return "\n".join([*_HEAD, *map(line, rows)])


def line(result: Result) -> str:
    if result.skipped:
        return f"| {result.fault} | {result.target} | skipped: {result.skipped} | | | | | | |"
    recovery = "never" if result.recovery_secs is None else f"{result.recovery_secs:.1f} s"
    cells = [
        result.fault, result.target, str(result.requests), str(result.wrong), _by_status(result.failed or Counter()),
        f"{result.slowest_secs:.1f} s", recovery, "; ".join(result.leftovers) or "nothing", result.restart,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def broken_promises(results: Sequence[Result]) -> list[str]:
    """Of Polyhost alone: MMS has promised nothing."""
    return [f"{one.fault}: {problem}" for one in results if one.target != "MMS" for problem in one.problems]


def known_words(sentence: str, known: Iterable[str]) -> str:
    """The words by which a broken promise is known already; empty for a new one."""
    return next((words for words in known if words in sentence), "")


def _by_status(failed: Counter[str]) -> str:
    return ", ".join(f"{count} of {status}" for status, count in failed.most_common()) or "none"
