"""
What a server starts to build an environment beside its traffic. It ends with the server.

    python -m polyhost.environments.beside SERVER-PID NAME FOLDER
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from polyhost.environments.build import Options, build, definition_named
from polyhost.errors import EnvironmentFailed
from polyhost.processes import die_with_parent


def main() -> None:
    server_pid, name, folder = sys.argv[1:]
    die_with_parent(int(server_pid), signal.SIGKILL)
    try:
        build(*definition_named(name), Options(folder=Path(folder)), lambda words: print(words, flush=True))  # noqa: T201
    except EnvironmentFailed as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
