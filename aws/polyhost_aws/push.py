"""`polyhost push`: a local image to ECR, in the form that SageMaker takes."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import click
from polyhost.errors import DeployFailed, InvalidSetting, MissingDependency

from polyhost_aws import manifests
from polyhost_aws.progress import Progress, progress
from polyhost_aws.session import Aws, CallFailed

# A tag that is pushed anew leaves the image before it without one; but a running endpoint may need that image still,
# when it starts another instance. So it is their number that is limited, not their age.
_LIFECYCLE = {
    "rules": [
        {
            "rulePriority": 1,
            "description": "The 20 newest of the images that have lost their tag",
            "selection": {"tagStatus": "untagged", "countType": "imageCountMoreThan", "countNumber": 20},
            "action": {"type": "expire"},
        }
    ]
}


def push(image: str, to: str, registry: str, region: str) -> None:
    """Prints the image's place, by its digest."""
    repository, tag = _split(to)
    said = progress()
    local = Local(image)
    if registry:
        url = f"{registry}/{repository}"
        digest, media_type = local.push(url, tag, None, said)
        if media_type != manifests.DOCKER:
            raise DeployFailed(f"{url}:{tag} was pushed as {media_type}, which SageMaker refuses, and so does this.")
    else:
        aws = Aws(region)
        url = ensure_repository(aws, repository, said)
        local.push(url, tag, login(aws), said)
        digest = ensure_docker_manifest(aws, repository, tag, said)
    said.say(f"{url}:{tag} is {digest}")
    click.echo(f"{url}@{digest}")


def _split(name: str) -> tuple[str, str]:
    repository, _, tag = name.partition(":")
    if not repository or repository != repository.lower() or "@" in name or "/" in tag:
        raise InvalidSetting(f"'{name}' is not REPOSITORY:TAG, in lower case and without a registry (--registry).")
    return repository, tag or "latest"


# ECR


def ensure_repository(aws: Aws, name: str, said: Progress) -> str:
    """Its address. One that is there stays as it is."""
    try:
        answer = aws.call("ecr", "DescribeRepositories", {"repositoryNames": [name]})
        return str(answer["repositories"][0]["repositoryUri"])
    except CallFailed as error:
        if error.code != "RepositoryNotFoundException":
            raise
    made = aws.call(
        "ecr", "CreateRepository", {"repositoryName": name, "imageScanningConfiguration": {"scanOnPush": True}}
    )
    aws.call("ecr", "PutLifecyclePolicy", {"repositoryName": name, "lifecyclePolicyText": json.dumps(_LIFECYCLE)})
    said.say(f"repository {name} made: images are scanned when they are pushed, and old ones expire")
    return str(made["repository"]["repositoryUri"])


def login(aws: Aws) -> dict[str, str]:
    """Good for twelve hours."""
    (data,) = aws.call("ecr", "GetAuthorizationToken", {})["authorizationData"]
    user, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
    return {"username": user, "password": password}


def ensure_docker_manifest(aws: Aws, repository: str, tag: str, said: Progress) -> str:
    """Make the tag name one image in Docker's form, and return its digest. Raises DeployFailed."""
    found = _manifest(aws, repository, {"imageTag": tag})
    digest: str = found["imageId"]["imageDigest"]
    try:
        if _type_of(found) in manifests.LISTS:
            found = _manifest(aws, repository, {"imageDigest": manifests.amd64_of(found["imageManifest"])})
        wanted = (
            found["imageManifest"] if _type_of(found) == manifests.DOCKER else manifests.dockers(found["imageManifest"])
        )
    except manifests.Unsuitable as error:
        raise DeployFailed(f"SageMaker would refuse {repository}:{tag}: {error}.") from error
    if found["imageId"]["imageDigest"] == digest and _type_of(found) == manifests.DOCKER:
        return digest
    said.say(f"{repository}:{tag} gets a manifest in Docker's form: SageMaker takes no other")
    put = {"repositoryName": repository, "imageTag": tag, "imageManifest": wanted}
    put["imageManifestMediaType"] = manifests.DOCKER
    return str(aws.call("ecr", "PutImage", put)["image"]["imageId"]["imageDigest"])


def _manifest(aws: Aws, repository: str, image: Mapping[str, str]) -> dict[str, Any]:
    asked = {"repositoryName": repository, "imageIds": [image], "acceptedMediaTypes": list(manifests.ALL)}
    answer = aws.call("ecr", "BatchGetImage", asked)
    if not answer["images"]:
        raise DeployFailed(f"ECR does not have {repository} {image}: {answer.get('failures')}.")
    return dict(answer["images"][0])


def _type_of(found: Mapping[str, Any]) -> str:
    return str(found.get("imageManifestMediaType") or json.loads(found["imageManifest"]).get("mediaType", ""))


# Docker


class Local:
    """An image of the Docker daemon. Raises MissingDependency, DeployFailed, InvalidSetting."""

    def __init__(self, image: str) -> None:
        try:
            import docker
        except ImportError as error:
            raise MissingDependency("`polyhost push` needs the docker package: pip install 'polyhost[aws]'.") from error
        self._docker = docker
        with self._errors_told("The Docker daemon does not answer (is it running? DOCKER_HOST?)"):
            self._client = docker.from_env()
            self._client.ping()
        try:
            self._image = self._client.images.get(image)
        except docker.errors.ImageNotFound as error:
            raise InvalidSetting(
                f"There is no image {image} here: make image builds it, docker images lists all."
            ) from error
        platform = f"{self._image.attrs['Os']}/{self._image.attrs['Architecture']}"
        if platform != "linux/amd64":
            raise InvalidSetting(
                f"{image} is for {platform}, SageMaker runs linux/amd64: build it with scripts/build_and_push."
            )

    def push(self, url: str, tag: str, auth: Mapping[str, str] | None, said: Progress) -> tuple[str, str]:
        """Its digest and its manifest's type, as the registry says them. Without `auth` it is docker's own login."""
        with self._errors_told(f"{url}:{tag} was not pushed"):
            self._image.tag(url, tag)
            with said.transfer(f"{url}:{tag}") as show:
                layers = _Layers()
                for event in self._client.api.push(url, tag, stream=True, decode=True, auth_config=auth):
                    if "error" in event:
                        raise DeployFailed(f"{url}:{tag} was not pushed: {event['error']}")
                    layers.see(event)
                    show(layers.done_bytes, layers.all_bytes)
            described = self._client.api.inspect_distribution(f"{url}:{tag}", auth_config=auth)["Descriptor"]
        return described["digest"], described["mediaType"]

    @contextlib.contextmanager
    def _errors_told(self, what: str) -> Iterator[None]:
        import requests

        try:
            yield
        except (self._docker.errors.DockerException, requests.RequestException) as error:
            raise DeployFailed(f"{what}: {getattr(error, 'explanation', None) or error}") from error


class _Layers:
    """What a push tells of each layer, added up."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}

    @property
    def done_bytes(self) -> int:
        return sum(done for done, _ in self._layers.values())

    @property
    def all_bytes(self) -> int:
        return sum(total for _, total in self._layers.values())

    def see(self, event: Mapping[str, Any]) -> None:
        detail = event.get("progressDetail") or {}
        if "current" in detail:  # compressed sizes are guessed, and passed at the end
            self._layers[event["id"]] = (detail["current"], max(detail["current"], detail.get("total", 0)))
