"""
SAGEMAKER_SUBMIT_DIRECTORY: code that belongs to the container and serves every model of it.

The SageMaker SDK packs a user's script as `sourcedir.tar.gz`, uploads it and names it there. It is fetched
and unpacked once, at the start; handlers find it as a local folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from polyhost.archives import unpack
from polyhost.errors import StartFailed

logger = logging.getLogger("polyhost")

_VARIABLE = "SAGEMAKER_SUBMIT_DIRECTORY"


def fetched_submit_directory(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """
    `environ` with the submit directory as a local folder.

    An `s3://` url is fetched and unpacked into `folder`, a local archive is unpacked there, a local folder stays
    as it is. Raises StartFailed.
    """
    url = environ.get(_VARIABLE, "")
    if not url:
        return dict(environ)
    parts = urlsplit(url)
    if parts.scheme == "s3":
        archive = folder / "sourcedir.tar.gz"
        _fetch(parts.netloc, parts.path.lstrip("/"), archive)
    elif parts.scheme in ("", "file"):
        archive = Path(parts.path)
        if archive.is_dir():
            return {**environ, _VARIABLE: str(archive)}
    else:
        raise StartFailed(f"{_VARIABLE} is {url}: use s3://BUCKET/KEY or a path.")
    if not archive.is_file():
        raise StartFailed(f"{_VARIABLE} is {url}, which does not exist.")
    code = folder / "code"
    unpack(archive, code)
    logger.info("code of the container: %s", url)
    return {**environ, _VARIABLE: str(code)}


def _fetch(bucket: str, key: str, to: Path) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        boto3.client("s3").download_file(bucket, key, str(to))
    except (BotoCoreError, ClientError) as error:
        raise StartFailed(f"{_VARIABLE} cannot be fetched from s3://{bucket}/{key}: {error}") from error
