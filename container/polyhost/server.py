"""Starts what the configuration asks for, and stays until it is told to stop."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from polyhost.config import Config
from polyhost.engine import mms
from polyhost.log import configure
from polyhost.submit_directory import fetched_submit_directory

logger = logging.getLogger("polyhost")


def serve(config: Config, environ: Mapping[str, str]) -> int:
    """Run the server in the foreground; returns the exit code. Raises PolyhostError if it cannot start."""
    configure(config.log_format)
    with tempfile.TemporaryDirectory(prefix="polyhost-code-") as folder:
        told = fetched_submit_directory(environ, Path(folder))
        if config.engine == "native":
            from polyhost.engine.native import serve as native

            return native.serve(config, told)
        return mms.serve(config, told)
