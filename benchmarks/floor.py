"""
What no server can beat: `python -m benchmarks.floor loop SECS BOOSTER…` and `python -m benchmarks.floor echo PORT`.

`loop` calls the XGBoost handler as the native engine's worker does, without any server, and prints calls/s. `echo`
answers every request with a constant of the size that such a call answers, under the native front's HTTP stack.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop
from polyhost.api.http import Reply, Request
from polyhost.api.listener import Listener

from benchmarks.artifacts import ROW_CSV

ANSWER = b"[384459.40625]"


def loop(secs: float, folders: list[Path]) -> float:
    """Calls/s on one core, models in turn, each call from a CSV body to a JSON body."""
    from polyhost_handlers.base import ModelSource
    from polyhost_handlers.base import Request as Row
    from polyhost_handlers.xgboost_handler import XGBoostHandler

    os.environ["SAGEMAKER_MULTI_MODEL"] = "true"
    models = [XGBoostHandler.load(ModelSource(folder, folder.name, os.environ)) for folder in folders]
    for model in models:
        model.predict(Row(ROW_CSV, "text/csv"))
    turns = itertools.cycle(models)
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < secs:
        for _ in range(100):
            next(turns).predict(Row(ROW_CSV, "text/csv"))
        calls += 100
    return calls / (time.perf_counter() - started)


class _Echo:
    """An application that answers everything with the same."""

    max_request_bytes = 6_291_456
    _reply = Reply(ANSWER, 200, ((b"content-type", b"application/json"),))

    def answer(self, _: Request, done: Callable[[Reply], None]) -> None:
        done(self._reply)

    def stop_soon(self) -> None: ...

    async def stop(self) -> None: ...

    def too_large(self, _: Request, done: Callable[[Reply], None]) -> None:
        done(self._reply)


def echo(port: int) -> None:
    uvloop.run(_serve_echo(port))


async def _serve_echo(port: int) -> None:
    listener = Listener(_Echo())
    await listener.start("127.0.0.1", port)
    await listener.serve()


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        print(loop(float(sys.argv[2]), [Path(argument) for argument in sys.argv[3:]]))
    else:
        echo(int(sys.argv[2]))
