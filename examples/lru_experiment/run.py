"""
AWS's experiment with multi-model endpoints, at home: 200 models, memory for about 140 of them.

Calls the first 100 models, the same 100 again, then all 200, twice; watches LoadedModelCount, MemoryUtilization and
ModelCacheHit meanwhile; draws them and prints a table. About 35 seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from prometheus_client.parser import text_string_to_metric_families

HOUSTON = Path(__file__).parents[2] / "samples" / "models" / "houston.tar.gz"
HOUSE = "1998,2150,3,2.5,0.4,2"
PASSES = ("the first half", "the same again", "all", "all again")
START_SECS = 60
# A sample of the metrics after so many calls; a point of the hit ratio is of so many samples.
CALLS_A_SAMPLE = 4
SAMPLES_A_RATIO = 5


@dataclass(frozen=True)
class Sample:
    """What `GET /metrics` said. `at_secs` since the first call."""

    at_secs: float
    loaded: float
    memory_ratio: float
    hits: float
    lookups: float
    loads: float
    evictions: float


@dataclass(frozen=True)
class Call:
    request_id: str
    secs: float


@dataclass(frozen=True)
class Pass:
    """`was_hit` of each call is what the access log says of it."""

    name: str
    calls: tuple[Call, ...]
    samples: tuple[Sample, ...]
    was_hit: tuple[bool, ...] = ()


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="polyhost-lru-") as folder:
        passes = experiment(options, Path(folder))
    print_table(passes)
    draw(passes, options.out)
    print(f"\n{options.out}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200, help="copies of the archive (default: %(default)s)")
    parser.add_argument("--archive", type=Path, default=HOUSTON, help="default: the sample model of Houston")
    parser.add_argument("--memory-budget", default="2MiB", help="for models (default: %(default)s)")
    parser.add_argument("--calls-per-sec", type=float, default=20, help="at most (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8099, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("experiment.png"), help="picture (default: %(default)s)")
    return parser.parse_args()


def experiment(options: argparse.Namespace, folder: Path) -> list[Pass]:
    keys = copies(options.archive, folder / "models", options.models)
    with served(folder, options.memory_budget, options.port) as url:
        client = Client(url, options.calls_per_sec)
        passes = [client.passed(name, models) for name, models in zip(PASSES, orders(keys), strict=True)]
    return with_hits(passes, folder / "server.log")


def orders(keys: Sequence[str]) -> list[list[str]]:
    """
    Who is called in each pass, and when.

    Each pass has an order of its own: in one and the same, an LRU cache that is too small for the circle never hits.
    """
    half = keys[: len(keys) // 2]
    shuffled = random.Random(1)  # noqa: S311 - repeatable, not secret
    return [shuffled.sample(models, len(models)) for models in (half, half, keys, keys)]


def copies(archive: Path, models: Path, count: int) -> list[str]:
    models.mkdir()
    keys = [f"model_{number}.tar.gz" for number in range(count)]
    for key in keys:
        shutil.copy(archive, models / key)
    return keys


@contextlib.contextmanager
def served(folder: Path, memory_budget: str, port: int) -> Iterator[str]:
    """The address of an endpoint that serves the folder `models`; it logs to `server.log`."""
    command = [
        sys.executable, "-m", "polyhost", "serve", "--port", str(port), "--models", str(folder / "models"),
        "--state-dir", str(folder / "state"), "--memory-budget", memory_budget, "--log-format", "json",
    ]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_until_ready(server, f"http://127.0.0.1:{port}", folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECS
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ping", timeout=2):  # noqa: S310 - ours
            return
        if server.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.1)


class Client:
    """One caller, as AWS's notebook is; no faster than `calls_per_sec`."""

    def __init__(self, url: str, calls_per_sec: float) -> None:
        self._url = url
        self._runtime = boto3.client(
            "sagemaker-runtime", endpoint_url=url, region_name="us-east-1",
            aws_access_key_id="anybody", aws_secret_access_key="anything",  # noqa: S106 - nobody looks
        )  # fmt: skip
        self._pause_secs = 1 / calls_per_sec
        self._began = self._next = time.monotonic()

    def passed(self, name: str, models: Sequence[str]) -> Pass:
        calls, samples = [], [self._sample()]
        for number, model in enumerate(models, start=1):
            self._wait_for_turn()
            calls.append(self._call(model))
            if number % CALLS_A_SAMPLE == 0 or number == len(models):
                samples.append(self._sample())
        return Pass(name, tuple(calls), tuple(samples))

    def _wait_for_turn(self) -> None:
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = max(self._next, time.monotonic() - self._pause_secs) + self._pause_secs

    def _call(self, model: str) -> Call:
        begin = time.monotonic()
        answer = self._runtime.invoke_endpoint(
            EndpointName="polyhost", TargetModel=model, ContentType="text/csv", Body=HOUSE
        )
        answer["Body"].read()
        return Call(answer["ResponseMetadata"]["RequestId"], time.monotonic() - begin)

    def _sample(self) -> Sample:
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=10) as page:  # noqa: S310 - ours
            lines = page.read().decode().splitlines()
        ours = "\n".join(line for line in lines if not re.search("_per_model_|_bucket", line))
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(ours + "\n")
            for sample in family.samples
        }
        return Sample(
            time.monotonic() - self._began,
            loaded=values.get("polyhost_loaded_model_count", 0),
            memory_ratio=values["polyhost_memory_utilization_ratio"],
            hits=values.get("polyhost_model_cache_hits_total", 0),
            lookups=values.get("polyhost_model_cache_lookups_total", 0),
            loads=values.get("polyhost_model_loading_time_seconds_count", 0),
            evictions=values.get("polyhost_model_evictions_total", 0),
        )


