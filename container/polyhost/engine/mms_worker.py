"""
`polyhost-worker-python`: the interpreter that MMS believes to start its workers with.

It looks at the handler and the model that the worker is for, and becomes the interpreter of the Python
environment they need, with `mms_service` between it and MMS's worker. Runs once per worker and imports no
framework.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from polyhost_handlers.artifacts import environment_of, kind_named, recognise
from polyhost_handlers.errors import LoadFailed


def main() -> None:
    arguments = sys.argv[1:]
    python = interpreter_for(arguments, os.environ)
    # When memory runs out the kernel must take a worker, never the server: without it all models are gone.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    if arguments[0].endswith("/model_service_worker.py"):  # not MMS's collector of metrics
        arguments.insert(0, str(Path(__file__).with_name("mms_service.py")))
    os.execv(python, [python, *arguments])  # noqa: S606


def interpreter_for(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """The Python that a worker started with these arguments of MMS's needs."""
    own = environ.get("POLYHOST_PYTHON") or sys.executable
    environment = environment_for(_option(arguments, "--handler"), _option(arguments, "--model-path"), environ)
    if not environment:
        return own
    other = environ.get(f"POLYHOST_{environment.upper()}_PYTHON") or f"{sys.prefix}/envs/{environment}/bin/python"
    # Where that environment is not installed, the handler says so in the words of a failed load.
    return other if os.access(other, os.X_OK) else own


def environment_for(handler: str, model_path: str, environ: Mapping[str, str]) -> str:
    """The name of the Python environment, "" for the server's own."""
    module = handler.partition(":")[0]
    try:
        auto = module == "polyhost_handlers.auto"
        return environment_of(recognise(Path(model_path), environ) if auto else kind_named(module), environ)
    except (LoadFailed, OSError):
        return ""


def _option(arguments: Sequence[str], name: str) -> str:
    """The value after `name`, "" if it is not there."""
    return next((value for option, value in itertools.pairwise(arguments) if option == name), "")
