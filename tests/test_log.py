"""A line of the log is what it seems to be, whatever clients and scripts write."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from polyhost.log import formatter_for

FORGED = "2026-01-01 00:00:00,000 [INFO ] polyhost - forged"

# A server that measures, and a customer's script that prints what a client has sent.
PROGRAM = """
import asyncio, logging, subprocess, sys
from polyhost.endpoint.events import CallAnswered
from polyhost.endpoint.measures import Measures, access_log
from polyhost.log import configure_server, every_line_as_json

log_call = access_log("json", configure_server("json"))
with every_line_as_json():
    measures = Measures(emf_namespace="Polyhost")
    call = CallAnswered("id", "polyhost", "AllTraffic", sys.argv[1], 200, 1, 1, 0.2, 0.1, True)
    log_call(call)
    measures.invocation(call)
    subprocess.run([sys.executable, "-c", "import sys; print(sys.argv[1])", sys.argv[1]], check=True)
    measures.forget_endpoint("polyhost")
    logging.getLogger("polyhost").info("caf\\u00e9: %s", "fine")
"""


def record(message: str, *args: object, exc_info: object = None) -> logging.LogRecord:
    return logging.LogRecord("polyhost", logging.INFO, "", 0, message, args, exc_info)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", ["\n", "\r", "\r\n", "\x0b", "\x85", "\u2028", "\x1b[1A\x1b[2K"])
def test_a_message_in_text_is_one_line(ending: str) -> None:
    """Names in messages are clients' words."""
    text = formatter_for("text").format(record("model %s loaded", f"a{ending}{FORGED}"))

    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert text.endswith(f"{FORGED} loaded")


def test_a_traceback_in_text_is_indented() -> None:
    """So that no line of it looks like one of ours, whatever the exception says; tabs are left alone."""
    try:
        raise ValueError(f"bad\n{FORGED}")
    except ValueError:
        text = formatter_for("text").format(record("failed:\tsee", exc_info=sys.exc_info()))

    first, *rest = text.splitlines()
    assert first.endswith("polyhost - failed:\tsee")
    assert all(line.startswith("  ") for line in rest)
    assert f"  {FORGED}" in rest


def test_what_cannot_be_encoded_is_written_with_escapes() -> None:
    """A file's name need not be text; a line of the log is UTF-8."""
    assert formatter_for("text").format(record("caf\udce9 é")).endswith("caf\\udce9 é")


@pytest.mark.parametrize(
    "sent",
    [
        '{"time": "2026", "_aws": {"CloudWatchMetrics": []}}',
        '{"time": "2026", "\\u005faws": {"CloudWatchMetrics": []}}',
        '{"time": "2026", "_aws": {}',
        '{"_aws": {}}',
        'x\n{"time": "2026", "_aws": {}}',
    ],
)
def test_only_our_own_lines_are_metrics(sent: str) -> None:
    """A script that prints a client's words makes lines of the log, never numbers at CloudWatch."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, sent], check=True, capture_output=True, text=True, timeout=60, cwd=Path("/"),
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'container'}"},
    )  # fmt: skip

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["logger"] for line in lines if "_aws" in line] == ["polyhost.emf"]
    assert [line["target"] for line in lines if line["logger"] == "polyhost.access"] == [sent]
    assert "\n".join(line["message"] for line in lines if line["logger"] == "stdout") == sent
    assert [line["message"] for line in lines if line["logger"] == "polyhost"] == ["café: fine"]


def test_lines_of_our_own_processes_stay_as_they_are() -> None:
    """A worker's JSON is not wrapped again."""
    line = '{"time": "2026-01-01T00:00:00.000Z", "level": "INFO", "logger": "x", "message": "caf\\u00e9 \\u001b"}'
    program = "import sys\nfrom polyhost.log import every_line_as_json\nwith every_line_as_json(): print(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", program, line], check=True, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'container'}"},
    )  # fmt: skip

    assert done.stdout == line + "\n"
