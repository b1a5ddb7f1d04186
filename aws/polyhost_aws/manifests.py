"""
Image manifests: SageMaker takes Docker's form alone, neither OCI's nor lists of images. Pure.

Newer Docker daemons push OCI's. Both forms name the same blobs: one is made of the other without pushing them again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
_OCI = "application/vnd.oci.image.manifest.v1+json"
LISTS = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
ALL = (DOCKER, _OCI, *LISTS)

_DOCKERS = {
    "application/vnd.oci.image.config.v1+json": "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.oci.image.layer.v1.tar": "application/vnd.docker.image.rootfs.diff.tar",
}


class Unsuitable(Exception):
    """The text says why."""


def dockers(manifest: str) -> str:
    """The same image in Docker's form. Raises Unsuitable."""
    document = json.loads(manifest)
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER,
            "config": _blob(document["config"]),
            "layers": [_blob(layer) for layer in document["layers"]],
        },
        indent=3,
    )


def _blob(descriptor: Mapping[str, Any]) -> dict[str, Any]:
    media_type = descriptor["mediaType"]
    if media_type not in (*_DOCKERS, *_DOCKERS.values()):
        raise Unsuitable(f"it has a part of the type {media_type}, which Docker's form does not have")
    kept = {"size": descriptor["size"], "digest": descriptor["digest"]}
    return {"mediaType": _DOCKERS.get(media_type, media_type), **kept}


def amd64_of(manifest_list: str) -> str:
    """The digest of the one image that SageMaker can run. Raises Unsuitable."""
    for entry in json.loads(manifest_list)["manifests"]:
        platform = entry.get("platform", {})
        if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64"):
            return str(entry["digest"])
    raise Unsuitable("it has no image for linux/amd64")
