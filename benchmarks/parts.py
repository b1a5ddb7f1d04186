"""
What is measured, part by part.

A part starts its servers, has them take turns, and records every figure that it sees; what they mean is `report`'s.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import fleet as fleets
from benchmarks.artifacts import BOOSTERS, SEED, Artifacts
from benchmarks.cores import FRONTS, measurable, measure_cores
from benchmarks.endpoint import archives, load_of, measure_cold, measure_warm
from benchmarks.hard import measure_churn, measure_signed, measure_storm
from benchmarks.load import Figures, Load, measure, measure_segments
from benchmarks.routers import Router, installed
from benchmarks.servers import (
    FASTAPIS,
    REPOSITORY,
    BenchmarkFailed,
    Client,
    FastApi,
    MlServer,
    Mms,
    Native,
    Server,
    python_path,
)  # fmt: skip

MIB = 1024**2
_SETTLE_SECS = 2.0
_CONNECTIONS = 16
# 50,000 models at 12 ms each; a target of 4 ms leaves room for a slow machine.
_LOAD_ALL_SECS = 600
_LOADING_CLIENTS = 4
# What three servers are asked while they are killed and updated: so many models, at so many requests/s.
_FLEET_MODELS, _FLEET_RATE = 60, 150.0
# What the caches of all three have for each model: less than it takes, so that models are evicted.
_FLEET_KIB_PER_MODEL = 90


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is done; `quick` for a look, the default for figures to show."""

    repeats: int = 5
    # How long one load from wrk lasts.
    secs: int = 10
    warm_up_secs: int = 6
    loads_per_repeat: int = 5
    memory_repeats: int = 3
    memory_processes: int = 8
    memory_shared_models: int = 1000
    many_models: int = 10_000
    many_repeats: int = 3
    resident_models: int = 50_000
    resident_repeats: int = 1
    million_models: int = 100_000
    image_workers: tuple[int, ...] = (1, 2, 4)
    cold_models: int = 100
    storm_models: int = 1000
    churn_models: int = 400
    fleet_models: int = 1500
    fleet_requests: int = 20_000


