"""
`polyhost-worker-python`: the interpreter that MMS believes to start its workers with.

It becomes the interpreter of the Python environment that the front has chosen for the model, with `mms_service`
between it and MMS's worker. What MMS loads by itself, at its start, the front has not seen: for that it looks at the
handler and the model itself. Runs once per worker and imports no framework.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from polyhost_handlers.artifacts import kind_named, recognise
from polyhost_handlers.errors import LoadFailed

from polyhost.engine.environments import environment_of
from polyhost.engine.errors import EngineError
from polyhost.engine.mms_service import environment_file
from polyhost.interpreters import interpreter_of, variables_of
from polyhost.processes import BECOMES_A_WORKER, mark_descendants


def main() -> None:
    arguments = sys.argv[1:]
    python, environ = become(environment_for(arguments, os.environ), os.environ)
    # When memory runs out the kernel must take a worker, never the server: without it all models are gone.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    if arguments[0].endswith("/model_service_worker.py"):  # not MMS's collector of metrics
        mark_descendants(BECOMES_A_WORKER)
        arguments.insert(0, str(Path(__file__).with_name("mms_service.py")))
    os.execve(python, [python, *arguments], dict(environ))  # noqa: S606


def become(environment: str, environ: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """
    The interpreter of an environment, and what its processes are told.

    Where it is not installed, the server's own: the handler says in the words of a failed load what it lacks.
    """
    own = environ.get("POLYHOST_PYTHON") or sys.executable
    if not environment:
        return own, environ
    return interpreter_of(environment, environ) or own, {**variables_of(environment, environ), **environ}


def environment_for(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """The name of the Python environment of a worker that was started with these arguments of MMS's."""
    if (book := environ.get("POLYHOST_MODELS_BOOK")) and (name := _option(arguments, "--model-name")):
        with contextlib.suppress(OSError):
            return environment_file(Path(book), name).read_text()
    handler, folder = _option(arguments, "--handler"), Path(_option(arguments, "--model-path"))
    module = handler.partition(":")[0]
    try:
        kind = recognise(folder, environ) if module == "polyhost_handlers.auto" else kind_named(module)
        return environment_of(folder, handler, kind, environ).environment
    except (LoadFailed, EngineError, OSError):
        return ""


def _option(arguments: Sequence[str], name: str) -> str:
    """The value after `name`, "" if it is not there."""
    return next((value for option, value in itertools.pairwise(arguments) if option == name), "")
