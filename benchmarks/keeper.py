"""
Runs one command and leaves nothing of it behind: `python -m benchmarks.keeper COMMAND…`.

The benchmark holds the other end of our standard input. When that closes, because the benchmark has had enough or
because it was killed, every descendant of ours is killed; orphans come to us (child subreaper), so that none is missed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

import psutil

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=sys.stderr)
    # From now on the clock runs.
    os.write(1, b"started\n")
    try:
        sys.stdin.read()
    finally:
        kill_descendants()


def become_subreaper() -> None:
    """Orphaned descendants become our children instead of init's (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def kill_descendants() -> None:
    """Kill until there is none: one may have been forking while its parent died."""
    while descendants := psutil.Process().children(recursive=True):
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        psutil.wait_procs(descendants, timeout=0.05)


if __name__ == "__main__":
    main()
