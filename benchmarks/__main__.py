"""`python -m benchmarks [PART…]`: measure, write results.json, then the table and the picture from it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from benchmarks.artifacts import Artifacts
from benchmarks.environment import machine, mlserver_environment, mxnet_environment, revision, versions
from benchmarks.parts import PARTS, QUICK, Measured, Setting, Sizes, mlserver_that_answers
from benchmarks.report import BUSY_PERCENT, markdown, outcomes_of
from benchmarks.servers import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
# The whole run usually takes 25 minutes; what hangs is ended, what was measured is kept.
_LIMIT_SECS = 45 * 60


def main() -> int:
    arguments = _arguments()
    arguments.results.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    try:
        if not arguments.render:
            failed = _run(arguments)
    finally:  # what was measured is shown, even if the run was stopped
        if (arguments.results / "results.json").exists():
            _render(arguments.results)
            print((arguments.results / "results.md").read_text(), end="")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description="Polyhost native beside the real MMS.")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all unless told")
    parser.add_argument("--repeats", type=int, help="turns that each contender has")
    parser.add_argument("--models", type=int, help="of the part million; 100,000 unless told")
    parser.add_argument("--quick", action="store_true", help="smaller numbers, 5 minutes at most, without MLServer")
    parser.add_argument("--without-mlserver", action="store_true", help="do not install or measure MLServer")
    parser.add_argument("--render", action="store_true", help="write the table and picture again, measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results.json, .md and .png")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose of {', '.join(PARTS)}")
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    if arguments.models is not None and arguments.models < 1:
        parser.error("--models must be at least 1")
    return arguments


def _run(arguments: argparse.Namespace) -> list[str]:
    """Measure the chosen parts; the names of those that failed. Each part is written when it is done."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"not done after {_LIMIT_SECS / 60:.0f} minutes"))
    signal.alarm(_LIMIT_SECS)
    sizes = _sizes(arguments)
    failed = []
    with _work_folder() as folder:
        artifacts = Artifacts(folder)
        mlserver: Path | str = "it was left out of this run."
        if not arguments.quick and not arguments.without_mlserver:
            mlserver = mlserver_environment(RESULTS / "mlserver-env")
            if isinstance(mlserver, Path):
                mlserver = mlserver_that_answers(mlserver, artifacts)
        setting = Setting(
            sizes=sizes, artifacts=artifacts, say=_say, mlserver=mlserver, mxnet=mxnet_environment(),
            picture=REPOSITORY / "samples" / "models" / "picture.png",
            resnet=(REPOSITORY / "samples" / "models" / "resnet_18").resolve(),
        )  # fmt: skip
        results = _results_of(arguments.results / "results.json", versions(mlserver))
        for name in arguments.parts or PARTS:
            _say(f"== {name}: {PARTS[name].__doc__}")
            busy_percent, started = psutil.cpu_percent(interval=1), time.monotonic()
            if busy_percent > BUSY_PERCENT:
                _say(f"something else uses {busy_percent:.0f} % of this machine: figures will be noisy")
            measured = Measured()
            error = None
            try:
                PARTS[name](setting, measured)
            except Exception as caught:  # noqa: BLE001 - a part that fails must not take the others along
                traceback.print_exc()
                error = type(caught).__name__
                failed.append(name)
            results["parts"][name] = {
                "revision": revision(),
                "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
                "secs": round(time.monotonic() - started),
                "quick": arguments.quick,
                "sizes": dataclasses.asdict(sizes),
                "busy_before_percent": busy_percent,
                "failed": error,
                "notes": measured.notes,
                "figures": measured.figures,
            }
            (arguments.results / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return failed


def _render(folder: Path) -> None:
    """`results.md` and `results.png` from `results.json`."""
    from benchmarks.plot import draw  # matplotlib takes a second

    results = json.loads((folder / "results.json").read_text())
    outcomes = outcomes_of(results)
    (folder / "results.md").write_text(markdown(results, outcomes))
    draw(outcomes, results, folder / "results.png")


def _sizes(arguments: argparse.Namespace) -> Sizes:
    sizes = QUICK if arguments.quick else Sizes()
    if arguments.models is not None:
        sizes = dataclasses.replace(sizes, million_models=arguments.models)
    if arguments.repeats is None:
        return sizes
    # 50,000 models are loaded once whatever is told.
    return dataclasses.replace(
        sizes, repeats=arguments.repeats, memory_repeats=arguments.repeats, many_repeats=arguments.repeats
    )


def _results_of(path: Path, found: dict[str, str]) -> dict[str, Any]:
    """The results so far, where they come from the same machine and versions; else none."""
    fresh: dict[str, Any] = {"machine": machine(), "versions": found, "parts": {}}
    with contextlib.suppress(OSError, ValueError):
        old: dict[str, Any] = json.loads(path.read_text())
        known = {**found, **old["versions"]}
        if old["machine"] == fresh["machine"] and known.items() >= found.items():
            return {**old, "versions": known}
    return fresh


@contextlib.contextmanager
def _work_folder() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="ph-bench-models-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_STARTED = time.monotonic()


def _say(words: str) -> None:
    print(f"[{time.monotonic() - _STARTED:6.0f} s] {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
