"""
The Multi Model Server as the SageMaker inference toolkit boots it: `python -m benchmarks.mms_bare HANDLER`.

Nothing of Polyhost stands before it. The toolkit is the released one; two things are changed so that it may run beside
others on a machine: where it writes its configuration, and which processes it looks at for its own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
from sagemaker_inference import model_server

from benchmarks.keeper import become_subreaper


def main() -> None:
    # The command that the toolkit runs starts Java and ends: Java becomes ours.
    become_subreaper()
    # It wants to write to /etc.
    model_server.MMS_CONFIG_FILE = str(Path(os.environ["TEMP"]) / "mms.properties")
    # It refuses to see two MMS on one machine.
    model_server.psutil = _OwnProcesses
    model_server.start_model_server(handler_service=sys.argv[1])


class _OwnProcesses:
    """What the toolkit uses of psutil."""

    STATUS_ZOMBIE = psutil.STATUS_ZOMBIE

    @staticmethod
    def process_iter() -> list[psutil.Process]:
        return psutil.Process().children(recursive=True)


if __name__ == "__main__":
    main()
