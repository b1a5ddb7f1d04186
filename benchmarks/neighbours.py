"""
How long others wait while somebody attacks the server: `make attacks`.

Four clients ask a server for predictions at a steady rate, in turns with nobody else and under each attack of
attacks.py. What counts is the 99th percentile of their waiting times under an attack beside the one before it.
Everything stays on this machine, and ends by itself.
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.artifacts import ROW_CSV, Artifacts
from benchmarks.attacks import ATTACKS, Attack, Sent, under
from benchmarks.keeper import become_subreaper, kill_descendants
from benchmarks.servers import CSV, BenchmarkFailed, Mms, Native, Server

_CLIENTS = 4
_REQUESTS_PER_SEC = 100
_MODELS = 4
_LIMIT = 2.0
# What an attack has opened is closed before the next turn begins.
_SETTLE_SECS = 0.5
_LIMIT_SECS = 15 * 60


@dataclass
class Turns:
    """
    An attack, in turns with nobody else: all waiting times of the neighbours, and what the attack has sent.

    Whatever else happens on the machine meets both alike. `failed`: requests of neighbours without their right answer.
    """

    attack: Attack
    quiet_secs: list[float] = field(default_factory=list)
    attacked_secs: list[float] = field(default_factory=list)
    failed: int = 0
    sent: Sent = field(default_factory=Sent)

    @property
    def ratio(self) -> float:
        return p99_ms(self.attacked_secs) / p99_ms(self.quiet_secs)

    @property
    def is_bad(self) -> bool:
        return self.ratio > _LIMIT or self.failed > 0


def main() -> int:
    arguments = _arguments()
    become_subreaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"not done after {_LIMIT_SECS / 60:.0f} minutes"))
    signal.alarm(_LIMIT_SECS)
    folder = Path(tempfile.mkdtemp(prefix="ph-attacks-"))
    try:
        return _measure(arguments, Artifacts(folder).shared(_MODELS))
    finally:
        kill_descendants()
        shutil.rmtree(folder, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make attacks", description="What neighbours wait while others attack.")
    parser.add_argument("--engine", choices=("native", "mms"), default="native", help="which server is attacked")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each attack, and of nobody else")
    parser.add_argument("--secs", type=float, default=2.0, help="how long each turn lasts, quiet and under attack")
    parser.add_argument("--full-speed", action="store_true", help="do not limit how much attackers send")
    parser.add_argument("--only", action="append", default=[], help="attacks with this in their name")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace, sources: Sequence[Path]) -> int:
    """The exit code: 1 where neighbours waited too long, or were not answered."""
    chosen = [one for one in ATTACKS if not arguments.only or any(text in one.name for text in arguments.only)]
    server = Native() if arguments.engine == "native" else Mms()
    with server:
        with server.client() as client:
            for number, source in enumerate(sources):
                server.load(client, f"m{number}", source)
            expected = [server.invoke(client, f"m{number}") for number in range(len(sources))]
        neighbours = Neighbours(server, expected)
        neighbours.waits_secs(arguments.secs)  # the first ones warm it up
        print(_HEAD, flush=True)
        measured = []
        for attack in chosen:
            turns = Turns(attack)
            for _ in range(arguments.repeats):
                _take_turn(turns, neighbours, arguments.secs, at_full_speed=arguments.full_speed)
            measured.append(turns)
            print(_line(turns, arguments.secs * arguments.repeats), flush=True)
    if bad := [turns.attack.name for turns in measured if turns.is_bad]:
        print(f"\nOver {_LIMIT:g} times quiet, or not answered: {'; '.join(bad)}.")
    return 1 if bad else 0


class Neighbours:
    """Clients that ask at a steady rate, each on a connection of its own."""

    def __init__(self, server: Server, expected: Sequence[bytes]) -> None:
        self.server = server
        self._expected = expected
        self.failed = 0

    def waits_secs(self, secs: float) -> list[float]:
        """Of each request, until its answer was there."""
        waits: list[list[float]] = [[] for _ in range(_CLIENTS)]
        ends_at = time.monotonic() + secs
        threads = [
            threading.Thread(target=self._ask, args=(number, ends_at, waits[number])) for number in range(_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [wait for of_one in waits for wait in of_one]

    def _ask(self, number: int, ends_at: float, waits: list[float]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        path, every = self.server.invoke_path(f"m{number % _MODELS}"), 1 / _REQUESTS_PER_SEC
        due = time.monotonic() + number * every / _CLIENTS
        while due < ends_at:
            time.sleep(max(0.0, due - time.monotonic()))
            begun = time.perf_counter()
            try:
                connection.request("POST", path, ROW_CSV, {"Content-Type": CSV})
                answer = connection.getresponse()
                is_right = answer.read() == self._expected[number % _MODELS] and answer.status == http.client.OK
            except (OSError, http.client.HTTPException):
                is_right = False
                connection.close()
            waits.append(time.perf_counter() - begun)
            self.failed += not is_right
            due = max(due + every, time.monotonic())
        connection.close()


def _take_turn(turns: Turns, neighbours: Neighbours, secs: float, *, at_full_speed: bool) -> None:
    turns.quiet_secs += neighbours.waits_secs(secs)
    neighbours.failed = 0
    with under(turns.attack, neighbours.server.port, secs, at_full_speed=at_full_speed) as sent:
        turns.attacked_secs += neighbours.waits_secs(secs)
    turns.failed += neighbours.failed
    turns.sent.connections += sent.connections
    turns.sent.bytes += sent.bytes
    time.sleep(_SETTLE_SECS)


def p99_ms(waits_secs: Sequence[float]) -> float:
    return statistics.quantiles(waits_secs, n=100)[98] * 1000


_HEAD = (
    "| attack | sent in a second | p99 quiet | p99 under attack | ratio | not answered |\n"
    "| --- | --- | ---: | ---: | ---: | ---: |"
)


def _line(turns: Turns, secs: float) -> str:
    sent = f"{turns.sent.connections / secs:.0f} connections, {turns.sent.bytes / secs / 1e6:.2g} MB"
    quiet, attacked = p99_ms(turns.quiet_secs), p99_ms(turns.attacked_secs)
    words = (turns.attack.name, sent, f"{quiet:.2f} ms", f"{attacked:.2f} ms", f"{turns.ratio:.2f}", str(turns.failed))
    return f"| {' | '.join(words)} |"


if __name__ == "__main__":
    try:
        code = main()
    except BenchmarkFailed as error:
        code = 1
        print(error, file=sys.stderr)
    sys.exit(code)