def with_hits(passes: Sequence[Pass], log: Path) -> list[Pass]:
    """A client does not see whether its model was in memory; the access log has it, by the request's id."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    loaded = {line["request_id"]: line["loaded"] for line in lines if line["logger"] == "polyhost.access"}
    return [
        Pass(one.name, one.calls, one.samples, tuple(loaded[call.request_id] == "hit" for call in one.calls))
        for one in passes
    ]


def print_table(passes: Sequence[Pass]) -> None:
    print(
        f"{'pass':16} {'calls':>6} {'hits':>6} {'loads':>6} {'evicted':>8} {'loaded':>7} {'hit p50':>9} {'miss p50':>9}"
    )
    for one in passes:
        first, last = one.samples[0], one.samples[-1]
        print(
            f"{one.name:16} {len(one.calls):6} {sum(one.was_hit):6} {last.loads - first.loads:6.0f} "
            f"{last.evictions - first.evictions:8.0f} {last.loaded:7.0f} "
            f"{_median_ms(one, was_hit=True):>9} {_median_ms(one, was_hit=False):>9}"
        )


def _median_ms(one: Pass, *, was_hit: bool) -> str:
    secs = [call.secs for call, hit in zip(one.calls, one.was_hit, strict=True) if hit == was_hit]
    return f"{statistics.median(secs) * 1000:.1f} ms" if secs else "-"


def hit_ratios(passes: Sequence[Pass]) -> tuple[list[float], list[float]]:
    """Moments and percents, each of a few samples: a point of SageMaker's is of a minute."""
    moments, percents = [], []
    for one in passes:
        for first, last in zip(one.samples[:-1:SAMPLES_A_RATIO], _ends(one.samples), strict=True):
            moments.append((first.at_secs + last.at_secs) / 2)
            percents.append(100 * (last.hits - first.hits) / (last.lookups - first.lookups))
    return moments, percents


def _ends(samples: Sequence[Sample]) -> list[Sample]:
    starts = range(0, len(samples) - 1, SAMPLES_A_RATIO)
    return [samples[min(start + SAMPLES_A_RATIO, len(samples) - 1)] for start in starts]


def draw(passes: Sequence[Pass], path: Path) -> None:
    try:
        import matplotlib as mpl
    except ImportError:
        sys.exit("matplotlib draws the picture: pip install 'polyhost[bench]'")
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    samples = [sample for one in passes for sample in one.samples]
    moments = [sample.at_secs for sample in samples]
    figure, (loaded, memory, hits) = plt.subplots(3, 1, figsize=(9, 7.5), sharex=True, facecolor="white")
    loaded.plot(moments, [sample.loaded for sample in samples], color="#1f6fb2")
    loaded.annotate(f"{samples[-1].loaded:.0f}", (moments[-1], samples[-1].loaded), xytext=(4, -3),
                    textcoords="offset points", color="#1f6fb2")  # fmt: skip
    memory.plot(moments, [100 * sample.memory_ratio for sample in samples], color="#b2571f")
    hits.plot(*hit_ratios(passes), color="#2f8f4e", marker="o", markersize=3)
    hits.set_xlabel("seconds")
    for axes, title in ((loaded, "LoadedModelCount"), (memory, "MemoryUtilization, %"), (hits, "ModelCacheHit, %")):
        _frame(axes, title, passes)
    for number, one in enumerate(passes):
        middle = (one.samples[0].at_secs + one.samples[-1].at_secs) / 2
        loaded.text(
            middle, 1.22, f"{number + 1}: {one.name}", transform=loaded.get_xaxis_transform(), ha="center", fontsize=9
        )
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _frame(axes: Any, title: str, passes: Sequence[Pass]) -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e7eb")
    for one in passes[1::2]:
        axes.axvspan(one.samples[0].at_secs, one.samples[-1].at_secs, color="#f3f5f7", zorder=0)


if __name__ == "__main__":
    main()
