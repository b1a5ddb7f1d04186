"""A multi-model container whose own script is dead fails when its endpoint is made, not at each call."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import WaiterError
from polyhost.engine.native.pool import End
from polyhost.engine.native.workforce import fault_of_lost
from polyhost_handlers.script_trial import Blame, Fault
from support.endpoint import EndpointServer, packed
from support.server import is_zombie
from support.tree import wait_until

from endpoint.test_pipelines import configured, deployed, wait_for

MODEL_FN = "def model_fn(model_dir):\n    return model_dir\n"
SERVES = f"""
{MODEL_FN}
def transform_fn(model, body, content_type, accept):
    return open(model + "/name.txt").read(), "text/plain"
"""
OF_MODEL = "NAME = 'a'\n"
OWN = "def model_fn(d): return 0\ndef transform_fn(m, b, c, a): return 'own', 'text/plain'\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointServer]:
    """With an endpoint `steady`, which keeps the template of all that are made of `scripted`."""
    models = tmp_path_factory.mktemp("dead-scripts") / "models"
    source = models.parent / "source"
    for name, files in {
        "plain/a": {"name.txt": "a", "of_model.py": OF_MODEL},
        "plain/large": {"name.txt": "large", "weights": os.urandom(100_000).hex()},
        "own/a": {"name.txt": "a", "code/serve_it.py": OWN},
        "single": {"name.txt": "single", "code/inference.py": SERVES},
    }.items():
        write(source / name, files)
        packed(source / name, models / f"{name}.tar.gz")
    (models / "none").mkdir()
    server = EndpointServer("native", models)
    server.models = models
    deployed(server, "steady", scripted(server, SERVES))
    yield server
    assert server.stop() == 0, server.process.log


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def scripted(
    server: EndpointServer, script: str, source: str = "plain/", files: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A container definition whose code is this script now; of its files only those of the last call are there."""
    code = Path(str(server.models), "code")
    shutil.rmtree(code, ignore_errors=True)
    write(code, {"serve_it.py": script, **(files or {})})
    return definition(server, source, code)


def definition(server: EndpointServer, source: str, code: Path) -> dict[str, Any]:
    environment = {"SAGEMAKER_PROGRAM": "serve_it.py", "SAGEMAKER_SUBMIT_DIRECTORY": f"file://{code}"}
    url = f"file://{server.models}/{source}"
    return {"Image": "any/image:1", "ModelDataUrl": url, "Mode": "MultiModel", "Environment": environment}


def failure(server: EndpointServer, name: str, *containers: dict[str, Any]) -> str:
    """Why an endpoint of these has failed."""
    sagemaker = server.sagemaker
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=configured(server, name, *containers))
    with pytest.raises(WaiterError):
        wait_for(server, name)
    described = sagemaker.describe_endpoint(EndpointName=name)
    assert described["EndpointStatus"] == "Failed"
    sagemaker.delete_endpoint(EndpointName=name)
    return str(described["FailureReason"])


DEAD = {
    "syntax": (f"{MODEL_FN}\ndef input_fn(body, content_type:\n", {}, "cannot be imported: SyntaxError"),
    "syntax-beside": (f"import beside\n{MODEL_FN}", {"beside.py": "x = = 1\n"}, "imported: SyntaxError"),
    "module": (f"import no_such_module\n{MODEL_FN}", {}, "No module named 'no_such_module'. Install what brings it"),
    "name": (f"from json import no_such_name\n{MODEL_FN}", {}, "ImportError: cannot import name 'no_such_name'"),
    "raises": (f"{MODEL_FN}\nraise RuntimeError('no licence')\n", {}, "cannot be imported: RuntimeError: no licence"),
    "file": (f"open('/no/such/file')\n{MODEL_FN}", {}, "No such file or directory: '/no/such/file'"),
    "no-model-fn": ("def predict_fn(data, model):\n    return 1\n", {}, "serve_it.py has no model_fn(model_dir)."),
    "two-ways": (f"{SERVES}\ndef input_fn(b, c): return b\n", {}, "has transform_fn and input_fn: keep one way."),
    "requirement": (SERVES, {"requirements.txt": "no-such-distribution>=3\n"}, "no-such-distribution"),
    "exits": (f"import sys\nsys.exit('no licence')\n{MODEL_FN}", {}, "SystemExit: no licence"),
    "ends": (f"import os\nos._exit(0)\n{MODEL_FN}", {}, "ended its process while it was imported"),
    "kills": (f"import os\nos.kill(os.getpid(), 9)\n{MODEL_FN}", {}, "ended its process while it was imported"),
    "closes": (f"import os\nos.closerange(3, 1000)\n{MODEL_FN}", {}, "ended its process while it was imported"),
}


@pytest.mark.parametrize("case", DEAD)
def test_a_dead_script_fails_its_endpoint(server: EndpointServer, case: str) -> None:
    """With a sentence, before any model is asked for; the server itself has no traceback for it."""
    script, files, reason = DEAD[case]
    said = failure(server, f"dead-{case}", scripted(server, script, files=files))

    assert said.startswith(
        "The primary container for production variant AllTraffic did not pass the ping health check: "
        "The container's script cannot serve: "
    )
    assert reason in said
    assert re.search(r"[^.]\.$", said)
    assert "Traceback" not in said + server.process.log


