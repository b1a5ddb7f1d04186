"""
Faults under load, one after the other: `make chaos`.

Ends with a table, and with exit code 1 where Polyhost did not keep what it promises.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import psutil

from benchmarks.keeper import become_subreaper, kill_descendants
from chaos import census
from chaos.faults import FAULTS, KNOWN, SABOTAGES
from chaos.report import broken_promises, known_words, line, table
from chaos.run import LEFTOVERS_GONE_WITHIN_SECS, Result, Runner
from chaos.store import failing_store


@click.command()
@click.option("--short", is_flag=True, help="Try a few faults, within a minute, and leave MMS out.")
@click.option("--seed", type=int, default=None, help="Of victims, calls and kills.  [default: the time]")
@click.option("--only", multiple=True, metavar="TEXT", help="Try faults with this in their name; may be given again.")
@click.option("--mms/--no-mms", default=True, show_default=True, help="Try the real MMS, too.")
@click.option("--polyhost/--no-polyhost", default=True, show_default=True, help="Try Polyhost.")
@click.option("--max-secs", type=float, default=600.0, show_default=True, help="Skip what is left after this time.")
@click.option("--self-test", is_flag=True, help="Break what is judged on purpose, and fail if that is not noticed.")
@click.option("--out", type=click.Path(path_type=Path), help="File for the table, Markdown.")
def main(
    seed: int | None, only: tuple[str, ...], max_secs: float, out: Path | None, *, short: bool, mms: bool,
    polyhost: bool, self_test: bool,
) -> None:  # fmt: skip
    """Make faults under load, and fail where an answer is wrong or late, or something is left behind."""
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    seed = int(time.time()) if seed is None else seed
    chosen = [one for one in FAULTS if (one.is_short or not short) and (not only or any(t in one.name for t in only))]
    if self_test:
        chosen, mms = [fault for fault, _ in SABOTAGES], False
    click.echo(f"Seed {seed}: --seed {seed} chooses the same victims and calls again. {len(chosen)} faults.")
    begun = time.monotonic()
    results: list[Result] = []
    try:
        with failing_store() as store:
            census.own_children.update(child.pid for child in psutil.Process().children())
            # A process that a self-test has left does not go, however long it is waited for.
            runner = Runner(store, seed, max_secs, _say, 5.0 if self_test else LEFTOVERS_GONE_WITHIN_SECS)
            if polyhost:
                results += runner.on_polyhost(chosen)
            if mms and not short:
                results += runner.on_mms(chosen)
    finally:
        kill_descendants()
    text = table(results)
    click.echo(f"\n{text}\n\n{time.monotonic() - begun:.0f} s.")
    if out:
        out.write_text(f"{text}\n")
    sys.exit(_self_tested(results) if self_test else _judged(results))


def _judged(results: Sequence[Result]) -> int:
    """The exit code."""
    sentences = broken_promises(results)
    new = [sentence for sentence in sentences if not known_words(sentence, KNOWN)]
    for words in dict.fromkeys(known_words(sentence, KNOWN) for sentence in sentences if sentence not in new):
        click.echo(f"* known: {words}: {KNOWN[words]}")
    for sentence in new:
        click.echo(f"* {sentence}")
    return 1 if new else 0


def _self_tested(results: Sequence[Result]) -> int:
    """The exit code: 0 where every sabotage was noticed."""
    code = 0
    for result, (_, words) in zip(results, SABOTAGES, strict=True):
        is_noticed = any(words in problem for problem in result.problems)
        code |= not is_noticed
        click.echo(f"* {result.fault}: {'noticed' if is_noticed else 'not noticed: this suite is blind to it'}")
    return int(code)


def _say(result: Result) -> None:
    """A line at once: a long run that says nothing looks like one that hangs."""
    click.echo(line(result))
    for problem in result.problems:
        click.echo(f"    {problem}")


if __name__ == "__main__":
    main()