QUICK = Sizes(
    repeats=2, secs=3, warm_up_secs=2, loads_per_repeat=2, memory_repeats=1, memory_processes=3,
    memory_shared_models=200, many_models=1000, many_repeats=1, resident_models=2000, image_workers=(1, 2),
    million_models=2000, cold_models=20, storm_models=300, churn_models=100, fleet_models=300, fleet_requests=6000,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all parts are given."""

    sizes: Sizes
    artifacts: Artifacts
    say: Callable[[str], None]
    # The Python environment that MLServer is installed in, or why it is not there.
    mlserver: Path | str
    # The same of MXNet.
    mxnet: Path | str
    picture: Path
    resnet: Path


@dataclass
class Measured:
    """Every figure of a part, by measure and contender, in the order in which they were taken."""

    figures: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, contender: str, figure: float) -> None:
        self.figures[name][contender].append(round(figure, 6))


Part = Callable[[Setting, Measured], None]


def mlserver_that_answers(folder: Path, artifacts: Artifacts) -> Path | str:
    """`folder`, if the MLServer installed there loads a model and answers; else why it is left out."""
    source = artifacts.shared(1)[0]
    server = MlServer(folder)
    try:
        server.prepare("probe", source)
        with server:
            _first_answer_ms(server, "probe", source)
    except BenchmarkFailed as error:
        return f"installed, it does not serve: {str(error).splitlines()[0]}"
    return folder


def start(setting: Setting, measured: Measured) -> None:
    """Start of the process until /ping is answered, and until a first model has answered."""
    source = setting.artifacts.shared(1)[0]
    for _ in range(setting.sizes.repeats):
        for make in _contenders(setting, measured):
            server = make()
            server.prepare("first", source)
            try:
                secs = server.start()
                answer_secs = secs + _first_answer_ms(server, "first", source) / 1000
            finally:
                server.stop()
            measured.add("start_secs", server.name, secs)
            measured.add("first_answer_secs", server.name, answer_secs)
            setting.say(f"{server.title}: {secs:.2f} s until /ping, {answer_secs:.2f} s until a model has answered")


def throughput(setting: Setting, measured: Measured) -> None:
    """Requests/s and latency of twenty XGBoost models in turn, one row each."""
    sources = setting.artifacts.shared(BOOSTERS)
    with contextlib.ExitStack() as stack:
        makers = [*_contenders(setting, measured), *_FASTAPIS]
        servers = [stack.enter_context(make()) for make in makers]
        for server in servers:
            setting.say(f"{server.title}: loading {len(sources)} models")
            _load_all(server, "m", sources)
        _require_equal_answers(servers, "m0")
        for server in servers:
            measure(_row_load(server, BOOSTERS), connections=_CONNECTIONS, secs=setting.sizes.warm_up_secs)
        for server in _turns(setting.sizes.repeats, servers):
            many = measure(_row_load(server, BOOSTERS), connections=_CONNECTIONS, secs=setting.sizes.secs)
            one = measure(_row_load(server, BOOSTERS), connections=1, secs=max(2, setting.sizes.secs // 2))
            measured.add("requests_per_sec", server.name, many.requests_per_sec)
            measured.add("p50_ms", server.name, many.p50_ms)
            measured.add("p99_ms", server.name, many.p99_ms)
            measured.add("p50_one_connection_ms", server.name, one.p50_ms)
            setting.say(f"{server.title}: {_in_words(many)}; at 1 connection p50 {one.p50_ms:.2f} ms")
            segments = measure_segments(
                _row_load(server, BOOSTERS), connections=_CONNECTIONS, secs=max(2, setting.sizes.secs // 2)
            )
            measured.add("segments_per_sec", server.name, segments.requests_per_sec)
            setting.say(f"{server.title}: in two segments {_in_words(segments)}")


def load(setting: Setting, measured: Measured) -> None:
    """POST /models until that model's first answer; then it is unloaded again."""
    kinds = {"shared": setting.artifacts.shared(BOOSTERS), "dedicated": setting.artifacts.dedicated(BOOSTERS)}
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(make()) for make in _contenders(setting, measured)]
        for server in servers:  # what is imported at the first load only
            _load_all(server, "warm", kinds["shared"][:2])
        for number in range(setting.sizes.repeats):
            for server in servers:
                for kind, sources in kinds.items():
                    if kind == "dedicated" and isinstance(server, MlServer):
                        continue
                    for index in range(setting.sizes.loads_per_repeat):
                        name = f"{kind}-{number}-{index}"
                        source = sources[(number * setting.sizes.loads_per_repeat + index) % len(sources)]
                        server.prepare(name, source)
                        measured.add(f"{kind}_ms", server.name, _first_answer_ms(server, name, source))
            latest = ", ".join(
                f"{server.title} {statistics.median(by_server[server.name]):.1f} ms {kind.removesuffix('_ms')}"
                for kind, by_server in measured.figures.items()
                for server in servers
                if server.name in by_server
            )
            setting.say(latest)


def memory(setting: Setting, measured: Measured) -> None:
    """PSS of the whole process tree: what each further model adds."""
    for _ in range(setting.sizes.memory_repeats):
        for make in _contenders(setting, measured):
            for kind in ("shared", "dedicated"):
                server = make()
                if kind == "dedicated" and isinstance(server, MlServer):
                    server.stop()
                    continue
                with server:
                    time.sleep(_SETTLE_SECS)
                    idle = server.pss_bytes()
                    per_model = _memory_per_model(setting, server, kind)
                measured.add("idle_mib", server.name, idle / MIB)
                measured.add(f"{kind}_mib", server.name, per_model / MIB)
                setting.say(f"{server.title}: {per_model / MIB:.3f} MiB per model, {kind}")