ALIVE = {
    "plain": SERVES,
    "reads-a-models-file": f"assert open('name.txt').read()\n{SERVES}",
    "imports-a-models-module": f"from of_model import NAME\n{SERVES}",
    "looks-for-a-file": f"import glob\nglob.glob('*.txt')[0]\n{SERVES}",
    "prints": f"print('much' * 1_000_000)\n{SERVES}",
    "closes-its-output": f"import os\nos.close(1)\nos.close(2)\n{SERVES}",
}


@pytest.mark.parametrize("case", ALIVE)
def test_a_script_that_serves_is_in_service(server: EndpointServer, case: str) -> None:
    """What it wants of a model at its import is there in the folder of each."""
    deployed(server, f"alive-{case}", scripted(server, ALIVE[case]))

    assert server.predict("a.tar.gz", "x", "text/plain", EndpointName=f"alive-{case}") == "a"
    server.sagemaker.delete_endpoint(EndpointName=f"alive-{case}")


def test_a_model_may_bring_a_script_of_its_own(server: EndpointServer) -> None:
    """Then the container's, which lacks a module, is never asked."""
    deployed(server, "own", scripted(server, f"import no_such_module\n{MODEL_FN}", "own/"))

    assert server.predict("a.tar.gz", "x", "text/plain", EndpointName="own") == "own"


def test_without_a_model_what_a_model_may_bring_is_not_missed(server: EndpointServer) -> None:
    """A file; whatever else is wrong is taken for the script's own fault."""
    deployed(server, "empty", scripted(server, f"open('name.txt')\n{MODEL_FN}", "none/"))
    raises = scripted(server, f"{MODEL_FN}\nraise RuntimeError('no licence')\n", "none/")
    assert "RuntimeError: no licence" in failure(server, "empty-dead", raises)


def test_an_update_to_a_dead_script_changes_nothing(server: EndpointServer, tmp_path: Path) -> None:
    """The old route serves on, and the reason is said."""
    sagemaker = server.sagemaker
    write(tmp_path, {"serve_it.py": "def model_fn(:\n"})
    dead = definition(server, "plain/", packed(tmp_path, Path(str(server.models), "dead.tar.gz")))
    scripted(server, SERVES)
    sagemaker.update_endpoint(EndpointName="steady", EndpointConfigName=configured(server, "steady-dead", dead))
    wait_for(server, "steady")

    described = sagemaker.describe_endpoint(EndpointName="steady")
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", "steady")
    assert "SyntaxError" in described["FailureReason"]
    assert server.predict("a.tar.gz", "x", "text/plain", EndpointName="steady") == "a"


def test_in_a_pipeline_and_in_a_second_variant(server: EndpointServer) -> None:
    """The reason names the container, or the variant."""
    single = {"Image": "any/image:1", "ModelDataUrl": f"file://{server.models}/single.tar.gz"}
    said = failure(server, "dead-in-pipeline", single, scripted(server, "import no_such_module\n"))
    assert said.startswith("The container container-2 for production variant AllTraffic did not pass")

    sagemaker = server.sagemaker
    configured(server, "alone", single)
    variants = [
        {"ModelName": model, "VariantName": name, "InitialInstanceCount": 1, "InstanceType": "ml.m5.large"}
        for name, model in (("one", "alone"), ("two", "dead-in-pipeline"))
    ]
    sagemaker.create_endpoint_config(EndpointConfigName="two-variants", ProductionVariants=variants)
    sagemaker.create_endpoint(EndpointName="two-variants", EndpointConfigName="two-variants")
    with pytest.raises(WaiterError):
        wait_for(server, "two-variants")
    reason = sagemaker.describe_endpoint(EndpointName="two-variants")["FailureReason"]
    assert reason.startswith("The container container-2 for production variant two did not pass")


def test_a_script_that_hangs(server: EndpointServer) -> None:
    """As long as a load may take, no longer; and what it is at is ended."""
    hangs = f"import os, threading\nprint('hangs as', os.getpid(), flush=True)\nthreading.Event().wait()\n{MODEL_FN}"
    hanging = scripted(server, hangs)
    impatient = EndpointServer("native", server.models, "--model-load-timeout-secs", "4")
    impatient.models = server.models
    try:
        said = failure(impatient, "hangs", hanging)
        assert said.endswith("The container's script cannot serve: serve_it.py was not imported within 4 s.")
        pid = impatient.process.wait_for_line(r"hangs as (\d+)").rpartition("hangs as ")[2].strip()
        wait_until(lambda: not psutil.pid_exists(int(pid)) or is_zombie(psutil.Process(int(pid))), 60, "it is ended")
    finally:
        assert impatient.stop() == 0, impatient.process.log


@pytest.mark.parametrize(
    ("end", "fault"),
    [
        (End.BY_ITSELF, Fault("a.py ended its process while it was imported: so", Blame.EITHER)),
        (End.UNUSABLE, Fault("a.py ended its process while it was imported: so", Blame.EITHER)),
        (End.NO_ANSWER, Fault("a.py was not imported within 2.5 s", Blame.SCRIPT)),
        (End.STOPPING, None),
        (End.FORGOTTEN, None),
    ],
)
def test_what_the_end_of_a_process_says(end: End, fault: Fault | None) -> None:
    """Nothing, where it was the server that ended it."""
    assert fault_of_lost("a.py", end, "so", 2.5) == fault
