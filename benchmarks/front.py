"""
CPU time of a request in the front and in the worker, beside another checkout's: `python -m benchmarks.front FOLDER`.

`FOLDER` is that checkout, for example of the commit before a change. Both serve the same models at the same time and
are asked in turn, so that whatever else the machine does meets both. Ratios are this checkout's over the other's.

A booster's row is answered in the front. The kinds "to a worker" are of a model with code of its own, which never is.
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.artifacts import BOOSTERS, ROW_CSV, Artifacts
from benchmarks.endpoint import EndpointServer, archives, ask, load_of, principals
from benchmarks.load import Load, measure
from benchmarks.servers import CSV, REPOSITORY

_CONNECTIONS = 16
_US = 1e6
# The model with code of its own: its name in the engine, and its archive.
_OWN_CODE, _OWN_CODE_ARCHIVE = "own-code", "own-code.tar.gz"


class Checkout(EndpointServer):
    """An endpoint server of the code in a folder."""

    def __init__(self, code: Path, models: Path, state: Path, *options: str) -> None:
        self._code = code
        super().__init__(str(models), state, *options)

    def own_environ(self) -> dict[str, str]:
        path = ":".join(str(self._code / folder) for folder in ("container", "aws", "handlers"))
        return {**super().own_environ(), "PYTHONPATH": f"{path}:{REPOSITORY}"}

    def cpu_secs(self) -> tuple[float, float]:
        """Of the front, and of all its children."""
        front = self.processes()[0]
        children = [one.cpu_times() for one in front.children(recursive=True)]
        times = front.cpu_times()
        return times.user + times.system, sum(one.user + one.system for one in children)


class Figures(NamedTuple):
    """Microseconds of CPU time for each request in the front and in the workers, and milliseconds that one took."""

    front_us: float
    worker_us: float
    p50_ms: float
    p99_ms: float


def measured(server: Checkout, load: Load, secs: int) -> Figures:
    front, workers = server.cpu_secs()
    figures = measure(load, connections=_CONNECTIONS, secs=secs)
    front_after, workers_after = server.cpu_secs()
    requests = figures.requests_per_sec * secs
    return Figures(
        (front_after - front) * _US / requests, (workers_after - workers) * _US / requests,
        figures.p50_ms, figures.p99_ms,
    )  # fmt: skip


def loads(server: Checkout, targets: list[str], *, is_signed: bool) -> dict[str, Load]:
    of_endpoint = load_of(server.port, targets, is_signed=is_signed)
    of_own_code = load_of(server.port, [_OWN_CODE_ARCHIVE], is_signed=is_signed)
    if is_signed:
        return {"endpoint, signed": of_endpoint, "endpoint, signed, to a worker": of_own_code}
    return {
        "engine": of_engine(server, "/models/m%d/invoke", len(targets)),
        "engine, to a worker": of_engine(server, f"/models/{_OWN_CODE}/invoke?%d", 1),
        "engine, 5 MB to a worker": of_engine(server, f"/models/{_OWN_CODE}/invoke?%d", 1, bytes(5_000_000)),
        "endpoint": of_endpoint,
        "endpoint, to a worker": of_own_code,
    }


def of_engine(server: Checkout, path_format: str, models: int, body: bytes = ROW_CSV) -> Load:
    return Load(port=server.port, path_format=path_format, models=models, body=body, content_type=CSV)


def pack(source: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        for file in source.iterdir():
            tar.add(file, file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ph-bench-") as name:
        folder = Path(name)
        artifacts = Artifacts(folder)
        (folder / "models").mkdir()
        targets = archives(artifacts, folder / "models", BOOSTERS)
        pack(artifacts.length(), folder / "models" / _OWN_CODE_ARCHIVE)
        for is_signed in (False, True):
            options = ("--auth", "sigv4", "--auth-file", str(principals(folder))) if is_signed else ()
            compare(arguments, folder, targets, options, is_signed=is_signed)


def compare(
    arguments: argparse.Namespace, folder: Path, targets: list[str], options: tuple[str, ...], *, is_signed: bool
) -> None:
    codes = (arguments.other.resolve(), REPOSITORY)
    states = [folder / f"state-{number}-{is_signed}" for number in range(2)]
    with (
        Checkout(codes[0], folder / "models", states[0], *options) as other,
        Checkout(codes[1], folder / "models", states[1], *options) as own,
    ):
        servers = (other, own)
        for server in servers:
            ask(server, [*targets, _OWN_CODE_ARCHIVE], is_signed=is_signed)
            if not is_signed:
                with server.client() as client:
                    for number, source in enumerate(Artifacts(folder).shared(len(targets))):
                        server.load(client, f"m{number}", source)
                    server.load(client, _OWN_CODE, Artifacts(folder).length())
        for kind in loads(own, targets, is_signed=is_signed):
            rounds: list[list[Figures]] = []
            for number in range(arguments.rounds):
                of_each = {}
                for one in servers[:: 1 if number % 2 else -1]:  # neither is always the first
                    of_each[one] = measured(one, loads(one, targets, is_signed=is_signed)[kind], arguments.secs)
                rounds.append([of_each[one] for one in servers])
            show(kind, rounds)


def show(kind: str, rounds: list[list[Figures]]) -> None:
    for place, what in enumerate(Figures._fields):
        before, after = (statistics.median(one[side][place] for one in rounds) for side in range(2))
        if not before:  # the front has answered by itself
            continue
        ratios = sorted(one[1][place] / one[0][place] for one in rounds)
        spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        print(
            f"{kind:30}{what:10}{before:9.2f} -> {after:9.2f}   ratio {statistics.median(ratios):.3f} ({spread})",
            flush=True,
        )


if __name__ == "__main__":
    main()
