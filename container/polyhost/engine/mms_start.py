"""
What `multi-model-server` runs when the toolkit calls it: MMS's own start, with our worker launcher.

MMS starts each worker with the interpreter that started MMS. Models of one server may need different Python
environments, so it is told of `polyhost-worker-python`, which looks at the model and becomes the right one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import sysconfig
from pathlib import Path

from polyhost.log import LineLogger, configure


def main() -> None:
    configure(os.environ.get("POLYHOST_LOG_FORMAT", "text"))
    sys.executable = str(Path(sysconfig.get_path("scripts")) / "polyhost-worker-python")
    from mms import model_server

    # It prints; in the log of the server every line has one form.
    with contextlib.redirect_stdout(LineLogger(logging.getLogger("mms"))):
        model_server.start()


if __name__ == "__main__":
    main()
