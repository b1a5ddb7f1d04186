"""
The image as its users run it: `docker run IMAGE serve` with limits, signals, restarts and read-only disks.

scripts/image-test builds the images and runs this. Every container is removed, whatever becomes of its test.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import numpy as np
import onnx
import pytest
import xgboost
from containers import DOCKER, IMAGE, MODELS, MXNET_IMAGE, NATIVE_IMAGE, Container, docker, inspect, wait_until
from PIL import Image
from polyhost import __version__
from sklearn.linear_model import LinearRegression
from support.server import Answer

pytestmark = pytest.mark.image

MIB = 1024**2
BLOB_MIB = 64
MXNET_PYTHON = "/opt/polyhost/envs/mxnet-1.9/bin/python"
MULTI_MODEL = ("--env", "SAGEMAKER_MULTI_MODEL=true")
HARDENED = (
    *("--user", "1000", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges"),
)
TOOLKIT = Path(__file__).parent.parent / "server" / "toolkit"
on_both = pytest.mark.parametrize("image", [IMAGE, NATIVE_IMAGE])

# Reads all of a big file, so that its memory is known before it is loaded.
BLOB_SCRIPT = """
from pathlib import Path

def model_fn(model_dir):
    return (Path(model_dir) / "blob.bin").read_bytes()

def transform_fn(model, body, content_type, accept):
    return str(len(model)), "text/plain"
"""

# Takes 20 MiB more with every call, which no estimate foresees.
GROWING_SCRIPT = """
def model_fn(model_dir):
    return []

def transform_fn(model, body, content_type, accept):
    model.append(b"x" * 20 * 2**20)
    return str(len(model)), "text/plain"
