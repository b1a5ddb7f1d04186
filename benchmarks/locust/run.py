"""
The load test: two endpoints side by side, Locust against each, a report.

Without --endpoint, both are servers of our own: one with memory for all models, one for a third of them. With it,
endpoints that are there already, such as SageMaker's: only what the users see is known then.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environment import machine
from benchmarks.locust import make_models
from benchmarks.locust.history import Client, read
from benchmarks.locust.processes import ChurnServer, Command, memory_of_all, wait_for
from benchmarks.locust.report import Result, write
from benchmarks.locust.watch import Watch
from benchmarks.servers import REPOSITORY, BenchmarkFailed, free_port

_HERE = Path(__file__).parent
_WORKERS = 2
# From the end of the time that users have to that of Locust's processes.
_SLACK_SECS = 180
_WEB_PORT = 8089
# Room beyond what all models were seen to take, so that none is evicted: a share, and what loads that are
# under way at once take for a moment, however small the models are.
_ROOM = 1.5
_HEAPS_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class Target:
    """An endpoint to be loaded. `server`: None for one that is not ours."""

    name: str
    endpoint: str
    server: ChurnServer | None = None


def main() -> None:
    options = parsed_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = run(options)
    except BenchmarkFailed as error:
        sys.exit(f"error: {error}")
    print(f"report: {report}")


def parsed_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/loadtest", description="Load two endpoints side by side.")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--users", type=int, default=300, help="of each endpoint")
    parser.add_argument("--spawn-rate", type=float, default=5.0, help="new users per second")
    parser.add_argument("--web", action="store_true", help=f"Locust's pages on ports {_WEB_PORT} and {_WEB_PORT + 1}")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results" / "loadtest")
    parser.add_argument("--endpoint", action="append", default=[], help="of SageMaker; may be given twice")
    options = parser.parse_args(arguments)
    if not (0 < options.minutes <= 24 * 60 and 0 < options.users <= 1000 and 0 < options.spawn_rate <= 1000):
        parser.error("--minutes must be above 0 and 1440 at most, --users and --spawn-rate above 0 and 1000 at most")
    return options


def run(options: argparse.Namespace) -> Path:
    """The report's file. Raises BenchmarkFailed."""
    models = options.results / "models"
    options.results.mkdir(parents=True, exist_ok=True)
    if not models.exists():
        print("training 51 models", file=sys.stderr)
        make_models.make(models)
    with contextlib.ExitStack() as stack:
        temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ph-load-")))
        targets = [Target(name, name) for name in options.endpoint] or _own(models, temp, stack)
        results = _load(targets, options, models / "rows.csv", temp, stack)
    return write(results, options.results, _words(options), machine())


def _own(models: Path, temp: Path, stack: contextlib.ExitStack) -> list[Target]:
    print("measuring what all models take", file=sys.stderr)
    state, _, row = (models / "rows.csv").read_text().splitlines()[1].partition(",")
    all_bytes = memory_of_all(models / "models", temp / "measured", row)
    budgets = {"memory for all": round(all_bytes * _ROOM) + _HEAPS_BYTES, "memory for a third": all_bytes // 3}
    targets = []
    for number, (name, budget_bytes) in enumerate(budgets.items()):
        server = stack.enter_context(ChurnServer(models / "models", temp / f"state{number}", budget_bytes))
        # The first call waits for the workers' frameworks: no user's.
        server.call(f"churn/{state}.tar.gz", row)
        targets.append(Target(name, "polyhost", server))
    return targets


def _load(
    targets: Sequence[Target], options: argparse.Namespace, rows: Path, temp: Path, stack: contextlib.ExitStack
) -> list[Result]:
    watches = [stack.enter_context(Watch(target.server)) if target.server else None for target in targets]
    run_secs = round(options.minutes * 60)
    with contextlib.ExitStack() as commands:
        masters = []
        for number, target in enumerate(targets):
            folder = temp / f"locust{number}"
            folder.mkdir()
            masters.append(_start_locust(target, number, options, run_secs, rows, folder, commands))
        print(f"{options.users} users each, for {run_secs} s", file=sys.stderr)
        wait_for(masters, run_secs + _SLACK_SECS)
        clients = [_client(master) for master in masters]
    return [
        Result(target.name, client, watch.looks if watch else [], target.server.budget_bytes if target.server else None)
        for target, client, watch in zip(targets, clients, watches, strict=True)
    ]


def _client(master: Command) -> Client:
    try:
        return read(master.log.parent)
    except (OSError, ValueError, LookupError) as error:
        raise BenchmarkFailed(f"Locust wrote no figures; its log ends:\n{master.log_tail()}") from error


def _start_locust(
    target: Target, number: int, options: argparse.Namespace, run_secs: int, rows: Path, folder: Path,
    commands: contextlib.ExitStack,
) -> Command:  # fmt: skip
    """The master, its workers beside it."""
    port = str(free_port())
    environ = {"LOADTEST_ENDPOINT": target.endpoint, "LOADTEST_ROWS": str(rows)}
    if target.server:
        # It takes any; without some, boto3 would not sign at all, which is part of what a call costs.
        keys = {"AWS_ACCESS_KEY_ID": "loadtest", "AWS_SECRET_ACCESS_KEY": "loadtest"}
        environ |= {"LOADTEST_ENDPOINT_URL": target.server.url, **keys}
    locust = [sys.executable, "-m", "locust", "-f", str(_HERE / "locustfile.py")]
    web = ["--autostart", "--autoquit", "3", "--web-host", "127.0.0.1", "--web-port", str(_WEB_PORT + number)]
    master = Command(
        [
            *locust, "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port,
            "--expect-workers", str(_WORKERS), *(web if options.web else ["--headless", "--only-summary"]),
            "-u", str(options.users), "-r", str(options.spawn_rate), "-t", f"{run_secs}s", "--stop-timeout", "10",
            "--csv", str(folder / "locust"), "--csv-full-history", "--exit-code-on-error", "0",
        ],
        environ, folder / "master.log",
    )  # fmt: skip
    commands.enter_context(master)
    for worker in range(_WORKERS):
        command = [*locust, "--worker", "--master-host", "127.0.0.1", "--master-port", port]
        commands.enter_context(Command(command, environ, folder / f"worker{worker}.log"))
    if options.web:
        print(f"{target.name}: http://127.0.0.1:{_WEB_PORT + number}", file=sys.stderr)
    return master


def _words(options: argparse.Namespace) -> str:
    return f"{options.users} users each, {options.spawn_rate:g} new per second, {options.minutes:g} minutes"
