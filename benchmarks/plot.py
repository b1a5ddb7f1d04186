"""The picture: native beside MMS, as throughput, load time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from benchmarks.report import Outcome, machine_of, number, ratio_words, when_of

# Width in inches and dots per inch: 1800 pixels, shown at half of that.
_WIDTH, _DPI = 9.0, 200
_COLORS = {"mms": "#9aa5b1", "mlserver": "#d9b36c", "native": "#1f6fb2"}
_TITLES = {"mms": "Multi Model Server", "mlserver": "MLServer", "native": "Polyhost native"}
_INK = "#22303c"

# Panel: title, whether more is better, whether the axis is logarithmic, rows as (part, measure, words).
_PANELS = (
    ("Throughput, per second", "more is better; bold: native, and its ratio to MMS", False, (
        ("throughput", "requests_per_sec", "20 XGBoost models\n16 connections"),
    )),
    ("Latency, ms", "less is better, log scale", True, (
        ("throughput", "p99_ms", "p99 at\n16 connections"),
        ("throughput", "p50_one_connection_ms", "p50 at\n1 connection"),
    )),
    ("Load to first answer, ms", "less is better, log scale", True, (
        ("load", "shared_ms", "XGBoost\n(shared worker)"),
        ("load", "dedicated_ms", "own handler\n(own process)"),
    )),
    ("Memory per model, MiB", "less is better, log scale", True, (
        ("memory", "shared_mib", "XGBoost\n(shared worker)"),
        ("memory", "dedicated_mib", "own handler\n(own process)"),
    )),
)  # fmt: skip


def draw(outcomes: Sequence[Outcome], results: Mapping[str, Any], path: Path) -> None:
    """Panels for which there are no figures say so."""
    by_measure = {(outcome.row.part, outcome.row.measure): outcome for outcome in outcomes}
    shown = [name for name in _COLORS if any(outcome.figures.get(name) for outcome in outcomes)]
    mpl.rcParams.update({"font.size": 9, "text.color": _INK, "axes.labelcolor": _INK, "xtick.color": _INK})
    figure, grid = plt.subplots(2, 2, figsize=(_WIDTH, 6.6), facecolor="white")
    for axes, (title, hint, is_log, rows) in zip(grid.flat, _PANELS, strict=True):
        found = [(words, by_measure[part, measure]) for part, measure, words in rows if (part, measure) in by_measure]
        _draw_panel(axes, found, shown, is_log=is_log)
        axes.set_title(title, loc="left", fontweight="bold", fontsize=11, pad=16)
        axes.text(0, 1.02, hint, transform=axes.transAxes, fontsize=8, color="#5b6875")
    handles = [Patch(color=_COLORS[name]) for name in shown]
    figure.legend(
        handles, [_TITLES[name] for name in shown], loc="upper center", ncols=len(shown), frameon=False, fontsize=10,
    )  # fmt: skip
    figure.text(0.5, 0.012, f"{when_of(results)} · {machine_of(results)}", ha="center", fontsize=7.5, color="#5b6875")
    figure.tight_layout(rect=(0, 0.03, 1, 0.95), h_pad=2.2, w_pad=2.5)
    figure.savefig(path, dpi=_DPI, facecolor="white")
    plt.close(figure)


def _draw_panel(axes: Axes, found: Sequence[tuple[str, Outcome]], shown: Sequence[str], *, is_log: bool) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0)
    if not found:
        axes.set_xticks([])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#5b6875")
        return
    width = 0.8 / len(shown)
    for place, (_, outcome) in enumerate(found):
        present = [name for name in shown if outcome.median(name) is not None]
        for index, name in enumerate(present):
            _draw_bar(axes, outcome, name, place + (index - (len(present) - 1) / 2) * width, width * 0.9)
    if is_log:
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_yticks([])
    low, high = _limits([outcome for _, outcome in found], is_log=is_log)
    axes.set_ylim(low, high)
    axes.set_xlim(-0.6, len(found) - 0.4)
    axes.set_xticks(range(len(found)), [words for words, _ in found])


def _draw_bar(axes: Axes, outcome: Outcome, name: str, x: float, width: float) -> None:
    """A bar at the median, a line from the least to the most, the median above; native's with its ratio to MMS."""
    figures, median = outcome.figures[name], outcome.median(name) or 0.0
    axes.bar(x, median, width, color=_COLORS[name])
    axes.vlines(x, min(figures), max(figures), color=_INK, linewidth=0.8)
    words = number(median)
    is_bold = name == "native" and outcome.ratio is not None
    if is_bold and outcome.ratio is not None:
        words += f"\n{ratio_words(outcome.ratio)}"
    axes.annotate(
        words, (x, max(figures)), xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=9,
        fontweight="bold" if is_bold else "normal",
    )  # fmt: skip


def _limits(outcomes: Sequence[Outcome], *, is_log: bool) -> tuple[float, float]:
    """Room above for the words; on a log scale a foot below the least bar."""
    figures = [figure for outcome in outcomes for several in outcome.figures.values() for figure in several]
    if not is_log:
        return 0.0, max(figures) * 1.25
    low, high = min(figures), max(figures)
    return low / 4, high * (high / low) ** 0.3 * 1.5
