"""The benchmark's own arithmetic: ratios, targets, and what is read from wrk."""

import dataclasses

import pytest

from benchmarks.load import figures_of
from benchmarks.parts import Sizes
from benchmarks.report import ROWS, Outcome, markdown, number, outcomes_of, ratio_words
from benchmarks.servers import BenchmarkFailed

TIMES, TO = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
WRK = 'Running 1s test\nJSON {"requests": 500, "secs": 2.0, "p50_ms": 1.5, "p99_ms": 9.0, "bad": %d, "broken": %d}\n'

SIZES = dataclasses.asdict(Sizes())


def results(**figures):
    """Of the part `throughput`: figures by measure and contender."""
    part = {
        "revision": "abc", "when": "2026-11-21 10:00 UTC", "quick": False, "busy_before_percent": 0.0,
        "failed": None, "notes": [], "sizes": SIZES, "figures": figures,
    }  # fmt: skip
    machine = {"cpu": "a CPU", "cores": "2", "memory": "24 GiB", "system": "Debian", "python": "3.11"}
    return {"machine": machine, "versions": {"wrk": "4.1"}, "parts": {"throughput": part}}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (9876.5, "9,880"),
        (102.4, "102"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.1234, "0.123"),
        (0.0042, "0.0042"),
    ],
)
def test_numbers_have_three_digits(value, words):
    assert number(value) == words


@pytest.mark.parametrize(
    ("ratio", "words"), [(8.13, f"8.13{TIMES}"), (1.0, f"1.00{TIMES}"), (1 / 640, "1/640"), (0.25, "1/4.00")]
)
def test_a_share_is_written_as_a_fraction(ratio, words):
    assert ratio_words(ratio) == words


def test_targets_are_held_against_medians():
    outcomes = outcomes_of(
        results(
            requests_per_sec={"mms": [900, 1000, 5000], "native": [24000, 25000, 30000]},
            p99_ms={"mms": [80, 80, 80], "native": [9, 1, 9]},
        ),
    )
    throughput, p99 = outcomes
    assert (throughput.ratio, throughput.is_met) == (25.0, True)
    assert (p99.ratio, p99.is_met) == (9 / 80, False)


def test_without_mms_nothing_is_claimed():
    (outcome,) = outcomes_of(results(requests_per_sec={"native": [8000]}))
    assert (outcome.ratio, outcome.is_met) == (None, None)


def test_the_table_has_a_line_for_each_measure():
    document = results(requests_per_sec={"mms": [900, 1100], "native": [9000, 9000]})
    text = markdown(document, outcomes_of(document))
    assert f"| 9,000 requests/s (9,000{TO}9,000) | 9.00{TIMES} | ≥ 25{TIMES} | **no** |" in text
    assert f"| 1,000 requests/s (900{TO}1,100) |" in text


def test_every_row_has_words():
    assert all("{" not in row.words.format(**SIZES) for row in ROWS)
    assert len({(row.part, row.measure) for row in ROWS}) == len(ROWS)


def test_what_wrk_tells():
    figures = figures_of(WRK % (0, 0))
    assert (figures.requests_per_sec, figures.p50_ms, figures.p99_ms) == (250.0, 1.5, 9.0)


@pytest.mark.parametrize("output", [WRK % (1, 0) + "BAD 503 busy\n", WRK % (0, 1), "unable to connect\n"])
def test_one_answer_that_is_no_200_fails_the_run(output):
    with pytest.raises(BenchmarkFailed):
        figures_of(output)


def test_the_example_of_a_bad_answer_is_told():
    with pytest.raises(BenchmarkFailed, match="1 were not a 200, for example 503 busy"):
        figures_of(WRK % (1, 0) + "BAD 503 busy\n")


@pytest.mark.parametrize(("others", "is_met"), [({"mms": 9, "fastapi2": 8}, True), ({"mms": 9, "fastapi2": 11}, False)])
def test_the_fastest_is_faster_than_each_of_the_others(others, is_met):
    row = next(row for row in ROWS if row.target is not None and row.target.over == "others")
    outcome = Outcome(row, row.words, {name: [of] for name, of in {**others, "native": 10}.items()}, is_quick=False)
    assert outcome.is_met is is_met