"""

# Three classes; whatever the picture shows, the last one is the best.
NETWORK_SCRIPT = f"""
import json, pathlib, mxnet as mx
folder = pathlib.Path("{MODELS}/network")
folder.mkdir()
data = mx.sym.flatten(mx.sym.var("data"))
symbol = mx.sym.softmax(mx.sym.FullyConnected(data, num_hidden=3, name="fc"), name="prob")
arguments = {{"fc_weight": mx.nd.zeros((3, 48)), "fc_bias": mx.nd.array([0, 1, 2])}}
mx.model.save_checkpoint(str(folder / "tiny"), 0, symbol, arguments, {{}})
(folder / "tiny-shapes.json").write_text(json.dumps([{{"shape": [1, 3, 4, 4], "name": "data"}}]))
(folder / "synset.txt").write_text("n01 cat\\nn02 dog\\nn03 kit fox\\n")
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind; any user may read it."""
    root = tmp_path_factory.mktemp("models")
    root.chmod(0o755)
    for name, fill in {
        "line": lambda folder: joblib.dump(a_line(), folder / "model.joblib"),
        "trees": lambda folder: a_booster().save_model(folder / "xgboost-model.ubj"),
        "twice": lambda folder: onnx.save(a_network(), folder / "model.onnx"),
        "blob": lambda folder: (folder / "blob.bin").write_bytes(bytes(BLOB_MIB * MIB)),
    }.items():
        (root / name).mkdir()
        fill(root / name)
    for name, script in {"blob": BLOB_SCRIPT, "growing": GROWING_SCRIPT}.items():
        (root / name / "code").mkdir(parents=True)
        (root / name / "code" / "inference.py").write_text(script)
    return root


def a_line() -> LinearRegression:
    """The sum of two numbers."""
    return LinearRegression().fit([[0, 0], [0, 1], [1, 0]], [0, 1, 1])


def a_booster() -> xgboost.Booster:
    data = xgboost.DMatrix(np.arange(20.0).reshape(10, 2), np.arange(10.0))
    return xgboost.train({"max_depth": 2, "nthread": 1}, data, num_boost_round=3)


def a_network() -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "twice",
        [value("x", onnx.TensorProto.FLOAT, ["rows", 2])],
        [value("y", onnx.TensorProto.FLOAT, ["rows", 2])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def start(models: Path) -> Iterator[Callable[..., Container]]:
    """Starts containers for one test, ready to answer, and removes them after it."""
    started: list[Container] = []

    def start(*options: str, **others: str | int) -> Container:
        started.append(Container(models, *options, **others))
        started[-1].wait_ready()
        return started[-1]

    yield start
    for container in started:
        container.remove()


@pytest.fixture(scope="module", params=[IMAGE, NATIVE_IMAGE])
def server(models: Path, request: pytest.FixtureRequest) -> Iterator[Container]:
    """One container of each image for the tests that leave it as they found it."""
    container = Container(models, *MULTI_MODEL, "--health-interval", "1s", image=request.param)
    try:
        container.wait_ready()
        yield container
    finally:
        container.remove()


# The image itself


@pytest.mark.parametrize("image", [IMAGE, NATIVE_IMAGE, MXNET_IMAGE])
def test_the_image_says_what_sagemaker_looks_for(image: str) -> None:
    """
    Both labels, the port, and `docker run IMAGE serve` in exec form, so that signals arrive.
    """
    config = inspect(image)["Config"]

    assert config["Labels"]["com.amazonaws.sagemaker.capabilities.multi-models"] == "true"
    assert config["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert (config["Entrypoint"], config["Cmd"]) == (["/usr/local/bin/docker-entrypoint"], ["serve"])
    assert config["StopSignal"] == "SIGTERM"


@on_both
def test_any_other_command_runs_in_place_of_the_server(image: str) -> None:
    """
    `docker run IMAGE COMMAND` runs it, with its own output and exit code.
    """
    assert re.fullmatch(r"polyhost \d+\.\d+\.\d+\S*", docker("run", "--rm", image, "polyhost", "--version"))
    assert "--memory-budget" in docker("run", "--rm", image, "serve", "--help")
    failed = subprocess.run([DOCKER, "run", "--rm", image, "python", "-c", "raise SystemExit(7)"], check=False)
    assert failed.returncode == 7


@on_both
def test_nothing_of_the_building_is_left_inside(image: str) -> None:
    """
    No compiler, no package lists, no sources, no tests; packages fit together, and pip is there for the toolkit.
    """
    docker("run", "--rm", image, "sh", "-c", "! command -v gcc cc make javac jlink")
    left = docker("run", "--rm", image, "sh", "-c", "ls /src /var/lib/apt/lists /root/.cache 2>/dev/null || true")
    assert not [line for line in left.splitlines() if line and not line.endswith(":")]
    assert docker("run", "--rm", image, "find", "/opt/polyhost", "-type", "d", "-name", "tests") == ""
    assert "No broken requirements" in docker("run", "--rm", image, "python", "-m", "pip", "check")


def test_the_native_image_has_no_java() -> None:
    """
    Nor what only Java runs; MMS's Python part is there for handlers, and the smaller image is the smaller.
    """
    docker("run", "--rm", NATIVE_IMAGE, "sh", "-c", "! command -v java && [ ! -e /opt/java ]")
    assert docker("run", "--rm", NATIVE_IMAGE, "find", "/", "-xdev", "-name", "*.jar") == ""
    assert docker("run", "--rm", NATIVE_IMAGE, "python", "-c", "import mms.service, sagemaker_inference") == ""
    assert inspect(NATIVE_IMAGE)["Size"] < inspect(IMAGE)["Size"] - 50 * MIB


@pytest.mark.parametrize(
    ("image", "options", "has_java"),
    [(IMAGE, (), True), (IMAGE, ("--env", "POLYHOST_ENGINE=native"), False), (NATIVE_IMAGE, (), False)],
)
def test_each_image_has_its_engine(
    start: Callable[..., Container], image: str, options: tuple[str, ...], has_java: bool
) -> None:
    """
    polyhost:mms runs either, MMS unless told otherwise; polyhost:native needs no telling.
    """
    container = start(*MULTI_MODEL, *options, image=image)

    assert (container.java() is not None) is has_java


def test_only_the_wanted_frameworks_are_inside() -> None:
    """
    MXNet's environment is only in the image that was built with it.
    """
    version = "import mxnet; print(mxnet.__version__)"

    docker("run", "--rm", IMAGE, "test", "!", "-e", MXNET_PYTHON)
    assert docker("run", "--rm", MXNET_IMAGE, MXNET_PYTHON, "-W", "ignore", "-c", version) == "1.9.1"


# Serving


def test_models_of_each_framework_load_and_predict(server: Container) -> None:
    """
    scikit-learn, XGBoost and ONNX in one server; each answers what it answers at home.
    """
    at_home = a_booster().predict(xgboost.DMatrix(np.array([[4.0, 5.0]])))

    with server.loaded("line", "trees", "twice"):
        assert server.invoke("line", "2,3").json() == pytest.approx([5.0])
        assert server.invoke("trees", "4,5").json() == pytest.approx(at_home.tolist())
        assert server.invoke("twice", "[[1, 2]]", "application/json").json() == {"predictions": [[2.0, 4.0]]}


def test_docker_sees_that_the_server_is_healthy(server: Container) -> None:
    """
    The health check asks /ping.
    """
    wait_until(lambda: server.state()["Health"]["Status"] == "healthy", "healthy")


def test_unloaded_models_leave_no_process_and_no_zombie(server: Container) -> None:
    """
    Loading and unloading leaves the processes that were there before.
    """
    with server.loaded("line", "growing"):
        pass  # what models share is there from now on
    before = server.processes()
    for _ in range(2):
        with server.loaded("line", "growing"):
            assert len(server.processes()) > len(before)

    def is_as_before() -> bool:
        now = server.processes()
        has_new = {process["pid"] for process in now} - {process["pid"] for process in before}
        return not has_new and all(process["state"] != "Z" for process in now)

    wait_until(is_as_before, "the workers are gone")


@on_both
def test_a_model_at_opt_ml_model_is_served_alone(start: Callable[..., Container], models: Path, image: str) -> None:
    """
    Single-model mode: no SAGEMAKER_MULTI_MODEL, the model is loaded at the start and answers /invocations.
    """
    container = start("--volume", f"{models / 'line'}:/opt/ml/model:ro", image=image)

    def invoke(body: str) -> Answer:
        return container.request("POST", "/invocations", body, Content_Type="text/csv")

    wait_until(lambda: invoke("1,1").status == 200, "the model is loaded")
    assert invoke("20,22").json() == pytest.approx([42.0])


@on_both
def test_the_platform_picks_the_port(start: Callable[..., Container], image: str) -> None:
    """
    SAGEMAKER_BIND_TO_PORT is where everything answers, for the health check too.
    """
    environ = ("SAGEMAKER_BIND_TO_PORT=9123", "SAGEMAKER_SAFE_PORT_RANGE=9000-9999", "SAGEMAKER_MULTI_MODEL=true")
    options = [option for variable in environ for option in ("--env", variable)]
    container = start(*options, "--health-interval", "1s", port=9123, image=image)

    container.must_load("line")
    assert container.invoke("line", "1,2").json() == pytest.approx([3.0])
    wait_until(lambda: container.state()["Health"]["Status"] == "healthy", "healthy")


@on_both
def test_a_hardened_container_serves(start: Callable[..., Container], image: str) -> None:
    """
    An ordinary user, a read-only disk, no capability and half a gigabyte are enough; flags reach the server.
    """
    container = start(*HARDENED, "--memory", "512m", image=image, command="serve --log-format json")

    with container.loaded("line", "growing"):
        assert container.invoke("line", "1,2").json() == pytest.approx([3.0])
        assert container.invoke("growing", "x").text == "1"
    assert container.invoke("line", "1,2").status == 404
    assert all(json.loads(line)["message"] for line in container.logs().splitlines())
    assert "telemetry" not in container.logs()  # nobody is told what is served here
    if java := container.java():
        heap_mib = int(re.search(r"-Xmx(\d+)m", " ".join(java["command"]))[1])
        assert heap_mib <= 128


def test_an_unmodified_toolkit_boots_the_native_image(start: Callable[..., Container], models: Path) -> None:
    """
    The entry point of a toolkit-based container, as its PID 1: the command that it calls is ours.
    """
    (models / "factor").mkdir(exist_ok=True)
    (models / "factor" / "factor.txt").write_text("3")
    container = start(
        *MULTI_MODEL, "--volume", f"{TOOLKIT}:/toolkit:ro", "--env", "PYTHONPATH=/toolkit",
        image=NATIVE_IMAGE, command="python /toolkit/boot.py factor_handler_service",
    )  # fmt: skip

    with container.loaded("factor"):
        assert container.invoke("factor", "[1, 2]", "application/json").json() == [3.0, 6.0]
    assert sum("com.amazonaws.ml.mms.ModelServer" in process["command"] for process in container.processes()) == 1
    docker("stop", "--time", "20", container.id)
    assert container.state()["ExitCode"] == 0


# Stopping


@on_both
def test_docker_stop_is_clean_and_the_container_starts_again(start: Callable[..., Container], image: str) -> None:
    """
    With models loaded it ends by itself, exit code 0; `docker start` and `docker restart` bring it back.
    """
    container = start(*MULTI_MODEL, image=image)
    container.must_load("line", "growing")

    docker("stop", "--time", "60", container.id)  # after which it would be killed, with exit code 137
    state = container.state()
    assert (state["ExitCode"], state["OOMKilled"], state["Pid"]) == (0, False, 0)

    docker("start", container.id)
    container.wait_ready()
    docker("restart", "--time", "60", container.id)
    container.wait_ready()
    container.must_load("line")
    assert container.invoke("line", "2,2").json() == pytest.approx([4.0])


def test_the_container_ends_when_its_server_is_killed(start: Callable[..., Container]) -> None:
    """
    Without Java nothing serves: the container says so by its exit code instead of staying there.
    """
    container = start(*MULTI_MODEL)
    container.must_load("line")
    container.execute("python3", "-c", f"import os; os.kill({container.java()['pid']}, 9)")

    assert docker("wait", container.id) == "1"


# Memory


@pytest.mark.parametrize(("image", "memory", "least_mib"), [(IMAGE, "1g", 300), (NATIVE_IMAGE, "512m", 150)])
def test_a_full_container_answers_507_and_lives(
    start: Callable[..., Container], image: str, memory: str, least_mib: int
) -> None:
    """
    What does not fit is refused before the kernel kills anything; once others are unloaded, it loads.
    """
    container = start(*MULTI_MODEL, "--memory", memory, "--memory-swap", memory, image=image)
    loaded: list[str] = []
    while len(loaded) < 60 and (answer := container.load(f"blob{len(loaded)}", "blob")).status == 200:
        loaded.append(f"blob{len(loaded)}")
    refused = f"blob{len(loaded)}"

    assert answer.status == 507, answer.text
    assert len(loaded) * BLOB_MIB > least_mib  # not out of fear: there was little left
    assert container.request("GET", "/ping").status == 200
    assert {container.invoke(name, "x").text for name in loaded} == {str(BLOB_MIB * MIB)}
    state = container.state()
    assert (state["Running"], state["OOMKilled"]) == (True, False)

    for name in loaded[:2]:
        container.unload(name)
    # MMS leaves the refused model registered (docs/multi-model-server.md), as a rule: its own clearing up races.
    assert container.request("DELETE", f"/models/{refused}").status in (200, 404)
    assert container.load(refused, "blob").status == 200
    assert container.invoke(refused, "x").text == str(BLOB_MIB * MIB)


def test_the_kernel_takes_a_worker_and_never_the_server(start: Callable[..., Container]) -> None:
    """
    Models that grow while they serve run out of memory at last: one of them dies, the others and the server go on.
    """
    container = start(*MULTI_MODEL, "--memory", "512m", "--memory-swap", "512m")
    names = [f"growing{number}" for number in range(5)]
    for name in names:
        assert container.load(name, "growing").status == 200
    java = container.java()["pid"]

    calls = itertools.islice(itertools.cycle(names), 40)
    died = next(name for name in calls if container.invoke(name, "x").status != 200)
    assert container.request("GET", "/ping").status == 200
    assert container.java()["pid"] == java
    assert all(container.workers_of(name) for name in names if name != died)


# MXNet


def test_mxnet_and_scikit_learn_serve_side_by_side(start: Callable[..., Container], models: Path) -> None:
    """
    Each model has workers in the Python environment that it needs.
    """
    volume = f"{models}:{MODELS}"
    docker("run", "--rm", "--volume", volume, MXNET_IMAGE, MXNET_PYTHON, "-W", "ignore", "-c", NETWORK_SCRIPT)
    picture = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(picture, "PNG")
    container = start(*MULTI_MODEL, image=MXNET_IMAGE)
    container.must_load("network", "line")

    best = container.invoke("network", picture.getvalue(), "application/x-image").json()
    assert best[0] == "probability=0.665241, class=n03 kit fox"
    assert container.invoke("line", "1,2").json() == pytest.approx([3.0])
    assert container.workers_of("network")[0]["command"][0] == MXNET_PYTHON
    assert container.workers_of("line")[0]["command"][0] == "/opt/polyhost/bin/python3"
