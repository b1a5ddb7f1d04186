"""A server with `--build-environments`: from a request that is refused for now to its answer."""

from __future__ import annotations

import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.endpoint import EndpointServer
from support.stand_in_uv import put_uv
from support.tree import wait_until

_SCRIPT = """
POLYHOST_ENVIRONMENT = "lightgbm"

import sys

def model_fn(model_dir):
    return None

def predict_fn(data, model):
    return [sys.argv[0]]

def input_fn(body, content_type):
    return body

def output_fn(prediction, accept):
    return "served"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put_uv(tmp_path)
    os.mkfifo(tmp_path / "gate")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(_SCRIPT)
    (tmp_path / "models").mkdir()
    with tarfile.open(tmp_path / "models" / "words.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "code", "code")
    return tmp_path


def status_of(server: EndpointServer, endpoint: str) -> str:
    found = server.sagemaker.list_endpoints()["Endpoints"]
    return next((one["EndpointStatus"] for one in found if one["EndpointName"] == endpoint), "")


def test_a_model_whose_environment_is_missing(folder: Path) -> None:
    """429 with Retry-After until it is built; an endpoint of one model is in service when it is."""
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    environ = {"PATH": path, "UV_LOG": str(folder / "log"), "UV_GATE": str(folder / "gate")}
    envs = str(folder / "envs")
    server = EndpointServer(
        "native", f"{folder}/models/", "--build-environments", "--environments-folder", envs, environ=environ
    )
    try:
        for _ in range(2):
            answer = server.request("POST", "/invocations", b"x", **{"X-Amzn-SageMaker-Target-Model": "words.tar.gz"})
            assert (answer.status, answer.fields["retry-after"]) == (429, "15")
            assert answer.fields["x-amzn-errortype"] == "ModelNotReadyException"
            assert "The environment lightgbm, which the model needs, is being built" in answer.text
        with ThreadPoolExecutor() as threads:
            deployed = threads.submit(server.deploy, "alone", "words.tar.gz", Mode="SingleModel")
            wait_until(lambda: status_of(server, "alone") == "Creating", 120, "the endpoint is being made")
            (folder / "gate").open("w").close()
            deployed.result()
        assert server.predict(None, b"x", "text/plain", EndpointName="alone") == "served"
        assert server.predict("words.tar.gz", b"x", "text/plain") == "served"
        assert (folder / "log").read_text().count("end") == 1
    finally:
        server.kill()
