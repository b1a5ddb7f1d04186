"""What the chaos and soak runs take for a fault: these would be silent if the judge were blind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from chaos import raw
from chaos.census import MIB, Census, kind_of, leftovers
from chaos.faults import FAULTS, Fault
from chaos.models import VERSIONS, fleet, is_value
from chaos.oracle import RIGHT, Sample, failures
from chaos.report import broken_promises, known_words, table
from chaos.run import Result, judged
from chaos.slopes import LIMITS, Series, trend
from chaos.slopes import table as slopes_table
from chaos.targets import REQUEST_SECS

QUIET = Census({"front": 1, "worker": 3}, (), 0, 40, 12, 2, 200 * MIB)
FAULT = Fault("a fault", lambda scene: None)
GOOD = Sample("data-0000", RIGHT, 0.0, 0.1)
FINE = Result("a fault", "Polyhost", recovery_secs=0.1, restart="right")


@pytest.mark.parametrize(
    ("body", "is_right"),
    [
        (b"[10001.0]", True),
        (b"10001", True),
        (b"[10002.0]", False),
        (b"[10001.0, 1]", False),
        (b"", False),
        (b"{}", False),
    ],
)
def test_only_the_models_own_constant_is_right(body: bytes, is_right: bool) -> None:
    assert is_value(body, frozenset({10001})) is is_right


def test_no_two_models_have_one_constant() -> None:
    models = [model for kind in ("data", "heavy", "unruly", "cold", "other") for model in fleet(kind, 1000)]
    values = [replace(model, version=version).value for model in models for version in range(VERSIONS)]
    assert len(set(values)) == len(values)
    assert max(values) < 2**24, "a float32 holds no larger whole numbers exactly"


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (QUIET, ""),
        (replace(QUIET, processes={"front": 1, "worker": 5}), ""),
        (replace(QUIET, processes={"front": 1, "worker": 6}), "3 more of the kind worker"),
        (replace(QUIET, processes={"worker": 3}), "1 fewer of the kind front"),
        (replace(QUIET, strangers=("sleep 600",)), "1 strange processes (sleep 600)"),
        (replace(QUIET, zombies=1), "1 zombies"),
        (replace(QUIET, descriptors=51), "11 more descriptors"),
        (replace(QUIET, sockets=30), "18 more sockets"),
        (replace(QUIET, temp_files=6), "4 more temporary files"),
        (replace(QUIET, memory_bytes=265 * MIB), "65 MiB more memory"),
    ],
)
def test_what_is_left_behind(after: Census, words: str) -> None:
    assert leftovers(QUIET, after) == ([words] if words else [])


@pytest.mark.parametrize(
    ("command", "is_child", "leads", "kind"),
    [
        ("python -m polyhost serve --port 1", False, True, "front"),
        ("python -m polyhost.artifacts.fetcher 5 6", True, False, "fetcher"),
        ("python -m polyhost.engine.native.template 5", True, True, "template"),
        ("python -m polyhost.engine.native.template 5", True, False, "worker"),
        ("python -m polyhost.engine.native.template 5", False, False, ""),
        ("/usr/bin/java -Dx", True, True, "java"),
        ("sleep 600", True, True, ""),
    ],
)
def test_what_a_process_is(command: str, is_child: bool, leads: bool, kind: str) -> None:
    assert kind_of(command, is_child, leads) == kind


@pytest.mark.parametrize(
    ("fault", "result", "samples", "words"),
    [
        (FAULT, FINE, [GOOD], ""),
        (FAULT, FINE, [GOOD, replace(GOOD, outcome="WRONG 7")], "answered WRONG 7"),
        (FAULT, FINE, [GOOD, replace(GOOD, secs=REQUEST_SECS + 1)], "was not answered within"),
        (FAULT, FINE, [GOOD, replace(GOOD, outcome="timeout")], "was not answered within"),
        (FAULT, FINE, [GOOD, replace(GOOD, outcome="503")], "1 requests to other models failed"),
        (FAULT, FINE, [GOOD, replace(GOOD, outcome="503", model="cold-0001")], ""),
        (replace(FAULT, spares_neighbours=False), FINE, [GOOD, replace(GOOD, outcome="503")], ""),
        (FAULT, FINE, [], "no request was answered right"),
        (FAULT, replace(FINE, recovery_secs=None), [GOOD], "not every model answers right within 10 s"),
        (FAULT, replace(FINE, leftovers=("1 zombies",)), [GOOD], "left behind: 1 zombies"),
        (FAULT, replace(FINE, restart="SIGKILL: data-0000: 404"), [GOOD], "after a restart: SIGKILL: data-0000: 404"),
    ],
)
def test_what_breaks_a_promise(fault: Fault, result: Result, samples: list[Sample], words: str) -> None:
    found = judged(fault, result, samples, samples)
    assert words in " ".join(found)
    assert bool(words) == bool(found)


def test_a_wrong_answer_is_no_failure_by_status() -> None:
    samples = [GOOD, replace(GOOD, outcome="WRONG 7"), replace(GOOD, outcome="503")]
    assert failures(samples) == Counter({"503": 1})


def test_the_table_has_a_line_for_each_fault_and_server() -> None:
    mms = replace(FINE, target="MMS", problems=("it is slow",), recovery_secs=None)
    lines = table([FINE, replace(FINE, fault="another", failed=Counter({"503": 2})), mms]).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["Polyhost", "MMS", "Polyhost"]
    assert "2 of 503" in lines[4]
    assert broken_promises([mms]) == []
    assert broken_promises([replace(mms, target="Polyhost")]) == ["a fault: it is slow"]


def test_the_short_form_has_a_fault_of_each_kind() -> None:
    short = {fault.name for fault in FAULTS if fault.is_short}
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for begin in ("kill -9", "model", "clients", "S3"):
        assert any(name.startswith(begin) for name in short)


def test_what_is_known_is_no_new_fault() -> None:
    assert known_words("a fault: left behind: 3 zombies", ["zombies"]) == "zombies"
    assert known_words("a fault: data-0000 answered WRONG 7", ["zombies"]) == ""


@pytest.mark.parametrize(
    ("received", "answers"),
    [
        (b"", []),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", [(200, b"ab")]),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na", [(200, b"a")]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 400 Bad Request\r\n\r\n", [(200, b"ab"), (400, b"")]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", []),
    ],
)
def test_answers_are_told_apart(received: bytes, answers: list[tuple[int, bytes]]) -> None:
    assert raw.parsed(received) == answers


# Slopes

_SECS = [float(second) for second in range(0, 1800, 5)]


def series(per_hour: float, *, spike: float = 0.0) -> Series:
    values = [100 + per_hour * second / 3600 + (spike if number == 300 else 0) for number, second in enumerate(_SECS)]
    return Series("memory", "the front", _SECS, values)


@pytest.mark.parametrize(
    ("per_hour", "spike", "is_leak"),
    [(0, 0, False), (30, 0, False), (60, 0, True), (170, 0, True), (0, 500, False), (-100, 0, False)],
)
def test_a_slope_is_a_leak_and_a_spike_is_none(per_hour: float, spike: float, is_leak: bool) -> None:
    found = trend(series(per_hour, spike=spike), warm_up_secs=300)
    assert found.per_hour == pytest.approx(per_hour, abs=1)
    assert found.is_leak is is_leak
    assert ("**leak**" in slopes_table([found])) is is_leak


def test_what_grows_during_the_warm_up_alone_is_no_leak() -> None:
    values = [min(second, 300.0) for second in _SECS]
    assert not trend(Series("memory", "the front", _SECS, values), warm_up_secs=300).is_leak


def test_noise_of_a_few_minutes_is_no_leak() -> None:
    """A slope as steep as any leak's, over a minute: it has grown by less than noise does."""
    secs = [float(second) for second in range(60)]
    found = trend(Series("memory", "the front", secs, [100 + second / 10 for second in secs]), warm_up_secs=0)
    assert found.per_hour > LIMITS["memory"].per_hour
    assert not found.is_leak


def test_a_leak_is_told_in_a_sentence() -> None:
    words = trend(series(170), warm_up_secs=300).sentence
    assert words.startswith("memory of the front grew from 1")
    assert words.endswith("170 MiB an hour; at most 40 MiB an hour are allowed")


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="2 samples after the warm-up are too few"):
        trend(Series("memory", "the front", [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]), warm_up_secs=2)
