"""
A model that does what a request tells it to, also what no model should.

Pickled as an estimator, it is data to our handlers, which therefore run it in a worker that many models share:
the server under test needs this folder's parent on PYTHONPATH. A request is one row of CSV: `ORDER,SECONDS`.

Each order is written down before it is obeyed, so that a test can wait until it is under way. HOLD and TOIL go on until
the test opens the model's gate: no test has to be quicker than a model.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

# Orders of a request, and of a load. HOLD sleeps, and TOIL computes, until the gate is open.
ANSWER, KILL, SEGFAULT, EXIT, SYS_EXIT, SLEEP, HOLD, TOIL = range(8)


def obey(order: int, secs: float, journal: Path) -> None:
    with journal.open("a") as lines:
        lines.write(f"{order} {os.getpid()}\n")
    if order == KILL:  # as the kernel does to free memory
        os.kill(os.getpid(), signal.SIGKILL)
    elif order == SEGFAULT:
        ctypes.string_at(0)
    elif order == EXIT:
        os._exit(3)
    elif order == SYS_EXIT:
        sys.exit(3)
    elif order == SLEEP:
        time.sleep(secs)
    elif order == HOLD:
        while not gate_of(journal).exists():
            time.sleep(0.005)
    elif order == TOIL:
        while not gate_of(journal).exists():
            pass


def leave_room(size_bytes: int) -> bytes:
    """Frees that much below something that stays, which is returned: the heap keeps the room until it is trimmed."""
    blocks = [bytes(1000) for _ in range(size_bytes // 1000)]
    above = bytes(1000)
    del blocks
    return above


class Obedient:
    """Answers with the number of the process that it runs in; writes that down first in `journal`, a line a call."""

    def __init__(
        self, journal: Path, at_load: tuple[int, float] = (ANSWER, 0), ballast: bytes = b"", passing_bytes: int = 0
    ) -> None:
        """`passing_bytes`: what it takes for a moment while it is loaded."""
        self.journal = journal
        self.at_load = at_load
        self.ballast = ballast
        self.passing_bytes = passing_bytes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.above = leave_room(self.passing_bytes)
        if self.at_load[0] != ANSWER:
            obey(*self.at_load, self.journal)

    def predict(self, table: Any) -> list[int]:
        obey(int(table[0][0]), float(table[0][1]), self.journal)
        return [os.getpid()]


def begun(folder: Path, order: int) -> list[int]:
    """The processes in which this order began, in turn."""
    journal = journal_of(folder)
    lines = journal.read_text().splitlines() if journal.exists() else []
    pairs = [line.split() for line in lines]
    return [int(pid) for told, pid in pairs if int(told) == order]


class Gate:
    """What models of these folders wait for at HOLD and TOIL. It is open after the block, however that ends."""

    def __init__(self, *folders: Path) -> None:
        self._files = [gate_of(journal_of(folder)) for folder in folders]

    def __enter__(self) -> Gate:  # noqa: PYI034 - Self came with Python 3.11
        self.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.open()

    def open(self) -> None:
        for file in self._files:
            file.touch()

    def close(self) -> None:
        for file in self._files:
            file.unlink(missing_ok=True)


def write_obedient(
    folder: Path, at_load: tuple[int, float] = (ANSWER, 0), ballast_bytes: int = 0, passing_bytes: int = 0
) -> Path:
    """An archive with such a model; the folder. Its journal lies beside the folder."""
    folder.mkdir(parents=True)
    model = Obedient(journal_of(folder), at_load, os.urandom(ballast_bytes), passing_bytes)
    (folder / "model.joblib").write_bytes(pickle.dumps(model))
    return folder


def journal_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".journal")


def gate_of(journal: Path) -> Path:
    return journal.with_suffix(".gate")


# The same for archives that bring their own code, and so get a process of their own.
SCRIPT = """
import os
from pathlib import Path
from support.obedient import ANSWER, obey

JOURNAL = Path({journal!r})

def model_fn(model_dir):
    if {order} != ANSWER:
        obey({order}, {secs}, JOURNAL)
    return "model"

def transform_fn(model, body, content_type, accept):
    order, secs = body.split(",")
    obey(int(order), float(secs), JOURNAL)
    return str(os.getpid()), "text/plain"
"""


def write_obedient_script(folder: Path, at_load: tuple[int, float] = (ANSWER, 0)) -> Path:
    (folder / "code").mkdir(parents=True)
    order, secs = at_load
    script = SCRIPT.format(order=order, secs=secs, journal=str(journal_of(folder)))
    (folder / "code" / "inference.py").write_text(script)
    return folder
