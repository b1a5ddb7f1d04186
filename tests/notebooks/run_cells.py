"""
Runs a notebook's cells from the first to the last, in the Python of the SDK that they were written for.

`python run_cells.py FILE NAME…` prints, on its last line, what the notebook holds under these names, as JSON.

Nothing may leave this machine: a connection to another address is an error. Waits are shortened, because the SDK and
boto3's waiters look every 30 s.
"""

from __future__ import annotations

import json
import runpy
import socket
import sys
import time
from typing import Any

_connect, _resolve, _sleep = socket.socket.connect, socket.getaddrinfo, time.sleep
_HERE = ("127.0.0.1", "::1", "localhost")
called: list[Any] = []


def check(host: Any) -> None:
    """What is called is also noted, because a library may go on without an answer."""
    if host not in _HERE:
        called.append(host)
        raise OSError(f"the notebook called {host}: only this machine may be")


def connect(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX:
        check(address[0])
    _connect(self, address)


def resolve(host: Any, *arguments: Any, **named: Any) -> Any:
    check(host)
    return _resolve(host, *arguments, **named)


def main() -> None:
    file, *names = sys.argv[1:]
    socket.socket.connect = connect  # type: ignore[method-assign]
    socket.getaddrinfo = resolve
    time.sleep = lambda secs: _sleep(min(secs, 0.1))
    notebook = runpy.run_path(file)
    if called:
        sys.exit(f"the notebook called {called}: only this machine may be")
    sys.stdout.write(f"\n{json.dumps({name: notebook[name] for name in names})}\n")


if __name__ == "__main__":
    main()
