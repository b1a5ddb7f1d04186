"""What CreateModel says of containers becomes what the server works with. Pure, but that links are followed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from polyhost.endpoint.definitions import Container
from polyhost.endpoint.hosting.images import handler_of, refusal_of, tagged, unknown_handler

_MULTI_MODEL = "MultiModel"
# Where the SDK says that the code is when it has put it into the model's archive.
_IN_THE_ARCHIVE = "/opt/ml/model/code"
_HANDLER = "POLYHOST_HANDLER"
_SUBMIT_DIRECTORY = "SAGEMAKER_SUBMIT_DIRECTORY"

# What would change the answers, and is not there: why.
_REFUSED = {
    "ModelPackageName": "there are no model packages here: name Image and ModelDataUrl",
    "InferenceSpecificationName": "there are no model packages here: name Image and ModelDataUrl",
    "AdditionalModelDataSources": "a container has one source of models here: use ModelDataUrl",
}
_REFUSED_IN_SOURCE = {
    "HubAccessConfig": "there is no hub here",
    "ManifestS3Uri": "models come as archives here, not by manifest",
    "ManifestEtag": "models come as archives here, not by manifest",
    "ETag": "an archive is served as the bucket has it",
}

# The bucket before the host of S3, or first in the path.
_S3_HOST = re.compile(
    r"(?:(?P<bucket>.+)\.)?s3(?:[.-](?:dualstack\.)?[a-z0-9-]+)?\.amazonaws\.com(?:\.cn)?",
    re.IGNORECASE,
)
# The end of a C string; halves of characters, which JSON can write.
_NOT_IN_A_VARIABLE = re.compile("[\0\ud800-\udfff]")


class Unusable(Exception):
    """The text says which field, and what to do."""


def containers_of(model: Mapping[str, Any], allowed_folders: Sequence[Path]) -> tuple[Container, ...]:
    """
    The containers of a CreateModel request, in the order of their pipeline.

    Folders must lie under `allowed_folders`. Raises Unusable.
    """
    definitions = _definitions(model)
    if model.get("InferenceExecutionConfig", {}).get("Mode") == "Direct":
        raise Unusable(
            "InferenceExecutionConfig.Mode Direct is not supported: containers are called in their order, use Serial"
        )
    containers = tuple(
        _container(definition, f"{where}.", f"container-{number}" if len(definitions) > 1 else "", allowed_folders)
        for number, (where, definition) in enumerate(definitions, 1)
    )
    if len({container.hostname for container in containers}) < len(containers):
        raise Unusable("ContainerHostname is not unique: every container of a model needs one of its own")
    if sum(container.is_multi_model for container in containers) > 1:
        raise Unusable("Mode MultiModel is for one container of a pipeline, because a request names one TargetModel")
    return containers


def _definitions(model: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    primary, several = model.get("PrimaryContainer"), model.get("Containers")
    if bool(several) == (primary is not None):
        raise Unusable("give either PrimaryContainer or Containers, and not both")
    if primary is not None:
        return [("PrimaryContainer", primary)]
    return [(f"Containers[{number}]", definition) for number, definition in enumerate(several or ())]


def _container(definition: Mapping[str, Any], where: str, hostname: str, allowed_folders: Sequence[Path]) -> Container:
    _refuse(definition, _REFUSED, where)
    image = definition.get("Image")
    if not image:
        raise Unusable(f"{where}Image is missing")
    environ = definition.get("Environment", {})
    for name, value in environ.items():
        if _NOT_IN_A_VARIABLE.search(value):
            raise Unusable(f"{where}Environment.{name} has a character that no variable can hold")
    if refusal := refusal_of(image, environ):
        raise Unusable(f"{where}Image is {refusal}")
    named = environ.get(_HANDLER, "")
    if named and (reason := unknown_handler(named)):
        raise Unusable(f"{where}Environment.{_HANDLER} '{named[:80]}' {reason}")
    code = environ.get(_SUBMIT_DIRECTORY)
    if code and code != _IN_THE_ARCHIVE:
        located(code, f"{where}Environment.{_SUBMIT_DIRECTORY}", is_multi_model=False, allowed_folders=allowed_folders)
    is_multi_model = definition.get("Mode") == _MULTI_MODEL
    return Container(
        source=_source(definition, where, is_multi_model, allowed_folders),
        is_multi_model=is_multi_model,
        handler=handler_of(image, environ),
        environ=tuple(sorted(environ.items())),
        image=tagged(image),
        hostname=definition.get("ContainerHostname", hostname),
        is_cached=definition.get("MultiModelConfig", {}).get("ModelCacheSetting") != "Disabled",
    )


def _refuse(given: Mapping[str, Any], refused: Mapping[str, str], where: str) -> None:
    for name, reason in refused.items():
        if given.get(name):
            raise Unusable(f"{where}{name} is not supported: {reason}")


def _source(definition: Mapping[str, Any], where: str, is_multi_model: bool, allowed_folders: Sequence[Path]) -> str:
    url, source = definition.get("ModelDataUrl"), definition.get("ModelDataSource")
    if bool(url) == bool(source):
        raise Unusable(f"{where}ModelDataUrl must say where the models are; Polyhost runs no image that brings its own")
    if source:
        where, url = f"{where}ModelDataSource.S3DataSource.", _url_in_source(source, where, is_multi_model)
        where += "S3Uri"
    else:
        where += "ModelDataUrl"
    return located(url or "", where, is_multi_model, allowed_folders)


def _url_in_source(source: Mapping[str, Any], where: str, is_multi_model: bool) -> str:
    where += "ModelDataSource"
    data = source.get("S3DataSource")
    if not data:
        raise Unusable(f"{where}.S3DataSource is missing")
    _refuse(data, _REFUSED_IN_SOURCE, f"{where}.S3DataSource.")
    wanted = "S3Prefix" if is_multi_model else "S3Object"
    if data["CompressionType"] != "Gzip" or data["S3DataType"] != wanted:
        raise Unusable(
            f"{where} must have CompressionType Gzip and S3DataType {wanted} in this Mode: models are archives here"
        )
    return str(data["S3Uri"])


def located(url: str, where: str, is_multi_model: bool, allowed_folders: Sequence[Path]) -> str:
    """
    A url in the form that stores know: `s3://BUCKET/KEY` or an absolute path; a folder's with a final `/`.

    Raises Unusable.
    """
    scheme, separator, rest = url.partition("://")
    if not separator and url.startswith("/"):
        path = _allowed(url, where, allowed_folders)
    elif scheme == "file" and rest.startswith("/"):
        path = _allowed(unquote(rest), where, allowed_folders)
    elif scheme == "s3":
        path = _s3(*rest.partition("/")[::2], where)
    elif scheme == "https":
        path = _s3(*_bucket_and_key(rest, where), where)
    else:
        raise Unusable(
            f"{where} is none of s3://BUCKET/PREFIX, https://s3.REGION.amazonaws.com/BUCKET/PREFIX and file:///FOLDER"
        )
    if is_multi_model:
        return path if path.endswith("/") else f"{path}/"
    if path.endswith("/"):
        raise Unusable(f"{where} ends with a slash, as a folder does: in Mode SingleModel name one archive")
    return path


def _s3(bucket: str, key: str, where: str) -> str:
    if not bucket:
        raise Unusable(f"{where} names no bucket")
    return f"s3://{bucket}/{key.lstrip('/')}"


def _bucket_and_key(rest: str, where: str) -> tuple[str, str]:
    # A presigned url's secrets are in its query; they are not repeated.
    host, _, path = rest.partition("/")
    match = _S3_HOST.fullmatch(host)
    if match is None or "?" in path:
        raise Unusable(f"{where} is no plain url of S3: write s3://BUCKET/PREFIX")
    path = unquote(path)
    if match["bucket"]:
        return match["bucket"], path
    bucket, _, key = path.partition("/")
    return bucket, key


def _allowed(path: str, where: str, allowed_folders: Sequence[Path]) -> str:
    """Where it leads, links and all, so that what is opened is what was looked at."""
    try:
        resolved = Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a null character
        raise Unusable(f"{where} '{path}' is not a path: {error}") from error
    if not is_allowed(resolved, allowed_folders):
        raise Unusable(
            f"{where} '{path}' does not lie under a folder that this server may serve models from "
            "(--model-root allows one)"
        )
    return str(resolved) + ("/" if path.endswith("/") and str(resolved) != "/" else "")


def is_allowed(path: Path, allowed_folders: Sequence[Path]) -> bool:
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in allowed_folders)


def folders_of(containers: Sequence[Container]) -> Iterator[Path]:
    """The sources that are folders, not buckets."""
    return (Path(container.source) for container in containers if container.source.startswith("/"))
