"""
`scripts/build_and_push` and `polyhost push`, into a real registry: Debian's docker-registry, on a port of 127.0.0.1.

ECR's own part, which no registry plays, is moto's: repositories, the token that the registry here takes, too.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT
from containers import DOCKER, NATIVE_IMAGE, docker, inspect
from moto.server import ThreadedMotoServer
from polyhost_aws import manifests
from polyhost_aws.progress import Lines
from polyhost_aws.push import Local, ensure_repository, login
from polyhost_aws.session import Aws
from support.server import Process, free_port

pytestmark = pytest.mark.image

# The account that moto has, and the password in its token; as `htpasswd -B` writes it.
USER, PASSWORD = "AWS", "123456789012-auth-token"
HTPASSWD = f"{USER}:$2b$04$fk6LA55u1/9X0wwHUjE6Eu5B9EGH7.8sn9NSD6uFXPlHmeI01Vb0G\n"
SMALL = "polyhost-test/small:1"
OCI = "application/vnd.oci.image.manifest.v1+json"


class Registry:
    def __init__(self, folder: Path) -> None:
        self.host = f"127.0.0.1:{free_port()}"
        (folder / "htpasswd").write_text(HTPASSWD)
        config = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": self.host},
            "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
        }
        (folder / "config.yml").write_text(json.dumps(config))  # which is YAML, too
        command = shutil.which("docker-registry")
        if command is None and not os.environ.get("CI"):
            pytest.skip("there is no docker-registry: apt-get install docker-registry")
        self.process = Process([command or "docker-registry", "serve", str(folder / "config.yml")], os.environ)
        self.process.wait_for_line("listening on")

    def request(self, method: str, path: str, **more: Any) -> requests.Response:
        answer = requests.request(method, f"http://{self.host}/v2/{path}", auth=(USER, PASSWORD), timeout=30, **more)
        assert answer.ok, answer.text
        return answer

    def manifest(self, repository: str, reference: str) -> requests.Response:
        """In whatever form it is there."""
        accepts = {"Accept": ", ".join(manifests.ALL)}
        return self.request("GET", f"{repository}/manifests/{reference}", headers=accepts)

    def stop(self) -> None:
        self.process.send(signal.SIGTERM)
        self.process.kill_tree()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(folder)
    yield registry
    registry.stop()
    for image in docker("images", "--format", "{{.Repository}}:{{.Tag}}", f"{registry.host}/*").split():
        docker("rmi", image)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def logged_in(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody who has done `docker login`."""
    folder = tmp_path_factory.mktemp("docker")
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": auth}}}))
    return {**os.environ, "DOCKER_CONFIG": str(folder)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image of a single file."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "greeting").write_text("hello")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY greeting /\nLABEL of=the-test\n")
    docker("build", "--tag", SMALL, str(folder))
    yield SMALL
    docker("rmi", "--force", SMALL)


