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
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.artifacts import ROW_CSV

ANSWER = b"[384459.40625]"


def loop(secs: float, folders: list[Path]) -> float:
    """Calls/s on one core, models in turn, each call from a CSV body to a JSON body."""
    from polyhost_handlers.base import ModelSource, Request
    from polyhost_handlers.xgboost_handler import XGBoostHandler

    os.environ["SAGEMAKER_MULTI_MODEL"] = "true"
    models = [XGBoostHandler.load(ModelSource(folder, folder.name, os.environ)) for folder in folders]
    for model in models:
        model.predict(Request(ROW_CSV, "text/csv"))
    turns = itertools.cycle(models)
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < secs:
        for _ in range(100):
            next(turns).predict(Request(ROW_CSV, "text/csv"))
        calls += 100
    return calls / (time.perf_counter() - started)


def echo(port: int) -> None:
    import uvicorn

    uvicorn.run(
        _answer, host="127.0.0.1", port=port, loop="uvloop", http="httptools", lifespan="off", ws="none",
        log_config=None, access_log=False, server_header=False, date_header=False, proxy_headers=False,
    )  # fmt: skip


_HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


async def _answer(
    scope: dict[str, Any],  # noqa: ARG001
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        print(loop(float(sys.argv[2]), [Path(argument) for argument in sys.argv[3:]]))
    else:
        echo(int(sys.argv[2]))
