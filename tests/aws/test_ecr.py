"""What `polyhost push` leaves in ECR: one image in Docker's form. The push itself is in tests/image/test_push.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
from polyhost.errors import DeployFailed
from polyhost_aws import manifests
from polyhost_aws.progress import Lines
from polyhost_aws.push import ensure_docker_manifest
from polyhost_aws.session import Aws

from aws.conftest import Cloud, docker_manifest

OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def oci_manifest(seed: str, layer: str = "application/vnd.oci.image.layer.v1.tar+gzip") -> dict[str, Any]:
    whole = docker_manifest(seed)
    config = {**whole["config"], "mediaType": "application/vnd.oci.image.config.v1+json"}
    return {**whole, "mediaType": OCI, "config": config, "layers": [{**whole["layers"][0], "mediaType": layer}]}


def index(**digests: str) -> dict[str, Any]:
    entries = [
        {"mediaType": OCI, "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": architecture}}
        for architecture, digest in digests.items()
    ]
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}


@pytest.fixture
def aws(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Aws:
    for name, value in cloud.shell.environ.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    return Aws("us-east-1")


def tagged(aws: Aws, tag: str) -> dict[str, Any]:
    asked = {"repositoryName": "polyhost", "imageIds": [{"imageTag": tag}]}
    return dict(aws.call("ecr", "DescribeImages", asked)["imageDetails"][0])


def test_dockers_form_stays(cloud: Cloud, aws: Aws) -> None:
    """
    Nothing is pushed again.
    """
    digest = tagged(aws, "mms")["imageDigest"]

    assert ensure_docker_manifest(aws, "polyhost", "mms", Lines()) == digest


@pytest.mark.parametrize("is_list", [False, True])
def test_ocis_form_becomes_dockers(cloud: Cloud, aws: Aws, is_list: bool) -> None:
    """
    Of a list it is the image for linux/amd64; then the tag can be deployed.
    """
    digest = cloud.put_image("polyhost", "amd" if is_list else "new", oci_manifest("new"))
    if is_list:
        arm = cloud.put_image("polyhost", "arm", oci_manifest("arm"))
        cloud.put_image("polyhost", "new", index(arm64=arm, unknown=arm, amd64=digest))

    done = ensure_docker_manifest(aws, "polyhost", "new", Lines())

    there = tagged(aws, "new")
    assert (there["imageDigest"], there["imageManifestMediaType"]) == (done, manifests.DOCKER)
    asked = {"repositoryName": "polyhost", "imageIds": [{"imageTag": "new"}]}
    (image,) = aws.call("ecr", "BatchGetImage", asked)["images"]
    assert json.loads(image["imageManifest"]) == docker_manifest("new")
    cloud.shell.run("deploy", "houses", "--models", "s3://our-models/", "--image", "polyhost:new", "--dry-run")


def test_what_sagemaker_cannot_run_is_said(cloud: Cloud, aws: Aws) -> None:
    """
    A list without linux/amd64, and layers that Docker's form has not.
    """
    arm = cloud.put_image("polyhost", "arm", oci_manifest("arm"))
    cloud.put_image("polyhost", "list", index(arm64=arm))
    with pytest.raises(DeployFailed, match="it has no image for linux/amd64"):
        ensure_docker_manifest(aws, "polyhost", "list", Lines())

    cloud.put_image("polyhost", "zstd", oci_manifest("zstd", "application/vnd.oci.image.layer.v1.tar+zstd"))
    with pytest.raises(DeployFailed, match=r"it has a part of the type .*zstd"):
        ensure_docker_manifest(aws, "polyhost", "zstd", Lines())