def many(setting: Setting, measured: Measured) -> None:
    """Thousands of models loaded one by one, and the p99 over all of them beside that over twenty."""
    sources = setting.artifacts.shared(setting.sizes.many_models)
    with Native() as few:
        _load_all(few, "m", sources[:BOOSTERS])
        measure(_row_load(few, BOOSTERS), connections=_CONNECTIONS, secs=setting.sizes.warm_up_secs)
        for _ in range(setting.sizes.many_repeats):
            with Native() as server:
                _measure_many(setting, measured, server, sources)
                over_all: list[float] = []
                over_few: list[float] = []
                for turn in _turns(3, [few, server]):
                    of = BOOSTERS if turn is few else len(sources)
                    figures = measure(
                        _row_load(turn, of, "zipf"), connections=_CONNECTIONS, secs=max(2, setting.sizes.secs // 2),
                    )  # fmt: skip
                    (over_few if turn is few else over_all).append(figures.p99_ms)
                    measured.add("p99_20_ms" if turn is few else "p99_all_ms", "native", figures.p99_ms)
                    measured.add(
                        "requests_per_sec_20" if turn is few else "requests_per_sec_all",
                        "native",
                        figures.requests_per_sec,
                    )
                ratio = statistics.median(over_all) / statistics.median(over_few)
                measured.add("p99_all_over_20", "native", ratio)
                setting.say(f"p99 over all {statistics.median(over_all):.2f} ms, {ratio:.2f} times that over 20")


def resident(setting: Setting, measured: Measured) -> None:
    """As many models as anyone has asked for, in one server."""
    sources = setting.artifacts.shared(setting.sizes.resident_models)
    for _ in range(setting.sizes.resident_repeats):
        with Native() as server:
            _measure_many(setting, measured, server, sources)
            figures = measure(
                _row_load(server, len(sources), "zipf"), connections=_CONNECTIONS, secs=setting.sizes.secs
            )
            measured.add("p99_ms", "native", figures.p99_ms)
            measured.add("requests_per_sec", "native", figures.requests_per_sec)
            setting.say(f"{len(sources)} models: {_in_words(figures)}")


def million(setting: Setting, measured: Measured) -> None:
    """As many models as `--models` says, small ones in one server: their start, memory and answers."""
    count, sources = setting.sizes.million_models, setting.artifacts.shared(BOOSTERS)
    with Native() as server:
        time.sleep(_SETTLE_SECS)
        idle = server.pss_bytes()
        started = time.perf_counter()
        _load_many(server, sources, count, setting.say)
        secs = time.perf_counter() - started
        time.sleep(_SETTLE_SECS)
        used = server.pss_bytes() - idle
        measured.add("load_all_secs", server.name, secs)
        measured.add("memory_mib", server.name, used / MIB)
        measured.add("memory_per_model_kb", server.name, used / count / 1000)
        setting.say(f"{count} models loaded in {secs:.0f} s, {used / MIB:.0f} MiB")
        for _ in range(setting.sizes.repeats):
            figures = measure(_row_load(server, count, "zipf"), connections=_CONNECTIONS, secs=setting.sizes.secs)
            measured.add("p50_ms", server.name, figures.p50_ms)
            measured.add("p99_ms", server.name, figures.p99_ms)
            measured.add("requests_per_sec", server.name, figures.requests_per_sec)
            setting.say(f"{count} models: {_in_words(figures)}")


def images(setting: Setting, measured: Measured) -> None:
    """Pictures through ResNet-18, on 1, 2 and 4 workers."""
    if isinstance(setting.mxnet, str):
        measured.notes.append(f"ResNet-18 not measured: {setting.mxnet}")
        return
    picture = setting.picture.read_bytes()
    native = Native({"POLYHOST_MXNET_PYTHON": str(setting.mxnet / "bin" / "python")})
    with Mms(python_environment=setting.mxnet) as mms, native:
        servers: list[Server] = [mms, native]
        answers = []
        for server in servers:
            with server.client() as client:
                for workers in setting.sizes.image_workers:
                    server.load(client, f"resnet{workers}", setting.resnet, workers)
                answers.append(client.request("POST", server.invoke_path("resnet1"), picture, "image/png"))
        if answers[0] != answers[1]:
            raise BenchmarkFailed(f"ResNet-18's answers differ: {answers[0]!r} and {answers[1]!r}")
        for workers in setting.sizes.image_workers:
            for server in servers:
                measure(_image_load(server, workers, picture), connections=8, secs=2)
            for server in _turns(setting.sizes.repeats, servers):
                figures = measure(
                    _image_load(server, workers, picture), connections=8, secs=max(3, setting.sizes.secs * 4 // 5),
                )  # fmt: skip
                measured.add(f"images_per_sec_{workers}", server.name, figures.requests_per_sec)
                measured.add(f"images_p99_ms_{workers}", server.name, figures.p99_ms)
                setting.say(f"{server.title}: {workers} workers, {_in_words(figures)}")


def bodies(setting: Setting, measured: Measured) -> None:
    """5 MB to a model that answers how many bytes it got."""
    body = random.Random(SEED).randbytes(5_000_000)
    limits = {"SAGEMAKER_MAX_REQUEST_SIZE": "10000000", "MMS_MAX_REQUEST_SIZE": "10000000"}
    with contextlib.ExitStack() as stack:
        makers: list[Callable[[], Server]] = [lambda: Mms(limits), lambda: Native(limits), *_FASTAPIS]
        servers = [stack.enter_context(make()) for make in makers]
        for server in servers:
            server.prepare("length", setting.artifacts.length())
            with server.client() as client:
                server.load(client, "length", setting.artifacts.length())
                answer = client.request("POST", server.invoke_path("length"), body, "application/octet-stream")
            if answer != b"5000000":
                raise BenchmarkFailed(f"{server.title}: of 5,000,000 bytes it got {answer!r}")
        loads = {
            server.name: Load(
                port=server.port, path_format=server.invoke_path("length"), models=1, body=body,
                content_type="application/octet-stream",
            )
            for server in servers
        }  # fmt: skip
        for server in servers:
            measure(loads[server.name], connections=4, secs=2)
        for server in _turns(setting.sizes.repeats, servers):
            figures = measure(loads[server.name], connections=4, secs=max(3, setting.sizes.secs // 2))
            measured.add("bodies_per_sec", server.name, figures.requests_per_sec)
            measured.add("bodies_p99_ms", server.name, figures.p99_ms)
            setting.say(f"{server.title}: 5 MB bodies, {_in_words(figures)}")


def floor(setting: Setting, measured: Measured) -> None:
    """The same call without a server, and a server without the call."""
    folders = [str(folder) for folder in setting.artifacts.shared(BOOSTERS)]
    secs = max(2, setting.sizes.secs // 2)
    environ = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    if importlib.util.find_spec("treelite") is None:
        measured.notes.append("Treelite not measured: the package treelite is not installed.")
    with _Echo() as echo:
        for _ in range(setting.sizes.repeats):
            rows = subprocess.run(
                [sys.executable, "-m", "benchmarks.rows", str(setting.artifacts.boosters()[0])],
                capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environ, timeout=120,
            )  # fmt: skip
            for name, microsecs in json.loads(rows.stdout).items():
                measured.add(f"{name}_row_microsecs", "native", microsecs)
            ran = subprocess.run(
                [sys.executable, "-m", "benchmarks.floor", "loop", str(secs), *folders],
                capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environ, timeout=120,
            )  # fmt: skip
            measured.add("calls_per_sec", "native", float(ran.stdout))
            figures = measure(_row_load(echo, 1), connections=_CONNECTIONS, secs=secs)
            measured.add("echo_per_sec", "native", figures.requests_per_sec)
            measured.add("echo_p50_ms", "native", figures.p50_ms)
            setting.say(f"floor: {float(ran.stdout):.0f} calls/s in a bare loop, a bare echo {_in_words(figures)}")


def endpoint(setting: Setting, measured: Measured) -> None:
    """The endpoint half on top of the engine: warm, signed, from the disk cache, from S3."""
    add = _native(measured)
    sizes = setting.sizes
    measure_warm(setting.artifacts, sizes.repeats, max(2, sizes.secs // 2), _CONNECTIONS, add)
    measure_cold(setting.artifacts, sizes.cold_models, add)
    _say_all(setting, measured)


def signed(setting: Setting, measured: Measured) -> None:
    """What signatures and the access log cost an endpoint."""
    sizes = setting.sizes
    measure_signed(setting.artifacts, sizes.repeats, max(2, sizes.secs // 2), _CONNECTIONS, _native(measured))
    _say_all(setting, measured)


def storm(setting: Setting, measured: Measured) -> None:
    """64 cold calls at once while twenty models are asked 300 times a second."""
    for _ in range(setting.sizes.many_repeats):
        measure_storm(setting.artifacts, setting.sizes.storm_models, _native(measured))
    _say_all(setting, measured)


def churn(setting: Setting, measured: Measured) -> None:
    """Twice as many models as fit into memory."""
    measure_churn(setting.artifacts, setting.sizes.churn_models, setting.sizes.secs, _CONNECTIONS, _native(measured))
    _say_all(setting, measured)


def cores(setting: Setting, measured: Measured) -> None:
    """One front and more on one port, as far as there are cores for them."""
    count = psutil.cpu_count() or 1
    sizes = setting.sizes
    measure_cores(setting.artifacts, sizes.repeats, max(2, sizes.secs // 2), count, _native(measured))
    if missing := ", ".join(map(str, FRONTS[len(measurable(count)) :])):
        measured.notes.append(
            f"{missing} fronts are modelled: each has a core, and a request takes the CPU time that was measured. "
            f"Of {count} cores, wrk and the kernel need some."
        )
    _say_all(setting, measured)


def heavy(setting: Setting, measured: Measured) -> None:
    """500 trees for one row and for a hundred; a scikit-learn pipeline and an ONNX network for ten."""
    from benchmarks.heavy import heavy_models  # the frameworks take seconds to import

    with contextlib.ExitStack() as stack:
        makers: list[Callable[[], Server]] = [Mms, Native, *_FASTAPIS]
        servers = [stack.enter_context(make()) for make in makers]
        for name, source, body in heavy_models(setting.artifacts):
            loads = {}
            for server in servers:
                server.prepare(name, source)
                with server.client() as client:
                    server.load(client, name, source)
                loads[server.name] = Load(
                    port=server.port, path_format=server.invoke_path(name), models=1, body=body, content_type="text/csv"
                )
                measure(loads[server.name], connections=_CONNECTIONS, secs=setting.sizes.warm_up_secs)
            for server in _turns(setting.sizes.repeats, servers):
                figures = measure(loads[server.name], connections=_CONNECTIONS, secs=setting.sizes.secs)
                measured.add(f"{name}_per_sec", server.name, figures.requests_per_sec)
                measured.add(f"{name}_p99_ms", server.name, figures.p99_ms)
                setting.say(f"{server.title}: {name}, {_in_words(figures)}")


def _native(measured: Measured) -> Callable[[str, float], None]:
    return lambda name, figure: measured.add(name, "native", figure)


def _say_all(setting: Setting, measured: Measured) -> None:
    for name, by_contender in measured.figures.items():
        setting.say(f"{name}: {statistics.median(by_contender['native']):.3f}")


def fleet(setting: Setting, measured: Measured) -> None:
    """Three servers behind HAProxy and Envoy: hit ratio, what a router adds, what clients see when servers go."""
    missing = [engine for engine in ("haproxy", "envoy") if installed(engine) is None]
    if missing:
        raise BenchmarkFailed(f"{' and '.join(missing)} not installed: scripts/install-fleet does it.")
    with tempfile.TemporaryDirectory(prefix="ph-bench-fleet-") as name:
        folder = Path(name)
        targets = archives(setting.artifacts, folder, setting.sizes.fleet_models)
        _fleets_hits(setting, measured, folder, targets)
        _fleets_latency(setting, measured, folder, targets)
        with fleets.hosts(fleets.SERVERS, str(folder)) as servers, _router("haproxy", servers) as router:
            fleets.ask_all(router.port, targets[:_FLEET_MODELS])
            seen = fleets.through_faults(router.port, servers, targets[:_FLEET_MODELS], _FLEET_RATE, fleets.Faults())
            _add_seen(setting, measured, "faults", seen)
            _add_seen(setting, measured, "rolling", fleets.through_updates(router, servers, targets[:_FLEET_MODELS]))
        with (
            fleets.hosts(fleets.SERVERS, str(folder)) as servers,
            _router("haproxy", servers, "--copy-at=20") as router,
        ):
            shares = fleets.hot_shares(router.port, targets[0], _FLEET_RATE)
            measured.add("hot_least_percent", "native", 100 * min(shares[str(host.number)] for host in servers))
            setting.say(f"one hot model, by server: {shares}")


PARTS: dict[str, Part] = {
    part.__name__: part
    for part in (
        start, throughput, load, memory, many, resident, million, images, bodies, floor, endpoint, signed, storm, churn,
        cores, heavy, fleet,
    )
}  # fmt: skip


class _Echo(Server):
    name = "echo"
    title = "bare ASGI echo"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.floor", "echo", str(self.port)]

    def own_environ(self) -> dict[str, str]:
        return {"PYTHONPATH": python_path()}


def _router(engine: str, servers: Sequence[fleets.Host], *options: str) -> Router:
    return Router(engine, servers[0].folder, [host.port for host in servers], *options)


def _fleets_hits(setting: Setting, measured: Measured, folder: Path, targets: list[str]) -> None:
    """Of three servers, beside one with the memory of all."""
    drawn = fleets.zipf(targets, setting.sizes.fleet_requests)
    budget = setting.sizes.fleet_models * _FLEET_KIB_PER_MODEL
    with fleets.hosts(1, str(folder), f"--memory-budget={budget}KiB") as one:
        alone = fleets.hit_ratio(one, one[0].port, drawn)
    setting.say(f"hits of one server: {alone:.2%}")
    # A fifth of the rate of the hottest model, so that some models get copies.
    for name, options in (("hash", ["--copy-at=1000000"]), ("copies", ["--copy-at=40"])):
        share = f"--memory-budget={budget // fleets.SERVERS}KiB"
        with fleets.hosts(fleets.SERVERS, str(folder), share) as three, _router("haproxy", three, *options) as router:
            ratio = fleets.hit_ratio(three, router.port, drawn)
        measured.add(f"hits_below_{name}", "native", 100 * (alone - ratio))
        setting.say(f"hits of three servers, {name}: {ratio:.2%}")
    measured.add("hits_one_percent", "native", 100 * alone)


def _fleets_latency(setting: Setting, measured: Measured, folder: Path, targets: list[str]) -> None:
    """p50 on one connection, through a router and around it, in turns."""
    few = targets[:BOOSTERS]
    with (
        fleets.hosts(1, str(folder)) as servers,
        _router("haproxy", servers) as first,
        _router("envoy", servers) as second,
    ):
        for _ in range(setting.sizes.repeats):
            direct, *behind = (
                measure(load_of(port, few, is_signed=False), connections=1, secs=max(2, setting.sizes.secs // 2)).p50_ms
                for port in (servers[0].port, first.port, second.port)
            )
            for engine, p50_ms in zip(("haproxy", "envoy"), behind, strict=True):
                measured.add(f"{engine}_added_p50_ms", "native", p50_ms - direct)
            setting.say(f"p50 {direct:.2f} ms, by HAProxy {behind[0]:.2f} ms, by Envoy {behind[1]:.2f} ms")


def _add_seen(setting: Setting, measured: Measured, name: str, seen: fleets.Seen) -> None:
    measured.add(f"{name}_failed", "native", len(seen.failed))
    measured.add(f"{name}_p99_ms", "native", seen.ms(99))
    measured.add(f"{name}_max_ms", "native", seen.ms(100))
    setting.say(
        f"{name}: {len(seen.failed)} of {len(seen.calls)} failed, p99 {seen.ms(99):.1f} ms, most {seen.ms(100):.0f} ms"
    )


def _contenders(setting: Setting, measured: Measured) -> list[Callable[[], Server]]:
    """In the order of their turns."""
    if isinstance(setting.mlserver, str):
        note = f"MLServer not measured: {setting.mlserver}"
        if note not in measured.notes:
            measured.notes.append(note)
        return [Mms, Native]
    folder = setting.mlserver
    return [Mms, Native, lambda: MlServer(folder)]


_FASTAPIS: list[Callable[[], Server]] = [functools.partial(FastApi, processes) for processes in FASTAPIS]


def _turns(repeats: int, servers: list[Server]) -> Iterator[Server]:
    """A B A B …"""
    for _ in range(repeats):
        yield from servers


def _row_load(server: Server, models: int, law: str = "robin") -> Load:
    return Load(
        port=server.port, path_format=server.invoke_path("m%d"), models=models, body=server.row,
        content_type=server.row_type, law=law,
    )  # fmt: skip


def _image_load(server: Server, workers: int, picture: bytes) -> Load:
    return Load(
        port=server.port, path_format=server.invoke_path(f"resnet{workers}"), models=1, body=picture,
        content_type="image/png",
    )  # fmt: skip


def _load_all(server: Server, prefix: str, sources: list[Path]) -> None:
    """Load each as `prefix` and its number, and ask it once."""
    with server.client() as client:
        for number, source in enumerate(sources):
            server.prepare(f"{prefix}{number}", source)
            server.load(client, f"{prefix}{number}", source)
            server.invoke(client, f"{prefix}{number}")


def _require_equal_answers(servers: list[Server], model: str) -> None:
    """Both engines run the same handler: the same bytes must come back. Others have formats of their own."""
    answers = {}
    for server in servers:
        if isinstance(server, Mms | Native):
            with server.client() as client:
                answers[server.title] = server.invoke(client, model)
    if len(set(answers.values())) > 1:
        raise BenchmarkFailed(f"the answers differ: {answers}")


def _first_answer_ms(server: Server, name: str, source: Path) -> float:
    """From before POST /models until the model has answered, on one connection; then it is unloaded."""
    with server.client() as client:
        started = time.perf_counter()
        server.load(client, name, source)
        server.invoke(client, name)
        ms = (time.perf_counter() - started) * 1000
        server.unload(client, name)
    return ms


def _memory_per_model(setting: Setting, server: Server, kind: str) -> float:
    """Bytes; the first models, which make room for buffers and imports, are not counted."""
    is_process = kind == "dedicated" or isinstance(server, Mms)
    before = 2 if is_process else BOOSTERS
    added = setting.sizes.memory_processes if is_process else setting.sizes.memory_shared_models
    if isinstance(server, MlServer):
        added = min(added, 100)
    make = setting.artifacts.shared if kind == "shared" else setting.artifacts.dedicated
    sources = make(before + added)
    _load_all(server, "first", sources[:before])
    time.sleep(_SETTLE_SECS)
    first = server.pss_bytes()
    _load_all(server, "more", sources[before:])
    time.sleep(_SETTLE_SECS)
    return (server.pss_bytes() - first) / added


def _measure_many(setting: Setting, measured: Measured, server: Server, sources: list[Path]) -> None:
    """Load all by one client on one connection, then ask each once."""
    time.sleep(_SETTLE_SECS)
    idle = server.pss_bytes()
    started = time.perf_counter()
    with server.client() as client:
        for number, source in enumerate(sources):
            server.load(client, f"m{number}", source)
            if (number + 1) % 10_000 == 0:
                setting.say(f"{number + 1} models loaded after {time.perf_counter() - started:.1f} s")
            if time.perf_counter() - started > _LOAD_ALL_SECS:
                raise BenchmarkFailed(f"{number + 1} of {len(sources)} models were loaded after {_LOAD_ALL_SECS} s")
        secs = time.perf_counter() - started
        _ask_each(server, client, len(sources))
    used = server.pss_bytes() - idle
    measured.add("load_all_secs", server.name, secs)
    measured.add("memory_mib", server.name, used / MIB)
    setting.say(f"{len(sources)} models loaded in {secs:.1f} s, {used / MIB:.0f} MiB")


def _load_many(server: Server, sources: list[Path], count: int, say: Callable[[str], None]) -> None:
    """Each folder again and again by other names, by a few clients at a time: a million folders would fill the disk."""
    begun = time.perf_counter()

    def load(first: int) -> None:
        with server.client() as client:
            for number in range(first, count, _LOADING_CLIENTS):
                server.load(client, f"m{number}", sources[number % len(sources)])
                if (number + 1) % 10_000 == 0:
                    say(f"{number + 1} models loaded after {time.perf_counter() - begun:.1f} s")

    with ThreadPoolExecutor(_LOADING_CLIENTS) as pool:
        list(pool.map(load, range(_LOADING_CLIENTS)))


def _ask_each(server: Server, client: Client, models: int) -> None:
    for number in range(models):
        server.invoke(client, f"m{number}")


def _in_words(figures: Figures) -> str:
    return f"{figures.requests_per_sec:.0f} requests/s, p50 {figures.p50_ms:.2f} ms, p99 {figures.p99_ms:.2f} ms"
