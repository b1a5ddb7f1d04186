"""Lines are written aside: in their order, all of them, and nobody waits for a reader that is slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from polyhost.line_writer import LineWriter, pieces

# More than a pipe holds, what is being written and what may wait.
MANY = 120_000
LINE = "x" * 99

# How long its end waits for its reader is not what is asked here: this machine may be slow.
SERVER = """
import logging, sys
from polyhost import log
from polyhost.log import configure_server
from polyhost.processes import flush_and_exit

log._FLUSHED_SECS = 60
write = configure_server("text")
for number in range(int(sys.argv[1])):
    write(f"{number:06d}" + "x" * 93)
logging.getLogger("polyhost").info("written")
sys.stderr.write("done\\n")
sys.stderr.flush()
sys.stdin.readline()
logging.getLogger("polyhost").info("goes on")
flush_and_exit(3)
"""


def started(lines: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVER, str(lines)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, cwd=Path("/"), env={**os.environ, "PYTHONPATH": f"{ROOT / 'container'}"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "at_a_time", "expected"),
    [
        ([], 10, []),
        (["a"], 1, [b"a\n"]),
        (["a", "b", "c"], 4, [b"a\nb\n", b"c\n"]),
        (["longer than that", "b"], 4, [b"longer than that\n", b"b\n"]),
        (["é", "é"], 5, [b"\xc3\xa9\n", b"\xc3\xa9\n"]),
        (["\udce9"], 10, [b"\\udce9\n"]),
    ],
)
def test_no_line_is_cut(lines: list[str], at_a_time: int, expected: list[bytes]) -> None:
    assert list(pieces(lines, at_a_time)) == expected


def test_all_lines_come_in_their_order_before_the_process_ends() -> None:
    """
    Also where it ends at once, without waiting for threads.
    """
    with started(5000) as process:
        output, _ = process.communicate(b"\n", timeout=60)

    lines = output.decode().splitlines()
    assert process.returncode == 3
    assert [int(line[:6]) for line in lines[:5000]] == list(range(5000))
    assert [line.split(" - ")[1] for line in lines[5000:]] == ["written", "goes on"]


def test_a_server_goes_on_when_nobody_reads_its_log() -> None:
    """
    What was dropped is counted in the log, once somebody reads it.
    """
    with started(MANY) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"done\n"  # nothing of the pipe was read
        output, _ = process.communicate(b"\n", timeout=60)

    lines = output.decode().splitlines()
    dropped = [int(line.split(" - ")[1].split()[0]) for line in lines if " were dropped: " in line]
    written = sum(line.endswith("x") for line in lines) + sum(" polyhost - " in line for line in lines)
    assert dropped
    assert written + sum(dropped) == MANY + 2


def test_a_writer_of_a_pipe_without_a_reader_takes_what_comes() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    lines = LineWriter(writer, str)
    for _ in range(2):
        lines.write("a")
        assert lines.flush(30)


def test_a_pipe_that_does_not_block_gets_all() -> None:
    """
    Another process that shares it may have made it so.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    lines = LineWriter(writer, str)
    for _ in range(2000):
        lines.write(LINE)
    with open(reader, "rb") as stream:
        assert [stream.readline() for _ in range(2000)] == [LINE.encode() + b"\n"] * 2000
