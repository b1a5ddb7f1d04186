"""
Clients that mean harm: what each of them sends to a server on this machine until its time is over.

Each attack runs in a process of its own, `python -m benchmarks.attacks`, with a lower priority than the server: real
attackers take nothing of its CPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

_HELD_CONNECTIONS = 500
# How often each held connection sends a byte, and how many of the held ones are opened anew in a round.
_DRIBBLE_SECS = 0.2
_CONNECT_SECS = 5.0
_LOWER_PRIORITY = 10
_PATH = b"/models/m0/invoke"
_HEAD = b"POST " + _PATH + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\n"
_PING = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
_ROW = b"1998,2150,3,2.5,0.4,2"
_CALL = _HEAD + b"Content-Length: %d\r\n\r\n" % len(_ROW) + _ROW
_FORGOTTEN_BODY = _HEAD + b"Content-Length: 6000000\r\n\r\n"


@dataclass
class Sent:
    """How much an attack has sent."""

    connections: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Attack:
    """
    `run` is carried out by so many `threads`, each until its deadline, and once at least. It raises nothing.

    `per_sec`: how many connections or blocks of requests all of them send in a second at most. At full speed each is as
    fast as it can, and what it takes of the machine is measured rather than what it does to the server.
    """

    name: str
    run: Callable[[Attacker], None]
    per_sec: float = 0.0
    threads: int = 4


class Attacker:
    """One thread of an attack."""

    def __init__(self, port: int, deadline: float, seed: int, pause_secs: float) -> None:
        """`deadline`: by time.monotonic()."""
        self.sent = Sent()
        self.rng = random.Random(seed)
        self._port = port
        self._deadline = deadline
        self._pause_secs = pause_secs
        self._due = time.monotonic()

    @property
    def goes_on(self) -> bool:
        """Also after its time where a busy machine has not let it begin."""
        return time.monotonic() < self._deadline or not self.sent.connections

    def may_send(self) -> bool:
        """Wait for the next turn; whether there is one."""
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._due = max(self._due + self._pause_secs, time.monotonic())
        return self.goes_on

    def connect(self) -> socket.socket:
        """Raises OSError."""
        connection = socket.create_connection(("127.0.0.1", self._port), _CONNECT_SECS)
        self.sent.connections += 1
        return connection

    def send(self, connection: socket.socket, data: bytes) -> None:
        """As much as the server takes before it refuses."""
        with contextlib.suppress(OSError):
            connection.sendall(data)
            self.sent.bytes += len(data)

    @contextlib.contextmanager
    def held(self, count: int, data: bytes) -> Iterator[list[socket.socket]]:
        """So many connections that have sent the same, and are kept open."""
        with contextlib.ExitStack() as stack:
            connections = []
            while len(connections) < count and self.goes_on:
                with contextlib.suppress(OSError):
                    connections.append(stack.enter_context(self.connect()))
                    self.send(connections[-1], data)
            yield connections


def _dribbling(data: bytes) -> Callable[[Attacker], None]:
    """Many connections send the same, then a byte now and then, and never come to an end."""

    def run(attacker: Attacker) -> None:
        with attacker.held(_HELD_CONNECTIONS, data) as connections:
            while attacker.goes_on:
                round_ends = time.monotonic() + _DRIBBLE_SECS
                for connection in connections:
                    attacker.send(connection, b"a")
                time.sleep(max(0.0, round_ends - time.monotonic()))

    return run


def _forget_bodies(attacker: Attacker) -> None:
    """Many connections announce a body and send none; ten of them at a time are given up for new ones."""
    with attacker.held(_HELD_CONNECTIONS, _FORGOTTEN_BODY) as connections:
        while attacker.goes_on:
            for _ in range(10):
                connections.pop(0).close()
                with contextlib.suppress(OSError):
                    connections.append(attacker.connect())
                    attacker.send(connections[-1], _FORGOTTEN_BODY)
            time.sleep(_DRIBBLE_SECS / 10)


def _sending(data: Callable[[random.Random], bytes]) -> Callable[[Attacker], None]:
    """One connection after the other: send, and read until the server has closed."""

    def run(attacker: Attacker) -> None:
        while attacker.may_send():
            with contextlib.suppress(OSError), attacker.connect() as connection:
                attacker.send(connection, data(attacker.rng))
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass

    return run


def _flooding(block: bytes, *, reads: bool) -> Callable[[Attacker], None]:
    """Requests without a pause on one connection, whose answers are read or not."""

    def run(attacker: Attacker) -> None:
        while attacker.goes_on:
            with contextlib.suppress(OSError), attacker.connect() as connection:
                if reads:
                    threading.Thread(target=_read_all, args=(connection,), daemon=True).start()
                connection.settimeout(0.5)
                while attacker.may_send():
                    connection.sendall(block)
                    attacker.sent.bytes += len(block)

    return run


def _read_all(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(262_144):
            pass


def _open_and_close(attacker: Attacker) -> None:
    """Half of them politely, half with a reset."""
    while attacker.may_send():
        with contextlib.suppress(OSError), attacker.connect() as connection:
            if attacker.sent.connections % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _chunked(data: bytes, count: int) -> bytes:
    chunk = b"%x\r\n%b\r\n" % (len(data), data)
    return _HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * count


def _constant(data: bytes) -> Callable[[random.Random], bytes]:
    return lambda _: data


_MANY_FIELDS = _HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(20_000))

ATTACKS = (
    Attack(f"slowloris: {_HELD_CONNECTIONS} connections", _dribbling(_HEAD + b"X-Slow: "), threads=1),
    Attack("header fields of 1 MB", _sending(_constant(_HEAD + b"X-Large: " + b"a" * 1_000_000)), per_sec=100),
    Attack("20,000 header fields", _sending(_constant(_MANY_FIELDS)), per_sec=100),
    Attack(f"bodies that dribble, {_HELD_CONNECTIONS} connections", _dribbling(_FORGOTTEN_BODY), threads=1),
    Attack(f"bodies that never come, {_HELD_CONNECTIONS} connections", _forget_bodies, threads=1),
    Attack("bodies in chunks of a byte", _sending(_constant(_chunked(b"a", 400_000))), per_sec=4),
    Attack("garbage", _sending(lambda rng: rng.randbytes(16_384)), per_sec=500),
    Attack("lines that are no requests", _sending(_constant(b"\r\n" * 8192 + b"a\r\n" * 8192)), per_sec=500),
    Attack("pipelined pings, 500 at once", _flooding(_PING * 500, reads=True), per_sec=4),
    Attack("pipelined calls, 500 at once", _flooding(_CALL * 500, reads=True), per_sec=4),
    Attack("pipelined pings whose answers nobody reads", _flooding(_PING * 500, reads=False), per_sec=8),
    Attack("connections that open and close", _open_and_close, per_sec=1000),
)


@contextlib.contextmanager
def under(attack: Attack, port: int, secs: float, *, at_full_speed: bool = False) -> Iterator[Sent]:
    """
    The attack goes on while the block runs, for so many seconds at most.

    How much it has sent is there after the block.
    """
    place, per_sec = ATTACKS.index(attack), 0.0 if at_full_speed else attack.per_sec
    command = [sys.executable, "-m", "benchmarks.attacks", *map(str, (place, port, secs, per_sec))]
    sent = Sent()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()  # it has begun: what its start costs is not measured
            yield sent
            told = json.loads(process.stdout.readline())
            sent.connections, sent.bytes = told["connections"], told["bytes"]
        finally:
            process.kill()


def main(place: int, port: int, secs: float, per_sec: float) -> None:
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # where the server was given more
    os.nice(_LOWER_PRIORITY)
    attack = ATTACKS[place]
    deadline = time.monotonic() + secs
    pause_secs = attack.threads / per_sec if per_sec else 0.0
    attackers = [Attacker(port, deadline, seed, pause_secs) for seed in range(attack.threads)]
    threads = [threading.Thread(target=attack.run, args=(attacker,), daemon=True) for attacker in attackers]
    for thread in threads:
        thread.start()
    print("begun", flush=True)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()) + _CONNECT_SECS)
    total = Sent(sum(one.sent.connections for one in attackers), sum(one.sent.bytes for one in attackers))
    print(json.dumps(asdict(total)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
