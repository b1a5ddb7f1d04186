"""
The process that calls the inference toolkit: `python -m polyhost.engine.mms_boot HANDLER PARENT_PID`.

The toolkit forwards SIGTERM to Java and waits for it, but leaves MMS's Python workers running: when it
returns, by whatever way, this process kills what is left below it. While it runs, it ends what models have started
and left behind.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

from polyhost.log import configure
from polyhost.processes import (
    become_subreaper,
    die_with_parent,
    end_children_of_the_dead,
    flush_and_exit,
    kill_descendants,
    living_descendants,
    reap,
)

_LOOK_SECS = 0.5


def main() -> None:
    handler, parent = sys.argv[1], int(sys.argv[2])
    # Until the toolkit has set a handler of its own, this one ends everything.
    signal.signal(signal.SIGTERM, lambda *_: _end(0))
    # The toolkit buries its dead only from when Java runs: what started Java would stay a zombie until then.
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    die_with_parent(parent, signal.SIGTERM)
    become_subreaper()
    configure(os.environ["POLYHOST_LOG_FORMAT"])
    threading.Thread(target=_end_orphans_again_and_again, daemon=True).start()
    code = 1
    try:
        _boot(handler)
        code = 0
    except Exception:
        logging.getLogger("polyhost").exception("the inference toolkit failed")
    finally:
        _end(code)


def _end(code: int) -> None:
    """Does not return. No exception in its stead: the toolkit catches all of them while it looks for MMS."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    kill_descendants()
    flush_and_exit(code)


def _end_orphans_again_and_again() -> None:
    """What models have started comes to us when its parent ends. It may stay as long as the model's worker."""
    while True:
        time.sleep(_LOOK_SECS)
        end_children_of_the_dead()


def _boot(handler: str) -> None:
    # Imported here: the toolkit reads SAGEMAKER_MULTI_MODEL and more when it is imported.
    from sagemaker_inference import model_server

    model_server.logger.handlers.clear()  # its lines go where ours go
    # It looks for MMS among all processes of the machine and refuses to see two: let it see its own.
    model_server.psutil = _Descendants
    # /etc is not ours to write in: an ordinary user and a read-only container start too.
    model_server.MMS_CONFIG_FILE = str(Path(os.environ["TEMP"]) / "mms.properties")
    model_server.DEFAULT_MMS_LOG_FILE = str(Path(__file__).with_name(f"log4j2-{os.environ['POLYHOST_LOG_FORMAT']}.xml"))
    # Models come from the front, one alone too.
    model_server.ENABLE_MULTI_MODEL = True
    model_server.start_model_server(handler_service=handler)


class _Descendants:
    """
    What the toolkit uses of psutil, of the processes that it has started.

    It looks for MMS once a second, for up to ten minutes. Where nothing of what it has started is left, MMS has ended
    before it was found, and so do we.
    """

    STATUS_ZOMBIE = psutil.STATUS_ZOMBIE

    @staticmethod
    def process_iter() -> list[psutil.Process]:
        living = living_descendants(os.getpid())
        if not living:
            _end(1)
        return living


if __name__ == "__main__":
    main()