def run(command: list[str], environ: dict[str, str], timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def pull(url: str, environ: dict[str, str]) -> None:
    done = run([DOCKER, "pull", url], environ)
    assert done.returncode == 0, done.stderr


def test_the_image_is_pushed_as_sagemaker_takes_it(registry: Registry, logged_in: dict[str, str]) -> None:
    """
    What scripts/build_and_push has pushed is one manifest in Docker's form, and comes back as the same image.
    """
    command = [str(ROOT / "scripts/build_and_push"), "native", "ml/polyhost:native", "--registry", registry.host]
    done = run(command, logged_in)
    assert done.returncode == 0, done.stderr
    answer = registry.manifest("ml/polyhost", "native")
    digest = answer.headers["Docker-Content-Digest"]
    assert done.stdout == f"{registry.host}/ml/polyhost@{digest}\n"

    manifest = answer.json()
    assert answer.headers["Content-Type"] == manifest["mediaType"] == manifests.DOCKER
    assert {layer["mediaType"] for layer in manifest["layers"]} == {"application/vnd.docker.image.rootfs.diff.tar.gzip"}
    config = registry.request("GET", f"ml/polyhost/blobs/{manifest['config']['digest']}").json()
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    assert config["config"]["Labels"]["com.amazonaws.sagemaker.capabilities.multi-models"] == "true"

    docker("rmi", f"{registry.host}/ml/polyhost:native")
    pull(f"{registry.host}/ml/polyhost@{digest}", logged_in)
    assert inspect(f"{registry.host}/ml/polyhost@{digest}")["Id"] == inspect(NATIVE_IMAGE)["Id"]
    docker("rmi", f"{registry.host}/ml/polyhost@{digest}")


def test_ecrs_token_opens_the_registry(registry: Registry, small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A repository is made with scans and a lifecycle policy, and left alone the next time; its token is the login.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOURS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "our-secret")
    try:
        aws = Aws("us-east-1")
        uri = ensure_repository(aws, "small", Lines())
        assert uri == "123456789012.dkr.ecr.us-east-1.amazonaws.com/small"
        (made,) = aws.call("ecr", "DescribeRepositories", {})["repositories"]
        assert made["imageScanningConfiguration"] == {"scanOnPush": True}
        policy = aws.call("ecr", "GetLifecyclePolicy", {"repositoryName": "small"})["lifecyclePolicyText"]
        assert json.loads(policy)["rules"][0]["selection"]["tagStatus"] == "untagged"
        assert ensure_repository(aws, "small", Lines()) == uri
        auth = login(aws)
    finally:
        server.stop()

    digest, media_type = Local(small).push(f"{registry.host}/small", "1", auth, Lines())
    assert (digest, media_type) == (registry.manifest("small", "1").headers["Docker-Content-Digest"], manifests.DOCKER)


def test_an_image_in_ocis_form_becomes_dockers(registry: Registry, small: str, logged_in: dict[str, str]) -> None:
    """
    The manifest that is made of one as newer daemons push it is taken by the registry, and gives the same image.
    """
    command = [sys.executable, "-m", "polyhost", "push", small, "oci:1", "--registry", registry.host]
    done = run(command, logged_in)
    assert done.returncode == 0, done.stderr
    pushed = registry.manifest("oci", "1").json()
    kinds = {
        "config": "application/vnd.oci.image.config.v1+json",
        "layers": "application/vnd.oci.image.layer.v1.tar+gzip",
    }
    oci = {
        "schemaVersion": 2,
        "mediaType": OCI,
        "config": {**pushed["config"], "mediaType": kinds["config"]},
        "layers": [{**layer, "mediaType": kinds["layers"]} for layer in pushed["layers"]],
    }
    registry.request("PUT", "oci/manifests/2", data=json.dumps(oci), headers={"Content-Type": OCI})
    there = registry.manifest("oci", "2")
    assert there.headers["Content-Type"] == OCI

    made = manifests.dockers(there.text)
    registry.request("PUT", "oci/manifests/3", data=made, headers={"Content-Type": manifests.DOCKER})
    assert registry.manifest("oci", "3").json() == pushed
    pull(f"{registry.host}/oci:3", logged_in)
    assert inspect(f"{registry.host}/oci:3")["Id"] == inspect(small)["Id"]


def test_what_cannot_be_pushed_is_said(registry: Registry, small: str, tmp_path: Path) -> None:
    """
    No image, no daemon, no login, an image for other machines: a sentence each, and nothing is pushed.
    """
    push = [sys.executable, "-m", "polyhost", "push"]
    nobody = {**os.environ, "DOCKER_CONFIG": str(tmp_path)}
    for arguments, environ, code, words in [
        (["polyhost-test/none:1", "none:1"], nobody, 2, "There is no image polyhost-test/none:1 here"),
        ([small, "none:1"], {**nobody, "DOCKER_HOST": "unix:///nowhere.sock"}, 6, "The Docker daemon does not answer"),
        ([small, "none:1"], nobody, 6, "was not pushed"),
        ([arm_image(tmp_path), "none:1"], nobody, 2, "is for linux/arm64, SageMaker runs linux/amd64"),
        ([small, "http://none"], nobody, 2, "is not REPOSITORY:TAG"),
    ]:
        done = run([*push, *arguments, "--registry", registry.host], environ)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert "none" not in registry.request("GET", "_catalog").json()["repositories"]
    docker("rmi", "polyhost-test/arm:1")


def arm_image(folder: Path) -> str:
    """As a newer Mac builds it."""
    (folder / "greeting").write_text("hello")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY greeting /\n")
    docker("build", "--platform", "linux/arm64", "--tag", "polyhost-test/arm:1", str(folder))
    return "polyhost-test/arm:1"
