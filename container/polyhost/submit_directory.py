"""
SAGEMAKER_SUBMIT_DIRECTORY: code that belongs to the container and serves every model of it.

The SageMaker SDK packs a user's script as `sourcedir.tar.gz`, uploads it and names it there. It is fetched
and unpacked once, at the start, by the process that does so with models; handlers find it as a local folder.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from polyhost.artifacts import split_archive_url
from polyhost.artifacts.entries import MODEL
from polyhost.artifacts.fetching import Fetcher
from polyhost.artifacts.transfers import Settings
from polyhost.errors import StartFailed
from polyhost.service_errors import EndpointError

logger = logging.getLogger("polyhost")

_VARIABLE = "SAGEMAKER_SUBMIT_DIRECTORY"
_MAX_CODE_BYTES = 64 * 1024**3


def fetched_submit_directory(environ: Mapping[str, str], folder: Path, unpack_secs: float) -> dict[str, str]:
    """
    `environ` with the submit directory as a local folder.

    An `s3://` url is fetched and unpacked into `folder`, a local archive is unpacked there, a local folder stays
    as it is. Raises StartFailed.
    """
    url = environ.get(_VARIABLE, "")
    if not url:
        return dict(environ)
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        local = Path(parts.path).absolute()
        if local.is_dir():
            return {**environ, _VARIABLE: str(local)}
        if not local.is_file():
            raise StartFailed(f"{_VARIABLE} is {url}, which does not exist.")
        archive = str(local)
    elif parts.scheme == "s3":
        archive = url
    else:
        raise StartFailed(f"{_VARIABLE} is {url}: use s3://BUCKET/KEY or a path.")
    try:
        asyncio.run(_fetch(archive, folder, environ, unpack_secs))
    except EndpointError as error:
        raise StartFailed(f"{_VARIABLE} cannot be fetched from {url}: {error.message}") from error
    logger.info("code of the container: %s", url)
    return {**environ, _VARIABLE: str(folder / "code" / MODEL)}


async def _fetch(archive: str, folder: Path, environ: Mapping[str, str], unpack_secs: float) -> None:
    """Raises EndpointError."""
    source, key = split_archive_url(archive)
    fetcher = Fetcher(Settings(dict(environ), connect_secs=5, read_secs=20, fetch_secs=360, unpack_secs=unpack_secs))
    fetcher.start()
    try:
        listed = await fetcher.look_up(source, key)
        place, to = str(folder / "fetching"), str(folder / "code")
        await fetcher.fetch(source, key, listed, place=place, to=to, limit_bytes=_MAX_CODE_BYTES)
    finally:
        await fetcher.stop()
