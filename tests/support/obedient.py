"""
A model that does what a request tells it to, also what no model should.

Pickled as an estimator, it is data to our handlers, which therefore run it in a worker that many models share:
the server under test needs this folder's parent on PYTHONPATH. A request is one row of CSV: `ORDER,SECONDS`.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

# Orders of a request, and of a load.
ANSWER, KILL, SEGFAULT, EXIT, SYS_EXIT, SLEEP, COMPUTE = range(7)


def obey(order: int, secs: float) -> None:
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
    elif order == COMPUTE:
        end = time.monotonic() + secs
        while time.monotonic() < end:
            pass


class Obedient:
    """Answers with the number of the process that it runs in; writes that down first in `journal`, a line a call."""

    def __init__(self, journal: Path, at_load: tuple[int, float] = (ANSWER, 0), ballast: bytes = b"") -> None:
        self.journal = journal
        self.at_load = at_load
        self.ballast = ballast

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        obey(*self.at_load)

    def predict(self, table: Any) -> list[int]:
        with self.journal.open("a") as journal:
            journal.write(f"{int(table[0][0])} {os.getpid()}\n")
        obey(int(table[0][0]), float(table[0][1]))
        return [os.getpid()]

    @classmethod
    def calls(cls, journal: Path, order: int) -> list[int]:
        """The processes in which calls with this order began, in turn."""
        lines = journal.read_text().splitlines() if journal.exists() else []
        pairs = [line.split() for line in lines]
        return [int(pid) for told, pid in pairs if int(told) == order]


def write_obedient(
    folder: Path, at_load: tuple[int, float] = (ANSWER, 0), ballast_bytes: int = 0, journal: Path | None = None
) -> Path:
    """An archive with such a model; the folder. Its journal lies beside the folder."""
    folder.mkdir(parents=True)
    model = Obedient(journal or journal_of(folder), at_load, os.urandom(ballast_bytes))
    (folder / "model.joblib").write_bytes(pickle.dumps(model))
    return folder


def journal_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".journal")


# The same for archives that bring their own code, and so get a process of their own.
SCRIPT = """
import os
from support.obedient import obey

def model_fn(model_dir):
    obey({order}, {secs})
    return "model"

def transform_fn(model, body, content_type, accept):
    order, secs = body.split(",")
    obey(int(order), float(secs))
    return str(os.getpid()), "text/plain"
"""


def write_obedient_script(folder: Path, at_load: tuple[int, float] = (ANSWER, 0)) -> Path:
    (folder / "code").mkdir(parents=True)
    order, secs = at_load
    (folder / "code" / "inference.py").write_text(SCRIPT.format(order=order, secs=secs))
    return folder
