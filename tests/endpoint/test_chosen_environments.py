"""Every way in which a model gets a named environment, through a server; the log says which, and why."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import botocore.exceptions
import pytest
from conftest import ROOT
from support.endpoint import EndpointServer
from support.stand_in_uv import put_uv

MINE = """
about = "ours"
python = ">=3.10"
kinds = ["script", "sklearn"]
requirements = ["our-library"]
images = ["ours:1.*"]
constraints = ["our-library==2.0", "scikit-learn==1.2.0"]
[variables]
OURS = "1"
"""
ML = (
    MINE.replace('["script", "sklearn"]', '["mlflow"]')
    .replace("ours:1.*", "ml:1")
    .replace("our-library==2.0", "mlflow==3.0")
)
SCRIPT = """
import os

def model_fn(model_dir):
    return None

def input_fn(body, content_type):
    return body

def predict_fn(data, model):
    return os.environ.get("OURS", "none")

def output_fn(prediction, accept):
    return prediction
"""
# What an archive holds besides its script.
SCRIPTS: Mapping[str, Mapping[str, str]] = {
    "plain": {},
    "settings": {"polyhost.toml": 'environment = "mine"\r\n'},
    "word": {"code/inference.py": 'POLYHOST_ENVIRONMENT = "mine"\n' + SCRIPT},
    "requirements": {"code/requirements.txt": "our-library>=1.5,<3\n"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointServer]:
    folder = tmp_path_factory.mktemp("chosen")
    put_uv(folder)
    environ = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "UV_LOG": str(folder / "log")}
    library = folder / "site" / "our_library-2.0.dist-info"
    library.mkdir(parents=True)
    (library / "METADATA").write_text("Metadata-Version: 2.1\nName: our-library\nVersion: 2.0\n")
    for name, text in (("mine", MINE + f'PYTHONPATH = "{folder}/site"\n'), ("ml", ML)):
        (folder / f"{name}.toml").write_text(text)
        command = [sys.executable, "-m", "polyhost", "env", "build", folder / f"{name}.toml"]
        subprocess.run([*command, "--environments-folder", folder / "envs"], env=environ, check=True)
    (folder / "models").mkdir()
    for name, files in SCRIPTS.items():
        pack(folder / "models" / f"{name}.tar.gz", {"code/inference.py": SCRIPT, **files})
    pack(folder / "models" / "mlflow.tar.gz", {"MLmodel": "flavors: {}\n"})
    pickle = ROOT / "tests" / "data" / "sklearn" / "linear-1.2.2.joblib"
    pack(folder / "models" / "pickle.tar.gz", {"model.joblib": pickle.read_bytes()})
    server = EndpointServer("native", f"{folder}/models/", "--environments-folder", str(folder / "envs"))
    yield server
    server.kill()


def pack(path: Path, files: Mapping[str, str | bytes]) -> None:
    folder = path.with_suffix("")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with tarfile.open(path, "w:gz") as archive:
        for entry in folder.iterdir():
            archive.add(entry, entry.name)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("settings", "polyhost.toml of the archive names it"),
        ("word", "inference.py names it"),
        ("requirements", "requirements.txt asks for our-library"),
    ],
)
def test_an_archive_chooses(server: EndpointServer, target: str, why: str) -> None:
    assert server.predict(f"{target}.tar.gz", b"x", "text/plain") == "1"
    server.process.wait_for_line(re.escape(f"the environment is mine: {why}"))


@pytest.mark.parametrize(
    ("name", "container", "why"),
    [
        ("by-image", {"Image": "registry.example:5000/team/ours:1.7@sha256:0123"}, "the container's image is ours:1.7"),
        ("by-word", {"Environment": {"POLYHOST_ENVIRONMENT": "mine"}}, "POLYHOST_ENVIRONMENT names it"),
        ("by-old-word", {"Environment": {"POLYHOST_HANDLER_ENVIRONMENT": "mine"}}, "POLYHOST_ENVIRONMENT names it"),
    ],
)
def test_a_container_chooses(server: EndpointServer, name: str, container: dict, why: str) -> None:
    server.deploy(name, "plain.tar.gz", Mode="SingleModel", **container)

    assert server.predict(None, b"x", "text/plain", EndpointName=name) == "1"
    server.process.wait_for_line(re.escape(f"the environment is mine: {why}"))


def test_nothing_is_said(server: EndpointServer) -> None:
    assert server.predict("plain.tar.gz", b"x", "text/plain") == "none"


def test_the_release_in_a_pickle_chooses(server: EndpointServer) -> None:
    """The stand-in has another, which may refuse the model itself."""
    with contextlib.suppress(botocore.exceptions.ClientError):
        server.predict("pickle.tar.gz", b"2.0")
    server.process.wait_for_line(re.escape("the environment is mine: model.joblib asks for scikit-learn==1.2.*"))


def test_an_mlmodel_chooses(server: EndpointServer) -> None:
    """The stand-in has no MLflow, so the model itself cannot be loaded."""
    with pytest.raises(botocore.exceptions.ClientError):
        server.predict("mlflow.tar.gz", b"x")
    server.process.wait_for_line("the environment is ml: the handler mlflow asks for mlflow")
